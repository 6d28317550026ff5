--- Token shards to train on: the .bin files of llm.c and modded-nanogpt.
--
--     local shards = lm.data.shards{ path = "fineweb10B" }             -- a folder, or one file
--     local idx, targets = shards:batch("train", B, T, step)           -- i32 (B, T) each
--     for _, b in ipairs(shards:batches("val", B, T, 2^20)) do ... b.idx, b.targets, b.count ... end
--
-- In a folder the files with `val` in their name are held out, all other .bin files are trained on, in the
-- order of their names. Each is cut into windows of T tokens side by side; batch number `step` takes the next
-- B windows and starts over at the end: a function of the files, B, T and step only, so that a run which goes
-- on from a checkpoint reads what it would have read.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local list_folder = require "lumuon.data.folder"
local ffi, C, call, raise, is_whole = lib.ffi, lib.C, lib.call, lib.raise, lib.is_whole

local Shards = {}
Shards.__index = Shards

local box = ffi.new("lm_shard *[1]")

local function open(path)
  box[0] = nil
  call(C.lm_shard_open, box, path)
  local handle = ffi.gc(box[0], C.lm_shard_close)
  return { path = path, handle = handle, count = C.lm_shard_count(handle) }
end

--- The files of a path, by part.
local function find(path)
  local names = list_folder(path)
  if not names then return { train = { open(path) }, val = {} } end
  local parts = { train = {}, val = {} }
  for _, name in ipairs(names) do
    if name:find "^[^.].*%.bin$" then
      local part = parts[name:find("val", 1, true) and "val" or "train"]
      part[#part + 1] = open(path .. "/" .. name)
    end
  end
  if #parts.train == 0 then
    raise("shards: folder '%s' has no .bin files to train on (%d with 'val' in their name)", path, #parts.val)
  end
  return parts
end

--- Is the path a .bin file, or a folder with some?
local function has_shards(path)
  if path:find "%.bin$" then return true end
  for _, name in ipairs(list_folder(path) or {}) do
    if name:find "^[^.].*%.bin$" then return true end
  end
  return false
end

local function tokens_of(files)
  local sum = 0
  for _, file in ipairs(files) do sum = sum + file.count end
  return sum
end

--- Shards with path, tokens (of each part) and the parts' files.
-- @param options path: a folder or a file
local function shards(options)
  if type(options) ~= "table" or type(options.path) ~= "string" or options.path == "" then
    raise("shards: expected { path = a folder or file of token shards }")
  end
  for name in pairs(options) do
    if name ~= "path" then raise("shards: unknown option '%s'; there is path", tostring(name)) end
  end
  local parts = find(options.path)
  return setmetatable({ path = options.path, train = parts.train, val = parts.val,
    tokens = { train = tokens_of(parts.train), val = tokens_of(parts.val) } }, Shards)
end

local function check_count(name, n, least)
  if not is_whole(n) or n < least then
    raise("shards: %s must be a whole number from %d, got %s", name, least, tostring(n))
  end
end

--- Windows of T tokens (and the one that follows) in a part.
function Shards:windows(part, T)
  if part ~= "train" and part ~= "val" then raise("shards: there is 'train' and 'val', no '%s'", tostring(part)) end
  check_count("sequence length", T, 1)
  local n = 0
  for _, file in ipairs(self[part]) do n = n + math.floor((file.count - 1) / T) end
  if n == 0 then
    raise("shards: '%s' has no %d tokens in one file of '%s' (%.0f tokens in %d files)", self.path, T + 1, part,
      self.tokens[part], #self[part])
  end
  return n
end

--- Read n windows from window number `first` (from 0) of the part into x and y from row `row` (from 0) on.
local function read(self, part, T, first, n, x, y, row)
  for _, file in ipairs(self[part]) do
    local here = math.floor((file.count - 1) / T)
    if n > 0 and first < here then
      local now = math.min(n, here - first)
      local tokens = tensor.empty({ now * T + 1 }, { dtype = "i32" })
      call(C.lm_shard_read, tokens.h, file.handle, first * T)
      x:narrow(1, row * T + 1, now * T):copy(tokens:narrow(1, 1, now * T))
      y:narrow(1, row * T + 1, now * T):copy(tokens:narrow(1, 2, now * T))
      tokens:free()
      first, n, row = first + now, n - now, row + now
    end
    first = math.max(0, first - here)
  end
  return n
end

--- Batch number `step` (from 0) of a part: B windows of T tokens, and the tokens that follow each.
-- @return idx, targets: i32 (B, T)
function Shards:batch(part, B, T, step)
  local windows = self:windows(part, T)
  check_count("batch size", B, 1)
  check_count("step", step, 0)
  local x, y = tensor.empty({ B * T }, { dtype = "i32" }), tensor.empty({ B * T }, { dtype = "i32" })
  local first, done = step * B % windows, 0
  while done < B do
    done = B - read(self, part, T, first, B - done, x, y, done)
    first = 0
  end
  return x:view(B, T), y:view(B, T)
end

--- The first `tokens` tokens of a part (rounded up to whole windows; all of them where there are fewer): a
-- list of { idx, targets, count }, B windows in a batch, fewer in the last.
function Shards:batches(part, B, T, tokens)
  local windows = self:windows(part, T)
  check_count("batch size", B, 1)
  check_count("tokens", tokens, 1)
  windows = math.min(windows, math.ceil(tokens / T))
  local list = {}
  for first = 0, windows - 1, B do
    local rows = math.min(B, windows - first)
    local x, y = tensor.empty({ rows * T }, { dtype = "i32" }), tensor.empty({ rows * T }, { dtype = "i32" })
    read(self, part, T, first, rows, x, y, 0)
    list[#list + 1] = { idx = x:view(rows, T), targets = y:view(rows, T), count = rows * T }
  end
  return list
end

--- Write a token shard: a tensor of u16, or i32, tokens. The path always holds a whole file.
local function save_shard(path, tokens)
  if type(path) ~= "string" or path == "" then raise("save_shard: expected a path, got %s", tostring(path)) end
  tensor.live(tokens, "save_shard")
  call(C.lm_shard_save, path, tokens.h)
end

--- "fineweb10B: 100000000 tokens in 1 files, 100000000 held out in 1".
function Shards:describe()
  return ("%s: %.0f tokens in %d files, %.0f held out in %d"):format(self.path, self.tokens.train, #self.train,
    self.tokens.val, #self.val)
end

return { shards = shards, has_shards = has_shards, save_shard = save_shard }
