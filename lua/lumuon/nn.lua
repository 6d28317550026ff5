--- What a GPT is made of: differentiable ops over whole activations, and modules.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local raw = require "lumuon.raw"
local autograd = require "lumuon.autograd"
local ops = require "lumuon.ops"
local ffi, C, call, raise, result, into = lib.ffi, lib.C, lib.call, lib.raise, lib.result, lib.into
local T, define, is_tensor = lib.methods, autograd.define, lib.is_tensor
local gathered_grad = autograd.gathered_grad
local number, whole = lib.number, lib.whole

local nn = { linear = ops.linear }

local function check(what, ...)
  for i = 1, select("#", ...) do
    local t = select(i, ...)
    if not is_tensor(t) then raise("%s: argument %d must be a tensor, got %s", what, i, type(t)) end
  end
end

--- Rows of table (V, C) at idx, i32 (...): (..., C). Of a padded table only the first vocab_size rows
-- may be asked for.
nn.embedding = define("embedding", function(node, table_, idx, vocab_size)
  check("embedding", table_, idx)
  idx = raw.contiguous(idx)
  if node then node.idx = idx end
  local rows = vocab_size and raw.narrow(table_, 1, 1, vocab_size) or table_
  return result(C.lm_embedding, raw.contiguous(rows).h, idx.h)
end, function(node, g)
  local table_ = node[1]
  local sum = gathered_grad(table_)
  local fresh = not sum and tensor.zeros_like(table_) or nil
  call(C.lm_embedding_backward, (sum or fresh).h, raw.contiguous(g).h, node.idx.h)
  return fresh
end)

--- scale * x / sqrt(mean(x^2) + eps) over the last dim. eps: the dtype's machine epsilon if not given.
nn.rms_norm = define("rms_norm", function(_, x, eps, scale)
  check("rms_norm", x)
  eps, scale = number("rms_norm", "eps", eps, -1), number("rms_norm", "scale", scale, 1)
  return result(C.lm_rms_norm, raw.contiguous(x).h, eps, scale)
end, function(node, g)
  local x = raw.contiguous(node[1])
  return result(C.lm_rms_norm_backward, raw.contiguous(g).h, x.h, node[2] or -1, node[3] or 1)
end)

--- Tables for nn.rotary: cos and sin, f32 (T, D/2), of t * base^(-2i/D).
function nn.rotary_tables(length, head_dim, base)
  if not lib.is_whole(length) or length < 0 then
    raise("rotary_tables: length %s is not a whole number >= 0", tostring(length))
  end
  if not lib.is_whole(head_dim) or head_dim < 0 or head_dim % 2 ~= 0 then
    raise("rotary_tables: head_dim %s is not an even whole number", tostring(head_dim))
  end
  if type(base) ~= "number" or base ~= base or base <= 0 then
    raise("rotary_tables: base %s is not a number > 0", tostring(base))
  end
  local cos, sin = tensor.empty(length, head_dim / 2), tensor.empty(length, head_dim / 2)
  local pc, ps = cos:pointer(), sin:pointer()
  local half = head_dim / 2
  for t = 0, length - 1 do
    for i = 0, half - 1 do
      local angle = t * base ^ (-2 * i / head_dim)
      pc[t * half + i] = math.cos(angle)
      ps[t * half + i] = math.sin(angle)
    end
  end
  return cos, sin
end

--- Rotary embedding, half-split: x (B, T, H, D) with tables of rotary_tables.
nn.rotary = define("rotary", function(_, x, cos, sin)
  check("rotary", x, cos, sin)
  return result(C.lm_rotary, raw.contiguous(x).h, cos.h, sin.h, 0)
end, function(node, g)
  return result(C.lm_rotary, raw.contiguous(g).h, node[2].h, node[3].h, 1)
end)

local rotary_norm = define("rotary_norm", function(_, x, cos, sin, eps, scale)
  return result(C.lm_rotary_norm, raw.contiguous(x).h, cos.h, sin.h, eps, scale)
end, function(node, g)
  return result(C.lm_rotary_norm_backward, raw.contiguous(g).h, raw.contiguous(node[1]).h, node[2].h, node[3].h,
    node[4], node[5])
end)

--- rms_norm(rotary(x, cos, sin), eps, scale), what queries and keys go through, in one pass.
function nn.rotary_norm(x, cos, sin, eps, scale)
  check("rotary_norm", x, cos, sin)
  return rotary_norm(x, cos, sin, number("rotary_norm", "eps", eps, -1), number("rotary_norm", "scale", scale, 1))
end

local boxes = {}
for i = 1, 3 do boxes[i] = ffi.new("lm_tensor *[1]") end

--- An engine function with several fresh results.
local function results(n, f, ...)
  for i = 1, n do boxes[i][0] = nil end
  if n == 2 then
    call(f, boxes[1], boxes[2], ...)
    return lib.wrap(boxes[1][0]), lib.wrap(boxes[2][0])
  end
  call(f, boxes[1], boxes[2], boxes[3], ...)
  return lib.wrap(boxes[1][0]), lib.wrap(boxes[2][0]), lib.wrap(boxes[3][0])
end

--- Causal attention: q (B, T, H, D), k and v (B, T, Hkv, D); a token sees itself and `window` before
-- it (all if not given); scale 1/sqrt(D) if not given.
nn.attention = define("attention", function(node, q, k, v, window, scale)
  check("attention", q, k, v)
  q, k, v = raw.contiguous(q), raw.contiguous(k), raw.contiguous(v)
  scale = number("attention", "scale", scale) or 1 / math.sqrt(q:size(-1))
  window = whole("attention", "window", window, -1)
  local out, lse = results(2, C.lm_attention, q.h, k.h, v.h, scale, window)
  if node then node.q, node.k, node.v, node.out, node.lse, node.scale = q, k, v, out, lse, scale end
  return out
end, function(node, g)
  return results(3, C.lm_attention_backward, raw.contiguous(g).h, node.q.h, node.k.h, node.v.h, node.out.h,
    node.lse.h, node.scale, node[4] or -1)
end)

--- Mean cross-entropy of softcap * tanh(logits / softcap) (no cap if 0) against targets i32 that are
-- not -1. logits (..., Vpad) of which the first vocab_size columns count. With `overwrite`, for logits
-- that no other op takes, the backward writes their gradient into them: no second logits tensor.
nn.cross_entropy = define("cross_entropy", function(node, logits, targets, vocab_size, softcap)
  check("cross_entropy", logits, targets)
  local flat = raw.view(raw.contiguous(logits), -1, logits:size(-1))
  local goal = raw.view(raw.contiguous(targets), -1)
  vocab_size = whole("cross_entropy", "vocab_size", vocab_size, flat:size(2))
  softcap = number("cross_entropy", "softcap", softcap, 0)
  local loss, lse = results(2, C.lm_cross_entropy, flat.h, goal.h, vocab_size, softcap)
  if node then
    node.flat, node.goal, node.lse, node.vocab_size, node.softcap = flat, goal, lse, vocab_size, softcap
  end
  return loss
end, function(node, g)
  local logits, overwrite = node[1], node[5] and node[1].node -- never a parameter
  local grad = overwrite and node.flat or tensor.empty_like(node.flat)
  into(grad, C.lm_cross_entropy_backward, g.h, node.flat.h, node.goal.h, node.lse.h, node.vocab_size, node.softcap)
  return raw.view(grad, logits:size())
end)

-- lm_linear_cross_entropy gives the gradients along with the loss: the logits are gone afterwards.
local fused_cross_entropy = define("linear_cross_entropy", function(node, x, w, targets, vocab_size, softcap)
  if x:dtype() == "bf16" then w = raw.to(w, "bf16") end
  local wants_x, wants_w = node and node[1].requires_grad, node and node[2].requires_grad
  for i = 1, 3 do boxes[i][0] = nil end
  call(C.lm_linear_cross_entropy, boxes[1], wants_x and boxes[2] or nil, wants_w and boxes[3] or nil, x.h, w.h,
    targets.h, vocab_size, softcap)
  local loss, dx, dw = lib.wrap(boxes[1][0]), boxes[2][0], boxes[3][0]
  if wants_x then node.dx = lib.wrap(dx) end
  if wants_w then node.dw = lib.wrap(dw) end
  return loss
end, function(node, g)
  local dx, dw = node.dx, node.dw
  local sum = dw and gathered_grad(node[2])
  if g:device() == "cpu" then
    local scale = g:item()
    if dx and scale ~= 1 then dx:mul_(scale) end
    if not sum then return dx, dw and dw:mul_(scale) end
    call(C.lm_axpy, sum.h, scale, dw.h)
  else -- what g is, only the device knows: nobody waits for it
    if dx then dx:mul_(g) end
    if not sum then return dx, dw and dw:mul_(g) end
    into(sum, C.lm_scaled_add, g.h, dw.h, tensor.ones({}, { device = g:device() }).h, sum.h)
  end
  dw:free()
  return dx
end)

--- cross_entropy(linear(x, w), targets, vocab_size, softcap) for a large vocabulary: without a tensor for all the
-- logits, which would be the largest of a step by far.
function nn.linear_cross_entropy(x, w, targets, vocab_size, softcap)
  check("linear_cross_entropy", x, w, targets)
  vocab_size = whole("linear_cross_entropy", "vocab_size", vocab_size, w:size(1))
  softcap = number("linear_cross_entropy", "softcap", softcap, 0)
  return fused_cross_entropy(x:contiguous(), w:contiguous(), targets:contiguous(), vocab_size, softcap)
end

--- Softmax over the last dim.
T.softmax = define("softmax", function(node, x)
  local y = result(C.lm_softmax, raw.contiguous(x).h)
  if node then node.y = y end
  return y
end, function(node, g)
  local weighted = raw.mul(node.y, g)
  return raw.sub(weighted, raw.mul(node.y, raw.sum(weighted, -1, true)))
end)

--- a*x + b*y for one-element tensors a and b.
nn.scaled_add = define("scaled_add", function(_, a, x, b, y)
  check("scaled_add", a, x, b, y)
  return result(C.lm_scaled_add, a.h, x.h, b.h, y.h)
end, function(node, g)
  local a, x, b, y = node[1], node[2], node[3], node[4]
  g = raw.contiguous(g)
  local da, db, gathered = tensor.zeros_like(a), tensor.zeros_like(b), gathered_grad(y)
  local dy = not gathered and y.requires_grad and tensor.zeros_like(y) or nil
  boxes[1][0] = nil
  call(C.lm_scaled_add_backward, da.h, boxes[1], db.h, gathered and gathered.h or dy and dy.h, g.h, a.h, x.h, b.h, y.h)
  return da, lib.wrap(boxes[1][0]), db, dy
end)

--- x + scale * sigmoid(gate) * y; x, y (..., H, D), gate (..., H).
nn.gated_add = define("gated_add", function(_, x, gate, y, scale)
  check("gated_add", x, gate, y)
  scale = number("gated_add", "scale", scale, 1)
  return result(C.lm_gated_add, raw.contiguous(x).h, raw.contiguous(gate).h, raw.contiguous(y).h, scale)
end, function(node, g)
  local contiguous = raw.contiguous(g)
  local dgate, dy = results(2, C.lm_gated_add_backward, contiguous.h, raw.contiguous(node[2]).h,
    raw.contiguous(node[3]).h, node[4] or 1)
  return g, dgate, dy
end)

return nn
