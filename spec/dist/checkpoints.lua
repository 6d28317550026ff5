-- Ranks go on from files of the same step that are not the same: without a shared disk they may be two runs'.
local lm = require "lumuon"
local o = lm.options { folder = "" }
local rank = lm.dist.init()
local path = ("%s/rank-%d.safetensors"):format(o.folder, rank)
lm.safetensors.save(path, { ["model.w"] = lm.full({ 3 }, rank) }, { step = "1" })
local w = lm.parameter(lm.zeros(3), "w")
local model = { by_name = { w = w }, named_parameters = function() return pairs { w = w } end }
lm.checkpoint.load(path, { model = model, opt = lm.optim.MuonAdamW { { kind = "adamw", params = { w }, lr = 1 } } })
