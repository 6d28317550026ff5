--- Tensors: creation, views, arithmetic without gradients, printing.
--
-- Dims and indices count from 1 and may be negative from the end. A method that ends in `_` works in
-- place and returns its tensor, as do `copy`, `fill` and `zero`; the others return a new tensor (views
-- share storage). lumuon.autograd wraps the differentiable ones.
local lib = require "lumuon.lib"
local ffi, C, call, raise, result, into = lib.ffi, lib.C, lib.call, lib.raise, lib.result, lib.into
local Tensor, T, is_tensor, is_whole = lib.Tensor, lib.methods, lib.is_tensor, lib.is_whole

local tensor = {}
local MAX_DIMS = C.LM_MAX_DIMS
local shape_box = ffi.new("int64_t[?]", MAX_DIMS)
local stride_box = ffi.new("int64_t[?]", MAX_DIMS)
local index_box = ffi.new("int64_t[?]", MAX_DIMS)
local number_box = ffi.new("double[1]")

-- ---- what a tensor is -----------------------------------------------------------------------------

local function live(t, what)
  if not is_tensor(t) then raise("%s: expected a tensor, got %s", what, type(t)) end
  if t.h == nil then
    raise("%s: the tensor was freed (tensors made inside lm.scope end with it: return them, or :keep() them)",
      what)
  end
  return t.h
end
tensor.live = live

--- Number of dims.
function T.dim(t) return C.lm_tensor_ndim(live(t, "dim")) end

--- A dim counted from 1 or from the end, as the engine counts it; `extra` allows one past the last.
local function dim_index(t, dim, what, extra)
  local n = C.lm_tensor_ndim(live(t, what)) + (extra or 0)
  if not is_whole(dim) or dim == 0 or dim > n or dim < -n then
    raise("%s: dim %s is not in 1..%d or -%d..-1 (the tensor has %d)", what, tostring(dim), n, n,
      n - (extra or 0))
  end
  return dim > 0 and dim - 1 or n + dim
end

--- Size of one dim, or all sizes as a table.
function T.size(t, dim)
  if dim then return C.lm_tensor_size(t.h, dim_index(t, dim, "size")) end
  local sizes = {}
  for d = 0, C.lm_tensor_ndim(live(t, "size")) - 1 do sizes[d + 1] = C.lm_tensor_size(t.h, d) end
  return sizes
end

--- Stride of one dim in elements, or all as a table.
function T.stride(t, dim)
  if dim then return C.lm_tensor_stride(t.h, dim_index(t, dim, "stride")) end
  local strides = {}
  for d = 0, C.lm_tensor_ndim(live(t, "stride")) - 1 do strides[d + 1] = C.lm_tensor_stride(t.h, d) end
  return strides
end

function T.numel(t) return C.lm_tensor_numel(live(t, "numel")) end
function T.dtype(t) return lib.dtype_names[C.lm_tensor_dtype(live(t, "dtype"))] end
function T.device(t) return ffi.string(C.lm_device_name(C.lm_tensor_device(live(t, "device")))) end
function T.is_contiguous(t) return C.lm_tensor_is_contiguous(live(t, "is_contiguous")) ~= 0 end
--- Whether both share memory.
function T.shares_storage(a, b)
  return C.lm_tensor_shares_storage(live(a, "shares_storage"), live(b, "shares_storage")) ~= 0
end

--- "f32 (2, 3)".
function T.describe(t)
  if t.h == nil then return "freed" end
  return ("%s (%s)"):format(t:dtype(), table.concat(t:size(), ", "))
end

-- ---- creation ---------------------------------------------------------------------------------------

--- Write sizes into the shape box; returns how many.
local function put_shape(sizes, what)
  if #sizes > MAX_DIMS then raise("%s: %d dims; a tensor has at most %d", what, #sizes, MAX_DIMS) end
  for d = 1, #sizes do
    local n = sizes[d]
    if not is_whole(n) or n < 0 then
      raise("%s: size %s of dim %d is not a whole number >= 0", what, tostring(n), d)
    end
    shape_box[d - 1] = n
  end
  return #sizes
end

local function new(sizes, dtype, device, what)
  return result(C.lm_tensor_new, dtype, device, put_shape(sizes, what), shape_box)
end

local creation_options = { dtype = true, device = true, low = true, high = true, mean = true, std = true,
  generator = true }

--- Split (2, 3, {dtype = "f32"}) or ({2, 3}, {dtype = "f32"}) into sizes and options.
local function creation_arguments(what, ...)
  local arguments = { ... }
  local options, sizes = {}, arguments
  local last = arguments[#arguments]
  if type(arguments[1]) == "table" and (#arguments[1] > 0 or next(arguments[1]) == nil) then
    sizes, options = arguments[1], arguments[2] or {}
    if #arguments > 2 then raise("%s: expected ({sizes}, {options}), got %d arguments", what, #arguments) end
  elseif type(last) == "table" then
    options = last
    sizes = {}
    for i = 1, #arguments - 1 do sizes[i] = arguments[i] end
  end
  if type(options) ~= "table" then raise("%s: options must be a table, got %s", what, type(options)) end
  for name in pairs(options) do
    if not creation_options[name] then
      local known = {}
      for k in pairs(creation_options) do known[#known + 1] = k end
      local near = lib.nearest(tostring(name), known)
      raise("%s: unknown option '%s'%s", what, tostring(name), near and "; did you mean '" .. near .. "'?" or "")
    end
  end
  return sizes, options, lib.dtype_code(options.dtype or "f32"), lib.device_code(options.device or "cpu")
end

--- Uninitialised: lm.empty(2, 3) or lm.empty({2, 3}, {dtype = "bf16", device = "cpu"}).
function tensor.empty(...)
  local sizes, _, dtype, device = creation_arguments("empty", ...)
  return new(sizes, dtype, device, "empty")
end

--- Every element = value: lm.full({2, 3}, 7, {dtype = ...}).
function tensor.full(sizes, value, options)
  if type(sizes) ~= "table" then raise("full: expected ({sizes}, value, {options}), got %s first", type(sizes)) end
  local dims, _, dtype, device = creation_arguments("full", sizes, options)
  local t = new(dims, dtype, device, "full")
  call(C.lm_fill, t.h, tonumber(value) or raise("full: value must be a number, got %s", type(value)))
  return t
end

function tensor.zeros(...)
  local sizes, _, dtype, device = creation_arguments("zeros", ...)
  local t = new(sizes, dtype, device, "zeros")
  call(C.lm_fill, t.h, 0)
  return t
end

function tensor.ones(...)
  local sizes, _, dtype, device = creation_arguments("ones", ...)
  local t = new(sizes, dtype, device, "ones")
  call(C.lm_fill, t.h, 1)
  return t
end

--- Same shape, dtype and device as t, unless told otherwise: lm.zeros_like(t, {dtype = "f32"}).
function tensor.empty_like(t, options)
  options = options or {}
  live(t, "empty_like")
  return new(t:size(), lib.dtype_code(options.dtype or t:dtype()), lib.device_code(options.device or t:device()),
    "empty_like")
end

function tensor.zeros_like(t, options)
  local z = tensor.empty_like(t, options)
  call(C.lm_fill, z.h, 0)
  return z
end

--- start, start + step, ... up to and with stop: lm.arange(1, 5) holds 1 2 3 4 5.
function tensor.arange(start, stop, step, options)
  step = step or 1
  if type(start) ~= "number" or type(stop) ~= "number" or type(step) ~= "number" or step == 0 then
    raise("arange: start, stop and step must be numbers, step not 0")
  end
  local n = math.max(0, math.floor((stop - start) / step + 1e-9) + 1)
  local _, _, dtype, device = creation_arguments("arange", { n }, options)
  local t = new({ n }, dtype, device, "arange")
  call(C.lm_arange, t.h, start, step)
  return t
end

local function sizes_of(value, sizes, depth, what)
  if type(value) ~= "table" then
    if sizes[depth] then raise("%s: numbers and tables side by side at depth %d", what, depth - 1) end
    sizes.leaves = depth
    return
  end
  local n = #value
  if sizes.leaves and depth >= sizes.leaves then
    raise("%s: numbers and tables side by side at depth %d", what, depth - 1)
  end
  if sizes[depth] == nil then
    sizes[depth] = n
  elseif sizes[depth] ~= n then
    raise("%s: rows of unequal length at depth %d: %d and %d", what, depth, sizes[depth], n)
  end
  for i = 1, n do
    if (type(value[i]) == "table") ~= (type(value[1]) == "table") then
      raise("%s: numbers and tables side by side at depth %d", what, depth)
    end
    sizes_of(value[i], sizes, depth + 1, what)
  end
end

--- From a number or nested tables of numbers: lm.tensor({{1, 2}, {3, 4}}, {dtype = "i32"}).
function tensor.tensor(value, options)
  local sizes = {}
  if is_tensor(value) then raise("tensor: got a tensor; use :clone() or :to()") end
  sizes_of(value, sizes, 1, "tensor")
  sizes.leaves = nil
  local _, _, dtype, device = creation_arguments("tensor", sizes, options)
  local t = new(sizes, dtype, C.LM_CPU, "tensor")
  local index = ffi.new("int64_t[?]", MAX_DIMS)
  local function fill(v, depth)
    if depth > #sizes then
      if type(v) ~= "number" then raise("tensor: expected numbers, got %s", type(v)) end
      call(C.lm_tensor_set, t.h, index, v)
      return
    end
    for i = 1, #v do
      index[depth - 1] = i - 1
      fill(v[i], depth + 1)
    end
  end
  fill(value, 1)
  return device == C.LM_CPU and t or t:to(options.device)
end

--- The n x n identity.
function tensor.eye(n, options)
  local t = tensor.zeros({ n, n }, options)
  t:view(-1):as_strided({ n }, { n + 1 }, 0):fill(1)
  return t
end

-- ---- random numbers ------------------------------------------------------------------------------------

--- A position in a Philox stream: a function of seed, stream and how much was drawn, nothing else.
local Generator = {}
Generator.__index = Generator
tensor.Generator = setmetatable({}, {
  __call = function(_, seed, stream)
    if not is_whole(seed) or seed < 0 then
      raise("Generator: seed must be a whole number >= 0, got %s", tostring(seed))
    end
    stream = stream or 0
    if not is_whole(stream) or stream < 0 then
      raise("Generator: stream must be a whole number >= 0, got %s", tostring(stream))
    end
    return setmetatable({ seed = seed, stream = stream, position = 0 }, Generator)
  end,
})

local default_generator = tensor.Generator(0)

--- Start the default generator afresh.
function tensor.manual_seed(seed) default_generator = tensor.Generator(seed) end

--- Fill t with the generator's next numbers.
local function draw(f, what, t, a, b, generator)
  tensor.in_place(t, what)
  generator = generator or default_generator
  if getmetatable(generator) ~= Generator then
    raise("%s: generator must be an lm.Generator, got %s", what, type(generator))
  end
  if type(a) ~= "number" or type(b) ~= "number" then
    raise("%s: expected two numbers, got %s and %s", what, type(a), type(b))
  end
  call(f, t.h, a, b, generator.seed, generator.stream, generator.position)
  generator.position = generator.position + t:numel()
  return t
end

--- Uniform in [low, high), in place.
function T.uniform_(t, low, high, generator)
  return draw(C.lm_random_uniform, "uniform_", t, low or 0, high or 1, generator)
end

--- Normal, in place.
function T.normal_(t, mean, std, generator)
  return draw(C.lm_random_normal, "normal_", t, mean or 0, std or 1, generator)
end

--- lm.rand(2, 3): uniform in [0, 1), or {low =, high =, generator =}.
function tensor.rand(...)
  local sizes, o, dtype, device = creation_arguments("rand", ...)
  return new(sizes, dtype, device, "rand"):uniform_(o.low, o.high, o.generator)
end

--- lm.randn(2, 3): normal, or {mean =, std =, generator =}.
function tensor.randn(...)
  local sizes, o, dtype, device = creation_arguments("randn", ...)
  return new(sizes, dtype, device, "randn"):normal_(o.mean, o.std, o.generator)
end

-- ---- views ------------------------------------------------------------------------------------------------

--- Any strides and offset (in elements, from this tensor's first), checked against the storage.
function T.as_strided(t, sizes, strides, offset)
  live(t, "as_strided")
  local n = put_shape(sizes, "as_strided")
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
      raise("expand: %s does not broadcast to (%s)", t:describe(), table.concat(sizes, ", "))
    end
    strides[i] = (d >= 1 and own == sizes[i]) and t:stride(d) or 0
  end
  if #sizes < n then raise("expand: (%s) has fewer dims than %s", table.concat(sizes, ", "), t:describe()) end
  return t:as_strided(sizes, strides, 0)
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
  return t:as_strided(sizes, strides, 0)
end

--- A new dim of size 1 at dim.
function T.unsqueeze(t, dim)
  local d = dim_index(t, dim, "unsqueeze", 1) + 1
  local sizes, strides = t:size(), t:stride()
  table.insert(sizes, d, 1)
  table.insert(strides, d, d <= #strides and strides[d] * sizes[d + 1] or 1)
  return t:as_strided(sizes, strides, 0)
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

-- ---- copying and reading ----------------------------------------------------------------------------------

--- A contiguous copy.
function T.clone(t)
  local c = tensor.empty_like(t)
  call(C.lm_copy, c.h, t.h)
  return c
end

--- The same values in another dtype or on another device: x:to("bf16"), x:to("cpu"). Itself if nothing
-- changes.
function T.to(t, what)
  local dtype, device = t:dtype(), t:device()
  if lib.dtypes[what] then
    dtype = what
  elseif lib.devices[what] then
    device = what
  else
    raise("to: '%s' is neither a dtype (f32, bf16, f16, i32, u16, u8) nor a device (cpu, cuda)", tostring(what))
  end
  if dtype == t:dtype() and device == t:device() then return t end
  local c = new(t:size(), lib.dtypes[dtype], lib.device_code(device), "to")
  call(C.lm_copy, c.h, t.h)
  return c
end

local function in_place(t, what)
  live(t, what)
  if t.node then
    raise("%s: %s is a recorded result that its gradient needs; use the form without _, or lm.no_grad and :detach()",
      what, t:describe())
  end
  return t
end
tensor.in_place = in_place

--- t = source, cast and broadcast.
function T.copy(t, source)
  in_place(t, "copy")
  call(C.lm_copy, t.h, live(source, "copy"))
  return t
end
T.copy_ = T.copy

function T.fill(t, value)
  if type(value) ~= "number" then raise("fill: value must be a number, got %s", type(value)) end
  call(C.lm_fill, in_place(t, "fill").h, value)
  return t
end
T.fill_ = T.fill
function T.zero(t) return t:fill(0) end
T.zero_ = T.zero

--- The only element as a number; or the element at 1-based indices: t:item(2, 3).
function T.item(t, ...)
  local n = select("#", ...)
  live(t, "item")
  if n == 0 then
    if t:numel() ~= 1 then
      raise("item: %s has %d elements; give indices, or use :tolist()", t:describe(), t:numel())
    end
    for d = 0, t:dim() - 1 do index_box[d] = 0 end
  else
    if n ~= t:dim() then raise("item: %d indices for %s", n, t:describe()) end
    for d = 1, n do
      local i, size = select(d, ...), t:size(d)
      if not is_whole(i) or i == 0 or i > size or i < -size then
        raise("item: index %s is not in 1..%d of dim %d of %s", tostring(i), size, d, t:describe())
      end
      index_box[d - 1] = i > 0 and i - 1 or size + i
    end
  end
  call(C.lm_tensor_get, number_box, t.h, index_box)
  return number_box[0]
end

local pointers = { f32 = "float *", i32 = "int32_t *", u16 = "uint16_t *", u8 = "uint8_t *" }

--- A typed pointer to a contiguous CPU tensor of f32, i32, u16 or u8; valid while the tensor lives.
function T.pointer(t)
  local pointer = pointers[t:dtype()]
  if not pointer or t:device() ~= "cpu" or not t:is_contiguous() then
    raise("pointer: needs a contiguous f32, i32, u16 or u8 tensor on the CPU, got %s", t:describe())
  end
  return ffi.cast(pointer, C.lm_tensor_data(t.h))
end

local function readable(t)
  t = t:detach():to("cpu")
  if not pointers[t:dtype()] then t = t:to("f32") end
  return t:contiguous()
end

--- Nested tables of numbers; a number for a tensor without dims.
function T.tolist(t)
  local c = readable(t)
  local p, sizes, at = c:pointer(), c:size(), 0
  local function read(depth)
    if depth > #sizes then
      at = at + 1
      return tonumber(p[at - 1])
    end
    local list = {}
    for i = 1, sizes[depth] do list[i] = read(depth + 1) end
    return list
  end
  return read(1)
end

--- The same values, cut off from gradients.
function T.detach(t)
  live(t, "detach")
  if not t.requires_grad then return t end
  local n = copy_layout(t)
  return result(C.lm_tensor_view, t.h, n, shape_box, stride_box, 0)
end

-- ---- arithmetic (raw: autograd.lua wraps these) ---------------------------------------------------------------

local raw = {}
tensor.raw = raw

tensor.unary_ops = { "neg", "abs", "sign", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos",
  "tanh", "sigmoid", "relu", "relu2", "floor", "ceil", "round", "isfinite" }
tensor.binary_ops = { "add", "sub", "mul", "div", "pow", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge" }

for _, name in ipairs(tensor.unary_ops) do
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

for _, name in ipairs(tensor.binary_ops) do
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
  if out then return into(out, C.lm_matmul, live(a, "matmul"), live(b, "matmul"), alpha or 1, beta or 0) end
  return result(C.lm_matmul, live(a, "matmul"), live(b, "matmul"), alpha or 1, 0)
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
  local out = new(sizes, lib.dtype_code(first:dtype()), lib.device_code(first:device()), "cat")
  local at = 1
  for _, t in ipairs(tensors) do
    call(C.lm_copy, T.narrow(out, d, at, t:size(d)).h, t.h)
    at = at + t:size(d)
  end
  return out
end

-- ---- printing ------------------------------------------------------------------------------------------------

local EDGE = 3 -- rows and columns shown at each end of a long dim

local function shown(n)
  local list = {}
  for i = 1, n do
    if n <= 2 * EDGE + 2 or i <= EDGE or i > n - EDGE then
      list[#list + 1] = i
    elseif i == EDGE + 1 then
      list[#list + 1] = 0 -- the gap
    end
  end
  return list
end

--- A format for all the numbers shown: integers plain, else 4 decimals, or exponents for wide ranges.
local function number_format(values)
  local whole, largest, smallest = true, 0, math.huge
  for _, v in ipairs(values) do
    local a = math.abs(v)
    if v == v and a < math.huge then
      whole = whole and v == math.floor(v)
      largest = math.max(largest, a)
      if a > 0 then smallest = math.min(smallest, a) end
    end
  end
  if whole and largest < 1e9 then return "%.0f" end
  if largest >= 1e5 or (smallest < 1e-4 and largest < 1) or largest / smallest > 1e6 then return "%.4e" end
  return "%.4f"
end

function Tensor.__tostring(t)
  if t.h == nil then return "tensor (freed)" end
  local head = ("tensor %s %s%s"):format(t:describe(), t:device(), t.requires_grad and " requires_grad" or "")
  if t:numel() == 0 then return head .. " []" end
  local plain = t:detach()
  local sizes = t:size()
  local values, lines = {}, {}
  local function gather(x, depth)
    if depth > #sizes then
      values[#values + 1] = x:item()
      return
    end
    for _, i in ipairs(shown(sizes[depth])) do
      if i > 0 then gather(T.select(x, 1, i), depth + 1) end
    end
  end
  gather(plain, 1)
  local format, width = number_format(values), 0
  for i = 1, #values do
    values[i] = format:format(values[i])
    width = math.max(width, #values[i])
  end
  if #sizes == 0 then return head .. " " .. values[1] end
  local at = 0
  local function render(depth, indent)
    if depth == #sizes then
      local cells = {}
      for _, i in ipairs(shown(sizes[depth])) do
        if i > 0 then at = at + 1 end
        cells[#cells + 1] = i > 0 and (" "):rep(width - #values[at]) .. values[at] or "..."
      end
      lines[#lines + 1] = indent .. "[" .. table.concat(cells, ", ") .. "]"
      return
    end
    for _, i in ipairs(shown(sizes[depth])) do
      if i > 0 then
        if depth < #sizes - 1 and #lines > 0 then lines[#lines + 1] = "" end
        render(depth + 1, indent)
      else
        lines[#lines + 1] = indent .. " ..."
      end
    end
  end
  render(1, "  ")
  return head .. "\n" .. table.concat(lines, "\n")
end

return tensor
