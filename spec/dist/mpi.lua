-- Running the program under test as several processes.
local command = dofile("spec/command.lua")

local M = {}

local C = require("lumuon.lib").C
local has_mpirun = command.has("mpirun")

--- Why there can be no several processes here, or nil.
M.missing = C.lm_dist_available(C.LM_DIST_MPI) == 0 and "this build has no MPI"
  or not has_mpirun and "mpirun is not installed" or nil

-- Leaks are not looked for in a build with sanitizers: Open MPI leaves some, from plugins that it has unloaded,
-- so that no suppression can name them.
local ENVIRONMENT = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 "
  .. "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none ASAN_OPTIONS=detect_leaks=0 "

--- `lumuon words...` as a shell command.
function M.command(words)
  local quoted = {}
  for i, w in ipairs(words) do quoted[i] = command.quote(w) end
  return command.quote(command.lumuon) .. " " .. table.concat(quoted, " ")
end

--- `mpirun ...` with the rest of its command line as text: { code, out, err, seconds }.
function M.mpirun(text)
  local clock = require "lumuon.clock"
  local begun = clock()
  local r = command.shell(("%s timeout -s KILL 60 mpirun --oversubscribe %s"):format(ENVIRONMENT, text))
  r.seconds = clock() - begun
  return r
end

--- `mpirun -n ranks lumuon words...`.
function M.run(ranks, words) return M.mpirun(("-n %d %s"):format(ranks, M.command(words))) end

--- The same, of a script in spec/dist.
function M.script(ranks, name, options)
  local words = { "run", "spec/dist/" .. name .. ".lua" }
  for _, o in ipairs(options or {}) do words[#words + 1] = o end
  return M.run(ranks, words)
end

return M
