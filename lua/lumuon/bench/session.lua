--- A training session without a recipe: nanochat's GPT (head) at a depth, on random tokens, its parameters in
-- nanochat's groups. Its loss means nothing; its step costs what one on text costs.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local optim = require "lumuon.optim"
local gpt = require "lumuon.models.gpt"
local options = require "lumuon.options"
local group_table = require "lumuon.bench.groups"

local M = {}

local own = {
  dtype = { default = "f32", choices = { "f32", "bf16" }, help = "of the activations and Muon's products" },
  sequence_len = { default = 512, min = 2, help = "tokens a row" },
  batch_size = { default = 8, min = 1, help = "rows a step" },
  vocab_size = { default = 32768, min = 2, help = "tokens there are" },
  device = { default = "cpu", choices = { "cpu", "cuda" } },
  threads = { default = 0, min = 0, max = 1024, help = "0: as many as there are" },
}

--- One Muon group a shape of the layers' matrices, AdamW for all else.
local function groups_of(model, precision)
  local adamw, by_shape, list = { kind = "adamw", lr = 1e-3, params = {} }, {}, {}
  for name, p in model:named_parameters() do
    local group = adamw
    if name:match("^transformer%.h%.") then
      local shape = table.concat(p:size(), "x")
      group = by_shape[shape]
      if not group then
        group = { kind = "muon", lr = 1e-3, params = {}, precision = precision }
        by_shape[shape], list[#list + 1] = group, group
      end
    end
    table.insert(group.params, p)
  end
  list[#list + 1] = adamw
  list.model = model
  return list
end

--- A session as recipes return it; name: "d4" or another depth, args: of the command line.
function M.open(name, args)
  local depth = group_table.depth(name)
  local o = options(own, args, "bench train --model=" .. name)
  if o.threads > 0 then lib.call(lib.C.lm_set_threads, o.threads) end
  local heads = math.ceil(depth * 64 / 128)
  local model = gpt.GPT { preset = "head", n_layer = depth, n_head = heads, n_embd = heads * 128,
    sequence_len = o.sequence_len, vocab_size = o.vocab_size, window_pattern = "L", dtype = o.dtype,
    device = o.device }
  local opt = optim.MuonAdamW(groups_of(model, o.dtype))
  local idx = tensor.rand({ o.batch_size, o.sequence_len }, { dtype = "i32", high = o.vocab_size })
  local targets = tensor.rand({ o.batch_size, o.sequence_len }, { dtype = "i32", high = o.vocab_size,
    generator = tensor.Generator(7) })
  idx, targets = idx:to(o.device), targets:to(o.device)
  local function train_step()
    return lib.scope(function()
      opt:zero_grad()
      local loss = model:forward(idx, targets)
      loss:backward()
      opt:step()
      return loss:item()
    end)
  end
  return { model = model, opt = opt, options = o, train_step = train_step,
    tokens_per_step = o.batch_size * o.sequence_len }
end

return M
