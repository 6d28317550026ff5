--- For specs of engine ops: tensors from and to flat Lua arrays of doubles, calls that expect an
-- error, finite differences in double precision, bounds.
local lib = require "lumuon.lib"
local ffi, C = lib.ffi, lib.C

local engine = { C = C, ffi = ffi }

--- Numbers in [-1, 1), the same at every run.
function engine.random(seed)
  local state = seed * 7919 + 17
  return function()
    state = (state * 16807) % 2147483647
    return state / 1073741823.5 - 1
  end
end

function engine.count(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

local word = ffi.new("union { uint32_t u; float f; }")

local function bf16_to_number(bits)
  word.u = bits * 65536
  return tonumber(word.f)
end

local pointer_types = { f32 = "float *", bf16 = "uint16_t *", i32 = "int32_t *" }

--- An uninitialised tensor handle.
function engine.empty(dtype, shape)
  local box = ffi.new("lm_tensor *[1]")
  local sizes = ffi.new("int64_t[8]", shape)
  assert(C.lm_tensor_new(box, lib.dtypes[dtype], C.LM_CPU, #shape, sizes) == 0)
  return ffi.gc(box[0], C.lm_tensor_free)
end

--- A tensor handle holding values (a flat array from 1), or value everywhere.
function engine.tensor(dtype, shape, values)
  local t = engine.empty(dtype, shape)
  local n = engine.count(shape)
  local flat = dtype == "bf16" and engine.empty("f32", shape) or t
  local p = ffi.cast(dtype == "i32" and "int32_t *" or "float *", C.lm_tensor_data(flat))
  for i = 1, n do p[i - 1] = type(values) == "number" and values or values[i] end
  if dtype == "bf16" then assert(C.lm_copy(t, flat) == 0) end
  return t
end

--- Its elements as a flat array of doubles.
function engine.values(t)
  local dtype = lib.dtype_names[C.lm_tensor_dtype(t)]
  local p = ffi.cast(pointer_types[dtype], C.lm_tensor_data(t))
  local out = {}
  for i = 1, C.lm_tensor_numel(t) do
    out[i] = dtype == "bf16" and bf16_to_number(p[i - 1]) or tonumber(p[i - 1])
  end
  return out
end

--- Its bytes, for comparisons to the last bit.
function engine.bytes(t)
  local size = C.lm_tensor_numel(t) * C.lm_dtype_size(C.lm_tensor_dtype(t))
  return ffi.string(C.lm_tensor_data(t), size)
end

--- n random values in [-scale, scale).
function engine.noise(seed, n, scale)
  local next_number, out = engine.random(seed), {}
  for i = 1, n do out[i] = next_number() * (scale or 1) end
  return out
end

--- A random tensor and the values it really holds (rounded to its dtype).
function engine.random_tensor(dtype, shape, seed, scale)
  local t = engine.tensor(dtype, shape, engine.noise(seed, engine.count(shape), scale))
  return t, engine.values(t)
end

local function check_status(status)
  if status ~= 0 then error(ffi.string(C.lm_last_error()), 3) end
end

function engine.call(f, ...) check_status(f(...)) end

--- n results of f(out1, ..., outn, ...), all allocated by the engine.
function engine.results(n, f, ...)
  local boxes = ffi.new("lm_tensor *[?]", n)
  local outs = {}
  for i = 1, n do outs[i] = boxes + (i - 1) end
  local arguments = { ... }
  for i = 1, select("#", ...) do outs[n + i] = arguments[i] end
  check_status(f(unpack(outs, 1, n + select("#", ...))))
  local handles = {}
  for i = 1, n do handles[i] = ffi.gc(boxes[i - 1], C.lm_tensor_free) end
  return unpack(handles)
end

--- A box with handle t in it, for `lm_tensor **out` parameters.
function engine.box(t)
  local box = ffi.new("lm_tensor *[1]")
  box[0] = t
  return box
end

--- f(...) must fail with that status and a message that holds every one of the given plain texts.
function engine.refuses(status, texts, f, ...)
  local got = f(...)
  local message = ffi.string(C.lm_last_error())
  assert(got == status, ("expected %s, got %s: %s"):format(ffi.string(C.lm_status_name(status)),
    ffi.string(C.lm_status_name(got)), message))
  for _, text in ipairs(texts) do
    assert(message:find(text, 1, true), ("'%s' does not say '%s'"):format(message, text))
  end
end

--- Largest |got - want| / (floor + |want|), with where.
function engine.distance(got, want, floor)
  local worst, where = 0, 0
  for i = 1, #want do
    local d = math.abs(got[i] - want[i]) / ((floor or 1) + math.abs(want[i]))
    if d > worst or d ~= d then worst, where = d, i end
    if d ~= d then break end
  end
  return worst, where
end

--- Every element within bound * (1 + |want|).
function engine.near(got, want, bound, what)
  assert(#got == #want, ("%s: %d elements, expected %d"):format(what or "values", #got, #want))
  local d, i = engine.distance(got, want)
  assert(d <= bound, ("%s: element %d is %.9g, expected %.9g (distance %.3g, bound %.3g)"):format(
    what or "values", i, got[i] or 0 / 0, want[i] or 0 / 0, d, bound))
end

--- The gradient of f (array -> number) at x by central differences in double; only at the elements
-- in `at` if given (a list of positions; the result is as long).
function engine.numeric_gradient(f, x, at)
  local out, h = {}, 1e-5
  local function derivative(i)
    local keep = x[i]
    x[i] = keep + h
    local above = f()
    x[i] = keep - h
    local below = f()
    x[i] = keep
    return (above - below) / (2 * h)
  end
  if at then
    for j, i in ipairs(at) do out[j] = derivative(i) end
  else
    for i = 1, #x do out[i] = derivative(i) end
  end
  return out
end

--- sum of a[i] * b[i].
function engine.dot(a, b)
  local sum = 0
  for i = 1, #a do sum = sum + a[i] * b[i] end
  return sum
end

--- About `wanted` positions spread over 1..n.
function engine.sample(n, wanted)
  local at = {}
  for i = 1, n, math.max(1, math.floor(n / wanted)) do at[#at + 1] = i end
  return at
end

--- The values at those positions.
function engine.pick(values, at)
  local out = {}
  for j, i in ipairs(at) do out[j] = values[i] end
  return out
end

--- The kernel variants this CPU runs.
function engine.variants()
  local own, list = ffi.string(C.lm_cpu_variant()), {}
  for _, name in ipairs { "base", "avx2", "avx512" } do
    if C.lm_set_cpu_variant(name) == 0 then list[#list + 1] = name end
  end
  C.lm_set_cpu_variant(own)
  return list
end

--- f() under one variant or number of threads, then back as it was.
function engine.with_variant(name, f)
  local own = ffi.string(C.lm_cpu_variant())
  assert(C.lm_set_cpu_variant(name) == 0)
  local ok, message = pcall(f)
  C.lm_set_cpu_variant(own)
  if not ok then error(message, 0) end
end

function engine.with_threads(n, f)
  local own = C.lm_threads()
  assert(C.lm_set_threads(n) == 0)
  local ok, message = pcall(f)
  C.lm_set_threads(own)
  if not ok then error(message, 0) end
end

return engine
