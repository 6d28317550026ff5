--- AdamW: the CPU's steps, element by element, and nanochat's golden values.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local devices = require "spec.support.devices"
local golden = dofile "spec/support/golden.lua"
local assert = require "luassert"
local ffi, C = lib.ffi, lib.C

local list = {}

local function adamw(tensors, given)
  local args, arrays, n = ffi.new("lm_adamw_args", given), {}, #tensors / 4
  for role = 1, 4 do
    arrays[role] = ffi.new("lm_tensor *[?]", n)
    for i = 1, n do arrays[role][i - 1] = tensors[4 * (i - 1) + role].h end
  end
  lib.call(C.lm_adamw_step, n, arrays[1], ffi.cast("const lm_tensor **", arrays[2]), arrays[3], arrays[4], args)
end

local function with(changes)
  local args = { lr = 0.01, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, weight_decay = 0.1, step = 1 }
  for k, v in pairs(changes) do args[k] = v end
  return args
end

local function inputs(n, halves)
  local made = {}
  for role = 1, 4 do
    local half = math.floor((halves or 0) / 2 ^ (role - 1)) % 2 == 1
    made[role] = devices.random(half and "bf16" or "f32", { n }, { low = role == 4 and 0 or -1 })
  end
  return made
end

list[#list + 1] = { "steps tensors of every mix of dtypes", function()
  for halves = 0, 15 do
    devices.compare(inputs(1003, halves), function(...)
      for step = 1, 2 do adamw({ ... }, with { step = step }) end
      return ...
    end, halves == 0 and 1e-6 or 2 ^ -7, ("mix %d"):format(halves))
  end
end }

list[#list + 1] = { "steps many tensors of all sizes, wherever they lie, in one launch or several", function()
  local all, sizes = {}, { 1, 0, 3, 20000, 17, 8192, 8193, 5 }
  for i = 1, 100 do
    for role, input in ipairs(inputs(sizes[i] or i % 13, i % 16)) do
      if i % 3 == 0 then input.view = function(t) return t:narrow(1, 2, t:size(1) - 1) end end -- not aligned
      if input.tensor:size(1) == 0 then input.view = nil end
      all[4 * (i - 1) + role] = input
    end
  end
  devices.compare(all, function(...)
    adamw({ ... }, with { step = 7, lr = 0.3 })
    return ...
  end, 2 ^ -7)
end }

list[#list + 1] = { "takes the numbers of each step", function()
  for _, changes in ipairs { { weight_decay = 0 }, { lr = 0 }, { beta1 = 0, beta2 = 0 },
    { step = 12345, eps = 1e-10 } } do
    devices.compare(inputs(300), function(...)
      adamw({ ... }, with(changes))
      return ...
    end, 1e-6)
  end
end }

for _, name in ipairs { "seed_adamw_small", "seed_adamw_large", "head_adamw_small", "head_adamw_large" } do
  list[#list + 1] = { "follows nanochat's " .. name, function()
    local t, meta = golden.load(name)
    local betas, peer = golden.numbers(meta.hyper, "betas"), golden.numbers(meta.peer_error, "f32")
    local init = t.init:select(1, 1)
    local p = lm.parameter(init:to("cuda"), name)
    local opt = lm.optim.MuonAdamW { { kind = "adamw", params = { p }, lr = golden.number(meta.hyper, "lr"),
      betas = betas, eps = golden.number(meta.hyper, "eps"),
      weight_decay = golden.number(meta.hyper, "weight_decay") } }
    for step = 1, t.grads:size(1) do
      p.grad:copy(t.grads:select(1, step):select(1, 1))
      assert.is_true(opt:step())
      local truth = t["params.f64"]:select(1, step):select(1, 1)
      local moved = golden.distance({ init }, { truth })
      assert.is_true(golden.distance({ p:detach():to("cpu") }, { truth }) <= 2 * peer[step] * moved)
    end
    for _, moment in ipairs { "exp_avg", "exp_avg_sq" } do
      local truth = t[moment .. ".f64"]
      assert.is_true(golden.distance({ opt:state(p)[moment]:to("cpu") }, { truth }) <= 2e-7 * truth:norm():item())
    end
  end }
end

return list
