--- The names in a folder.
local ffi = require "ffi"

ffi.cdef [[
typedef struct lm_data_dir lm_data_dir;
typedef struct { uint64_t inode; int64_t next; uint16_t bytes; uint8_t kind; char name[256]; } lm_data_entry;
lm_data_dir *lm_data_opendir(const char *path) __asm__("opendir");
lm_data_entry *lm_data_readdir(lm_data_dir *folder) __asm__("readdir");
int lm_data_closedir(lm_data_dir *folder) __asm__("closedir");
]]

--- Names in a folder, in order; nil if path is no folder.
return function(path)
  local folder = ffi.C.lm_data_opendir(path)
  if folder == nil then return nil end
  local names = {}
  local entry = ffi.C.lm_data_readdir(folder)
  while entry ~= nil do
    names[#names + 1] = ffi.string(entry.name)
    entry = ffi.C.lm_data_readdir(folder)
  end
  ffi.C.lm_data_closedir(folder)
  table.sort(names)
  return names
end
