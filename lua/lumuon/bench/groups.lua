--- The shapes that measurements of the optimizer step: nanochat's parameter groups at a depth.
local options = require "lumuon.options"

local groups = {}

local HEAD_DIM, VOCAB = 128, 32768

--- The groups of `model`, "d12" or another depth, widths and vocabulary divided by `scale` (1).
-- @return { count, rows, cols } of each Muon group, and for each AdamW group a list of its tensors' sizes
function groups.of(model, scale)
  local depth = tonumber(model:match("^d(%d+)$"))
  if not depth or depth < 1 then options.fail(("--model=%s: expected d and a depth, such as d12"):format(model)) end
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

return groups
