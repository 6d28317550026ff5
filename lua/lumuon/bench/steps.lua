--- Our optimizer on given groups, a step of each on its own, with what the step costs by count.
--
-- A group here: { name =, kind = "muon" or "adamw", dtype = of an AdamW group's tensors and moments ("f32"),
-- count = tensors, sizes = of each }.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local autograd = require "lumuon.autograd"
local optim = require "lumuon.optim"
local banks = require "lumuon.optim.banks"
local clock = require "lumuon.clock"
local ffi, C = lib.ffi, lib.C

local steps = {}

--- How many numbers a group has.
local function elements(group)
  local n = group.count
  for _, size in ipairs(group.sizes) do n = n * size end
  return n
end
steps.elements = elements

--- Floating point operations of AdamW, an element: 3 + 4 of the moments, 8 of the update.
local ADAMW_OPERATIONS = 15

local function adamw_cost(group)
  local size = group.dtype == "bf16" and 2 or 4
  return { bytes = elements(group) * 7 * size, bytes_per_parameter = 7 * size,
    operations = elements(group) * ADAMW_OPERATIONS, path = "one pass" }
end

--- What the last Muon step or Polar Express did, as the engine counted it; path: "gram, cublaslt".
function steps.muon_report()
  local did = ffi.new("lm_muon_report")
  lib.call(C.lm_muon_last, did)
  return { path = ("%s, %s"):format(ffi.string(C.lm_muon_path_name(did.path)), ffi.string(did.kernel)),
    bytes = did.bytes, operations = did.operations, scratch_bytes = did.scratch }
end

local function muon_cost(group)
  local did = steps.muon_report()
  local m, n = math.min(unpack(group.sizes)), math.max(unpack(group.sizes))
  return { bytes = did.bytes, bytes_per_parameter = did.bytes / elements(group), operations = did.operations,
    operations_as_written = group.count * 5 * (4 * m * m * n + 2 * m * m * m),
    path = did.path, scratch_bytes = did.scratch_bytes }
end

local function write(_, f, ...) lib.call(f, ...) end

local Steps = {}
Steps.__index = Steps

--- Parameters with gradients for all groups, and one optimizer over them; precision: of Muon's products; device:
-- where they lie, the CPU if not given; graph: as MuonAdamW's.
function steps.new(groups, precision, device, graph)
  local generator, made, number = tensor.Generator(1), {}, 0
  local function parameter(group)
    number = number + 1
    local t = tensor.randn(group.sizes, { generator = generator, std = 0.02, dtype = group.dtype or "f32",
      device = device })
    local p = autograd.parameter(t, "p" .. number)
    t:free()
    p.grad:normal_(0, 1, tensor.Generator(2, number))
    return p
  end
  for i, group in ipairs(groups) do
    local params = {}
    for j = 1, group.count do params[j] = parameter(group) end
    made[i] = { kind = group.kind, params = params, lr = 1e-3, weight_decay = 0.1,
      precision = group.kind == "muon" and precision or nil }
  end
  made.graph = graph
  local self = setmetatable({ groups = groups, opt = optim.MuonAdamW(made), count = 0 }, Steps)
  lib.collect()
  C.lm_memory_trim()
  return self
end

--- Seconds of a step of group i, without the look at its gradients for NaN that opt:step() begins with.
function Steps:time(i)
  self.count = self.count + 1
  local begun = clock()
  banks.step(self.opt.slots[i], self.count, write, {})
  return clock() - begun
end

--- What the last step of group i took by count: bytes, bytes_per_parameter, operations, path.
function Steps:cost(i)
  local group = self.groups[i]
  return group.kind == "muon" and muon_cost(group) or adamw_cost(group)
end

--- Seconds of opt:step().
function Steps:whole()
  local begun = clock()
  self.opt:step()
  return clock() - begun
end

--- Bytes of the groups' parameters, gradients and state; and of their largest Muon group in bf16.
function steps.bytes(groups)
  local live, largest = 0, 0
  for _, group in ipairs(groups) do
    local muon, size = group.kind == "muon", group.dtype == "bf16" and 2 or 4
    live = live + elements(group) * size * (muon and 3 or 4)
    if muon then
      live = live + 4 * group.count * math.max(unpack(group.sizes))
      largest = math.max(largest, 2 * elements(group))
    end
  end
  return live, largest
end

--- Bytes: of parameters, gradients and state; of what a step needs beside them, from the engine's accounts;
-- and the bound on that, one and a half times the largest Muon group in bf16.
function Steps:memory()
  local live, largest = steps.bytes(self.groups)
  local before = C.lm_memory_live()
  C.lm_memory_reset_peak()
  self.opt:step()
  local scratch = C.lm_memory_peak() - before
  return { live_bytes = live, scratch_bytes = scratch, peak_bytes = live + scratch, bound_bytes = live + 1.5 * largest }
end

function Steps.elements(_, group) return elements(group) end

--- Give the memory back.
function Steps:free()
  for _, slot in ipairs(self.opt.slots) do
    for j, p in ipairs(slot.params) do
      for _, t in pairs(slot.state[j]) do t:free() end
      p.grad:free()
      p:free()
    end
    for _, name in ipairs { "bank", "grad_bank", "momentum", "second" } do
      if slot[name] then slot[name]:free() end
    end
  end
  C.lm_memory_trim()
end

return steps
