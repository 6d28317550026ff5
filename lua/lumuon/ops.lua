--- The differentiable tensor ops: methods of every tensor, and functions of `lm`.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local raw = require "lumuon.raw"
local autograd = require "lumuon.autograd"
local C, raise, is_tensor = lib.C, lib.raise, lib.is_tensor
local Tensor, T, define = lib.Tensor, lib.methods, autograd.define

local ops = {}

-- ---- broadcasting -----------------------------------------------------------------------------------

--- grad summed over the dims along which t was broadcast.
local function sum_to(grad, t)
  local extra = grad:dim() - t:dim()
  local dims = {}
  for d = 1, extra do dims[d] = d end
  for d = 1, t:dim() do
    if t:size(d) == 1 and grad:size(d + extra) ~= 1 then dims[#dims + 1] = d + extra end
  end
  if #dims == 0 then return grad end
  local sum = raw.sum(grad, dims, true)
  return extra > 0 and raw.view(sum, t:size()) or sum
end

local function wants(x) return is_tensor(x) and x.requires_grad end

-- The raw views: what the methods were before this module wraps them.
for _, name in ipairs { "narrow", "select", "transpose", "permute", "expand", "squeeze", "unsqueeze", "view",
  "contiguous", "clone", "to" } do
  raw[name] = T[name]
end

-- ---- elementwise --------------------------------------------------------------------------------------

-- backward of a unary op: f(x, y, g) with input x, output y, gradient g
local unary_grads = {
  neg = function(_, _, g) return raw.neg(g) end,
  abs = function(x, _, g) return raw.sign(x):mul_(g) end,
  square = function(x, _, g) return raw.mul(x, g):mul_(2) end,
  sqrt = function(_, y, g) return raw.div(g, y):mul_(0.5) end,
  rsqrt = function(_, y, g) return raw.pow(y, 3):mul_(g):mul_(-0.5) end,
  reciprocal = function(_, y, g) return raw.square(y):mul_(g):neg_() end,
  exp = function(_, y, g) return raw.mul(y, g) end,
  log = function(x, _, g) return raw.div(g, x) end,
  sin = function(x, _, g) return raw.cos(x):mul_(g) end,
  cos = function(x, _, g) return raw.sin(x):mul_(g):neg_() end,
  tanh = function(_, y, g) return raw.tanh_grad(y, g) end,
  sigmoid = function(_, y, g) return raw.sigmoid_grad(y, g) end,
  relu = function(x, _, g) return raw.relu_grad(x, g) end,
  relu2 = function(x, _, g) return raw.relu2_grad(x, g) end,
}
for _, name in ipairs(raw.unary_ops) do
  local forward, backward = raw[name], unary_grads[name]
  if backward then
    T[name] = define(name, function(node, x)
      local y = forward(x)
      if node then node.y = y end
      return y
    end, function(node, g) return backward(node[1], node.y, g) end)
  else
    T[name] = forward -- sign, floor, ceil, round, isfinite: no gradient to speak of
  end
  ops[name] = T[name]
end

-- backward of a binary op: f(a, b, y, g, first) the gradient of the first or second argument, before
-- it is summed over broadcast dims
local binary_grads = {
  add = function(_, _, _, g) return g end,
  sub = function(_, _, _, g, first) return first and g or raw.neg(g) end,
  mul = function(a, b, _, g, first) return raw.mul(g, first and b or a) end,
  div = function(_, b, y, g, first)
    if first then return raw.div(g, b) end
    return raw.mul(g, y):div_(b):neg_()
  end,
  pow = function(a, b, y, g, first)
    if first then -- of x^0 it is 0, also at 0, where 0 * 0^-1 is NaN
      return raw.mul(raw.mul(g, b), raw.pow(a, b == 0 and 0 or raw.sub(b, 1)))
    end
    -- at a = 0 it is 0, where 0^b log 0 is NaN
    return raw.mul(g, y):mul_(is_tensor(a) and raw.log(raw.add(a, raw.eq(a, 0))) or a == 0 and 0 or math.log(a))
  end,
  maximum = function(a, b, _, g, first)
    return raw.mul(g, first and raw.ge(a, b) or raw.lt(a, b))
  end,
  minimum = function(a, b, _, g, first)
    return raw.mul(g, first and raw.le(a, b) or raw.gt(a, b))
  end,
}
-- pow and sub take two tensors or a tensor and a number; a number as `b` of raw.sub is fine, but
-- raw ops need one tensor: two numbers are plain arithmetic.
local raw_sub = raw.sub
raw.sub = function(a, b)
  if type(a) == "number" and type(b) == "number" then return a - b end
  return raw_sub(a, b)
end

for _, name in ipairs(raw.binary_ops) do
  local forward, backward = raw[name], binary_grads[name]
  if backward then
    T[name] = define(name, function(node, a, b)
      local y = forward(a, b)
      if node then node.y = y end
      return y
    end, function(node, g)
      local a, b, y = node[1], node[2], node.y
      return wants(a) and sum_to(backward(a, b, y, g, true), a) or nil,
        wants(b) and sum_to(backward(a, b, y, g, false), b) or nil
    end)
  else
    T[name] = forward -- comparisons
  end
  ops[name] = T[name]
end

Tensor.__add, Tensor.__sub, Tensor.__mul, Tensor.__div, Tensor.__pow = T.add, T.sub, T.mul, T.div, T.pow
Tensor.__unm = function(x) return T.neg(x) end

-- ---- reductions ------------------------------------------------------------------------------------------

--- g of a reduction over dims, with the reduced dims as 1 so that it broadcasts to x.
local function with_reduced_dims(x, dims, keepdim, g)
  if keepdim then return g end
  local sizes, reduced = x:size(), {}
  for _, d in ipairs(type(dims) == "table" and dims or { dims }) do reduced[d < 0 and #sizes + d + 1 or d] = true end
  for d = 1, #sizes do
    if dims == nil or reduced[d] then sizes[d] = 1 end
  end
  return raw.view(raw.contiguous(g), sizes)
end

-- f(x, y, g, count, dims): y and g with the reduced dims as 1
local reduce_grads = {
  sum = function(x, _, g) return raw.clone(raw.expand(g, x:size())) end,
  mean = function(x, _, g, count) return raw.clone(raw.expand(g, x:size())):div_(count) end,
  norm = function(x, y, g) return raw.mul(x, raw.div(g, raw.maximum(y, 1e-30))) end,
  prod = function(x, _, g, _, dims) -- the product of the others, also where it is of zeros
    local zero = raw.eq(x, 0)
    local others = raw.add(x, zero) -- 1 for 0
    local zeros = raw.sum(zero, dims, true)
    local share = raw.div(raw.eq(zeros, 0), others):add_(raw.mul(raw.eq(zeros, 1), zero))
    return raw.mul(raw.prod(others, dims, true), share):mul_(g)
  end,
  max = function(x, y, g) -- shared evenly by equals
    local hit = raw.to(raw.eq(x, y), "f32")
    return { hit, g }
  end,
}
reduce_grads.min = reduce_grads.max

for _, name in ipairs { "sum", "mean", "max", "min", "prod", "norm" } do
  local forward, backward = raw[name], reduce_grads[name]
  T[name] = define(name, function(node, x, dims, keepdim)
    local y = forward(x, dims, keepdim)
    if node then node.y = y end
    return y
  end, function(node, g)
    local x, dims, keepdim = node[1], node[2], node[3]
    local wide_g = with_reduced_dims(x, dims, keepdim, g)
    local wide_y = with_reduced_dims(x, dims, keepdim, node.y)
    local grad = backward(x, wide_y, wide_g, x:numel() / g:numel(), dims)
    if is_tensor(grad) then return grad end
    local hit = grad[1]
    return raw.mul(raw.div(hit, raw.sum(hit, dims, true)), wide_g)
  end)
  ops[name] = T[name]
end

-- ---- products ----------------------------------------------------------------------------------------------

local gathered_grad = autograd.gathered_grad

--- alpha * a @ b as a gradient of x: added to what x has gathered, or returned where it has nothing yet.
local function product_grad(x, a, b, alpha)
  local into = gathered_grad(x)
  if not into then return raw.matmul(a, b, alpha) end
  raw.matmul(a, b, alpha, into, 1)
  return nil
end

--- a @ b, with `alpha` in front: (..., M, K) and (..., K, N) or (K, N).
T.matmul = define("matmul", function(_, a, b, alpha) return raw.matmul(a, b, alpha) end, function(node, g)
  local a, b, alpha = node[1], node[2], node[3]
  local da, db
  if wants(a) then da = product_grad(a, g, raw.transpose(b, -2, -1), alpha) end
  if wants(b) then
    if b:dim() == 2 and a:dim() > 2 then -- one b for every matrix of a: join the leading dims
      a = raw.view(raw.contiguous(a), -1, a:size(-1))
      g = raw.view(raw.contiguous(g), -1, g:size(-1))
    end
    db = product_grad(b, raw.transpose(a, -2, -1), g, alpha)
  end
  return da, db
end)
ops.matmul = T.matmul

--- x W' for x (..., in) and W (out, in): a linear layer without bias; plus `residual`, a tensor of the
-- result's shape, where one is given. With x in bf16 an f32 W is cast for the product.
ops.linear = define("linear", function(node, x, w, residual)
  tensor.live(x, "linear")
  tensor.live(w, "linear")
  x = raw.contiguous(x)
  if x:dtype() == "bf16" then w = raw.to(w, "bf16") end
  if node then node.x, node.y = x, w end
  return lib.result(C.lm_linear, x.h, w.h, residual and tensor.live(residual, "linear") or nil)
end, function(node, g)
  local x, w = node[1], node[2]
  local dx, dw
  g = raw.contiguous(g)
  if wants(x) then
    local into = gathered_grad(x)
    if into then
      lib.into(into, C.lm_linear_grad_x, g.h, node.y.h, 1)
    else
      dx = lib.result(C.lm_linear_grad_x, g.h, node.y.h, 0)
    end
  end
  if wants(w) then
    local into = gathered_grad(w)
    if into then
      lib.into(into, C.lm_linear_grad_w, g.h, node.x.h, 1)
    else
      dw = lib.result(C.lm_linear_grad_w, g.h, node.x.h, 0)
    end
  end
  return dx, dw, g
end)

-- ---- views and copies -----------------------------------------------------------------------------------------

local function define_view(name, backward)
  local forward = raw[name]
  T[name] = define(name, function(_, ...) return forward(...) end, backward, true)
end

--- Views that take any number of arguments pack them, so that the tape sees two.
local function define_listed_view(name, backward)
  local forward = raw[name]
  local op = define(name, function(_, x, arguments) return forward(x, unpack(arguments)) end, backward, true)
  T[name] = function(x, ...) return op(x, { ... }) end
end

define_view("narrow", function(node, g)
  local z = tensor.zeros_like(node[1])
  raw.narrow(z, node[2], node[3], node[4]):copy(g)
  return z
end)
define_view("select", function(node, g)
  local z = tensor.zeros_like(node[1])
  raw.select(z, node[2], node[3]):copy(g)
  return z
end)
define_view("transpose", function(node, g) return raw.transpose(g, node[2], node[3]) end)
define_view("contiguous", function(_, g) return g end)
define_view("clone", function(_, g) return g end)
define_view("to", function(node, g) return raw.to(raw.to(g, node[1]:dtype()), node[1]:device()) end)
local function like_input(node, g) return raw.view(raw.contiguous(g), node[1]:size()) end
define_view("squeeze", like_input)
define_view("unsqueeze", like_input)
define_listed_view("view", like_input)
define_listed_view("expand", function(node, g) return sum_to(g, node[1]) end)
define_listed_view("permute", function(node, g)
  local order = node[2]
  if type(order[1]) == "table" then order = order[1] end
  local back = {}
  for i = 1, #order do back[order[i] < 0 and #order + 1 + order[i] or order[i]] = i end
  return raw.permute(g, back)
end)

local as_strided = T.as_strided
function T.as_strided(t, ...)
  if wants(t) and autograd.is_grad_enabled() then
    raise("as_strided: has no gradient, and %s requires one; use narrow, select, permute or expand, or :detach() first",
      t:describe())
  end
  return as_strided(t, ...)
end

local cat_op = {}
--- Tensors one behind the other along dim (1 if not given): lm.cat({a, b}, dim).
function ops.cat(tensors, dim)
  if type(tensors) ~= "table" or is_tensor(tensors) then raise("cat: expected a table of tensors first") end
  for i = 1, #tensors do tensor.live(tensors[i], "cat") end
  local n = #tensors
  cat_op[n] = cat_op[n] or autograd.Function {
    name = "cat",
    forward = function(ctx, d, ...)
      ctx.dim = d
      return raw.cat({ ... }, d)
    end,
    backward = function(ctx, g)
      local grads, at = {}, 1
      for i = 1, n do
        local size = ctx[i + 1]:size(ctx.dim)
        grads[i] = raw.clone(raw.narrow(g, ctx.dim, at, size))
        at = at + size
      end
      return nil, unpack(grads, 1, n)
    end,
  }
  if n > 6 then -- a node has seven places: join pairwise
    local half = math.floor(n / 2)
    local left, right = {}, {}
    for i = 1, n do
      if i <= half then left[i] = tensors[i] else right[i - half] = tensors[i] end
    end
    return ops.cat({ ops.cat(left, dim), ops.cat(right, dim) }, dim)
  end
  return cat_op[n](dim or 1, unpack(tensors))
end

return ops
