--- For specs of tensors: what the engine should compute, in plain Lua. An array is
-- { shape = {...}, ... } with its elements, row by row, as doubles at 1, 2, ...
local lib = require "lumuon.lib"
local lm = require "lumuon"
local engine = require "spec.support.engine"
local ffi = lib.ffi

local arrays = {}

local word = ffi.new("union { uint32_t u; float f; }")

--- x as dtype stores it: floats to nearest even; integers towards zero, at most the range's ends.
local ranges = { i32 = { -2147483648, 2147483647 }, u16 = { 0, 65535 }, u8 = { 0, 255 } }
function arrays.round(dtype, x)
  local range = ranges[dtype]
  if range then
    if x ~= x then return 0 end
    return math.max(range[1], math.min(range[2], x < 0 and math.ceil(x) or math.floor(x)))
  end
  if dtype == "f16" and x == x and x ~= 0 then
    local _, exponent = math.frexp(x)
    local unit = 2 ^ (math.max(exponent, -13) - 11)
    local n = x / unit
    n = (n + 6755399441055744) - 6755399441055744 -- to nearest even
    return math.abs(n * unit) < 65520 and n * unit or x / 0
  end
  word.f = x
  if dtype == "bf16" and x == x then
    local u = tonumber(word.u)
    local low = u % 65536
    u = u - low
    if low > 32768 or (low == 32768 and (u / 65536) % 2 == 1) then u = u + 65536 end
    word.u = u
  end
  return tonumber(word.f)
end

--- An array with f(1), f(2), ... rounded to dtype.
function arrays.make(shape, dtype, f)
  local a = { shape = shape }
  for i = 1, engine.count(shape) do a[i] = arrays.round(dtype, f(i)) end
  return a
end

local function flatten(list, into)
  for _, v in ipairs(list) do
    if type(v) == "table" then flatten(v, into) else into[#into + 1] = v end
  end
  return into
end

--- A tensor's elements and shape.
function arrays.of(t)
  local list = t:tolist()
  local a = type(list) == "table" and flatten(list, {}) or { list }
  a.shape = t:size()
  return a
end

--- A contiguous tensor with a's elements.
function arrays.tensor(a, dtype)
  local t = lm.empty(a.shape, { dtype = "f32" })
  local p = t:pointer()
  for i = 1, #a do p[i - 1] = a[i] end
  if dtype == "i32" then -- f32 would lose large ones
    t = lm.empty(a.shape, { dtype = "i32" })
    p = t:pointer()
    for i = 1, #a do p[i - 1] = a[i] end
    return t
  end
  return t:to(dtype or "f32")
end

--- The same elements in other layouts of memory: name -> tensor. All but the first are not
-- contiguous, where a has enough dims.
function arrays.layouts(a, dtype)
  local t = arrays.tensor(a, dtype)
  local out = { contiguous = t }
  local n = #a.shape
  local options = { dtype = dtype }
  if #a == 0 then return out end
  if n > 0 then
    local wide = { unpack(a.shape) }
    wide[n] = 2 * wide[n] + 3
    local strides = lm.empty(wide, options):stride()
    strides[n] = 2
    out.stepped = lm.zeros(wide, options):as_strided(a.shape, strides, 1):copy(t)
    local offset = { unpack(a.shape) }
    offset[n] = offset[n] + 5
    out.narrowed = lm.zeros(offset, options):narrow(n, 4, a.shape[n]):copy(t)
  end
  if n > 1 then
    local turned = { unpack(a.shape) }
    turned[n - 1], turned[n] = turned[n], turned[n - 1]
    out.transposed = lm.zeros(turned, options):t():copy(t)
  end
  return out
end

--- Position in a (with broadcasting) of element i of an array of that shape.
local function position(a, shape, i)
  local rest, at, stride = i - 1, 0, 1
  for d = #shape, 1, -1 do
    local index = rest % shape[d]
    rest = (rest - index) / shape[d]
    local own = a.shape[d - (#shape - #a.shape)]
    if own then
      if own > 1 then at = at + index * stride end
      stride = stride * own
    end
  end
  return at + 1
end

function arrays.broadcast_shape(a, b)
  local n, shape = math.max(#a.shape, #b.shape), {}
  for d = 1, n do
    local x, y = a.shape[d - (n - #a.shape)] or 1, b.shape[d - (n - #b.shape)] or 1
    shape[d] = x == 1 and y or x
  end
  return shape
end

--- f(x, y) over two arrays, broadcast.
function arrays.zip(f, a, b)
  local out = { shape = arrays.broadcast_shape(a, b) }
  for i = 1, engine.count(out.shape) do
    out[i] = f(a[position(a, out.shape, i)], b[position(b, out.shape, i)])
  end
  return out
end

--- f(list of elements) over the dims (a set: dims[d] = true), which stay as size 1 with keepdim.
function arrays.reduce(f, a, dims, keepdim)
  local shape, kept = {}, {}
  for d = 1, #a.shape do
    shape[d] = dims[d] and 1 or a.shape[d]
    if keepdim or not dims[d] then kept[#kept + 1] = shape[d] end
  end
  local out, lists = { shape = kept }, {}
  local small = { shape = shape }
  for i = 1, engine.count(shape) do lists[i] = {} end
  for i = 1, #a do
    local list = lists[position(small, a.shape, i)]
    list[#list + 1] = a[i]
  end
  for i, list in ipairs(lists) do out[i] = f(list) end
  return out
end

local function same(x, y) return x == y or (x ~= x and y ~= y) end

--- t holds want's elements in its shape: exactly, or within bound relative to |want| (and `floor`).
function arrays.check(t, want, bound, what, floor)
  local got = arrays.of(t)
  what = what or "tensor"
  assert(table.concat(got.shape, ",") == table.concat(want.shape, ","),
    ("%s: shape (%s), expected (%s)"):format(what, table.concat(got.shape, ","), table.concat(want.shape, ",")))
  for i = 1, #want do
    local x, y = got[i], want[i]
    if not same(x, y) then
      local near = bound and math.abs(x - y) <= bound * math.max(math.abs(y), floor or 0)
      if not near then
        error(("%s: element %d is %.9g, expected %.9g"):format(what, i, x or 0 / 0, y), 2)
      end
    end
  end
end

--- For each kernel variant this CPU runs.
function arrays.each_variant(f)
  for _, name in ipairs(engine.variants()) do engine.with_variant(name, function() f(name) end) end
end

--- f must fail with every one of the given plain texts in its message, located in the spec that calls.
function arrays.refuses(f, ...)
  local ok, message = pcall(f)
  assert(not ok, "accepted what it should refuse")
  message = tostring(message)
  assert(message:match("_spec%.lua:%d+: "), "not located in the caller: " .. message)
  for _, text in ipairs { ... } do
    assert(message:find(text, 1, true), ("'%s' does not say '%s'"):format(message, text))
  end
end

return arrays
