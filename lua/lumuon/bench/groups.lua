--- The shapes that measurements of the optimizer step: nanochat's parameter groups at a depth.
local options = require "lumuon.options"

local groups = {}

local HEAD_DIM, VOCAB, DEEPEST = 128, 32768, 1000

--- The depth that `model`, "d12" or another, names.
function groups.depth(model)
  local depth = tonumber(model:match("^d(%d+)$"))
  if not depth or depth < 1 or depth > DEEPEST then
    options.fail(("--model=%s: expected d and a depth from 1 to %d, such as d12"):format(model, DEEPEST))
  end
  return depth
end

--- The groups of `model`, "d12" or another depth, widths and vocabulary divided by `scale` (1).
-- @return { count, rows, cols } of each Muon group, and for each AdamW group a list of its tensors' sizes
function groups.of(model, scale)
  local depth = groups.depth(model)
  scale = scale or 1
  local heads = math.ceil(depth * 64 / HEAD_DIM)
  local width, vocab = heads * HEAD_DIM / scale, VOCAB / scale
  if width % 1 ~= 0 or vocab % 1 ~= 0 then
    options.fail(("--scale=%d does not divide the width %d and the vocabulary %d"):format(scale, heads * HEAD_DIM,
      VOCAB))
  end
  local gated = math.ceil(depth / 2) -- layers with a value embedding
  local muon = { { 4 * depth, width, width }, { depth, 4 * width, width }, { depth, width, 4 * width },
    { gated, heads, 32 } }
  local adamw = { { { vocab, width } }, { { vocab, width } }, {}, { { depth } }, { { depth } } }
  for i = 1, gated do adamw[3][i] = { vocab, width } end
  return muon, adamw
end

local muon_names = { "attention", "mlp.c_fc", "mlp.c_proj", "ve_gate" }
local adamw_names = { "lm_head", "wte", "value_embeds", "resid_lambdas", "x0_lambdas" }

--- The same as a list of { name =, kind =, count = tensors, sizes = of each }.
function groups.list(model)
  local muon, adamw = groups.of(model)
  local list = {}
  for i, s in ipairs(muon) do
    list[#list + 1] = { name = muon_names[i], kind = "muon", count = s[1], sizes = { s[2], s[3] } }
  end
  for i, tensors in ipairs(adamw) do
    list[#list + 1] = { name = adamw_names[i], kind = "adamw", count = #tensors, sizes = tensors[1] }
  end
  return list
end

--- Groups that no total has: the embedding in bf16 with bf16 moments, and many small tensors.
function groups.extra(model)
  local _, adamw = groups.of(model)
  return {
    { name = "wte in bf16", kind = "adamw", count = 1, sizes = adamw[2][1], dtype = "bf16" },
    { name = "many small", kind = "adamw", count = 1000, sizes = { 1000 } },
    { name = "as one", kind = "adamw", count = 1, sizes = { 1000000 } },
  }
end

return groups
