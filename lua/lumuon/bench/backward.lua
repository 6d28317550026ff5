--- The part of `lumuon bench dist` with a backward pass in it: what the optimizer adds to forward and backward of a
-- GPT of the same groups, in the default order and with overlap = "backward".
local tensor = require "lumuon.tensor"
local gpt = require "lumuon.models.gpt"
local lib = require "lumuon.lib"
local optim = require "lumuon.optim"
local dist = require "lumuon.dist"
local options = require "lumuon.options"

local backward = {}

--- nanochat's groups: matrices of the blocks by shape, all else to AdamW.
local function groups_of(model, overlap, precision)
  local shapes, groups, rest = {}, {}, {}
  for name, p in model:named_parameters() do
    if name:match("^transformer%.h%.") then
      local shape = table.concat(p:size(), "x")
      if not shapes[shape] then
        shapes[shape] = { kind = "muon", lr = 1e-3, params = {}, precision = precision }
        groups[#groups + 1] = shapes[shape]
      end
      table.insert(shapes[shape].params, p)
    else
      rest[#rest + 1] = p
    end
  end
  groups[#groups + 1] = { kind = "adamw", lr = 1e-3, params = rest }
  groups.overlap, groups.shard = overlap, true
  return groups
end

--- Functions to time, each a training step of its own model on `tokens` tokens a rank: pass is forward and backward
-- alone; in_step and in_backward have the optimizer's step as well.
function backward.phases(name, scale, tokens, precision)
  local depth = tonumber(name:match("^d(%d+)$"))
  local heads = math.ceil(depth * 64 / 128)
  if (128 / scale) % 2 ~= 0 or heads * 128 / scale < 32 then
    options.fail(("--scale=%d leaves heads too narrow for a backward pass; --tokens=0 goes without"):format(scale))
  end
  local function make(overlap)
    local model = gpt.GPT { n_layer = depth, n_head = heads, n_embd = heads * 128 / scale, vocab_size = 32768 / scale,
      sequence_len = tokens }
    local generator = tensor.Generator(3 + dist.rank())
    local function draw() return tensor.empty({ 1, tokens }):uniform_(0, 32768 / scale, generator):to("i32") end
    local idx, targets = draw(), draw()
    return optim.MuonAdamW(groups_of(model, overlap, precision)), function() return model:forward(idx, targets) end
  end
  local step_opt, step_loss = make("step")
  local backward_opt, backward_loss = make("backward")
  local function in_scope(f) return function() lib.scope(f) end end
  return {
    pass = in_scope(function()
      step_opt:zero_grad()
      step_loss():backward()
    end),
    in_step = in_scope(function()
      step_opt:zero_grad()
      step_loss():backward()
      step_opt:step()
    end),
    in_backward = in_scope(function()
      backward_opt:zero_grad()
      backward_opt:backward(backward_loss())
      backward_opt:step()
    end),
  }
end

return backward
