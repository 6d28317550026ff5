-- recipes/nanochat.lua and checkpoints: a run that was cut in two ends where one that was not ends.
local lm = require "lumuon"
local command = dofile("spec/command.lua")
local files = require "spec.support.files"
local recipe = require "spec.support.recipe"

local small = { "--depth=2", "--batch_tokens=768", "--sequence_len=64", "--device_batch_size=5", "--steps=30" }

local function session(...)
  local words = { unpack(small) }
  for _, word in ipairs { ... } do words[#words + 1] = word end
  return recipe.open("recipes/nanochat.lua", words)
end

local function same_weights(a, b)
  for name, p in a.model:named_parameters() do
    assert.equal(0, p:detach():ne(b.model.by_name[name]:detach()):sum():item(), name)
  end
end

describe("recipes/nanochat.lua", function()
  local folder
  setup(function() folder = files.folder() end)
  teardown(function() folder:remove() end)

  it("takes a step in parts of device_batch_size rows, and sums as one part would", function()
    local whole, parts = session("--device_batch_size=12", "--dtype=f32"), session("--dtype=f32")
    for i = 0, 2 do
      local a, b = whole.train_step(i), parts.train_step(i)
      assert.is_true(math.abs(a - b) < 1e-4, ("step %d: %.6f and %.6f"):format(i, a, b))
    end
  end)

  it("goes on from a checkpoint with the same losses and weights, bit by bit", function()
    local path = folder:path_of("c.safetensors")
    local a = session()
    for i = 0, 2 do a.train_step(i) end
    lm.checkpoint.save(path, { model = a.model, opt = a.opt, meta = { note = "three" } })
    local b = session("--seed=5", "--resume=" .. path)
    b.data.seed = 1 -- of the batches; the weights come from the file
    assert.equal(3, b.opt.steps)
    for i = 3, 5 do assert.equal(a.train_step(i), (b.train_step(i))) end
    same_weights(a, b)
  end)

  it("says at its end how many steps were skipped for gradients that are not finite", function()
    local words = { "run", "recipes/nanochat.lua", "--depth=2", "--batch_tokens=128", "--sequence_len=64", "--steps=3",
      "--eval_tokens=128", "--data=README.md" }
    assert.is_nil(command.run(words).out:find("skipped", 1, true))
    words[#words + 1], words[#words + 2] = "--embedding_lr=1e30", "--unembedding_lr=1e30"
    local r = command.run(words)
    assert.equal(0, r.code, r.err)
    assert.matches("\nskipped 2 steps for gradients that were not finite; the last: the gradient of [^\n]+\n$", r.out)
  end)

  it("trains on token shards", function()
    local tokens = lm.empty({ 4000 }, { dtype = "i32" })
    for i = 0, 3999 do tokens:pointer()[i] = i % 7 * 40 end
    for _, name in ipairs { "x_train.bin", "x_val.bin" } do
      lm.data.save_shard(folder:path_of(name), tokens:to("u16"))
    end
    local s = session("--data=" .. folder.path, "--vocab_size=300", "--matrix_lr=0.2", "--embedding_lr=2")
    local first, last = s.train_step(0), nil
    for i = 1, 12 do last = s.train_step(i) end
    assert.is_true(math.abs(first - math.log(300)) < 0.1 and last < first - 0.2, ("%.3f, %.3f"):format(first, last))
    assert.is_true(s.evaluate() < first - 0.2)
    assert.equal(40 * 6, s.data:batch("train", 1, 7, 0):max():item())
  end)

  it("names the token that its vocabulary has not", function()
    lm.data.save_shard(folder:path_of("y.bin"), lm.full({ 900 }, 299, { dtype = "i32" }))
    local ok, message = pcall(session("--data=" .. folder:path_of("y.bin"), "--vocab_size=299").train_step, 0)
    assert.is_false(ok)
    assert.is_truthy(message:find("299", 1, true))
  end)

  it("counts scaling parameters as the model does", function()
    local nanochat = dofile "recipes/parts/nanochat.lua"
    for depth = 1, 3 do
      local s = session("--depth=" .. depth)
      local _, matrices = s.model:num_parameters()
      assert.equal(matrices, nanochat.scaling_parameters(depth, 256))
    end
  end)
end)

describe("a checkpoint", function()
  local folder
  setup(function() folder = files.folder() end)
  teardown(function() folder:remove() end)

  it("is refused whole when anything does not fit, and changes nothing", function()
    local a, b = session(), session("--seed=2")
    a.train_step(0)
    b.train_step(0)
    local path = folder:path_of("a.safetensors")
    lm.checkpoint.save(path, { model = a.model, opt = a.opt })
    local good, meta = lm.safetensors.load(path)
    local moment = "optimizer.transformer.wte.weight.exp_avg"
    local cases = {
      { function(t) t["model.lm_head.weight"] = nil end, "no parameter 'lm_head.weight'" },
      { function(t) t["model.x0_lambdas"] = lm.zeros(3) end, "x0_lambdas is f32 (3), the model's is f32 (2)" },
      { function(t) t["model.extra"] = lm.zeros(3) end, "'model.extra', which the model has not" },
      { function(t) t.other = lm.zeros(3) end, "'other', which the model has not" },
      { function(t) t[moment] = nil end, "exp_avg of transformer.wte.weight is missing" },
      { function(t) t[moment] = lm.zeros(2, 2) end, "exp_avg of transformer.wte.weight is f32 (2, 2)" },
      { function(_, m) m.step = nil end, "is no checkpoint" },
      { function(_, m) m.step = "-3" end, "step = -3" },
    }
    for _, case in ipairs(cases) do
      local tensors, changed = {}, { step = meta.step }
      for name, t in pairs(good) do tensors[name] = t end
      case[1](tensors, changed)
      lm.safetensors.save(folder:path_of("bad.safetensors"), tensors, changed)
      local before = b.model.by_name["lm_head.weight"]:detach():clone()
      local ok, message = pcall(lm.checkpoint.load, folder:path_of("bad.safetensors"), { model = b.model, opt = b.opt })
      assert.is_false(ok)
      assert.is_truthy(message:find(case[2], 1, true), ("%q does not contain %q"):format(message, case[2]))
      assert.equal(0, before:ne(b.model.by_name["lm_head.weight"]:detach()):sum():item())
      assert.equal(1, b.opt.steps)
    end
    assert.is_false(pcall(lm.checkpoint.save, path, { model = a.model, opt = a.opt, meta = { step = "9" } }))
    assert.equal("1", select(2, lm.safetensors.load(path)).step)
  end)
end)
