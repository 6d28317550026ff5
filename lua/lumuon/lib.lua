--- The engine's namespace, and what every wrapper around it needs: errors at the caller's line,
-- handles that free themselves, scopes. Users meet this module only through `lm`.
local ffi = require "ffi"
local clock = require "lumuon.clock"
local has_host, host = pcall(require, "lumuon.host") -- the executable; plain luajit has none
require "lumuon.cdef"

local lib = { ffi = ffi }

-- A model's step is thousands of short traces; past LuaJIT's default bounds it would throw all of them
-- away and begin again.
require("jit.opt").start("maxtrace=10000", "maxmcode=32768", "maxrecord=8000", "maxsnap=1000")

-- Where this module lies: "@lumuon:" inside the executable, else its folder. Frames whose source
-- starts so are the library's own.
local own_source = debug.getinfo(1, "S").source
local own_prefix = own_source:match("^@lumuon:") or own_source:match("^(@.*/)lib%.lua$") or "@?"

local function find_namespace()
  if pcall(function() return ffi.C.lm_abi_version end) then return ffi.C end -- inside the executable
  local own_path = own_source:gsub("^@([^/])", "@./%1") -- found through a relative LUA_PATH
  local root = own_path:match("^@(.*)/lua/lumuon/lib%.lua$")
  local prefix = own_path:match("^@(.*)/share/lua/5%.1/lumuon/lib%.lua$")
  local tried = {}
  for _, path in ipairs {
    os.getenv("LUMUON_LIBRARY") or "", prefix and prefix .. "/lib/liblumuon.so" or "",
    root and root .. "/build/liblumuon.so" or "", "lumuon",
  } do
    if path ~= "" then
      local ok, found = pcall(ffi.load, path)
      if ok then return found end
      tried[#tried + 1] = path
    end
  end
  error("lumuon: cannot load the engine's library; tried " .. table.concat(tried, ", ")
    .. " (build it with ./lumuon info, or name it in LUMUON_LIBRARY)", 0)
end

local C = find_namespace()
lib.C = C
if C.lm_abi_version() ~= C.LM_ABI_VERSION then
  error(("lumuon: the Lua modules speak ABI %d, the library %d; build again"):format(
    C.LM_ABI_VERSION, C.lm_abi_version()), 0)
end

-- ---- errors -------------------------------------------------------------------------------------

--- "recipe.lua:12: " for the innermost frame outside the library, "" where there is none.
local function where()
  for level = 3, 200 do
    local info = debug.getinfo(level, "Sl")
    if not info then return "" end
    if info.what ~= "C" and info.currentline > 0 and info.source:sub(1, #own_prefix) ~= own_prefix then
      return ("%s:%d: "):format(info.short_src, info.currentline)
    end
  end
  return ""
end

--- Raise an error at the line of the user's code that led here.
function lib.raise(format, ...)
  local message = select("#", ...) > 0 and format:format(...) or format
  error(where() .. message, 0)
end
local raise = lib.raise

-- ---- memory ---------------------------------------------------------------------------------------

-- The garbage collector sees a handle's few bytes, not its tensor's. So: once live tensors pass this
-- many bytes, collect; if much is still live then, let the bound grow with it.
local SOFT_LIMIT = 96e6
local soft_limit = SOFT_LIMIT

local function collect()
  collectgarbage()
  soft_limit = math.max(SOFT_LIMIT, 1.5 * C.lm_memory_live_everywhere())
end
lib.collect = collect

local function failed(status, f, ...)
  if status == C.LM_ENOMEM then
    collect()
    status = f(...)
  end
  if status ~= 0 then raise("%s", ffi.string(C.lm_last_error())) end
end

-- While lib.measure runs, the seconds spent inside engine calls.
local measuring, engine_seconds = false, 0

local function measured(f, ...)
  local begun = clock()
  local status = f(...)
  engine_seconds = engine_seconds + clock() - begun
  return status
end

--- Call an engine function and return its status: for those who deal with errors themselves.
function lib.status(f, ...)
  if measuring then return measured(f, ...) end
  return f(...)
end
local status_of = lib.status

--- Call an engine function; its error becomes a Lua error at the user's line.
function lib.call(f, ...)
  local status = status_of(f, ...)
  if status ~= 0 then failed(status, f, ...) end
end
local call = lib.call

--- Run f(...) with Ctrl-C held back until its end: for what must not stop half-way. (A second Ctrl-C is
-- not held back.)
function lib.uninterrupted(f, ...)
  if not has_host then return f(...) end
  local before = host.defer_interrupt(true)
  local function finish(ok, ...)
    host.defer_interrupt(before)
    if not before and host.interrupt_asked() then C.lm_interrupt() end -- the next engine call tells
    if not ok then error((...), 0) end
    return ...
  end
  return finish(pcall(f, ...))
end

--- Run f(...); returns the seconds it took, and how many of them in engine calls (looking at sizes and
-- freeing count as Lua).
function lib.measure(f, ...)
  measuring, engine_seconds = true, 0
  local begun = clock()
  local ok, message = pcall(f, ...)
  local seconds = clock() - begun
  measuring = false
  if not ok then error(message, 0) end
  return seconds, engine_seconds
end

-- ---- tensors' handles ---------------------------------------------------------------------------------

--- The class; lumuon.tensor and lumuon.autograd fill it.
lib.Tensor = { __name = "Tensor" }
local Tensor = lib.Tensor
local methods = {}
lib.methods = methods

local function is_whole(x) return type(x) == "number" and x == math.floor(x) and x > -2^53 and x < 2^53 end
lib.is_whole = is_whole

Tensor.__index = function(t, key)
  local method = methods[key]
  if method ~= nil then return method end
  if type(key) == "number" then return methods.select(t, 1, key) end
  return nil
end

--- x[i] = 7 fills slice i along the first dim, x[i] = y copies y there; other keys are fields.
Tensor.__newindex = function(t, key, value)
  if type(key) ~= "number" then return rawset(t, key, value) end
  if t.node then raise("x[%s] = ...: x is a recorded result that its gradient needs", tostring(key)) end
  local slice = methods.detach(methods.select(t, 1, key))
  if type(value) == "number" then return methods.fill(slice, value) end
  return methods.copy(slice, value)
end

--- The number x, or default where x is nil; what and name say whose it is where it is something else.
function lib.number(what, name, x, default)
  if x == nil then return default end
  if type(x) ~= "number" then raise("%s: %s must be a number, got %s", what, name, type(x)) end
  return x
end

--- The same for whole numbers that fit the engine's int.
function lib.whole(what, name, x, default)
  if x == nil then return default end
  if not is_whole(x) or x < -2 ^ 31 or x >= 2 ^ 31 then
    raise("%s: %s must be a whole number below 2^31, got %s", what, name, tostring(x))
  end
  return x
end

function lib.is_tensor(x) return getmetatable(x) == Tensor end

local scope, scope_size = nil, 0 -- tensors made inside the current lm.scope

local free = C.lm_tensor_free

--- A Tensor that owns handle. Inside a scope the scope frees it; elsewhere the collector does, which
-- costs a finalizer (and LuaJIT keeps those in a table: it shows in a training step).
function lib.wrap(handle)
  local t
  if scope then
    t = setmetatable({ h = handle, requires_grad = false, node = false, collected = false, holders = false,
      escapes = false }, Tensor)
    scope_size = scope_size + 1
    scope[scope_size] = t
  else
    t = setmetatable({ h = ffi.gc(handle, free), requires_grad = false, node = false, collected = true,
      holders = false, escapes = false }, Tensor)
  end
  if C.lm_memory_live_everywhere() > soft_limit then collect() end
  return t
end
local wrap = lib.wrap

local box = ffi.new("lm_tensor *[1]")

--- A fresh Tensor from an engine function whose first parameter is `lm_tensor **out`.
function lib.result(f, ...)
  box[0] = nil
  call(f, box, ...)
  return wrap(box[0])
end

--- The same, written into the tensor t.
function lib.into(t, f, ...)
  box[0] = t.h
  call(f, box, ...)
  return t
end

--- Free now rather than when collected; again is fine. A freed tensor is refused by every op.
function methods.free(t)
  local h = t.h
  if h ~= nil then
    t.h = nil
    if t.collected then ffi.gc(h, nil) end
    free(h)
  end
end

--- Outlive the lm.scope that the tensor was made in.
function methods.keep(t)
  if not t.collected and t.h ~= nil then
    ffi.gc(t.h, free)
    t.collected = true
  end
  return t
end

--- Mark the tensors among a scope's results; the mark is the scope's list, so that it means nothing to
-- a scope around it.
local function keep_results(made, n, results)
  for i = 1, n do
    local r = results[i]
    if lib.is_tensor(r) then
      r.escapes = made
    elseif type(r) == "table" then
      for _, v in pairs(r) do
        if lib.is_tensor(v) then v.escapes = made end
      end
    end
  end
end

local function end_scope(outer, outer_size, ok, ...)
  local made, size = scope, scope_size
  scope, scope_size = outer, outer_size
  if ok then keep_results(made, select("#", ...), { ... }) end
  for i = 1, size do
    local t = made[i]
    if t.escapes == made then -- into the scope around this one
      t.escapes = false
      if not scope then
        t:keep()
      elseif not t.collected then
        scope_size = scope_size + 1
        scope[scope_size] = t
      end
    elseif not t.collected and t.h ~= nil then
      free(t.h)
      t.h = nil
    end
  end
  if not ok then error((...), 0) end
  return ...
end

local function with_scope(f, ...)
  local outer, outer_size = scope, scope_size
  scope, scope_size = {}, 0
  return end_scope(outer, outer_size, pcall(f, ...))
end

--- Run f(...) inside a coroutine so that it cannot yield: a scope, or lm.no_grad, that stayed open while
-- other code runs would take that code's tensors with it. `what` names it in the error.
function lib.unyielding(what, f, ...)
  local n, arguments = select("#", ...), { ... }
  local function run() return f(unpack(arguments, 1, n)) end
  local results
  local function finish(...) results = { n = select("#", ...), ... } end
  -- no yield passes through a C function such as gsub
  string.gsub("x", "x", function() finish(pcall(run)) end)
  if results[1] then return unpack(results, 2, results.n) end
  local message = results[2]
  if type(message) == "string" and message:find("attempt to yield across C-call boundary", 1, true) then
    raise("%s: a coroutine cannot yield inside it; yield after its end", what)
  end
  error(message, 0)
end

--- Run f(...) and free in bulk every tensor made in it, but for what it returns (tensors, or tables
-- of tensors) and what was marked with :keep().
function lib.scope(f, ...)
  if type(f) ~= "function" then raise("scope: expected a function, got %s", type(f)) end
  if coroutine.running() then return lib.unyielding("scope", with_scope, f, ...) end
  return with_scope(f, ...)
end

--- Run f(...) outside any scope: for tensors that stay, made lazily inside one (optimizer state).
function lib.outside_scope(f, ...)
  local outer, outer_size = scope, scope_size
  scope = nil
  local function restore(ok, ...)
    scope, scope_size = outer, outer_size
    if not ok then error((...), 0) end
    return ...
  end
  return restore(pcall(f, ...))
end

-- ---- names ------------------------------------------------------------------------------------------------

lib.dtypes = {} -- name -> code
lib.dtype_names = {} -- code -> name
for code = 0, C.LM_DTYPES - 1 do
  local name = ffi.string(C.lm_dtype_name(code))
  lib.dtypes[name] = code
  lib.dtype_names[code] = name
end
lib.devices = { cpu = C.LM_CPU, cuda = C.LM_CUDA }

function lib.dtype_code(name)
  return lib.dtypes[name] or raise("dtype '%s' is not one of f32, bf16, f16, i32, u16, u8", tostring(name))
end

--- Whether name is a device's: cpu, cuda, cuda:0, cuda:1, ...
function lib.is_device(name)
  return lib.devices[name] ~= nil or type(name) == "string" and name:find("^cuda:%d+$") ~= nil
end

--- A device's code. cuda:1 also chooses that GPU for this process.
function lib.device_code(name)
  if not lib.is_device(name) then raise("device '%s' is not one of cpu, cuda, cuda:0, cuda:1, ...", tostring(name)) end
  local index = name:match("^cuda:(%d+)$")
  if index then
    call(C.lm_cuda_select, math.min(tonumber(index), 2 ^ 30))
    return C.LM_CUDA
  end
  local code = lib.devices[name]
  if C.lm_device_available(code) == 0 then raise("device '%s': %s", name, ffi.string(C.lm_cuda_problem())) end
  return code
end

lib.nearest = require "lumuon.nearest"

return lib
