--- `lumuon repl`: a prompt.
-- What is typed is compiled as an expression first and as statements otherwise; a chunk that merely
-- ends too early asks for another line. A top-level `local` lasts for the session.
local host = require "lumuon.host"
local line = require "lumuon.line"

local M = {}

-- ---- compiling what was typed -----------------------------------------------------------------------

local OPENS = { ["function"] = true, ["do"] = true, ["if"] = true, ["repeat"] = true }
local CLOSES = { ["end"] = true, ["until"] = true }

-- Where the token at i ends and what kind it is: "name", "space" (comments too), or "other".
local function token_end(text, i)
  local level = text:match("^%-%-%[(=*)%[", i)
  local kind = level and "space" or "other"
  level = level or text:match("^%[(=*)%[", i)
  if level then
    local _, last = text:find("]" .. level .. "]", i, true)
    return last or #text, kind
  end
  local _, last = text:find("^%-%-[^\n]*", i)
  if last then return last, "space" end
  _, last = text:find("^%s+", i)
  if last then return last, "space" end
  _, last = text:find("^[%a_][%w_]*", i)
  if last then return last, "name" end
  _, last = text:find("^%.?%d[%w%.]*", i)
  if last then return last, "other" end
  local quote = text:match("^[\"']", i)
  if quote then
    local at = i + 1
    while at <= #text and text:sub(at, at) ~= quote do
      at = at + (text:sub(at, at) == "\\" and 2 or 1)
    end
    return at, "other"
  end
  return i, "other"
end

--- Turn `local x = 1` and `local function f` outside any block into globals, so that the next line
-- typed still knows them. The text keeps its length: errors keep their columns.
function M.keep_locals(text)
  local out, depth, i = {}, 0, 1
  while i <= #text do
    local last, kind = token_end(text, i)
    local token = text:sub(i, last)
    if kind == "name" then
      if OPENS[token] then depth = depth + 1 end
      if CLOSES[token] then depth = depth - 1 end
      local previous = text:sub(1, i - 1):match("([%.:])%s*$")
      if token == "local" and depth == 0 and not previous then
        local names = text:match("^%s*[%a_][%w_]*[%s%a%d_,]*", last + 1) or ""
        local after = text:sub(last + 1 + #names, last + 1 + #names)
        token = (" "):rep(5)
        if not names:match("^%s*function%f[^%w_]") and after ~= "=" then
          -- no value: the names up to the end of the list become nil
          local list = names:match("^%s*[%a_][%w_]*")
          local rest = names:sub(#list + 1)
          while true do
            local more = rest:match("^%s*,%s*[%a_][%w_]*")
            if not more then break end
            list, rest = list .. more, rest:sub(#more + 1)
          end
          token = token .. list .. " = nil "
          last = last + #list
        end
      end
    end
    out[#out + 1] = token
    i = last + 1
  end
  return table.concat(out)
end

-- Could more lines finish it? Not a string without its quote, nor `x = f(); x`, which is no statement.
local function unfinished(message, text)
  if message:match("'=' expected near") then return false end
  if message:match("unfinished string near") then return text:match("\\$") ~= nil end
  return message:match("near '?<eof>'?$") ~= nil
end

--- Compile typed text.
-- @return the chunk, to be called with a function that shows an expression's values; or nil, a
-- message, and whether more lines could finish it
function M.compile(text, name, first_line)
  local lead = ("\n"):rep((first_line or 1) - 1)
  local body = text:gsub("^%s*=", "") -- as other Lua prompts have it
  local chunk, as_expression = loadstring(lead .. "return " .. body, name)
  if not chunk then
    local as_statements
    chunk, as_statements = loadstring(lead .. text, name)
    if not chunk then
      local more = unfinished(as_statements, text)
        or unfinished(as_expression, text) and not as_statements:match("'=' expected near")
      return nil, as_statements, more
    end
    chunk = loadstring(lead .. M.keep_locals(text), name) or chunk
  else
    -- not `return f()`: a tail call would drop the line from error messages
    chunk = loadstring(("%slocal show = ... show(%s)"):format(lead, body), name)
      or loadstring(("%slocal show = ... show(%s\n)"):format(lead, body), name) or chunk -- a comment at its end
  end
  jit.off(chunk, true) -- compiled loops see no Ctrl-C
  return chunk
end

-- ---- running it --------------------------------------------------------------------------------------

local function show(...)
  local n = select("#", ...)
  if n == 0 then return end
  local pretty = require "lumuon.pretty"
  local parts = {}
  for i = 1, n do parts[i] = pretty((select(i, ...))) end
  _G._ = (...)
  print(table.concat(parts, "\t"))
end

-- true, or false and whether it was Ctrl-C
local function execute(chunk, describe)
  local interrupted, ok, message = host.call(describe, function() show(chunk(show)) end)
  io.stdout:flush()
  if interrupted then
    io.stderr:write("interrupted\n")
  elseif not ok then
    io.stderr:write(tostring(message), "\n")
  end
  return ok and not interrupted, interrupted
end

-- ---- history -----------------------------------------------------------------------------------------

local KEPT = 2000

local function history_path()
  local state, home = os.getenv("XDG_STATE_HOME"), os.getenv("HOME")
  if state and state:sub(1, 1) == "/" then return state .. "/lumuon", "history" end
  if home and home ~= "" then return home .. "/.local/state/lumuon", "history" end
  return nil
end

-- A file to which each line goes as it is typed, so that two prompts at once lose nothing.
local function open_history()
  local folder, name = history_path()
  if not folder then return nil end
  local path = folder .. "/" .. name
  local lines = {}
  local file = io.open(path)
  if file then
    for text in file:lines() do lines[#lines + 1] = text end
    file:close()
  end
  for i = math.max(1, #lines - KEPT + 1), #lines do line.remember(lines[i]) end
  local ok, problem = host.make_directory(folder)
  if ok and #lines > 2 * KEPT then
    file, problem = io.open(path .. ".new", "w")
    if file then
      file:write(table.concat(lines, "\n", #lines - KEPT + 1), "\n")
      file:close()
      os.rename(path .. ".new", path)
    end
  end
  if ok then
    file, problem = io.open(path, "a")
    if file then
      file:setvbuf("line")
      return file
    end
  end
  print("history is not kept: " .. tostring(problem))
  return nil
end

-- ---- the two ways to be fed -----------------------------------------------------------------------------

local function interactive(describe)
  local complete = require("lumuon.complete").complete
  local ok, problem = line.open(function(text) return complete(text, host.width()) end)
  if not ok then
    io.stderr:write("lumuon: ", problem, "\n")
    return 1
  end
  local history = open_history()
  local pending
  while true do
    local text, why = line.read(pending and "..> " or "lm> ")
    if text then
      if text:match("%S") then
        line.remember(text)
        if history then history:write(text, "\n") end
      end
      pending = pending and pending .. "\n" .. text or text
      local chunk, message, more = M.compile(pending, "=stdin")
      if chunk then
        pending = nil
        execute(chunk, describe)
      elseif not more then
        pending = nil
        io.stderr:write(message, "\n")
      end
    elseif why == "interrupt" then
      pending = nil
    else
      break
    end
  end
  if history then history:close() end
  line.close()
  return 0
end

-- Every error is reported with its line; the rest is still run; the exit code tells.
local function piped(describe)
  local number, first, pending, failed = 0, 1, nil, false
  for text in io.lines() do
    number = number + 1
    if not pending then first = number end
    pending = pending and pending .. "\n" .. text or text
    local chunk, message, more = M.compile(pending, "=stdin", first)
    if chunk then
      pending = nil
      local ok, interrupted = execute(chunk, describe)
      if interrupted then return 130 end
      failed = failed or not ok
    elseif not more then
      pending, failed = nil, true
      io.stderr:write(message, "\n")
    end
  end
  if pending then
    failed = true
    io.stderr:write(("stdin:%d: unfinished: %s\n"):format(first, pending:match("[^\n]*")))
  end
  return failed and 1 or 0
end

-- ---- start ------------------------------------------------------------------------------------------------

local function put_at_prompt(session)
  local names = {}
  for name, value in pairs(session) do
    if type(name) == "string" then
      _G[name] = value
      names[#names + 1] = name
    end
  end
  table.sort(names)
  return names
end

--- @param args a recipe and its options, or nothing
-- @return exit code
function M.run(args, cli)
  local terminal = host.is_terminal(0) and host.is_terminal(1)
  local lm = require "lumuon"
  lm.interactive = true
  _G.lm = lm
  host.set_patience(3)
  if terminal then
    print(("Lumuon %s, %s. Tab completes, Ctrl-C stops what runs, Ctrl-D leaves."):format(lm.version,
      jit.version))
  end
  if args[1] then
    local chunk, problem = cli.load_script(args[1], { unpack(args, 2) })
    if not chunk then
      io.stderr:write("lumuon: ", problem, "\n")
      return 1
    end
    local code, session = cli.guarded(chunk, unpack(args, 2))
    if code ~= 0 and (code == 2 or not terminal) then return code end
    if type(session) == "table" then
      local names = put_at_prompt(session)
      if terminal then print(("from %s: %s"):format(args[1], table.concat(names, ", "))) end
    end
  end
  return (terminal and interactive or piped)(cli.describe)
end

return M
