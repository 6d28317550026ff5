--- A recipe as a session, as `lumuon repl` opens it.
local lm = require "lumuon"

local recipe = {}

--- The session of the recipe at path with these words of a command line.
function recipe.open(path, words)
  local before_arg, before_interactive, before_path = rawget(_G, "arg"), lm.interactive, package.path
  rawset(_G, "arg", { [0] = path, unpack(words) })
  lm.interactive = true
  package.path = "recipes/?.lua;" .. package.path
  local ok, session = pcall(dofile, path)
  package.path, lm.interactive = before_path, before_interactive
  rawset(_G, "arg", before_arg)
  if not ok then error(session, 0) end
  return session
end

return recipe
