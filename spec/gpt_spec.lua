-- The GPT against nanochat's own numbers (spec/fixtures) and against itself.
local lm = require "lumuon"
local json = require "dkjson"

local function load_golden(file)
  local t, meta = lm.safetensors.load("spec/fixtures/" .. file .. ".safetensors")
  local config = json.decode(meta.config)
  config.preset = meta.version
  return t, config, meta
end

local function build(file)
  local t, config = load_golden(file)
  local model = lm.models.gpt.GPT(config)
  for name, p in model:named_parameters() do p:copy(assert(t["param." .. name], name)) end
  return model, t, config
end

--- |a - b| / |b|.
local function distance(a, b) return (a:detach() - b):norm():item() / math.max(b:norm():item(), 1e-30) end

for _, file in ipairs { "seed_gpt_small", "seed_gpt_odd", "head_gpt_small", "head_gpt_odd" } do
  describe(file, function()
    it("has the golden file's parameters, no more and no fewer", function()
      local model, t = build(file)
      local ours, theirs = {}, {}
      for name in model:named_parameters() do ours[#ours + 1] = name end
      for name in pairs(t) do theirs[#theirs + 1] = name:match("^param%.(.*)") end
      table.sort(ours)
      table.sort(theirs)
      assert.same(theirs, ours)
    end)

    it("computes the golden logits and loss", function()
      local model, t = build(file)
      assert.is_true(distance(model:forward(t.idx), t.logits) < 2e-6)
      local loss = model:forward(t.idx, t.targets):item()
      assert.is_true(math.abs(loss - t.loss:item()) < 2e-6, ("%.8f beside %.8f"):format(loss, t.loss:item()))
    end)

    it("computes the golden gradient of every parameter", function()
      local model, t = build(file)
      model:forward(t.idx, t.targets):backward()
      for name, p in model:named_parameters() do
        local d = distance(p.grad, t["grad." .. name])
        assert.is_true(d < 1e-5, ("%s: off by %.2e"):format(name, d))
      end
    end)
  end)
end

describe("GPT in bf16", function()
  it("stays near the f32 loss and gradients", function()
    for _, file in ipairs { "seed_gpt_small", "head_gpt_small" } do
      local t, config = load_golden(file)
      config.dtype = "bf16"
      local model = lm.models.gpt.GPT(config)
      for name, p in model:named_parameters() do p:copy(t["param." .. name]) end
      local loss = model:forward(t.idx, t.targets)
      assert.is_true(math.abs(loss:item() - t.loss:item()) < 0.03, ("%g beside %g"):format(loss:item(), t.loss:item()))
      loss:backward()
      local d = distance(model.by_name["transformer.h.0.mlp.c_fc.weight"].grad,
        t["grad.transformer.h.0.mlp.c_fc.weight"])
      assert.is_true(d < 0.1, "gradient off by " .. d)
    end
  end)
end)

describe("GPT", function()
  local small = { n_layer = 2, n_head = 2, n_embd = 32, sequence_len = 16, vocab_size = 50 }
  local function with(changes)
    local config = {}
    for k, v in pairs(small) do config[k] = v end
    for k, v in pairs(changes) do config[k] = v end
    return config
  end

  it("starts from the same weights for the same seed, and from others for another", function()
    local a, b, c = lm.models.gpt.GPT(with { seed = 3 }), lm.models.gpt.GPT(with { seed = 3 }),
      lm.models.gpt.GPT(with { seed = 4 })
    for name, p in a:named_parameters() do assert.equal(0, (p:detach() - b.by_name[name]:detach()):norm():item()) end
    assert.is_true((a.wte:detach() - c.wte:detach()):norm():item() > 1)
  end)

  it("starts at the loss of a uniform guess", function()
    local model = lm.models.gpt.GPT(small)
    local idx = lm.zeros({ 2, 8 }, { dtype = "i32" })
    assert.is_true(math.abs(model:forward(idx, idx):item() - math.log(50)) < 0.01)
  end)

  it("does not look ahead", function()
    local model = lm.models.gpt.GPT(with { preset = "head" })
    for _, p in model:named_parameters() do p:normal_(0, 0.3, lm.Generator(7)) end
    local one = lm.tensor({ { 1, 2, 3, 4, 5 } }, { dtype = "i32" })
    local two = lm.tensor({ { 1, 2, 3, 9, 8 } }, { dtype = "i32" })
    local a, b = model:forward(one), model:forward(two)
    assert.equal(0, (a:narrow(2, 1, 3) - b:narrow(2, 1, 3)):norm():item())
    assert.is_true((a - b):norm():item() > 1e-3)
  end)

  it("refuses to generate from, or with, what makes no sense", function()
    local model = lm.models.gpt.GPT { preset = "head", n_layer = 1, n_head = 1, n_embd = 32, sequence_len = 8,
      vocab_size = 10 }
    local function refuses(pattern, ...)
      local ok, message = pcall(model.generate, model, ...)
      assert.is_false(ok)
      assert.matches("generate: .*" .. pattern, message)
    end
    refuses("got string", "abc", 3)
    refuses("an empty one", {}, 3)
    refuses("got 1.5", { 1 }, 1.5)
    refuses("unknown option 'temprature'", { 1 }, 3, { temprature = 1 })
    refuses("temperature .*got %-?nan", { 1 }, 3, { temperature = 0 / 0 })
    refuses("top_k .*got 0", { 1 }, 3, { top_k = 0 })
    local ok, message = pcall(model.generate, model, { 10 }, 3) -- a row of the table, no word of the vocabulary
    assert.is_false(ok)
    assert.matches("index 10 at position .* is outside the vocabulary of 10 %(0 to 9%)", message)
    assert.equal(3, #model:generate({ 9 }, 3))
  end)

  it("draws the same tokens from the same generator, and stops at the stop token", function()
    local model = lm.models.gpt.GPT(small)
    local a = model:generate({ 0 }, 20, { generator = lm.Generator(5) })
    assert.same(a, model:generate({ 0 }, 20, { generator = lm.Generator(5) }))
    assert.equal(20, #a)
    local stopped = model:generate({ 0 }, 20, { generator = lm.Generator(5), stop = a[4] })
    assert.is_true(#stopped <= 3)
    for _, token in ipairs(model:generate({ 0 }, 30, { top_k = 1 })) do assert.is_true(token >= 0 and token < 50) end
  end)

  it("refuses what it cannot take, by name", function()
    local function refused(config, ...)
      local ok, message = pcall(lm.models.gpt.GPT, config)
      assert.is_false(ok)
      for _, part in ipairs { ... } do assert.is_truthy(message:find(part, 1, true), message) end
    end
    refused(with { n_laier = 3 }, "unknown option 'n_laier'", "n_layer")
    refused(with { n_layer = 0 }, "n_layer", "0")
    refused(with { n_embd = 33 }, "n_embd 33", "n_head 2")
    refused(with { n_head = 2, n_kv_head = 3 }, "n_kv_head 3")
    refused(with { n_embd = 16 }, "n_embd 16", "32 channels")
    refused(with { window_pattern = "SX" }, "window_pattern", "SX")
    refused(with { preset = "tail" }, "tail", "seed, head")
    refused(with { dtype = "f16" }, "dtype", "f16")
    refused(5, "table")
  end)

  it("refuses tokens and shapes that do not fit, and keeps its gradients", function()
    local model = lm.models.gpt.GPT(small)
    local function refused(idx, targets, ...)
      local ok, message = pcall(function() return model:forward(idx, targets) end)
      assert.is_false(ok)
      for _, part in ipairs { ... } do assert.is_truthy(message:find(part, 1, true), message) end
    end
    local good = lm.zeros({ 2, 8 }, { dtype = "i32" })
    refused(lm.full({ 2, 8 }, 64, { dtype = "i32" }), nil, "index 64", "vocabulary of 50")
    refused(good, lm.full({ 2, 8 }, 50, { dtype = "i32" }), "cross_entropy", "50")
    refused(good, lm.full({ 2, 8 }, -2, { dtype = "i32" }), "cross_entropy", "-2")
    refused(lm.zeros({ 1, 17 }, { dtype = "i32" }), nil, "17", "sequence_len is 16")
    refused(lm.zeros(2, 8), nil, "i32", "f32")
    refused(good, lm.zeros({ 2, 7 }, { dtype = "i32" }), "(2, 7)", "(2, 8)")
    for _, p in model:named_parameters() do assert.equal(0, p.grad:norm():item()) end
  end)
end)
