--- Views: other shapes and strides over the memory of a tensor. They record no gradient; ops.lua wraps
-- them into those that do.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local C, raise, result, is_whole, T = lib.C, lib.raise, lib.result, lib.is_whole, lib.methods
local live, put_shape, dim_index = tensor.live, tensor.put_shape, tensor.dim_index
local shape_box, stride_box = tensor.shape_box, tensor.stride_box

local function as_strided(t, sizes, strides, offset)
  live(t, "as_strided")
  local n = put_shape(sizes, "as_strided")
  if type(strides) ~= "table" then raise("as_strided: strides must be a table, got %s", type(strides)) end
  for d = 1, n do
    if not is_whole(strides[d]) then
      raise("as_strided: stride %s of dim %d is not a whole number", tostring(strides[d]), d)
    end
    stride_box[d - 1] = strides[d]
  end
  offset = offset or 0
  if not is_whole(offset) then raise("as_strided: offset %s is not a whole number", tostring(offset)) end
  return result(C.lm_tensor_view, t.h, n, shape_box, stride_box, offset)
end

--- Any strides and offset (in elements, from this tensor's first), checked against the storage.
T.as_strided = as_strided

local function copy_layout(t)
  local n = C.lm_tensor_ndim(t.h)
  for d = 0, n - 1 do
    shape_box[d] = C.lm_tensor_size(t.h, d)
    stride_box[d] = C.lm_tensor_stride(t.h, d)
  end
  return n
end

--- `length` slices from `start` along dim.
function T.narrow(t, dim, start, length)
  local d = dim_index(t, dim, "narrow")
  local n, size = copy_layout(t), C.lm_tensor_size(t.h, d)
  if not is_whole(start) or not is_whole(length) or length < 0 then
    raise("narrow: start %s and length %s must be whole numbers", tostring(start), tostring(length))
  end
  local from = start < 0 and size + start or start - 1
  if from < 0 or start == 0 or from + length > size then
    raise("narrow: %d elements from %d do not lie in dim %d of size %d of %s", length, start, d + 1, size,
      t:describe())
  end
  shape_box[d] = length
  return result(C.lm_tensor_view, t.h, n, shape_box, stride_box, from * C.lm_tensor_stride(t.h, d))
end

--- Slice `index` along dim; the dim goes away.
function T.select(t, dim, index)
  local d = dim_index(t, dim, "select")
  local n, size = copy_layout(t), C.lm_tensor_size(t.h, d)
  if not is_whole(index) or index == 0 or index > size or index < -size then
    raise("select: index %s is not in 1..%d or -%d..-1 of dim %d of %s", tostring(index), size, size, d + 1,
      t:describe())
  end
  local from = index < 0 and size + index or index - 1
  local offset = from * C.lm_tensor_stride(t.h, d)
  for e = d, n - 2 do
    shape_box[e] = shape_box[e + 1]
    stride_box[e] = stride_box[e + 1]
  end
  return result(C.lm_tensor_view, t.h, n - 1, shape_box, stride_box, offset)
end

--- Swap two dims.
function T.transpose(t, dim1, dim2)
  local a, b = dim_index(t, dim1, "transpose"), dim_index(t, dim2, "transpose")
  local n = copy_layout(t)
  shape_box[a], shape_box[b] = shape_box[b], shape_box[a]
  stride_box[a], stride_box[b] = stride_box[b], stride_box[a]
  return result(C.lm_tensor_view, t.h, n, shape_box, stride_box, 0)
end

--- Swap the last two dims.
function T.t(t)
  if t:dim() < 2 then raise("t: needs at least 2 dims, got %s", t:describe()) end
  return t:transpose(-2, -1)
end

--- Dims in a new order: x:permute(3, 1, 2).
function T.permute(t, ...)
  local order = type((...)) == "table" and (...) or { ... }
  local n, seen = t:dim(), {}
  if #order ~= n then raise("permute: %d dims given for %s", #order, t:describe()) end
  for i = 1, n do
    local d = dim_index(t, order[i], "permute")
    if seen[d] then raise("permute: dim %d twice", d + 1) end
    seen[d] = true
    shape_box[i - 1] = C.lm_tensor_size(t.h, d)
    stride_box[i - 1] = C.lm_tensor_stride(t.h, d)
  end
  return result(C.lm_tensor_view, t.h, n, shape_box, stride_box, 0)
end

--- Broadcast dims of size 1 (and new leading ones) to the given sizes; -1 keeps a size.
function T.expand(t, ...)
  local sizes = type((...)) == "table" and { unpack((...)) } or { ... }
  local n, strides = t:dim(), {}
  for i = #sizes, 1, -1 do
    local d = n - (#sizes - i)
    local own = d >= 1 and t:size(d) or 1
    if sizes[i] == -1 and d >= 1 then sizes[i] = own end
    if not is_whole(sizes[i]) or (own ~= 1 and own ~= sizes[i]) or sizes[i] < 0 then
      for d2 = 1, #sizes do sizes[d2] = tostring(sizes[d2]) end
      raise("expand: %s does not broadcast to (%s)", t:describe(), table.concat(sizes, ", "))
    end
    strides[i] = (d >= 1 and own == sizes[i]) and t:stride(d) or 0
  end
  if #sizes < n then raise("expand: (%s) has fewer dims than %s", table.concat(sizes, ", "), t:describe()) end
  return as_strided(t, sizes, strides, 0)
end

--- Drop dim (of size 1), or every dim of size 1.
function T.squeeze(t, dim)
  local sizes, strides = {}, {}
  local only = dim and dim_index(t, dim, "squeeze") + 1
  if only and t:size(only) ~= 1 then raise("squeeze: dim %d of %s is not of size 1", only, t:describe()) end
  for d = 1, t:dim() do
    if not (t:size(d) == 1 and (not only or only == d)) then
      sizes[#sizes + 1] = t:size(d)
      strides[#strides + 1] = t:stride(d)
    end
  end
  return as_strided(t, sizes, strides, 0)
end

--- A new dim of size 1 at dim.
function T.unsqueeze(t, dim)
  local d = dim_index(t, dim, "unsqueeze", 1) + 1
  local sizes, strides = t:size(), t:stride()
  table.insert(sizes, d, 1)
  table.insert(strides, d, d <= #strides and strides[d] * sizes[d + 1] or 1)
  return as_strided(t, sizes, strides, 0)
end

--- Sizes with at most one -1 filled in.
local function infer(t, what, ...)
  local sizes = type((...)) == "table" and { unpack((...)) } or { ... }
  local known, open = 1, nil
  for i = 1, #sizes do
    if sizes[i] == -1 and not open then
      open = i
    elseif is_whole(sizes[i]) and sizes[i] >= 0 then
      known = known * sizes[i]
    else
      raise("%s: size %s of dim %d (whole numbers, one of them may be -1)", what, tostring(sizes[i]), i)
    end
  end
  local n = t:numel()
  if open then sizes[open] = known > 0 and n / known or 0 end
  if (open and known > 0 and n % known ~= 0) or (not open and known ~= n) or (open and known == 0 and n > 0) then
    if open then sizes[open] = -1 end
    raise("%s: %s with %d elements has no view of shape (%s)", what, t:describe(), n, table.concat(sizes, ", "))
  end
  return sizes
end

--- The same elements under another shape; the tensor must be contiguous. One size may be -1.
function T.view(t, ...)
  local sizes = infer(t, "view", ...)
  if not t:is_contiguous() then raise("view: %s is not contiguous; use :reshape() or :contiguous()", t:describe()) end
  local stride = 1
  local n = put_shape(sizes, "view")
  for d = n, 1, -1 do
    stride_box[d - 1] = stride
    stride = stride * math.max(1, sizes[d])
  end
  return result(C.lm_tensor_view, t.h, n, shape_box, stride_box, 0)
end

--- view, or a copy where no view exists.
function T.reshape(t, ...)
  return t:contiguous():view(infer(t, "reshape", ...))
end

--- Dims first..last joined into one.
function T.flatten(t, first, last)
  local a, b = dim_index(t, first or 1, "flatten") + 1, dim_index(t, last or -1, "flatten") + 1
  local sizes, joined = {}, 1
  for d = 1, t:dim() do
    if d < a or d > b then
      sizes[#sizes + 1] = t:size(d)
    else
      joined = joined * t:size(d)
      if d == b then sizes[#sizes + 1] = joined end
    end
  end
  return t:reshape(sizes)
end

--- Itself if contiguous, else a contiguous copy.
function T.contiguous(t)
  if t:is_contiguous() then return t end
  return t:clone()
end

--- The same values, cut off from gradients.
function T.detach(t)
  live(t, "detach")
  if not t.requires_grad then return t end
  local n = copy_layout(t)
  return result(C.lm_tensor_view, t.h, n, shape_box, stride_box, 0)
end
