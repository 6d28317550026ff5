--- Files of named tensors, in the safetensors format that other tools read and write too.
--
--     local t, meta = lm.safetensors.load("x.safetensors")   -- name -> tensor, name -> string
--     lm.safetensors.save("y.safetensors", t, meta)
--
-- Nothing in a file is trusted: one that breaks any rule of the format is refused with a message
-- that names the file, the tensor and the values (engine/io/safetensors.c lists the rules).
local lib = require "lumuon.lib"
local ffi, C, call, raise, result = lib.ffi, lib.C, lib.call, lib.raise, lib.result

local safetensors = {}

local file_box = ffi.new("lm_safetensors *[1]")

-- C's strings end at the first NUL byte: one inside would be lost without a word.
local function check_string(what, s)
  if type(s) ~= "string" then raise("safetensors: %s must be a string, got %s", what, type(s)) end
  if s:find("\0", 1, true) then raise("safetensors: %s has a NUL byte in it: %q", what, s) end
  return s
end

--- The names asked for as a set; nil: all of them.
local function wanted_set(names)
  if names == nil then return nil end
  if type(names) ~= "table" then raise("safetensors: names must be a list of strings, got %s", type(names)) end
  local wanted = {}
  for i = 1, #names do wanted[check_string("name " .. i, names[i])] = true end
  return wanted
end

local function read_all(file, path, names)
  local wanted = wanted_set(names)
  local tensors, meta = {}, {}
  for i = 0, C.lm_safetensors_count(file) - 1 do
    local name = ffi.string(C.lm_safetensors_name(file, i))
    if not wanted or wanted[name] then tensors[name] = result(C.lm_safetensors_read, file, i) end
  end
  for _, name in ipairs(names or {}) do
    if not tensors[name] then raise("safetensors: '%s' has no tensor '%s'", path, name) end
  end
  for i = 0, C.lm_safetensors_meta_count(file) - 1 do
    meta[ffi.string(C.lm_safetensors_meta_key(file, i))] = ffi.string(C.lm_safetensors_meta_value(file, i))
  end
  return tensors, meta
end

--- Read a file's tensors (or only those in the list `names`) and its metadata.
-- A dtype that Lumuon has no tensors for (F64, I64, BOOL, ...) is an error only if it is read: such a
-- file's other tensors can be had by name.
-- @return table of name -> tensor, table of key -> string
function safetensors.load(path, names)
  check_string("the path to load", path)
  file_box[0] = nil
  call(C.lm_safetensors_open, file_box, path)
  local file = ffi.gc(file_box[0], C.lm_safetensors_close)
  local ok, tensors, meta = pcall(read_all, file, path, names)
  C.lm_safetensors_close(ffi.gc(file, nil))
  if not ok then error(tensors, 0) end
  return tensors, meta
end

--- Keys in order, so that the same tables give the same bytes.
local function sorted_keys(t, what)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = check_string(what, key) end
  table.sort(keys)
  return keys
end

local function check_tensors(tensors)
  if lib.is_tensor(tensors) or type(tensors) ~= "table" then
    raise("safetensors: expected a table of name -> tensor to save, got %s",
      lib.is_tensor(tensors) and "a tensor" or type(tensors))
  end
  local names = sorted_keys(tensors, "a tensor's name")
  for _, name in ipairs(names) do
    local t = tensors[name]
    if not lib.is_tensor(t) then
      raise("safetensors: '%s' is not a tensor but a %s%s", name, type(t),
        type(t) == "table" and "; a file holds one flat table" or "")
    end
    if t.h == nil then raise("safetensors: tensor '%s' was freed", name) end
  end
  return names
end

local function check_meta(meta)
  if type(meta) ~= "table" then
    raise("safetensors: metadata must be a table of key -> string, got %s", type(meta))
  end
  local keys = sorted_keys(meta, "a key of the metadata")
  for _, key in ipairs(keys) do check_string("metadata '" .. key .. "'", meta[key]) end
  return keys
end

local function string_array(n, strings)
  local array = ffi.new("const char *[?]", n + 1)
  for i = 1, n do array[i - 1] = strings[i] end
  return array
end

--- Write tensors (name -> tensor; views and other devices are fine) and metadata (key -> string).
-- The path holds a whole file at any time, the old one or the new one: see lm_safetensors_save.
function safetensors.save(path, tensors, meta)
  check_string("the path to save to", path)
  local names, values = check_tensors(tensors), {}
  meta = meta or {}
  local keys = check_meta(meta)
  for i, key in ipairs(keys) do values[i] = meta[key] end
  local plain = {} -- holds on to what is only made to be written
  local handles = ffi.new("const lm_tensor *[?]", #names + 1)
  for i, name in ipairs(names) do
    plain[i] = tensors[name]:detach():to("cpu"):contiguous()
    handles[i - 1] = plain[i].h
  end
  call(C.lm_safetensors_save, path, #names, string_array(#names, names), handles, #keys,
    string_array(#keys, keys), string_array(#keys, values))
  for i, name in ipairs(names) do
    if plain[i] ~= tensors[name] then plain[i]:free() end
  end
end

return safetensors
