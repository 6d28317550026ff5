--- The command line: `lumuon COMMAND ...`.
--
-- What a recipe may count on (the whole contract; `run` and `repl` keep it):
--   * it is an ordinary script: `arg` holds what followed its name, modules beside it are found by
--     `require "parts.nanochat"`, an uncaught error ends it with its own file and line.
--   * under `lumuon repl RECIPE`, `lm.interactive` is true. A recipe then returns a table before it
--     trains, and each of its fields becomes a global at the prompt:
--
--         local session = { model = model, opt = opt, data = data, step = step }
--         if lm.interactive then return session end
--         for i = 1, options.steps do step(1) end
--
--     `step(n)` trains n steps. Fields are ordinary values; nothing else is asked of them.
--   * Ctrl-C is an error in the running call ("interrupted") and ends `run` with exit code 130.
--     A recipe that wants to finish its step first says require("lumuon.host").defer_interrupt(true)
--     and looks at .interrupt_asked() between steps; a second Ctrl-C stops it at once.
local host = require "lumuon.host"
local nearest = require "lumuon.nearest"
local launch = require "lumuon.launch"

local M = {}

local EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPT = 1, 2, 130

-- ---- errors ---------------------------------------------------------------------------------------

local usage_error = { __tostring = function(e) return e.message end }

--- An error in how something was called: shown as it is, exit code 2.
function M.usage_error(message) return setmetatable({ message = message }, usage_error) end

local function is_usage_error(e) return getmetatable(e) == usage_error end

local function is_ours(source) return source:sub(1, 8) == "@lumuon:" or source:sub(1, 1) ~= "@" end

--- A message handler: a recipe's error with the recipe's own lines, ours with all of them.
function M.describe(err)
  if is_usage_error(err) then return err end
  local message
  if type(err) == "string" then
    message = err
  elseif type(err) == "table" and (getmetatable(err) or {}).__tostring then
    message = tostring(err)
  else
    message = ("error value: %s"):format(tostring(err))
  end
  if message:sub(1, 7) == "lumuon:" then
    return debug.traceback("internal error, please report it: " .. message, 2)
  end
  local frames = {}
  for level = 2, 200 do
    local info = debug.getinfo(level, "Sln")
    if not info then break end
    if info.what ~= "C" and not is_ours(info.source) then
      local where = info.what == "main" and "main chunk"
        or info.name and ("function '%s'"):format(info.name)
        or ("function at line %d"):format(info.linedefined)
      frames[#frames + 1] = ("  %s:%d: in %s"):format(info.short_src, info.currentline, where)
    end
  end
  if #frames > 1 or #frames == 1 and type(err) ~= "string" then
    message = message .. "\ncalled from\n" .. table.concat(frames, "\n", 1, math.min(#frames, 12))
  end
  return message
end

local function complain(...)
  io.stdout:flush()
  -- in one piece: other ranks write too
  io.stderr:write("lumuon: " .. launch.prefix() .. table.concat({ ... }) .. "\n")
end

--- Call f; report what goes wrong.
-- @return exit code, what f returned, and whether it came to its end though it was interrupted
local function guarded(f, ...)
  local interrupted, ok, result = host.call(M.describe, f, ...)
  if interrupted then
    complain("interrupted")
    return EXIT_INTERRUPT, nil, ok
  end
  if ok then return 0, result end
  complain(tostring(result))
  return is_usage_error(result) and EXIT_USAGE or EXIT_ERROR
end

M.guarded = guarded

--- Call f as one of the processes of a job, if this is one; `args` may have --log-all-ranks.
-- @return exit code, and what f returned
local function guarded_rank(log_all, f, ...)
  launch.log(log_all)
  local code, result, finished = guarded(f, ...)
  if code == 0 and type(result) == "number" then code = result end -- a measurement's own
  io.stdout:flush()
  -- a rank that heard of Ctrl-C and came to its end leaves as those do that did not: they may still be saving
  local final, problem = launch.leave(finished and 0 or code)
  if problem then complain(problem) end
  return final == 0 and code or final, result
end

--- The same at os.exit, in the middle of a recipe.
local function leave_early(code)
  local status = (code == nil or code == true) and 0 or tonumber(code) or 1
  local final, problem = launch.leave(status)
  if problem then complain(problem) end
  return final
end

-- ---- scripts --------------------------------------------------------------------------------------

--- Folder of the project or of the installed tree this program belongs to, or nil.
function M.home()
  local bin = (host.executable() or ""):match("^(.*)/[^/]*$")
  local up = bin and bin:match("^(.*)/[^/]*$")
  if not up then return nil end
  if host.kind(up .. "/recipes") == "directory" or host.kind(up .. "/spec") == "directory" then return up end
  if host.kind(up .. "/share/lumuon") == "directory" then return up .. "/share/lumuon" end
  return nil
end

-- Recipes are named from the project's folder; elsewhere that name should still work.
local function find_script(path)
  local kind, problem = host.kind(path)
  if not kind and path:sub(1, 1) ~= "/" and M.home() then
    local elsewhere = M.home() .. "/" .. path
    if host.kind(elsewhere) then return find_script(elsewhere) end
  end
  if kind == "directory" then return nil, path .. " is a directory, not a recipe" end
  if kind then return path end
  local hint = ""
  if not path:match("%.lua$") and host.kind(path .. ".lua") == "file" then
    hint = (" (did you mean %s.lua?)"):format(path)
  end
  return nil, "cannot read " .. problem .. hint
end

--- Load a recipe as `run` and `repl` do: path and `arg` set up, nothing run yet.
-- @return the chunk, or nil and a message
function M.load_script(path, args)
  local found, problem = find_script(path)
  if not found then return nil, problem end
  local chunk, syntax_error = loadfile(found)
  if not chunk then return nil, syntax_error end
  local folder = found:match("^(.*)/[^/]*$") or "."
  package.path = ("%s/?.lua;%s/?/init.lua;%s"):format(folder, folder, package.path)
  local list = { [0] = found }
  for i, a in ipairs(args) do list[i] = a end
  _G.arg = list
  return chunk
end

-- ---- commands -------------------------------------------------------------------------------------

local commands, order = {}, {}

local function command(name, usage, help, run)
  commands[name] = { usage = usage, help = help, run = run }
  order[#order + 1] = name
end

local function tail(args, first)
  local rest = {}
  for i = first, #args do rest[#rest + 1] = args[i] end
  return rest
end

local function print_usage(name)
  local c = commands[name]
  print(("usage: lumuon %s\n\n%s"):format(c.usage, c.help))
  return 0
end

command("run", "run FILE.lua [--name=value ...] [--log-all-ranks]",
  "Run a recipe, or any script, with `require \"lumuon\"` on its path.\n"
  .. "What follows the file is the script's; `--help` there lists a recipe's options.\n"
  .. "With several processes (mpirun, srun, torchrun; README.md) only the first prints,\n"
  .. "unless --log-all-ranks is given.",
  function(words)
    local args, log_all = launch.take_option(words)
    if not args[1] then
      complain("run: which file? usage: lumuon run FILE.lua [--name=value ...]")
      return EXIT_USAGE
    end
    local chunk, problem = M.load_script(args[1], tail(args, 2))
    if not chunk then
      complain(problem)
      return EXIT_ERROR
    end
    local code = guarded_rank(log_all, function(...) chunk(...) end, unpack(args, 2))
    if code == 0 and launch.alone() then complain(launch.alone()) end
    return code
  end)

command("repl", "repl [RECIPE.lua [--name=value ...]]",
  "An interactive prompt; with a recipe, its model, optimizer and data are at the prompt.\n"
  .. "Ctrl-C stops what runs and comes back to the prompt, Ctrl-D leaves.",
  function(args) return require("lumuon.repl").run(args, M) end)

command("test", "test [--tags=T] [--filter=PATTERN] [FILE ...]",
  "Run the specs with Busted; arguments are Busted's own.",
  function(args)
    -- from another folder: the specs of the project this program was built in
    local home = M.home()
    if host.kind("spec") ~= "directory" and home and host.kind(home .. "/spec") == "directory" then
      local ok, problem = host.change_directory(home)
      if not ok then
        complain("test: ", problem)
        return EXIT_ERROR
      end
    end
    if #args == 0 and host.kind("spec") ~= "directory" then
      complain("test: there is no spec/ folder here; the specs are part of the source tree")
      return EXIT_ERROR
    end
    return require("lumuon.testing").run(args)
  end)

command("bench", "bench NAME [--name=value ...]", "Measure; `lumuon bench` lists what there is.",
  function(args)
    local rest, log_all = launch.take_option(args)
    return (guarded_rank(log_all, require("lumuon.bench").run, rest))
  end)

command("info", "info [--tuning [--model=d12] [--threads=N] [--deterministic]]",
  "Version, CPU, kernels, devices, libraries, threads, memory.\n"
  .. "--tuning: how Muon's products are done for the shapes of a model, with the times that decided.",
  function(args)
    local code, status = guarded(require("lumuon.info").run, args)
    return code == 0 and status or code
  end)

command("version", "version", "Print the version.", function()
  print("lumuon " .. require("lumuon.info").version())
  return 0
end)

command("help", "help [COMMAND]", "This list, or more about one command.", function(args)
  local name = args[1]
  if name then
    if commands[name] then return print_usage(name) end
    return M.unknown(name)
  end
  print("Lumuon trains GPTs with Muon and AdamW: a C engine, recipes in Lua.\n")
  print("usage: lumuon COMMAND ...\n")
  for _, n in ipairs(order) do
    print(("  %-8s %s"):format(n, (commands[n].help:match("[^\n]*"))))
  end
  print("\nFirst: lumuon run recipes/fortune.lua")
  return 0
end)

function M.unknown(name)
  if host.kind(name) == "file" then
    complain(("unknown command '%s'; to run the file: lumuon run %s"):format(name, name))
    return EXIT_USAGE
  end
  local near = nearest(name, order)
  complain(("unknown command '%s'%s"):format(name, near and ("; did you mean '%s'?"):format(near)
    or "; the commands are " .. table.concat(order, ", ")))
  return EXIT_USAGE
end

local aliases = { ["--help"] = "help", ["-h"] = "help", ["--version"] = "version", ["-v"] = "version" }

--- @param args the command line, args[1] the command
-- @return exit code
function M.main(args)
  -- leaving by os.exit closes the state too: files are flushed, the terminal is restored
  local exit = os.exit
  os.exit = function(code, close) -- luacheck: ignore 122
    local final = leave_early(code)
    exit(final, close ~= false)
  end
  require("lumuon.options").fail = function(message) error(M.usage_error(message), 0) end
  io.stdout:setvbuf("line") -- a log seen through a pipe is seen as it is written
  local name = args[1]
  if not name then
    commands.help.run {}
    return EXIT_USAGE
  end
  local c = commands[aliases[name] or name]
  if not c then return M.unknown(name) end
  if (args[2] == "--help" or args[2] == "-h") and name ~= "test" then
    return print_usage(aliases[name] or name)
  end
  return c.run(tail(args, 2))
end

return M
