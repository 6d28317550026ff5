--- Tensors: what they are, creation, copying and reading. Views, arithmetic and printing have files of
-- their own: views.lua, raw.lua, show.lua; ops.lua has the methods that record gradients.
--
-- Dims and indices count from 1 and may be negative from the end. A method that ends in `_` works in
-- place and returns its tensor, as do `copy`, `fill` and `zero`; the others return a new tensor (views
-- share storage).
local lib = require "lumuon.lib"
local ffi, C, call, raise, result = lib.ffi, lib.C, lib.call, lib.raise, lib.result
local T, is_tensor, is_whole = lib.methods, lib.is_tensor, lib.is_whole

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
  if type(sizes) ~= "table" then raise("%s: sizes must be a table, got %s", what, type(sizes)) end
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

tensor.put_shape, tensor.dim_index = put_shape, dim_index
tensor.shape_box, tensor.stride_box = shape_box, stride_box -- of the engine's calls that take a layout

local function new(sizes, dtype, device, what)
  return result(C.lm_tensor_new, dtype, device, put_shape(sizes, what), shape_box)
end
tensor.new = new

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
  if type(options) ~= "table" then raise("empty_like: options must be a table, got %s", type(options)) end
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
  if depth > MAX_DIMS then raise("%s: tables nested deeper than %d, the most dims there are", what, MAX_DIMS) end
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
  if not is_whole(n) or n < 0 then raise("eye: size %s is not a whole number >= 0", tostring(n)) end
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

-- ---- copying and reading ----------------------------------------------------------------------------------

--- A contiguous copy.
function T.clone(t)
  local c = tensor.empty_like(t)
  call(C.lm_copy, c.h, t.h)
  return c
end

--- The same values in another dtype or on another device: x:to("bf16"), x:to("cuda"). Itself if nothing
-- changes.
function T.to(t, what)
  live(t, "to")
  local dtype, device = C.lm_tensor_dtype(t.h), C.lm_tensor_device(t.h)
  if lib.dtypes[what] then
    dtype = lib.dtypes[what]
  elseif lib.is_device(what) then
    device = lib.device_code(what)
  else
    raise("to: '%s' is neither a dtype (f32, bf16, f16, i32, u16, u8) nor a device (cpu, cuda, cuda:1)",
      tostring(what))
  end
  if dtype == C.lm_tensor_dtype(t.h) and device == C.lm_tensor_device(t.h) then return t end
  local c = new(t:size(), dtype, device, "to")
  call(C.lm_copy, c.h, t.h)
  return c
end

--- x:to("cpu") and x:to("cuda").
function T.cpu(t) return t:to("cpu") end
function T.cuda(t) return t:to("cuda") end

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
-- (Do not read an f32 from it that a file may have filled with NaNs: :item() and :tolist() know how.)
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
  -- LuaJIT keeps other types of value in NaNs: one with bits of a file's choosing must not be loaded.
  local bits = c:dtype() == "f32" and ffi.cast("uint32_t *", p)
  local function read(depth)
    if depth > #sizes then
      at = at + 1
      if bits and bit.band(bits[at - 1], 0x7fffffff) > 0x7f800000 then return 0 / 0 end
      return tonumber(p[at - 1])
    end
    local list = {}
    for i = 1, sizes[depth] do list[i] = read(depth + 1) end
    return list
  end
  local list = read(1)
  p = c -- a tail call, or a c no longer named, would let the collector free it while it is read
  return list
end

return tensor
