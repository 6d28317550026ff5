-- A worker of spec/dist_spec.lua: steps of the optimizer on gradients that are a function of the seed, the
-- step and the parameter; each rank has its own part of them, and their mean does not depend on how many
-- ranks there are. Prints, on rank 0, `hash <of all parameters>`, and what else is asked for.
local lm = require "lumuon"
local o = lm.options {
  steps = 20, first = 0, integer = true, scale = 1.0, blocks = "", out = "", load = "", poison = -1, timeout = 60.0,
  precision = "f32", values = "", shift = 0, odd_lr = -1, odd_shape = -1, odd_order = -1, die = -1, at = "", audit = -1,
  device = "cpu", shard = false, late_lr = -1,
}
local rank, size = lm.dist.init { timeout = o.timeout }
if not os.getenv("OMP_NUM_THREADS") then lm.set_threads(1) end

-- Five matrices of one shape (no world size above 1 divides 5), one alone, one wide; an embedding whose rows
-- and elements nothing divides, a tensor in bf16, small ones.
local shapes = { { "a", { 24, 16 }, 5 }, { "one", { 12, 40 }, 1 }, { "wide", { 6, 30 }, 3 } }
local model, groups = {}, {}
local generator = lm.Generator(7)
local function parameter(name, sizes, dtype)
  local p = lm.parameter(lm.randn(sizes, { generator = generator, std = 0.5 }):to(dtype or "f32"):to(o.device), name)
  model[#model + 1] = p
  return p
end
for i, s in ipairs(shapes) do
  local list = {}
  for k = 1, s[3] do list[k] = parameter(s[1] .. k, o.odd_shape == rank and { 24, 18 } or s[2]) end
  groups[i] = { kind = "muon", name = s[1], params = list, lr = 0.02, weight_decay = 0.1, precision = o.precision }
end
if o.blocks == "equal" then groups[1].blocks = 2 end
if o.blocks == "unequal" then groups[1].blocks = { 10, 14 } end
groups[4] = { kind = "adamw", name = "large", lr = 0.01, weight_decay = 0.01,
  params = { parameter("embedding", { 101, 13 }), parameter("long", { 1500 }) } }
groups[5] = { kind = "adamw", name = "small", params = { parameter("s1", { 7 }), parameter("s2", { 1 }) }, lr = 0.1 }
groups[6] = { kind = "adamw", name = "mixed", lr = 0.01,
  params = { parameter("half", { 64, 32 }, "bf16"), parameter("s3", { 3, 5 }), parameter("s4", { 11 }, "bf16") } }
if o.odd_lr == rank then groups[1].lr = 0.03 end
if o.odd_order == rank then groups[4], groups[5] = groups[5], groups[4] end
if o.shift ~= 0 and rank == 0 then -- rank 0's values become everybody's
  for _, p in ipairs(model) do p:detach():copy(p:detach() + o.shift) end
end
groups.on_nonfinite = "skip"
groups.shard = size > 1 or o.shard or nil
local opt = lm.optim.MuonAdamW(groups)

if o.load ~= "" then
  local t, meta = lm.safetensors.load(o.load)
  local dict = { step = tonumber(meta.step), param_groups = {}, state = {} }
  for i, g in ipairs(opt.param_groups) do
    local copy = {}
    for k, v in pairs(g) do copy[k] = v end
    copy.params = {}
    for j, p in ipairs(g.params) do copy.params[j] = p.name end
    dict.param_groups[i] = copy
  end
  for key, value in pairs(t) do
    local name, entry = key:match("^(.-)|(.*)$")
    if entry == "value" then
      for _, p in ipairs(model) do if p.name == name then p:copy(value) end end
    else
      dict.state[name] = dict.state[name] or {}
      dict.state[name][entry] = value
    end
  end
  opt:load_state_dict(rank == 0 and dict or nil)
end

-- The mean over the ranks of base + (rank's share): the shares cancel, exactly where they are whole numbers.
local function set_gradients(step)
  for k, p in ipairs(model) do
    lm.scope(function()
      local g = lm.Generator(100 + step, k)
      local base = o.integer and lm.empty(p:size()):uniform_(-3, 4, g):floor() or lm.randn(p:size(), { generator = g })
      base = base * o.scale
      local other = lm.Generator(1000 + step, k)
      local pair = o.integer and lm.empty(p:size()):uniform_(-8, 9, other):floor()
        or lm.randn(p:size(), { generator = other })
      -- shares +pair, -pair, ... and 0 for an odd one out
      if not o.integer and p:dtype() == "bf16" then pair:zero() end -- sums in bf16 would not cancel
      local sign = (size % 2 == 1 and rank == size - 1) and 0 or (rank % 2 == 0 and 1 or -1)
      p.grad:copy((base + sign * pair):to(o.device))
    end)
  end
end

if o.late_lr == rank then opt.param_groups[2].lr = 0.04 end
for step = o.first, o.first + o.steps - 1 do
  opt:zero_grad()
  set_gradients(step)
  if o.poison == rank and step == o.first + 1 then model[3].grad:view(-1):narrow(1, 5, 1):fill(0 / 0) end
  if o.die == rank and step == o.first + 1 then
    local signal = { kill = 9, stop = 19 }
    local what, phase = o.at:match("^(%a+)%-(%a+)$")
    local ffi = require "ffi"
    ffi.cdef "int raise(int);"
    local function strike() ffi.C.raise(signal[what]) end
    if phase == "before" then
      strike()
    elseif phase == "reduce" then -- after launching the reductions
      local launch, count = lm.dist.reduce_scatter, 0
      lm.dist.reduce_scatter = function(...)
        count = count + 1
        if count == 3 then strike() end
        return launch(...)
      end
    elseif phase == "update" or phase == "gather" then
      local launch, count = lm.dist.all_gather, 0
      lm.dist.all_gather = function(t, how)
        count = count + 1
        if count == (phase == "update" and 3 or 5) then strike() end
        return launch(t, how)
      end
    end
  end
  local ok, message = opt:step()
  if not ok then print("skipped " .. message) end
end
if o.audit == rank then model[6]:detach():view(-1):narrow(1, 3, 1):fill(9) end

local same, where = opt:audit()
print("audit " .. (same and "same" or where))
local text = {}
for _, p in ipairs(model) do text[#text + 1] = lm.dist.hash(p) end
print("hash " .. table.concat(text, " "))
local bytes = lm.dist.all_strings(("%d"):format(opt:state_bytes()), "bytes")
print("state " .. table.concat(bytes, " "))
print("steps " .. opt.steps)
if o.out ~= "" then
  local dict = opt:state_dict()
  if dict then
    local tensors = {}
    for name, entry in pairs(dict.state) do
      for key, t in pairs(entry) do tensors[name .. "|" .. key] = t:contiguous() end
    end
    for _, p in ipairs(model) do tensors[p.name .. "|value"] = p:detach() end
    lm.safetensors.save(o.out, tensors, { step = tostring(dict.step) })
  end
end
