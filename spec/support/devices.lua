--- For specs of devices: the same calls on the CPU and on the GPU, results compared.
--
-- An input is made on the CPU, sent, and viewed on each device by the same function, so that strides
-- are the same on both:
--
--     local x = devices.random("bf16", { 4, 6 }, { low = -2, high = 2, view = function(t) return t:t() end })
--     devices.compare({ x, y }, function(a, b) return a + b end, 1e-6)
local lib = require "lumuon.lib"
local lm = require "lumuon"
local ffi, C = lib.ffi, lib.C

local devices = {}

ffi.cdef "int setenv(const char *name, const char *value, int overwrite); int unsetenv(const char *name);"

--- Why there is no GPU, or nil.
function devices.missing()
  if C.lm_device_available(C.LM_CUDA) == 1 then return nil end
  return "no GPU: " .. ffi.string(C.lm_cuda_problem())
end

--- Whether the CPU plays the GPU.
function devices.emulated()
  return not devices.missing() and ffi.string(C.lm_cuda_info()):find("emulated", 1, true) ~= nil
end

--- f() with a variable of the environment set.
function devices.with_environment(name, value, f)
  local before = os.getenv(name)
  ffi.C.setenv(name, value, 1)
  local ok, message = pcall(f)
  if before then ffi.C.setenv(name, before, 1) else ffi.C.unsetenv(name) end
  if not ok then error(message, 0) end
end

local FLOATS = { f32 = true, bf16 = true, f16 = true }
local seed = 0

--- An input of random values (whole ones for integer dtypes) from low to high (0 to 9 for integers, -1 to
-- 1 for floats, unless given); view, where given, is applied on each device.
function devices.random(dtype, shape, options)
  options = options or {}
  seed = seed + 1
  local generator = lm.Generator(options.seed or seed)
  local whole = not FLOATS[dtype]
  local t = lm.empty(shape, { dtype = whole and "i32" or "f32" })
  t:uniform_(options.low or (whole and 0 or -1), options.high or (whole and 10 or 1), generator)
  return { tensor = t:to(dtype), view = options.view }
end

--- An input with the given values.
function devices.values(values, dtype, view)
  return { tensor = lm.tensor(values, { dtype = dtype or "f32" }), view = view }
end

--- Ways an input may lie in memory: name -> view of a tensor that is larger, or turned, than the shape.
-- `devices.layouts(dtype, shape, options)` gives a list of { name, input } with that shape.
function devices.layouts(dtype, shape, options)
  local n, list = #shape, {}
  local function add(name, base, view)
    local own = {}
    for k, v in pairs(options or {}) do own[k] = v end
    own.view = view
    list[#list + 1] = { name, devices.random(dtype, base, own) }
  end
  add("contiguous", shape)
  for _, size in ipairs(shape) do
    if size == 0 then return list end
  end
  if n > 0 then
    local wide, padded = { unpack(shape) }, { unpack(shape) }
    wide[n], padded[n] = 2 * shape[n], shape[n] + 5
    add("stepped", wide, function(t)
      local strides = t:stride()
      strides[n] = 2
      return t:as_strided(shape, strides, 1)
    end)
    add("narrowed", padded, function(t) return t:narrow(n, 4, shape[n]) end)
  end
  if n > 1 then
    local turned = { unpack(shape) }
    turned[n - 1], turned[n] = turned[n], turned[n - 1]
    add("transposed", turned, function(t) return t:t() end)
  end
  return list
end

local function run(f, inputs, device)
  local arguments, n = {}, 0
  for i, input in ipairs(inputs) do
    n = i
    if type(input) ~= "table" or not input.tensor then
      arguments[i] = input -- a number
    else
      local t = device == "cpu" and input.tensor:clone() or input.tensor:to(device)
      arguments[i] = input.view and input.view(t) or t
    end
  end
  return { f(unpack(arguments, 1, n)) }
end

local function floats(result)
  if type(result) == "number" then return { result }, "number" end
  local t = result:detach():to("cpu")
  local described = t:describe()
  t = t:to("f32"):contiguous()
  local p, values = t:pointer(), {}
  for i = 1, t:numel() do
    local x = p[i - 1]
    values[i] = x ~= x and 0 / 0 or x
  end
  return values, described
end

local function check_same(got, want, bound, what)
  assert(#got == #want, ("%s: %d results, expected %d"):format(what, #got, #want))
  for r = 1, #want do
    local g, g_is = floats(got[r])
    local w, w_is = floats(want[r])
    assert(g_is == w_is, ("%s: result %d is %s, expected %s"):format(what, r, g_is, w_is))
    for i = 1, #w do
      local x, y = g[i], w[i]
      local near = math.abs(x - y) <= bound * (1 + math.abs(y)) -- false for NaNs
      if x ~= y and not near and not (x ~= x and y ~= y) then
        error(("%s: result %d, element %d is %.9g, expected %.9g (bound %g)"):format(what, r, i, x, y, bound), 0)
      end
    end
  end
end

--- f(inputs...) on both devices: results (tensors or numbers) within bound * (1 + |value|) of the CPU's.
-- A second run on the GPU must give the same bits; emulated, so must one with the blocks and threads in
-- the opposite order, as a GPU may run them in any.
function devices.compare(inputs, f, bound, what)
  what = what or "result"
  lm.scope(function()
    local want = run(f, inputs, "cpu")
    local got = run(f, inputs, "cuda")
    check_same(got, want, bound, what)
    check_same(run(f, inputs, "cuda"), got, 0, what .. ", run again")
    if devices.emulated() then
      devices.with_environment("LUMUON_EMULATED_ORDER", "reverse", function()
        check_same(run(f, inputs, "cuda"), got, 0, what .. ", threads in the opposite order")
      end)
    end
  end)
end

return devices
