--- Lumuon: tensors, optimizers and models for training recipes.
-- `local lm = require "lumuon"`
local lm = {}

return lm
