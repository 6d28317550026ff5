--- Lumuon: tensors, optimizers and models for training recipes.
-- `local lm = require "lumuon"`
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local autograd = require "lumuon.autograd"
local ops = require "lumuon.ops"

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
  safetensors = require "lumuon.safetensors",
  models = { gpt = require "lumuon.models.gpt" },
}
for _, name in ipairs { "empty", "zeros", "ones", "full", "eye", "arange", "tensor", "rand", "randn", "empty_like",
  "zeros_like" } do
  lm[name] = tensor[name]
end
for name, op in pairs(ops) do lm[name] = op end

return lm
