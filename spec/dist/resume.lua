-- A worker of spec/dist_spec.lua: some steps of recipes/fortune.lua, from and to a checkpoint. Prints, on rank 0, each
-- step's loss, the held-out loss and how many batches each rank has evaluated.
local lm = require "lumuon"
local o = lm.options { first = 0, last = 0, load = "", save = "" }
local s = dofile("spec/support/recipe.lua").open("recipes/fortune.lua", { "--steps=12", "--n_layer=2", "--n_embd=64",
  "--n_head=2", "--sequence_len=64", "--batch_size=12", "--seed=3" })
if o.load ~= "" then lm.checkpoint.load(o.load, { model = s.model, opt = s.opt }) end
for step = o.first, o.last - 1 do print(("loss%d %.9g"):format(step, (s.train_step(step)))) end
if o.save ~= "" then lm.checkpoint.save(o.save, { model = s.model, opt = s.opt }) end

local forward, calls = s.model.forward, 0
function s.model:forward(...)
  calls = calls + 1
  return forward(self, ...)
end
print(("held_out %.17g"):format(s.evaluate()))
print("batches " .. table.concat(lm.dist.all_strings(tostring(calls)), " "))
print("all_batches " .. #s.data:batches("val", 12, 64))
