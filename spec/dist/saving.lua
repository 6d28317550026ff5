-- A worker of spec/dist_spec.lua and spec/rendezvous_spec.lua: checkpoints of several processes, and what they take of
-- memory. Prints, on rank 0, for each rank the bytes above what it had; the largest piece; and what went wrong.
local lm = require "lumuon"
local C = require("lumuon.lib").C
local o = lm.options { path = "", what = "memory", who = 0, at = 4 }
local rank, size = lm.dist.init { timeout = 20 }

local SIDE, LONG = 192, 90000
local by_name, groups = {}, {}
local function parameter(name, sizes)
  by_name[name] = lm.parameter(lm.full(sizes, 0.5), name)
  return by_name[name]
end
for i = 1, 6 do
  local list = {}
  for k = 1, 4 do list[k] = parameter(("m%d_%d"):format(i, k), { SIDE, SIDE }) end
  groups[i] = { kind = "muon", params = list, lr = 0.02 }
end
groups[7] = { kind = "adamw", lr = 0.01, params = { parameter("long", { LONG }), parameter("small", { 7 }) } }
local opt = lm.optim.MuonAdamW(groups)
local model = { by_name = by_name, named_parameters = function() return pairs(by_name) end }
local parts = { model = model, opt = opt }
local LARGEST = 4 * math.max(4, size * math.ceil(4 / size)) * SIDE * SIDE

local function fill(value)
  for _, p in pairs(by_name) do p.grad:fill(value) end
  opt:step()
end

--- Bytes that f has on each rank above what was there before.
local function above(f)
  collectgarbage()
  collectgarbage()
  C.lm_memory_reset_peak()
  local before = lm.memory().live
  f()
  local more = ("%d"):format(lm.memory().peak - before)
  return table.concat(lm.dist.all_strings(more, "bytes"), " ")
end

local function hash(of_state_alone)
  local text = {}
  local dict = opt:state_dict()
  for key, entries in pairs(dict and dict.state or {}) do
    for name, t in pairs(entries) do text[#text + 1] = ("%s %s %s"):format(key, name, lm.dist.hash(t)) end
  end
  for name, p in pairs(of_state_alone and {} or by_name) do text[#text + 1] = name .. lm.dist.hash(p) end
  table.sort(text)
  return table.concat(text, "\n")
end

fill(1)
if o.what == "memory" then
  print("save " .. above(function() lm.checkpoint.save(o.path, parts) end))
  print("each " .. above(function() opt:state_dict { each = function() end } end))
  local before, state = hash(), hash(true)
  fill(2)
  local after = hash()
  assert(after ~= before)
  print("load " .. above(function() lm.checkpoint.load(o.path, parts) end))
  local back = hash()
  assert(back == before)
  local dict = opt:state_dict()
  fill(3)
  if dict then dict.param_groups[2].momentum, dict.param_groups[7].betas = 0.25, { 0.5, 1 / 3 } end
  opt:load_state_dict(dict)
  local again = hash(true)
  assert(again == state and opt.steps == 1)
  assert(opt.param_groups[2].momentum == 0.25 and opt.param_groups[7].betas[2] == 1 / 3)
  print("largest " .. LARGEST)
  return
end

-- what one rank cannot do while the checkpoint is written or read
lm.checkpoint.save(o.path, parts)
fill(2)
local before = hash()
if rank == o.who and o.what == "interrupt" or o.what == "kill" then
  local gather, count = lm.dist.gather, 0
  lm.dist.gather = function(...)
    count = count + 1
    if count == o.at and rank == o.who then
      if o.what == "interrupt" then C.lm_interrupt() end
      local ffi = require "ffi"
      ffi.cdef "int raise(int);"
      if o.what == "kill" then ffi.C.raise(9) end
    end
    return gather(...)
  end
elseif rank == o.who and o.what == "write" then
  local create, count = lm.safetensors.create, 0
  lm.safetensors.create = function(...)
    local writer = create(...)
    local put = writer.put
    function writer:put(...)
      count = count + 1
      if count == 30 then error("the disk is on fire", 0) end
      return put(self, ...)
    end
    return writer
  end
end
local ok, message = pcall(o.what == "read" and lm.checkpoint.load or lm.checkpoint.save,
  o.what == "read" and o.path .. (rank == 0 and ".not" or "") or o.path, parts)
for r, text in ipairs(lm.dist.all_strings(tostring(ok) .. " " .. tostring(message), "outcomes")) do
  print(("outcome %d %s"):format(r - 1, text))
end
local now = hash()
assert(now == before)
lm.checkpoint.load(o.path, parts) -- the first one
assert(opt.steps == 1)
