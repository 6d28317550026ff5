--- What specs of files share: a folder to write into, messages to look at, tensors as bytes.
local assert = require "luassert"
local lm = require "lumuon"
local lib = require "lumuon.lib"
local ffi, C = lib.ffi, lib.C

if not pcall(ffi.typeof, "struct spec_rlimit") then -- types stay when this is loaded again
  ffi.cdef [[
    struct spec_rlimit { unsigned long current, most; };
    int getrlimit(int resource, struct spec_rlimit *limit);
    int setrlimit(int resource, const struct spec_rlimit *limit);
    unsigned umask(unsigned mask);
    int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
    int umount(const char *target);
    int symlink(const char *target, const char *path);
    int chmod(const char *path, unsigned mode);
    unsigned geteuid(void);
    int seteuid(unsigned user);
  ]]
end

local files = {}

--- A new folder, with methods to use it.
local Folder = {}
Folder.__index = Folder

function files.folder()
  local path = os.tmpname()
  os.remove(path)
  assert(os.execute("mkdir " .. path))
  return setmetatable({ path = path }, Folder)
end

function Folder:remove() os.execute("rm -rf " .. self.path) end

function Folder:path_of(name) return self.path .. "/" .. name end

--- Write a file; its path.
function Folder:write(name, text)
  local f = assert(io.open(self:path_of(name), "wb"))
  f:write(text)
  f:close()
  return self:path_of(name)
end

--- Every name in it, hidden ones too.
function Folder:listing()
  local p = io.popen("ls -A " .. self.path)
  local text = p:read("*a")
  p:close()
  return text
end

function files.slurp(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read("*a")
  f:close()
  return text
end

--- The message of a call that must fail.
function files.message_of(f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  return message
end

--- The same by a user who is not root: root may do everything.
function files.message_without_rights(f, ...)
  local root = C.geteuid() == 0
  if root then C.seteuid(65534) end
  local ok, message = pcall(f, ...)
  if root then C.seteuid(0) end
  assert.is_false(ok)
  return message
end

function files.contains(message, ...)
  for _, part in ipairs { ... } do
    assert.is_truthy(message:find(part, 1, true), ("%q does not contain %q"):format(message, part))
  end
end

--- A tensor's elements as they lie in memory.
function files.bytes_of(t)
  t = t:contiguous()
  local size = C.lm_dtype_size(C.lm_tensor_dtype(t.h))
  return ffi.string(ffi.cast("char *", C.lm_tensor_data(t.h)), t:numel() * size)
end

--- A tensor whose memory is these bytes.
function files.from_bytes(dtype, sizes, bytes)
  local t = lm.empty(sizes, { dtype = dtype })
  assert.equal(#bytes, t:numel() * C.lm_dtype_size(C.lm_tensor_dtype(t.h)))
  ffi.copy(C.lm_tensor_data(t.h), bytes, #bytes)
  return t
end

--- The text of a safetensors entry.
function files.entry(dtype, shape, from, to)
  return ('{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(dtype, shape, from, to)
end

return files
