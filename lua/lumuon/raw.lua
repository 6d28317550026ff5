--- Arithmetic without gradients: what ops.lua and nn.lua build the recorded ops from, and the in-place
-- methods.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local ffi, C, call, raise, result, into = lib.ffi, lib.C, lib.call, lib.raise, lib.result, lib.into
local T, live, in_place, dim_index = lib.methods, tensor.live, tensor.in_place, tensor.dim_index
local number_box = ffi.new("double[1]")

local raw = {}

raw.unary_ops = { "neg", "abs", "sign", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos",
  "tanh", "sigmoid", "relu", "relu2", "floor", "ceil", "round", "isfinite" }
raw.binary_ops = { "add", "sub", "mul", "div", "pow", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge" }

for _, name in ipairs(raw.unary_ops) do
  local op = C["LM_" .. name:upper()]
  raw[name] = function(a) return result(C.lm_unary, op, live(a, name)) end
  --- x:exp_() and so on: in place.
  T[name .. "_"] = function(a) return into(in_place(a, name .. "_"), C.lm_unary, op, a.h) end
end

local function binary(op, name, a, b)
  if type(b) == "number" then return result(C.lm_binary_scalar, op, live(a, name), b, 0) end
  if type(a) == "number" then return result(C.lm_binary_scalar, op, live(b, name), a, 1) end
  return result(C.lm_binary, op, live(a, name), live(b, name))
end

for _, name in ipairs(raw.binary_ops) do
  local op = C["LM_" .. name:upper()]
  raw[name] = function(a, b) return binary(op, name, a, b) end
  T[name .. "_"] = function(a, b)
    in_place(a, name .. "_")
    if type(b) == "number" then return into(a, C.lm_binary_scalar, op, a.h, b, 0) end
    return into(a, C.lm_binary, op, a.h, live(b, name .. "_"))
  end
end
for _, name in ipairs { "tanh_grad", "sigmoid_grad", "relu_grad", "relu2_grad" } do
  local op = C["LM_" .. name:upper()]
  raw[name] = function(a, b) return binary(op, name, a, b) end
end

--- t += alpha * x, in place.
function T.axpy_(t, alpha, x)
  if type(alpha) ~= "number" then raise("axpy_: alpha must be a number, got %s", type(alpha)) end
  call(C.lm_axpy, in_place(t, "axpy_").h, alpha, live(x, "axpy_"))
  return t
end

--- Bits of the dims to reduce: none given means all.
local function dims_mask(t, dims, what)
  if dims == nil then return 2 ^ t:dim() - 1 end
  if type(dims) == "number" then return 2 ^ dim_index(t, dims, what) end
  if type(dims) ~= "table" then raise("%s: dims must be a number or a table of them, got %s", what, type(dims)) end
  local mask, seen = 0, {}
  for i = 1, #dims do
    local d = dim_index(t, dims[i], what)
    if not seen[d] then mask = mask + 2 ^ d end
    seen[d] = true
  end
  return mask
end

for _, name in ipairs { "sum", "mean", "max", "min", "prod", "norm" } do
  local op = C["LM_" .. name:upper()]
  raw[name] = function(t, dims, keepdim)
    live(t, name)
    return result(C.lm_reduce, op, t.h, dims_mask(t, dims, name), keepdim and 1 or 0)
  end
end

--- 1-based index of the largest (smallest) along dim, first of equals; i32.
local function arg_reduce(op, name)
  return function(t, dim, keepdim)
    local flat = t
    if dim == nil then flat, dim = t:reshape(-1), 1 end
    return result(C.lm_arg_reduce, op, flat.h, dim_index(flat, dim, name), keepdim and 1 or 0):add_(1)
  end
end
T.argmax = arg_reduce(C.LM_MAX, "argmax")
T.argmin = arg_reduce(C.LM_MIN, "argmin")

--- How many elements are NaN or Inf.
function T.count_nonfinite(t)
  call(C.lm_count_nonfinite, number_box, live(t, "count_nonfinite"))
  return number_box[0]
end

--- alpha * a @ b (+ beta * out, in place, where out is given).
function raw.matmul(a, b, alpha, out, beta)
  alpha = lib.number("matmul", "alpha", alpha, 1)
  if out then return into(out, C.lm_matmul, live(a, "matmul"), live(b, "matmul"), alpha, beta or 0) end
  return result(C.lm_matmul, live(a, "matmul"), live(b, "matmul"), alpha, 0)
end

--- Singular values in descending order, of the last two dims.
function T.svdvals(t) return result(C.lm_singular_values, live(t, "svdvals")) end

--- Tensors one behind the other along dim.
function raw.cat(tensors, dim)
  if #tensors == 0 then raise("cat: no tensors") end
  local first = tensors[1]
  local d = dim_index(first, dim or 1, "cat") + 1
  local sizes, total = first:size(), 0
  for i, t in ipairs(tensors) do
    local own = t:size()
    for e = 1, math.max(#sizes, #own) do
      if e ~= d and own[e] ~= sizes[e] then
        raise("cat: tensor %d is %s beside %s; only dim %d may differ", i, t:describe(), first:describe(), d)
      end
    end
    total = total + own[d]
  end
  sizes[d] = total
  local out = tensor.new(sizes, lib.dtype_code(first:dtype()), lib.device_code(first:device()), "cat")
  local at = 1
  for _, t in ipairs(tensors) do
    call(C.lm_copy, T.narrow(out, d, at, t:size(d)).h, t.h)
    at = at + t:size(d)
  end
  return out
end

return raw
