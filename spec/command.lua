-- Running programs from specs: the very executable under test, other programs, a terminal (tmux).
local M = {}

local inside, host = pcall(require, "lumuon.host")
M.lumuon = inside and host.executable() or io.popen("pwd"):read("*l") .. "/build/lumuon"

local function quote(s) return "'" .. s:gsub("'", "'\\''") .. "'" end
M.quote = quote

function M.read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

function M.write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

--- A fresh folder; the caller removes it with M.remove.
function M.folder()
  local pipe = io.popen("mktemp -d")
  local path = pipe:read("*l")
  pipe:close()
  return path
end

function M.remove(path)
  assert(path:match("^/tmp/") or path:match("^/var/"), path)
  os.execute("rm -rf " .. quote(path))
end

--- Run a shell command: { code, out, err }.
function M.shell(command, input)
  local folder = M.folder()
  M.write(folder .. "/in", input or "")
  -- What the shell itself says of a command that a signal ends belongs to the command's errors.
  local script = ("exec <%s/in >%s/out 2>%s/err\n("):format(folder, folder, folder)
    .. command .. ("\n); echo $? >%s/code"):format(folder)
  os.execute(script)
  local result = {
    code = tonumber(M.read(folder .. "/code")), out = M.read(folder .. "/out"), err = M.read(folder .. "/err"),
  }
  M.remove(folder)
  return result
end

--- Run the executable under test with a list of arguments.
function M.run(args, input)
  local words = { quote(M.lumuon) }
  for _, a in ipairs(args) do words[#words + 1] = quote(a) end
  return M.shell("timeout 120 " .. table.concat(words, " "), input)
end

function M.has(program) return M.shell("command -v " .. program).code == 0 end

return M
