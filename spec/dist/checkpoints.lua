-- A rank's own file is not looked at: rank 0 reads, and sends what the others need. Prints everyone's parameter.
local lm = require "lumuon"
local o = lm.options { folder = "" }
local rank = lm.dist.init()
local path = ("%s/rank-%d.safetensors"):format(o.folder, rank)
if rank == 0 then
  local t = lm.zeros(3)
  lm.safetensors.save(path, { ["model.w"] = lm.full({ 3 }, 7), ["optimizer.w.exp_avg"] = t,
    ["optimizer.w.exp_avg_sq"] = t }, { step = "1", note = "a;{}" })
end
local w = lm.parameter(lm.zeros(3), "w")
local model = { by_name = { w = w }, named_parameters = function() return pairs { w = w } end }
local meta = lm.checkpoint.load(path, { model = model,
  opt = lm.optim.MuonAdamW { { kind = "adamw", params = { w }, lr = 1 } } })
for _, text in ipairs(lm.dist.all_strings(("%g %s"):format(w:detach():sum():item(), meta.note))) do print(text) end
