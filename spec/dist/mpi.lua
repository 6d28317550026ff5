-- Running the program under test as several processes.
local command = dofile("spec/command.lua")

local M = {}

local C = require("lumuon.lib").C
local has_mpirun = command.has("mpirun")

--- Why there can be no several processes here, or nil.
M.missing = C.lm_dist_available(C.LM_DIST_MPI) == 0 and "this build has no MPI"
  or not has_mpirun and "mpirun is not installed" or nil

local ENVIRONMENT = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 "
  .. "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none "

--- `mpirun -n ranks lumuon words...`: { code, out, err, seconds }.
function M.run(ranks, words)
  local quoted = {}
  for i, w in ipairs(words) do quoted[i] = command.quote(w) end
  local clock = require "lumuon.clock"
  local begun = clock()
  local r = command.shell(("%s timeout -s KILL 60 mpirun --oversubscribe -n %d %s %s"):format(ENVIRONMENT, ranks,
    command.quote(command.lumuon), table.concat(quoted, " ")))
  r.seconds = clock() - begun
  return r
end

--- The same, of a script in spec/dist.
function M.script(ranks, name, options)
  local words = { "run", "spec/dist/" .. name .. ".lua" }
  for _, o in ipairs(options or {}) do words[#words + 1] = o end
  return M.run(ranks, words)
end

return M
