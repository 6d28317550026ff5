--- `lumuon test`: Busted inside the host, so that the specs run against the very build at hand.
-- This module is also the output handler: Busted's own, and a last line that programs can read.

local M = {}

local function output_handler(options)
  local host = require "lumuon.host"
  local inner = host.is_terminal(1) and "utfTerminal" or "plainTerminal"
  local handler = require("busted.outputHandlers." .. inner)(options)
  require("busted").subscribe({ "exit" }, function()
    local skipped = handler.pendingsCount > 0 and (", %d skipped"):format(handler.pendingsCount) or ""
    io.write(("%d passed, %d failed%s\n"):format(handler.successesCount,
      handler.failuresCount + handler.errorsCount, skipped))
    io.flush()
    M.failed = handler.failuresCount + handler.errorsCount
    M.passed = handler.successesCount
    return nil, true
  end)
  return handler
end

local function has_output_option(args)
  for _, a in ipairs(args) do
    if a:match("^%-o") or a:match("^%-%-output") then return true end
  end
  return false
end

--- Run the specs.
-- @param args Busted's arguments: files, folders, `--tags=`, `--filter=`, ...
-- @return exit code
function M.run(args)
  local found, problem = pcall(require, "busted.runner")
  if not found then
    io.stderr:write("lumuon test: Busted is not installed: apt-get install lua-busted\n",
      "  (", tostring(problem):match("[^\n]*"), ")\n")
    return 1
  end
  -- the host is the Lua to run under, whatever .busted says for Busted on its own
  local list = { "--ignore-lua" }
  if not has_output_option(args) then list[#list + 1] = "--output=lumuon.testing" end
  for _, a in ipairs(args) do list[#list + 1] = a end
  list[0] = "lumuon test"
  _G.arg = list
  require("lumuon.host").default_interrupt() -- Ctrl-C ends the run, not one test of it

  -- Busted leaves by os.exit or by error(nil): both end here, where the state is closed in order
  local leave = {}
  local real_exit = os.exit
  local code
  os.exit = function(status) -- luacheck: ignore 122
    code = (status == nil or status == true) and 0 or tonumber(status) or 1
    error(leave, 0)
  end
  local runner = assert(loadstring("require('busted.runner')({ standalone = false })", "@lumuon test"))
  local ok, err = pcall(runner)
  os.exit = real_exit -- luacheck: ignore 122
  if ok then return 0 end
  if err == leave then return code end
  if err ~= nil then io.stderr:write("lumuon test: ", tostring(err), "\n") end
  return 1
end

return setmetatable(M, { __call = function(_, options) return output_handler(options) end })
