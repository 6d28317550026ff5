--- PyTorch beside us: the scripts of bench/peers as servers that are asked a line and answer a line.
--
-- They come with the source tree; nanochat's checkout, and a Python with torch, are the user's. What is
-- missing is said, and the measurement goes on without it.
local lib = require "lumuon.lib"
local ffi = lib.ffi

local peers = {}

--- Options of a measurement that takes peers.
peers.options = {
  peers = { default = "", help = "a checkout of nanochat, measured beside us; empty: no peers" },
  python = { default = "python3", help = "a Python with torch, for --peers" },
}

ffi.cdef [[
void (*lm_bench_signal(int number, void (*handler)(int)))(int) asm("signal");
int usleep(unsigned int microseconds);
]]
local SIGPIPE, SIG_IGN = 13, ffi.cast("void (*)(int)", 1)

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end
local function there(path)
  local file = io.open(path)
  if file then file:close() end
  return file ~= nil
end

--- The last line of a file, without the blanks around it.
local function last_line(path)
  local last = ""
  local file = io.open(path)
  if not file then return last end
  for line in file:lines() do
    if line:find("%S") then last = line:match("^%s*(.-)%s*$") end
  end
  file:close()
  return last
end

local Server = {}
Server.__index = Server

--- The fields of the answer to a command; nil and the reason where there is none.
function Server:ask(...)
  if not self.out then return nil, self.reason end
  local words = { ... }
  for i, word in ipairs(words) do words[i] = type(word) == "number" and ("%d"):format(word) or word end
  self.into:write(table.concat(words, " "), "\n")
  self.into:flush()
  return self:answer()
end

function Server:answer()
  local line = self.out:read("*l")
  if not line then
    local said = last_line(self.errors)
    self:close()
    self.reason = said ~= "" and said or "it ended without a word"
    return nil, self.reason
  end
  local fields = {}
  for field in (line .. "\t"):gmatch("([^\t]*)\t") do fields[#fields + 1] = field end
  local kind = table.remove(fields, 1)
  if kind == "failed" then return nil, fields[1] end
  return fields
end

--- One number of an answer; nil and the reason.
function Server:number(...)
  local fields, reason = self:ask(...)
  if not fields then return nil, reason end
  return tonumber(fields[1])
end

--- Until its threads have stopped spinning, which they do for some milliseconds after their last loop.
function Server.settle() ffi.C.usleep(30000) end

function Server:close()
  if self.into then self.into:close() end
  if self.out then self.out:close() end
  self.into, self.out = nil, nil
  os.execute("rm -rf " .. quoted(self.folder))
end

--- Start bench/peers/NAME.py with o.python on the checkout o.peers; options: a table of more options.
-- @return the server; or nil and why there is none
function peers.start(name, o, options)
  if o.peers == "" then return nil, "no --peers=FOLDER was given" end
  local home = require("lumuon.cli").home() or "."
  local script = ("%s/bench/peers/%s.py"):format(home, name)
  if not there(script) then return nil, ("%s is not there: peers need the source tree"):format(script) end
  if not there(o.peers .. "/nanochat/optim.py") then
    return nil, ("%s is no checkout of nanochat: there is no nanochat/optim.py in it"):format(o.peers)
  end
  local pipe = io.popen("mktemp -d")
  local folder = pipe:read("*l")
  pipe:close()
  local words = { "env", "-u", "GOMP_SPINCOUNT", quoted(o.python), quoted(script), "--nanochat=" .. quoted(o.peers) }
  for key, value in pairs(options) do words[#words + 1] = ("--%s=%s"):format(key, quoted(tostring(value))) end
  local into, errors = folder .. "/in", folder .. "/errors"
  os.execute("mkfifo " .. quoted(into))
  ffi.C.lm_bench_signal(SIGPIPE, SIG_IGN)
  io.stdout:flush()
  local out = io.popen(("%s <%s 2>%s"):format(table.concat(words, " "), quoted(into), quoted(errors)), "r")
  local server = setmetatable({ folder = folder, errors = errors, out = out, into = io.open(into, "w") }, Server)
  local hello, reason = server:answer() -- torch is imported: seconds
  if not hello then return nil, reason end
  server.version = hello[1]
  return server
end

return peers
