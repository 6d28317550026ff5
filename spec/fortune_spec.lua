-- recipes/fortune.lua as a session: what the first recipe promises about memory and bits.
local lm = require "lumuon"
local recipe = require "spec.support.recipe"

local function session(...) return recipe.open("recipes/fortune.lua", { ... }) end

describe("recipes/fortune.lua", function()
  for _, options in ipairs { {}, { "--dtype=bf16" }, { "--optimizer=adamw" } } do
    local label = options[1] or "as it stands"
    it("asks the system for no memory after its first two steps, " .. label, function()
      collectgarbage() -- what other specs left would be freed at some step, and change what the cache keeps
      collectgarbage()
      require("lumuon.lib").C.lm_memory_trim()
      local s = session(unpack(options))
      for i = 0, 1 do s.train_step(i) end
      local before = lm.memory().system_allocs
      for i = 2, 4 do s.train_step(i) end
      assert.equal(before, lm.memory().system_allocs)
    end)
  end

  it("gives the same losses and weights twice", function()
    local a, b = session("--batch_size=4"), session("--batch_size=4")
    for i = 0, 3 do assert.equal(a.train_step(i), (b.train_step(i))) end
    for name, p in a.model:named_parameters() do
      assert.equal(0, p:detach():ne(b.model.by_name[name]:detach()):sum():item(), name)
    end
  end)

  it("takes another seed to other losses", function()
    local a, b = session("--batch_size=4"), session("--batch_size=4", "--seed=2")
    assert.not_equal(a.train_step(0), (b.train_step(0)))
  end)

  it("learns, with either optimizer", function()
    for _, optimizer in ipairs { "muon", "adamw" } do
      local s = session("--batch_size=4", "--n_layer=2", "--n_embd=64", "--n_head=2", "--optimizer=" .. optimizer)
      local first = s.train_step(0)
      local last
      for i = 1, 30 do last = s.train_step(i) end
      assert.is_true(first > 5.5 and last < 3.6, ("%s: %.3f to %.3f"):format(optimizer, first, last))
    end
  end)
end)
