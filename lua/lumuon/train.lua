--- What every training run wants around its loop: a table of its options, console lines, a JSONL log,
-- clean stops.
local lib = require "lumuon.lib"
local clock = require "lumuon.clock"
local autograd = require "lumuon.autograd"
local tensor = require "lumuon.tensor"
local dist = require "lumuon.dist"
local ffi, raise = lib.ffi, lib.raise
local has_host, host = pcall(require, "lumuon.host") -- the executable; plain luajit has none

local train = {}

ffi.cdef [[int mkdir(const char *path, unsigned int mode);]]
local EEXIST = 17

--- Make a folder and those above it; an error names the path and the system's reason.
local function make_folder(path)
  local at = path:sub(1, 1) == "/" and "/" or ""
  for part in path:gmatch("[^/]+") do
    at = at .. part
    if ffi.C.mkdir(at, 511) ~= 0 and ffi.errno() ~= EEXIST then
      raise("out: cannot make folder '%s' (errno %d); give another --out", at, ffi.errno())
    end
    at = at .. "/"
  end
end

--- "1 h 02 min", "3 min 05 s", "12 s".
function train.duration(seconds)
  if seconds >= 3600 then return ("%d h %02d min"):format(seconds / 3600, seconds / 60 % 60) end
  if seconds >= 60 then return ("%d min %02d s"):format(seconds / 60, seconds % 60) end
  return ("%d s"):format(seconds)
end

--- "1.23 M", "45.6 k".
function train.count(n)
  if n >= 1e9 then return ("%.2f G"):format(n / 1e9) end
  if n >= 1e6 then return ("%.2f M"):format(n / 1e6) end
  if n >= 1e3 then return ("%.1f k"):format(n / 1e3) end
  return ("%d"):format(n)
end

--- Text for a terminal: control characters, which could change its state, and bytes that are not UTF-8
-- become "?". A young model writes both.
local LETTERS = { "^[\t\n\32-\126]+", "^\194[\160-\191]", "^[\195-\223][\128-\191]", "^\224[\160-\191][\128-\191]",
  "^[\225-\236\238\239][\128-\191][\128-\191]", "^\237[\128-\159][\128-\191]",
  "^\240[\144-\191][\128-\191][\128-\191]", "^[\241-\243][\128-\191][\128-\191][\128-\191]" }
function train.printable(text)
  local out, at = {}, 1
  while at <= #text do
    local letter
    for _, pattern in ipairs(LETTERS) do letter = letter or text:match(pattern, at) end
    out[#out + 1] = letter or "?"
    at = at + #(letter or "?")
  end
  return table.concat(out)
end

--- Print rows { {"name", value}, ... } as two aligned columns under a title.
function train.print_table(title, rows)
  local width = 0
  for _, row in ipairs(rows) do width = math.max(width, #row[1]) end
  print(title)
  for _, row in ipairs(rows) do
    print(("  %s%s  %s"):format(row[1], (" "):rep(width - #row[1]), tostring(row[2])))
  end
end

local function json_number(x)
  if x ~= x or x == math.huge or x == -math.huge then return "null" end
  return ("%.9g"):format(x)
end

local Log = {}
Log.__index = Log

--- Mean of model:forward(idx, targets) over a list of { idx, targets, count }, as data:batches gives. Each batch is
-- some rank's, its loss zero on the others: the sum over ranks is exact, the mean the same bits whatever their
-- number. Every rank calls it.
function train.mean_loss(model, batches)
  return autograd.no_grad(lib.scope, function()
    local losses, sum, count = tensor.zeros(#batches), 0, 0
    for i = dist.rank() + 1, #batches, dist.world_size() do
      lib.scope(function()
        losses:select(1, i):fill(model:forward(batches[i].idx, batches[i].targets):item())
      end)
    end
    for i, loss in ipairs(dist.all_reduce(losses, { label = "losses of the evaluation" }):tolist()) do
      sum, count = sum + loss * batches[i].count, count + batches[i].count
    end
    return sum / count
  end)
end

--- A log of a run; from here on Ctrl-C waits for the end of the step (a second one does not):
-- train.log{ steps = total, tokens_per_step = B*T, every = 10, out = "folder" or "" }.
function train.log(options)
  local log = setmetatable({
    steps = options.steps, tokens_per_step = options.tokens_per_step, every = options.every or 10,
    seconds = 0, done = 0, file = false,
  }, Log)
  if has_host then host.defer_interrupt(true) end
  if options.out and options.out ~= "" then
    make_folder(options.out)
    local path = options.out .. "/log.jsonl"
    local file, message = io.open(path, "w")
    if not file then raise("out: cannot write '%s'; give another --out", message) end
    log.file = file
  end
  return log
end

--- Call before a step's work, and lap() after it: what lies between is the step's time.
function Log:start() self.step_begun = clock() end
function Log:lap() self.step_seconds = clock() - self.step_begun end

--- Call at the end of a step: entry = { step = from 1, loss =, lr = multiplier, val_loss = where
-- evaluated }. Writes a line of log.jsonl, and prints every few steps, at the first and last and where
-- evaluated.
function Log:finish(entry)
  local seconds = self.step_seconds
  self.seconds, self.done = self.seconds + seconds, self.done + 1
  local speed = self.tokens_per_step / seconds
  if self.file then
    local line = ('{"step": %d, "loss": %s, "lr_multiplier": %s, "ms": %s, "tokens_per_second": %s%s}\n'):format(
      entry.step, json_number(entry.loss), json_number(entry.lr), json_number(seconds * 1e3), json_number(speed),
      entry.val_loss and (', "val_loss": %s'):format(json_number(entry.val_loss)) or "")
    if not self.file:write(line) or not self.file:flush() then
      raise("out: writing log.jsonl failed; is the disk full?")
    end
  end
  if entry.step % self.every == 0 or entry.step == 1 or entry.step == self.steps or entry.val_loss then
    local left = (self.steps - entry.step) * self.seconds / self.done
    print(("step %4d/%d  loss %.4f  lr x%.3f  %6.1f ms  %7s tok/s  %s%s"):format(entry.step, self.steps, entry.loss,
      entry.lr, seconds * 1e3, train.count(speed), entry.step < self.steps and "ETA " .. train.duration(left)
      or "took " .. train.duration(self.seconds), entry.val_loss and ("  val %.4f"):format(entry.val_loss) or ""))
    io.stdout:flush()
  end
end

function Log:close()
  if self.file then self.file:close() end
  self.file = false
  if has_host then host.defer_interrupt(false) end
end

--- Whether Ctrl-C was pressed: ask between steps, and leave the loop in good order. Of several ranks all ask, and
-- all hear yes if it was pressed on any: a signal does not reach them between the same two steps.
function train.interrupted()
  local asked = has_host and host.interrupt_asked()
  if dist.world_size() == 1 then return asked end
  return lib.outside_scope(function()
    local flag = tensor.full({ 1 }, asked and 1 or 0)
    dist.all_reduce(flag, { op = "max", label = "whether Ctrl-C was pressed" })
    asked = flag:item() > 0
    flag:free()
    return asked
  end)
end

return train
