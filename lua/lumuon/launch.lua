--- Who started this process, as one of how many: read from the environment, before anything else runs.
--
-- mpirun, srun and launchers in torchrun's manner each tell rank, world size and local rank (the number
-- among the job's processes on this machine) in variables of their own.
local launch = {}

local launchers = { -- name, rank, world size, local rank; the first whose variables are there
  { "torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", mark = "TORCHELASTIC_RUN_ID" }, -- may itself be run by srun
  { "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK" },
  { "srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID" },
  { "RANK and WORLD_SIZE", "RANK", "WORLD_SIZE", "LOCAL_RANK" },
}

local function whole(text)
  local n = text and tonumber(text)
  return n and n >= 0 and n < 2 ^ 31 and n == math.floor(n) and n or nil
end

--- { launcher =, rank =, world_size =, local_rank = (or nil) }, or nil where nobody said anything.
-- getenv: os.getenv, or a stand-in for tests.
function launch.detect(getenv)
  getenv = getenv or os.getenv
  for _, names in ipairs(launchers) do
    local rank, size = whole(getenv(names[2])), whole(getenv(names[3]))
    local there = not names.mark or getenv(names.mark)
    if there and rank and size and rank < size then
      return { launcher = names[1], rank = rank, world_size = size, local_rank = whole(getenv(names[4])) }
    end
  end
  return nil
end

--- What is wrong with RANK and WORLD_SIZE where detect() did not believe them, or nil.
function launch.complaint(getenv)
  getenv = getenv or os.getenv
  local rank, size = getenv("RANK"), getenv("WORLD_SIZE")
  if launch.detect(getenv) then return nil end
  if not rank and not size then
    if (getenv("LUMUON_RENDEZVOUS") or "") == "" then return nil end
    return "LUMUON_RENDEZVOUS says where ranks meet, but RANK and WORLD_SIZE are not set"
  end
  if not rank or not size then
    return ("%s = %s, but %s is not set; one of several needs both, a process of its own neither"):format(
      rank and "RANK" or "WORLD_SIZE", rank or size, rank and "WORLD_SIZE" or "RANK")
  end
  return ("RANK = %s and WORLD_SIZE = %s: ranks are whole numbers from 0 to WORLD_SIZE - 1"):format(rank, size)
end

-- ---- where the ranks meet ------------------------------------------------------------------------------

--- The first name of Slurm's list of nodes: "node[07-09,12],big1" -> "node07".
local function first_node(list)
  local name = list:gsub("%[([^%],%-]+)[^%]]*%]", "%1")
  return name:match("^[^,]+")
end

--- Where the ranks of `own` (of detect()) meet without MPI: a place for the engine (tcp://host:port or
-- file:///path) and which job they are of; nil where MPI does it, which has_mpi says this build can; nil and a
-- message where nobody said.
function launch.meeting_place(own, has_mpi, getenv)
  getenv = getenv or os.getenv
  local function get(name)
    local value = getenv(name)
    return value ~= "" and value or nil
  end
  local job, step = get("SLURM_JOB_ID"), get("SLURM_STEP_ID")
  local of = own.launcher == "srun" and job and ("%s.%s"):format(job, step or "") or
    own.launcher == "torchrun" and get("TORCHELASTIC_RUN_ID") or ""
  local place = get("LUMUON_RENDEZVOUS")
  if place then return place, of:sub(1, 63) end
  local by_mpi = own.launcher == "mpirun" or own.launcher == "srun" and get("PMIX_RANK")
  if by_mpi and has_mpi then return nil end
  if own.launcher == "mpirun" then
    return nil, "this build has no MPI: apt-get install libopenmpi-dev openmpi-bin and build again, or say where "
      .. "rank 0 waits for the others: mpirun -x LUMUON_RENDEZVOUS=tcp://its.machine:29500 ..."
  end
  local host, port = get("MASTER_ADDR"), whole(get("MASTER_PORT") or "29500")
  local nodes = get("SLURM_STEP_NODELIST")
  if not host and own.launcher == "srun" and job and nodes then -- rank 0 is on the step's first node
    host = first_node(nodes)
    port = 15000 + ((whole(job) or 0) * 8 + (whole(step) or 0)) % 10000
  end
  if not host then
    return nil, "set MASTER_ADDR to the machine of rank 0 and MASTER_PORT to a free port there, or "
      .. "LUMUON_RENDEZVOUS=file:///path to a file on a disk that all machines share"
  end
  if not port then return nil, ("MASTER_PORT = %s is no port"):format(get("MASTER_PORT")) end
  if get("TORCHELASTIC_USE_AGENT_STORE") == "True" then port = port + 1 end -- torchrun itself is at MASTER_PORT
  if host:find(":", 1, true) then host = "[" .. host .. "]" end
  return ("tcp://%s:%d"):format(host, port), of:sub(1, 63)
end

-- ---- threads -------------------------------------------------------------------------------------------

--- "0-3,8" -> 5
local function count_list(list)
  local n = 0
  for part in list:gmatch("[^,]+") do
    local from, to = part:match("^(%d+)%-(%d+)$")
    n = n + (from and tonumber(to) - tonumber(from) + 1 or 1)
  end
  return n
end

--- How many threads a rank takes, and its number (from 0) on its machine. all: "machine cores" of every rank, as
-- "b1e5 0-3,8"; which: the rank's place there. Ranks that may use the same cores of the same machine share them
-- evenly, and none takes more than Slurm gave it: it may not be bound to that. No threads: nothing is known.
function launch.threads(all, which, getenv)
  getenv = getenv or os.getenv
  local machine, cores = all[which]:match("^(%S*) (.*)$")
  local sharing, together, before = 0, 0, 0
  for i, other in ipairs(all) do
    if other == all[which] then sharing = sharing + 1 end
    if other:match("^%S*") == machine then
      together = together + 1
      if i < which then before = before + 1 end
    end
  end
  if cores == "" then return nil, before end
  local threads = count_list(cores) / sharing
  if getenv("SLURM_PROCID") then
    local each, here = whole(getenv("SLURM_CPUS_PER_TASK")), whole(getenv("SLURM_CPUS_ON_NODE"))
    threads = math.min(threads, each or here and here / together or threads)
  end
  return math.max(1, math.floor(threads)), before
end

-- ---- what a process that is one of several does differently --------------------------------------------

local own = launch.detect()
local several = own and own.world_size > 1

--- "rank 2: " in front of messages, "" in a process of its own.
function launch.prefix() return several and ("rank %d: "):format(own.rank) or "" end

--- args without `--log-all-ranks`, and whether it was there.
function launch.take_option(args)
  local rest, found = {}, false
  for _, a in ipairs(args) do
    if a == "--log-all-ranks" then found = true else rest[#rest + 1] = a end
  end
  return rest, found
end

--- Only rank 0 writes to standard output; with `all` everyone does, print with the rank in front.
function launch.log(all)
  if not several then return end
  if all then
    local plain = print
    function print(...) -- luacheck: ignore 121
      io.stdout:write("[", own.rank, "] ")
      plain(...)
    end
  elseif own.rank > 0 then
    local ffi = require "ffi"
    ffi.cdef "int open(const char *path, int flags, ...); int dup2(int from, int to); int close(int fd);"
    local O_WRONLY = 1
    local null = ffi.C.open("/dev/null", O_WRONLY)
    if null >= 0 then
      ffi.C.dup2(null, 1)
      ffi.C.close(null)
    end
  end
end

--- Leave the world in good order (code 0) or end it. Returns the exit code and, if something is to be said, a
-- message.
function launch.leave(code)
  local dist = package.loaded["lumuon.dist"]
  if dist then
    local ok, message = pcall(dist.finish, code)
    if not ok then return 1, tostring(message) end
  end
  return code
end

--- A message for who started several processes of a program that never asked for the others.
function launch.alone()
  if not several or own.rank > 0 then return nil end
  local dist = package.loaded["lumuon.dist"]
  if dist and dist.was_initialized() then return nil end
  return ("%s started %d processes, but the recipe does not call lm.dist.init(): each ran by itself"):format(
    own.launcher, own.world_size)
end

return launch
