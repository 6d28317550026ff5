--- Texts to train on, byte by byte. (Files of tokens: lumuon.data.shards.)
--
--     local text = lm.data.text{ path = options.data, seed = 1 }      -- "" or nil: Debian's fortunes
--     local idx, targets = text:batch("train", B, T, step)            -- i32 (B, T) each
--     for _, b in ipairs(text:batches("val", B, T)) do ... b.idx, b.targets, b.count ... end
--
-- A text is a file or a folder of files. Its documents are what stands between lines that hold only
-- a `%`, as in the files of fortune(6); a file without such lines is one document. Every document
-- begins with the byte 0, and so ends before one: a model asked to go on after a 0 writes a document.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local list_folder = require "lumuon.data.folder"
local shards = require "lumuon.data.shards"
local ffi, C, call, raise, is_whole = lib.ffi, lib.C, lib.call, lib.raise, lib.is_whole

local data = { shards = shards.shards, has_shards = shards.has_shards, save_shard = shards.save_shard }

local FORTUNES = "/usr/share/games/fortunes"
local SEPARATOR = "\0"
local LARGEST = 2 ^ 31 - 2 -- positions are i32
local STREAM = { train = 0x64617400, val = 0x64617401 } -- of the random numbers; parameters have others

-- ---- files ------------------------------------------------------------------------------------------

--- Bytes of a file. A folder inside a folder is passed over: nil.
local function read_file(path, inside)
  local file, message = io.open(path, "rb")
  if not file then raise("data: cannot read %s", message) end
  local size = file:seek("end") -- nil for a pipe, 2^63 for a folder
  if size then file:seek("set") end
  if size and size > LARGEST and size < 2 ^ 62 then
    file:close()
    raise("data: '%s' has %.0f bytes; at most %.0f can be used", path, size, LARGEST)
  end
  local ok, bytes, problem, code = pcall(file.read, file, "*a")
  file:close()
  local EISDIR = 21
  if not ok then raise("data: '%s' is too large for LuaJIT's memory (%s)", path, tostring(bytes)) end
  if not bytes and inside and code == EISDIR then return nil end
  if not bytes then raise("data: cannot read '%s': %s", path, problem) end
  local at = bytes:find(SEPARATOR, 1, true)
  if at then
    raise("data: '%s' is not text: byte %d of %d is 0, which stands between documents", path, at, #bytes)
  end
  return bytes
end

--- The texts of a folder: not hidden files, nor fortune's index (.dat) and second names (.u8).
local function read_folder(path, names)
  local texts = {}
  for _, name in ipairs(names) do
    if not (name:find "^%." or name:find "%.dat$" or name:find "%.u8$") then
      texts[#texts + 1] = read_file(path .. "/" .. name, true)
    end
  end
  if #texts == 0 then
    raise("data: folder '%s' has no texts in it (hidden files, .dat and .u8 do not count)", path)
  end
  return texts
end

local function read_texts(path)
  local names = list_folder(path)
  if names then return read_folder(path, names) end
  if path == FORTUNES then
    raise("data: '%s' is not there: apt-get install fortunes, or give a text with --data=FILE", path)
  end
  return { read_file(path) }
end

-- ---- documents ----------------------------------------------------------------------------------------

--- Add a document (bytes from..to of text, counted from 1) without the line breaks around it.
local function add(documents, text, from, to)
  from = text:find("[^\r\n]", from) or to + 1
  while to >= from and (text:byte(to) == 10 or text:byte(to) == 13) do to = to - 1 end
  if to >= from then documents[#documents + 1] = { text = text, from = from, to = to } end
end

--- Split at lines that hold only a `%`.
local function split(documents, text)
  local from, at = 1, 1
  while true do
    local mark = at == 1 and text:byte(1) == 37 and 1 or text:find("\n%", at, true)
    if not mark then break end
    local first, last = text:find("^\n?%%[ \t\r]*", mark)
    if last == #text or text:byte(last + 1) == 10 then
      add(documents, text, from, first - 1)
      from = last + 1
    end
    at = last + 1
  end
  add(documents, text, from, #text)
end

--- Every `every`-th document; the last `every`-th part of the bytes, from a line's start on, where
-- there are too few documents for that.
local function hold_out(documents, every)
  local train, val = {}, {}
  if #documents >= every then
    for i, document in ipairs(documents) do
      local part = i % every == 0 and val or train
      part[#part + 1] = document
    end
    return train, val
  end
  local total = 0
  for _, document in ipairs(documents) do total = total + document.to - document.from + 1 end
  local left = total - math.floor(total / every) -- for training
  for _, document in ipairs(documents) do
    local text, from, to = document.text, document.from, document.to
    local cut = from + math.min(math.max(left, 0), to - from + 1) -- first byte that is held out
    if cut > from and cut <= to then
      local line_end = text:find("\n", cut - 1, true)
      if line_end and line_end < to then cut = line_end + 1 end
    end
    add(train, text, from, cut - 1)
    add(val, text, cut, to)
    left = left - (to - from + 1)
  end
  return train, val
end

--- The documents behind each other in a u8 tensor, a separator before each and after the last.
local function join(documents)
  local total = #documents + 1
  for _, document in ipairs(documents) do total = total + document.to - document.from + 1 end
  if total > LARGEST then raise("data: %.0f bytes of text; at most %.0f can be used", total, LARGEST) end
  local joined = tensor.empty({ total }, { dtype = "u8" }):keep()
  local to = joined:pointer()
  for _, document in ipairs(documents) do
    local n = document.to - document.from + 1
    to[0] = 0
    ffi.copy(to + 1, ffi.cast("const char *", document.text) + document.from - 1, n)
    to = to + n + 1
  end
  to[0] = 0
  return joined
end

-- ---- the data set -----------------------------------------------------------------------------------------

local Text = {}
Text.__index = Text

local KNOWN = { path = "", seed = 0, held_out = 0 }

--- A text in two parts, `train` and `val` (u8 tensors), with path, bytes, documents (of each part).
-- @param options path: a file or a folder, "" or nil for Debian's fortunes. seed: of the batches.
-- held_out: every how many-th document is held out for `val` (20).
function data.text(options)
  options = options or {}
  if type(options) ~= "table" then raise("data: expected a table of options, got %s", type(options)) end
  for name in pairs(options) do
    if KNOWN[name] == nil then raise("data: unknown option '%s'; there are path, seed and held_out", tostring(name)) end
  end
  local path, seed, held_out = options.path or "", options.seed or 0, options.held_out or 20
  if type(path) ~= "string" then raise("data: path must be a string, got %s", type(path)) end
  if not is_whole(seed) or seed < 0 then raise("data: seed must be a whole number >= 0, got %s", tostring(seed)) end
  if not is_whole(held_out) or held_out < 2 then
    raise("data: held_out must be a whole number from 2, got %s", tostring(held_out))
  end
  if path == "" then path = FORTUNES end
  local documents, bytes = {}, 0
  for _, text in ipairs(read_texts(path)) do
    bytes = bytes + #text
    split(documents, text)
  end
  if #documents == 0 then raise("data: '%s' is empty (%d bytes, none of them text)", path, bytes) end
  local train, val = hold_out(documents, held_out)
  if #train == 0 or #val == 0 then
    raise("data: '%s' is too short: %d bytes cannot be divided into text to train on and every %dth part held out",
      path, bytes, held_out)
  end
  return setmetatable({
    path = path, bytes = bytes, seed = seed, vocab_size = 256, separator = SEPARATOR,
    documents = { train = #train, val = #val }, train = join(train), val = join(val),
  }, Text)
end

local function check_size(name, n)
  if not is_whole(n) or n < 1 then raise("data: %s must be a whole number from 1, got %s", name, tostring(n)) end
end

local function part_of(self, name)
  local part = STREAM[name] and self[name]
  if not part then raise("data: there is 'train' and 'val', no '%s'", tostring(name)) end
  return part
end

local function new_batch(rows, T)
  return tensor.empty({ rows, T }, { dtype = "i32" }), tensor.empty({ rows, T }, { dtype = "i32" })
end

-- The one loop over bytes in Lua: compiled, it is a few microseconds a batch, less than the calls that
-- would spare it.
local function fill_row(idx, targets, from, n)
  for t = 0, n - 1 do
    idx[t] = from[t]
    targets[t] = from[t + 1]
  end
end

--- Batch number `step` of a part: B windows of T bytes at random places, and the bytes that follow
-- each. A function of the text, the seed, the part, B, T and step only.
-- @return idx, targets: i32 (B, T)
function Text:batch(name, B, T, step)
  local part = part_of(self, name)
  check_size("batch size", B)
  check_size("sequence length", T)
  if not is_whole(step) or step < 0 then raise("data: step must be a whole number >= 0, got %s", tostring(step)) end
  local n = part:numel()
  if n < T + 1 then
    raise("data: '%s' is too short: sequences of %d need %d bytes, and '%s' has %d (of %d in all)", self.path, T,
      T + 1, name, n, self.bytes)
  end
  local places = tensor.empty({ B }, { dtype = "i32" })
  call(C.lm_random_uniform, places.h, 0, n - T, self.seed, STREAM[name], step * B)
  local idx, targets = new_batch(B, T)
  local bytes, at, x, y = part:pointer(), places:pointer(), idx:pointer(), targets:pointer()
  for b = 0, B - 1 do fill_row(x + b * T, y + b * T, bytes + at[b], T) end
  places:free()
  return idx, targets
end

--- A whole part once: a list of { idx, targets, count }, windows of T bytes side by side, B in a batch.
-- The end is filled up with targets of -1, which losses ignore; count is how many are not. So the mean
-- over the part is sum(loss * count) / sum(count). With `tokens` only the first so many bytes.
function Text:batches(name, B, T, tokens)
  local part = part_of(self, name)
  check_size("batch size", B)
  check_size("sequence length", T)
  if tokens then check_size("tokens", tokens) end
  local bytes, left = part:pointer(), math.min(part:numel() - 1, tokens or LARGEST)
  local list = {}
  while left > 0 do
    local idx, targets = new_batch(B, T)
    local x, y = idx:pointer(), targets:pointer()
    local count = 0
    if left < B * T then
      idx:zero()
      targets:fill(-1)
    end
    for b = 0, B - 1 do
      local n = math.min(T, left)
      fill_row(x + b * T, y + b * T, bytes, n)
      bytes, left, count = bytes + n, left - n, count + n
    end
    list[#list + 1] = { idx = idx, targets = targets, count = count }
  end
  return list
end

--- What it is, for a recipe's first lines.
function Text:describe()
  return ("%s: %d bytes of text in %d documents, %d of them held out"):format(self.path, self.bytes,
    self.documents.train + self.documents.val, self.documents.val)
end

--- i32 (1, n): a string's bytes, for a model to go on from.
function Text:encode(s) -- luacheck: no self
  if type(s) ~= "string" or #s == 0 then raise("data: encode needs a string of at least one byte") end
  local idx = tensor.empty({ 1, #s }, { dtype = "i32" })
  local x = idx:pointer()
  for i = 1, #s do x[i - 1] = s:byte(i) end
  return idx
end

--- The string of a list of bytes, or of a tensor of them.
function Text:decode(ids) -- luacheck: no self
  if lib.is_tensor(ids) then ids = ids:reshape(-1):tolist() end
  local letters = {}
  for i, id in ipairs(ids) do
    if not is_whole(id) or id < 0 or id > 255 then raise("data: %s is no byte", tostring(id)) end
    letters[i] = string.char(id)
  end
  return table.concat(letters)
end

return data
