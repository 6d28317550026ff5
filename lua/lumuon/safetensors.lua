--- Files of named tensors, in the safetensors format that other tools read and write too.
--
--     local t, meta = lm.safetensors.load("x.safetensors")   -- name -> tensor, name -> string
--     lm.safetensors.save("y.safetensors", t, meta)
--
--
-- Tensor by tensor, for what is too large to be held twice:
--
--     local file = lm.safetensors.open("x.safetensors")      -- file.meta, file:names(), file:describe(name)
--     file:read("w", into)                                   -- a tensor of its own without `into`
--     file:close()
--     local new = lm.safetensors.create("y.safetensors", { w = { dtype = "f32", sizes = { 2, 3 } } }, meta)
--     new:put("w", t)                                        -- in any order; then new:commit(), or new:abandon()
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

-- ---- reading -------------------------------------------------------------------------------------------

local Reader = {}
Reader.__index = Reader

--- A file, its header checked and nothing of its tensors read yet.
function safetensors.open(path)
  check_string("the path to load", path)
  file_box[0] = nil
  call(C.lm_safetensors_open, file_box, path)
  local self = setmetatable({ file = ffi.gc(file_box[0], C.lm_safetensors_close), path = path, index = {}, meta = {} },
    Reader)
  for i = 0, C.lm_safetensors_count(self.file) - 1 do
    self.index[ffi.string(C.lm_safetensors_name(self.file, i))] = i
  end
  for i = 0, C.lm_safetensors_meta_count(self.file) - 1 do
    local key = ffi.string(C.lm_safetensors_meta_key(self.file, i))
    self.meta[key] = ffi.string(C.lm_safetensors_meta_value(self.file, i))
  end
  return self
end

local function index_of(self, name)
  if self.file == nil then raise("safetensors: '%s' was closed", self.path) end
  return self.index[name] or raise("safetensors: '%s' has no tensor '%s'", self.path, tostring(name))
end

--- The tensors' names, in order.
function Reader:names()
  local names = {}
  for name in pairs(self.index) do names[#names + 1] = name end
  table.sort(names)
  return names
end

local number_box, dims_box = ffi.new("int[2]"), ffi.new("int64_t[?]", C.LM_MAX_DIMS)

--- "f32 (2, 3)", without reading it; nil where there is no such tensor.
function Reader:describe(name)
  if self.file ~= nil and not self.index[name] then return nil end
  call(C.lm_safetensors_shape, self.file, index_of(self, name), number_box, number_box + 1, dims_box)
  local sizes = {}
  for d = 1, number_box[1] do sizes[d] = ("%d"):format(tonumber(dims_box[d - 1])) end
  return ("%s (%s)"):format(lib.dtype_names[number_box[0]], table.concat(sizes, ", "))
end

--- A tensor of its own; or the bytes into `into`: contiguous, on the CPU, of that dtype and shape.
function Reader:read(name, into)
  if into then return lib.into(into, C.lm_safetensors_read, self.file, index_of(self, name)) end
  return result(C.lm_safetensors_read, self.file, index_of(self, name))
end

--- Again is fine.
function Reader:close()
  if self.file ~= nil then C.lm_safetensors_close(ffi.gc(self.file, nil)) end
  self.file = nil
end

local function read_all(self, names)
  local wanted, tensors = wanted_set(names), {}
  for name in pairs(self.index) do
    if not wanted or wanted[name] then tensors[name] = self:read(name) end
  end
  for _, name in ipairs(names or {}) do index_of(self, name) end
  return tensors
end

--- Read a file's tensors (or only those in the list `names`) and its metadata.
-- A dtype that Lumuon has no tensors for (F64, I64, BOOL, ...) is an error only if it is read: such a
-- file's other tensors can be had by name.
-- @return table of name -> tensor, table of key -> string
function safetensors.load(path, names)
  local file = safetensors.open(path)
  local ok, tensors = pcall(read_all, file, names)
  file:close()
  if not ok then error(tensors, 0) end
  return tensors, file.meta
end

-- ---- writing -------------------------------------------------------------------------------------------

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

local Writer = {}
Writer.__index = Writer
local writer_box = ffi.new("lm_safetensors_writer *[1]")

--- A new file of tensors that come later: shapes[name] = { dtype =, sizes = }. Until commit() the path is as it was.
function safetensors.create(path, shapes, meta)
  check_string("the path to save to", path)
  local names, index, dtypes, dims, all = sorted_keys(shapes, "a tensor's name"), {}, {}, {}, {}
  for i, name in ipairs(names) do
    index[name], dtypes[i], dims[i] = i - 1, lib.dtype_code(shapes[name].dtype), #shapes[name].sizes
    for _, size in ipairs(shapes[name].sizes) do all[#all + 1] = size end
  end
  meta = meta or {}
  local keys, values = check_meta(meta), {}
  for i, key in ipairs(keys) do values[i] = meta[key] end
  local n = #names
  writer_box[0] = nil
  call(C.lm_safetensors_create, writer_box, path, n, string_array(n, names), ffi.new("int[?]", n + 1, dtypes),
    ffi.new("int[?]", n + 1, dims), ffi.new("int64_t[?]", #all + 1, all), #keys, string_array(#keys, keys),
    string_array(#keys, values))
  return setmetatable({ writer = ffi.gc(writer_box[0], C.lm_safetensors_abandon), path = path, index = index }, Writer)
end

local function open_writer(self)
  if self.writer == nil then raise("safetensors: '%s' was committed or abandoned", self.path) end
  return self.writer
end

--- Write tensor `name`; views and other devices are fine.
function Writer:put(name, t)
  local i = self.index[name] or raise("safetensors: '%s' is to have no tensor '%s'", self.path, tostring(name))
  if not lib.is_tensor(t) or t.h == nil then raise("safetensors: '%s' is no tensor, or was freed", name) end
  lib.scope(function() call(C.lm_safetensors_put, open_writer(self), i, t:detach():to("cpu"):contiguous().h) end)
end

--- The path is the new file from here on. An error if a tensor is missing.
function Writer:commit()
  local writer = ffi.gc(open_writer(self), nil)
  self.writer = nil
  if C.lm_safetensors_commit(writer) ~= 0 then raise("%s", ffi.string(C.lm_last_error())) end
end

--- The path stays as it was. Again, or after commit(), is fine.
function Writer:abandon()
  if self.writer ~= nil then C.lm_safetensors_abandon(ffi.gc(self.writer, nil)) end
  self.writer = nil
end

return safetensors
