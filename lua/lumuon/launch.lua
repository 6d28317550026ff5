--- Who started this process, as one of how many: read from the environment, before anything else runs.
--
-- mpirun, srun and launchers in torchrun's manner each tell rank, world size and local rank (the number
-- among the job's processes on this machine) in variables of their own.
local launch = {}

local launchers = {
  { "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK" },
  { "srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID" },
  { "RANK and WORLD_SIZE", "RANK", "WORLD_SIZE", "LOCAL_RANK" },
}

local function whole(text)
  local n = text and tonumber(text)
  return n and n >= 0 and n == math.floor(n) and n or nil
end

--- { launcher =, rank =, world_size =, local_rank = (or nil) }, or nil where nobody said anything.
-- getenv: os.getenv, or a stand-in for tests.
function launch.detect(getenv)
  getenv = getenv or os.getenv
  for _, names in ipairs(launchers) do
    local rank, size = whole(getenv(names[2])), whole(getenv(names[3]))
    if rank and size and rank < size then
      return { launcher = names[1], rank = rank, world_size = size, local_rank = whole(getenv(names[4])) }
    end
  end
  return nil
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
