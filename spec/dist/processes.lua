-- Running the program under test as several plain processes, which meet without MPI.
local command = dofile("spec/command.lua")
local clock = require "lumuon.clock"

local M = {}

--- A port that is likely to be free.
function M.port() return 20000 + math.floor(clock() * 1e4) % 10000 end

--- `env <environment> lumuon words...` for each rank, at once. options: ranks = how many; words = a list, or a
-- function of the rank; env = text in front of each command, or a function of the rank (RANK, WORLD_SIZE and
-- LOCAL_RANK are set before it); leave = a rank that is not waited for but killed when the others have ended.
-- Returns { codes = { [0] = ... }, out = rank 0's, err = everyone's, seconds =, rank = seconds each took }.
function M.run(options)
  local folder = command.folder()
  local lines, waits = {}, {}
  for rank = options.ranks - 1, 0, -1 do
    local words = type(options.words) == "function" and options.words(rank) or options.words
    local env = type(options.env) == "function" and options.env(rank) or options.env or ""
    local quoted = { "env", "OMP_NUM_THREADS=1", "RANK=" .. rank, "WORLD_SIZE=" .. options.ranks, "LOCAL_RANK=" .. rank,
      env, command.quote(command.lumuon) }
    for _, w in ipairs(words) do quoted[#quoted + 1] = command.quote(w) end
    lines[#lines + 1] = ("%s >%s/out.%d 2>%s/err.%d & p%d=$!"):format(table.concat(quoted, " "), folder, rank, folder,
      rank, rank)
    local wait = ("wait $p%d; echo $? >%s/code.%d"):format(rank, folder, rank)
    if options.leave == rank then wait = ("kill -9 $p%d; %s"):format(rank, wait) end
    table.insert(waits, options.leave == rank and #waits + 1 or 1, wait)
  end
  local script = command.write(folder .. "/script", table.concat(lines, "\n") .. "\n" .. table.concat(waits, "\n"))
  local begun = clock()
  os.execute(("timeout -s KILL 60 sh %s 2>/dev/null"):format(script))
  local result = { seconds = clock() - begun, codes = {}, err = "", out = command.read(folder .. "/out.0") }
  for rank = 0, options.ranks - 1 do
    local file = io.open(("%s/code.%d"):format(folder, rank))
    result.codes[rank] = file and file:read("*n")
    if file then file:close() end
    result.err = result.err .. command.read(("%s/err.%d"):format(folder, rank))
  end
  command.remove(folder)
  return result
end

return M
