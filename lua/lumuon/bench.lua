--- `lumuon bench NAME`: each measurement is a module lumuon.bench.NAME with
-- `help`, a line, and `run(args)`, which prints and returns an exit code.
local nearest = require "lumuon.nearest"

local M = { names = { "optim", "train", "dist", "gpu" } }

local function load(name)
  local ok, module = pcall(require, "lumuon.bench." .. name)
  if ok then return module end
  if tostring(module):find("module 'lumuon.bench." .. name .. "' not found", 1, true) then return nil end
  error(module, 0)
end

--- @param args name of the measurement, then its options
-- @return exit code
function M.run(args)
  local name = args[1]
  if not name then
    print("usage: lumuon bench NAME [--name=value ...]\n")
    for _, n in ipairs(M.names) do
      local module = load(n)
      print(("  %-8s %s"):format(n, module and module.help or "not in this build"))
    end
    return 2
  end
  local known = false
  for _, n in ipairs(M.names) do known = known or n == name end
  local module = known and load(name)
  if not module then
    local near = not known and nearest(name, M.names)
    io.stderr:write(("lumuon: bench: no measurement '%s'%s\n"):format(name,
      near and ("; did you mean '%s'?"):format(near) or "; there are " .. table.concat(M.names, ", ")))
    return 2
  end
  local rest = {}
  for i = 2, #args do rest[#rest + 1] = args[i] end
  return module.run(rest)
end

return M
