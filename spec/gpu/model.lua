--- nanochat's GPT and its optimizer on both devices: the same weights, losses, gradients, steps.
local lm = require "lumuon"
local devices = require "spec.support.devices"
local assert = require "luassert"

local list = {}

local ROWS, LENGTH, VOCAB = 2, 24, 80

local function model_on(device, options)
  local config = { preset = "head", n_layer = 2, n_head = 2, n_kv_head = 1, n_embd = 64, sequence_len = 32,
    vocab_size = VOCAB, device = device, seed = 5, embedding_dtype = "f32" }
  for name, value in pairs(options or {}) do config[name] = value end
  return lm.models.gpt.GPT(config)
end

--- One Muon group a shape of the layers' matrices, AdamW for all else.
local function optimizer(model, precision)
  local groups, by_shape = { { kind = "adamw", lr = 0.01, params = {} } }, {}
  for name, p in model:named_parameters() do
    local group = groups[1]
    if name:match("^transformer%.h%.") then
      local shape = table.concat(p:size(), "x")
      group = by_shape[shape]
      if not group then
        group = { kind = "muon", lr = 0.02, params = {}, precision = precision }
        by_shape[shape], groups[#groups + 1] = group, group
      end
    end
    table.insert(group.params, p)
  end
  groups.model = model
  return lm.optim.MuonAdamW(groups)
end

local function tokens(seed)
  local function draw(stream)
    return lm.rand({ ROWS, LENGTH }, { dtype = "i32", high = VOCAB, generator = lm.Generator(seed, stream) })
  end
  return draw(1), draw(2)
end

local function train(model, opt, steps)
  local losses = {}
  for step = 1, steps do
    local idx, targets = tokens(step)
    opt:zero_grad()
    local loss = model:forward(idx, targets)
    loss:backward()
    losses[step] = loss:item()
    opt:step()
  end
  return losses
end

for _, preset in ipairs { "seed", "head" } do
  list[#list + 1] = { preset .. "'s weights are the CPU's, its loss and gradients near", function()
    devices.compare({ devices.random("f32", {}) }, function(t)
      local model, weights = model_on(t:device(), { preset = preset }), {}
      for _, p in model:named_parameters() do weights[#weights + 1] = p:detach() end
      return unpack(weights)
    end, 0, "weights")
    devices.compare({ devices.random("f32", {}) }, function(t)
      local model = model_on(t:device(), { preset = preset })
      local idx, targets = tokens(9)
      -- both projections are 0 at first: with something in them every gradient has something
      for name, p in model:named_parameters() do
        if name:match("proj") or name:match("gate") then p:detach():normal_(0, 0.05, lm.Generator(3)) end
      end
      local loss = model:forward(idx, targets)
      loss:backward()
      local results = { loss:detach() }
      for _, p in model:named_parameters() do results[#results + 1] = p.grad end
      return unpack(results)
    end, 2e-5, "gradients")
  end }
end

list[#list + 1] = { "three steps of training have the CPU's losses", function()
  devices.compare({ devices.random("f32", {}) }, function(t)
    local model = model_on(t:device())
    return unpack(train(model, optimizer(model, "f32"), 3))
  end, 1e-3, "losses")
end }

list[#list + 1] = { "in bf16, with the embeddings in bf16 as they are on a GPU", function()
  devices.compare({ devices.random("f32", {}) }, function(t)
    local model = model_on(t:device(), { dtype = "bf16", embedding_dtype = "bf16" })
    return unpack(train(model, optimizer(model, "bf16"), 3))
  end, 0.02, "losses")
  assert.equal("bf16", model_on("cuda", { embedding_dtype = "" }).wte:dtype())
end }

list[#list + 1] = { "a step on a NaN changes nothing, nor do those after it, and the next number says so", function()
  local model = model_on("cuda")
  local opt = optimizer(model, "f32")
  train(model, opt, 1)
  local before = {}
  for name, p in model:named_parameters() do before[name] = p:detach():to("cpu") end
  local c_fc = model.blocks[2].c_fc
  c_fc.grad[3][5] = 0 / 0
  assert.is_true(opt:step())
  model.wte.grad:fill(1)
  assert.is_true(opt:step())
  local ok, message = pcall(function() return model.lm_head:detach():item(1, 1) end)
  assert.is_false(ok)
  assert(message:find("1 NaN or Inf", 1, true) and message:find("nothing was changed", 1, true), message)
  for name, p in model:named_parameters() do
    assert(p:detach():to("cpu"):ne(before[name]):sum():item() == 0, name .. " has changed")
  end
  train(model, opt, 1) -- and it goes on
end }

list[#list + 1] = { "a checkpoint of a GPU goes on on the CPU", function()
  local path = os.tmpname()
  local there = model_on("cuda")
  local opt = optimizer(there, "f32")
  train(there, opt, 2)
  lm.checkpoint.save(path, { model = there, opt = opt })
  local here = model_on("cpu")
  local own = optimizer(here, "f32")
  lm.checkpoint.load(path, { model = here, opt = own })
  os.remove(path)
  for name, p in there:named_parameters() do
    assert(p:detach():to("cpu"):ne(here.by_name[name]:detach()):sum():item() == 0, name)
  end
  local a, b = train(there, opt, 1), train(here, own, 1)
  assert(math.abs(a[1] - b[1]) < 1e-3, ("%g and %g"):format(a[1], b[1]))
end }

return list
