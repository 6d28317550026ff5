--- Lumuon: tensors, optimizers and models for training recipes.
-- `local lm = require "lumuon"`
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local autograd = require "lumuon.autograd"
local ops = require "lumuon.ops"
local tuning = require "lumuon.tuning"
require "lumuon.show"

local lm = {
  version = lib.ffi.string(lib.C.lm_version()),
  is_tensor = lib.is_tensor,
  scope = lib.scope,
  no_grad = autograd.no_grad,
  Function = autograd.Function,
  parameter = autograd.parameter,
  Generator = tensor.Generator,
  manual_seed = tensor.manual_seed,
  nn = require "lumuon.nn",
  data = require "lumuon.data",
  optim = require "lumuon.optim",
  dist = require "lumuon.dist",
  options = require "lumuon.options",
  checkpoint = require "lumuon.checkpoint",
  safetensors = require "lumuon.safetensors",
  train = require "lumuon.train",
  models = { gpt = require "lumuon.models.gpt" },
}
for _, name in ipairs { "empty", "zeros", "ones", "full", "eye", "arange", "tensor", "rand", "randn", "empty_like",
  "zeros_like" } do
  lm[name] = tensor[name]
end

--- Threads of the engine's loops.
function lm.threads() return lib.C.lm_threads() end
function lm.set_threads(n)
  if not lib.is_whole(n) or math.abs(n) > 2 ^ 31 - 1 then
    lib.raise("set_threads: %s is not a whole number in 1..1024", tostring(n))
  end
  lib.call(lib.C.lm_set_threads, n)
end

--- Choose nothing by measurement: see lumuon.tuning.
lm.set_deterministic, lm.deterministic = tuning.set_deterministic, tuning.deterministic

--- Bytes in live tensors, their peak, bytes kept for reuse, and blocks ever asked of the system. Of a GPU,
-- lm.memory("cuda"): live, peak, reserved (taken from the device, the spare included), free and total.
function lm.memory(device)
  local C = lib.C
  if device ~= nil and lib.device_code(device) ~= C.LM_CPU then
    local code = lib.device_code(device)
    local function of(what) return C.lm_device_memory(code, what) end
    return { live = of(C.LM_MEMORY_LIVE), peak = of(C.LM_MEMORY_PEAK), reserved = of(C.LM_MEMORY_RESERVED),
      free = of(C.LM_MEMORY_FREE), total = of(C.LM_MEMORY_TOTAL) }
  end
  return { live = C.lm_memory_live(), peak = C.lm_memory_peak(), cached = C.lm_memory_cached(),
    system_allocs = C.lm_memory_system_allocs() }
end

--- Wait until the GPU has done all it was given: what went wrong there is an error here.
function lm.synchronize(device) lib.call(lib.C.lm_synchronize, lib.device_code(device or "cuda")) end

for name, op in pairs(ops) do lm[name] = op end

return lm
