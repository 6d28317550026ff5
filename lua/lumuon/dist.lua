--- Several processes as one: rank, world size, collectives.
--
--     lm.dist.init()                              -- near the top of the recipe
--     local h = lm.dist.all_reduce(t, { op = "mean", async = true })
--     ...                                         -- arithmetic meanwhile
--     h:wait()
--
--     mpirun -n 4 lumuon run recipe.lua           -- or srun, torchrun, or RANK, WORLD_SIZE, MASTER_ADDR by hand
--
-- Every rank runs the same program and makes the same calls in the same order. Without init(), or in a
-- process that was started alone, the world is this one process and every collective is done at once.
-- Ranks count from 0, as launchers count them. Who does not arrive within the timeout ends the job: the
-- message names the collective, its label and the ranks.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local launch = require "lumuon.launch"
local ffi, C, call, raise = lib.ffi, lib.C, lib.call, lib.raise

local dist = {}
local launched = launch.detect()
local local_rank = launched and launched.local_rank or 0

-- ---- collectives ---------------------------------------------------------------------------------------

local Handle = {}
Handle.__index = Handle

--- Block until the collective is done; returns its tensor. Again, or never, is fine.
function Handle:wait()
  if not self.finished then
    call(C.lm_work_wait, self.work)
    self.finished = true
  end
  return self.tensor
end

--- Whether it is done.
function Handle:done() return C.lm_work_done(self.work) ~= 0 end

--- Seconds it took, without its time in the queue; nil before its end.
function Handle:seconds()
  local seconds = C.lm_work_seconds(self.work)
  return seconds >= 0 and seconds or nil
end

local box = ffi.new("lm_work *[1]")
local reductions = { sum = C.LM_DIST_SUM, mean = C.LM_DIST_MEAN, max = C.LM_DIST_MAX, min = C.LM_DIST_MIN }
local known = { op = true, async = true, label = true, root = true }

local function check_options(name, options)
  if type(options) == "string" then return { op = options } end
  if options == nil then return {} end
  if type(options) ~= "table" then raise("%s: expected a table of options, got %s", name, type(options)) end
  for key in pairs(options) do
    if not known[key] then raise("%s: unknown option '%s' (op, async, label, root)", name, tostring(key)) end
  end
  if options.label ~= nil and type(options.label) ~= "string" then
    raise("%s: label = %s is no string", name, tostring(options.label))
  end
  return options
end

local function issue(f, t, options, ...)
  call(f, box, ...)
  local handle = setmetatable({ work = ffi.gc(box[0], C.lm_work_free), tensor = t, finished = false }, Handle)
  if options.async then return handle end
  return handle:wait()
end

local function label_of(t, options) return options.label or t.name or t:describe() end

local function reduction(name, f)
  return function(t, options)
    tensor.live(t, name)
    options = check_options(name, options)
    local op = reductions[options.op or "sum"]
    if not op then raise("%s: op = '%s' is none of sum, mean, max, min", name, tostring(options.op)) end
    return issue(f, t, options, t.h, op, label_of(t, options))
  end
end

--- t = op over every rank's t, in place: op is "sum" (the default), "mean", "max" or "min". All of the
-- collectives take { async = true, label = "for messages" }: with async they return a handle at once,
-- else the tensor when it is done.
dist.all_reduce = reduction("all_reduce", C.lm_dist_all_reduce)
--- This rank's slice of t (the rank'th of world_size equal parts) = op over every rank's; the rest of t is
-- undefined afterwards.
dist.reduce_scatter = reduction("reduce_scatter", C.lm_dist_reduce_scatter)

--- Every rank gives its slice of t and gets the others'.
function dist.all_gather(t, options)
  tensor.live(t, "all_gather")
  options = check_options("all_gather", options)
  return issue(C.lm_dist_all_gather, t, options, t.h, label_of(t, options))
end

local function root_of(name, options)
  local root = options.root or 0
  if not lib.is_whole(root) then raise("%s: root = %s is no rank", name, tostring(root)) end
  return root
end

--- t = the t of rank `root` (0).
function dist.broadcast(t, options)
  tensor.live(t, "broadcast")
  options = check_options("broadcast", options)
  return issue(C.lm_dist_broadcast, t, options, t.h, root_of("broadcast", options), label_of(t, options))
end

--- whole, needed on rank `root` (0) only, = the ranks' parts behind each other.
function dist.gather(part, whole, options)
  tensor.live(part, "gather")
  if whole ~= nil then tensor.live(whole, "gather") end
  options = check_options("gather", options)
  return issue(C.lm_dist_gather, whole, options, whole and whole.h, part.h, root_of("gather", options),
    label_of(part, options))
end

--- The reverse: part, on the CPU, = this rank's of the parts in rank `root`'s whole.
function dist.scatter(part, whole, options)
  tensor.live(part, "scatter")
  if whole ~= nil then tensor.live(whole, "scatter") end
  options = check_options("scatter", options)
  return issue(C.lm_dist_scatter, part, options, part.h, whole and whole.h, root_of("scatter", options),
    label_of(part, options))
end

--- Until every rank is here.
function dist.barrier(options)
  options = check_options("barrier", options)
  return issue(C.lm_dist_barrier, nil, options, options.label or "barrier")
end

-- ---- what is made of them ----------------------------------------------------------------------------------

--- Mean over the ranks of a number, in f32.
function dist.mean(x)
  if C.lm_dist_world_size() == 1 then return x end
  local t = tensor.full({ 1 }, x)
  dist.all_reduce(t, { op = "mean", label = "a number's mean" })
  x = t:item()
  t:free()
  return x
end

--- This rank's part of n rows: the first (from 1) and how many. Every row is some rank's.
function dist.share(n)
  local rank, size = C.lm_dist_rank(), C.lm_dist_world_size()
  local first = math.floor(n * rank / size)
  return first + 1, math.floor(n * (rank + 1) / size) - first
end

--- Every rank's string, as a list: [1] is rank 0's.
function dist.all_strings(text, label)
  local size, rank = C.lm_dist_world_size(), C.lm_dist_rank()
  local lengths = tensor.zeros({ size }, { dtype = "i32" })
  lengths:pointer()[rank] = #text
  dist.all_gather(lengths, { label = label })
  local longest, list = 0, {}
  for r = 0, size - 1 do longest = math.max(longest, lengths:pointer()[r]) end
  local all = tensor.zeros({ size, longest }, { dtype = "u8" })
  local bytes = ffi.cast("char *", all:pointer())
  ffi.copy(bytes + rank * longest, text, #text)
  dist.all_gather(all, { label = label })
  for r = 0, size - 1 do list[r + 1] = ffi.string(bytes + r * longest, lengths:pointer()[r]) end
  lengths:free()
  all:free()
  return list
end

--- f(...), unless there is a problem already. Returns that or f's error, a message; nil where all is well. For what
-- only one rank can fail at: check_all() tells the others, so that none waits for a rank that has left.
function dist.attempt(problem, f, ...)
  if problem then return problem end
  local ok, message = pcall(f, ...)
  if ok then return nil end
  if C.lm_dist_world_size() > 1 then C.lm_interrupt_clear() end -- Ctrl-C has been told: the message says so
  return tostring(message)
end

--- Raise on every rank if one of them has a problem, a message; nil where all is well.
function dist.check_all(what, problem)
  if C.lm_dist_world_size() == 1 then
    if problem then error(problem, 0) end
    return
  end
  if C.lm_interrupted() ~= 0 then -- the others must be told before this rank leaves
    C.lm_interrupt_clear()
    problem = problem or "interrupted"
  end
  for rank, text in ipairs(dist.all_strings(problem or "", what)) do
    if text ~= "" then
      if problem then error(problem, 0) end
      raise("%s: rank %d: %s", what, rank - 1, text)
    end
  end
end

local function lines_of(text)
  local lines = {}
  for line in (text .. "\n"):gmatch("([^\n]*)\n") do lines[#lines + 1] = line end
  return lines
end

--- nil where every rank gives the same text; else a message, the same on all: the first line that differs, and both
-- sides'.
function dist.difference(what, text)
  local texts = dist.all_strings(text, what)
  for r = 2, #texts do
    if texts[r] ~= texts[1] then
      local ours, theirs = lines_of(texts[1]), lines_of(texts[r])
      for i = 1, math.max(#ours, #theirs) do
        if ours[i] ~= theirs[i] then
          return ("the ranks differ in %s: rank 0 has '%s', rank %d has '%s'"):format(what, ours[i] or "nothing more",
            r - 1, theirs[i] or "nothing more")
        end
      end
    end
  end
end

--- Raise where ranks give different texts.
function dist.agree(what, text)
  local problem = dist.difference(what, text)
  if problem then raise("%s", problem) end
end

local hash_box = ffi.new("uint64_t[1]")

--- A tensor's hash as 16 hex digits, the same on every device.
function dist.hash(t)
  return lib.scope(function()
    call(C.lm_hash, hash_box, t:detach():to("cpu").h)
    return (bit.tohex(hash_box[0], 16))
  end)
end

-- ---- the world --------------------------------------------------------------------------------------------

local initialized = false

--- Whether init() was ever called.
function dist.was_initialized() return initialized end

--- This process's number, from 0.
function dist.rank() return C.lm_dist_rank() end
--- How many processes there are.
function dist.world_size() return C.lm_dist_world_size() end
--- This process's number among those on this machine, from 0: which GPU is its.
function dist.local_rank() return local_rank end
--- "self", "mpi" or "tcp".
function dist.transport() return ffi.string(C.lm_dist_transport()) end
--- Bytes this rank has sent. NCCL does not say what it sent: of its collectives, what a ring of the ranks would send.
function dist.wire_bytes() return C.lm_dist_wire_bytes() end

local function first_line(path)
  local file = io.open(path)
  local line = file and file:read("*l")
  if file then file:close() end
  return line or ""
end

local function allowed_cores()
  local file = io.open("/proc/self/status")
  local text = file and file:read("*a") or ""
  if file then file:close() end
  return text:match("Cpus_allowed_list:%s*(%S+)") or ""
end

--- Threads, and the local rank where the launcher did not tell, from every rank's machine and cores. The machine
-- is told by its boot's id: containers have host names of their own.
local function set_threads()
  local machine = first_line("/proc/sys/kernel/random/boot_id"):match("^%S+") or
    first_line("/proc/sys/kernel/hostname"):match("^%S*")
  local all = dist.all_strings(machine .. " " .. allowed_cores(), "machines and cores")
  local threads, number = launch.threads(all, C.lm_dist_rank() + 1)
  if not (launched and launched.local_rank) then local_rank = number end
  if not os.getenv("OMP_NUM_THREADS") and threads then call(C.lm_set_threads, threads) end
end

--- What must be the same on every rank from the first line of the recipe on.
local function program()
  local arg = rawget(_G, "arg") or {}
  local file = type(arg[0]) == "string" and io.open(arg[0], "rb")
  local content = file and file:read("*a") or ""
  if file then file:close() end
  local bytes = tensor.zeros({ #content }, { dtype = "u8" })
  ffi.copy(bytes:pointer(), content, #content)
  return ("lumuon %s\n%s, content %s\narguments: %s"):format(ffi.string(C.lm_version()),
    tostring(arg[0] or "no script"), dist.hash(bytes), table.concat(arg, " "))
end

local function needed_seconds(options, name, default)
  local value = options[name]
  if value == nil then return default end
  if type(value) ~= "number" or not (value > 0 and value <= 1e6) then
    raise("dist.init: %s = %s must be seconds, above 0 and at most 1e6", name, tostring(value))
  end
  return value
end

--- Find the other ranks, if this process was launched as one of several; sets the number of threads from
-- the cores this rank may use (unless OMP_NUM_THREADS is set). options: timeout = seconds a collective
-- may take (600), start_timeout = seconds until every rank is there (300). Of several GPUs it takes the
-- local rank's. Returns rank and world size. A second call only sets the timeout. Launched as the one rank of one
-- (RANK=0 WORLD_SIZE=1, mpirun -n 1), a GPU's tensors go through NCCL as those of several do.
function dist.init(options)
  options = options or {}
  if type(options) ~= "table" then raise("dist.init: expected a table of options, got %s", type(options)) end
  for name in pairs(options) do
    if name ~= "timeout" and name ~= "start_timeout" then
      raise("dist.init: unknown option '%s' (timeout, start_timeout)", tostring(name))
    end
  end
  local timeout = needed_seconds(options, "timeout", 600)
  local start_timeout = needed_seconds(options, "start_timeout", 300)
  if C.lm_dist_initialized() ~= 0 then
    if options.timeout then call(C.lm_dist_set_timeout, timeout) end
    return dist.rank(), dist.world_size()
  end
  local alone = not launched or (launched.world_size == 1 and launched.launcher ~= "mpirun")
  if launch.complaint() then raise("dist.init: %s", launch.complaint()) end
  local args = ffi.new("lm_dist_options", { transport = C.LM_DIST_SELF, timeout = timeout,
    start_timeout = start_timeout, links = launched and launched.world_size == 1 and 1 or 0 })
  local place, job -- held while the engine reads them
  if not alone then
    place, job = launch.meeting_place(launched, C.lm_dist_available(C.LM_DIST_MPI) == 1)
    if place then
      args.transport, args.rank, args.world_size = C.LM_DIST_TCP, launched.rank, launched.world_size
      args.rendezvous, args.job = place, job
    elseif not job then
      args.transport = C.LM_DIST_MPI
    elseif launched.world_size == 1 then
      alone = true
    else
      raise("dist.init: %s started this as rank %d of %d, but %s", launched.launcher, launched.rank,
        launched.world_size, job)
    end
  end
  call(C.lm_dist_init, args)
  initialized = true
  if alone then
    call(C.lm_cuda_prefer, local_rank)
    return 0, 1
  end
  if dist.world_size() ~= launched.world_size or dist.rank() ~= launched.rank then
    raise("dist.init: %s says rank %d of %d, MPI says rank %d of %d; was this started by another MPI's mpirun, or by "
      .. "srun without --mpi=pmix?", launched.launcher, launched.rank, launched.world_size, dist.rank(),
      dist.world_size())
  end
  lib.outside_scope(function()
    dist.agree("what they run", program())
    set_threads()
  end)
  call(C.lm_cuda_prefer, local_rank)
  return dist.rank(), dist.world_size()
end

--- Leave the world: with code 0 once every rank has come here, else at once, and the launcher ends the
-- other ranks. `lumuon run` calls it at the end of a recipe.
function dist.finish(code)
  if C.lm_dist_initialized() == 0 then return end
  if code ~= 0 then C.lm_dist_abort(code) end -- does not come back, but in a world of one
  if C.lm_dist_world_size() > 1 then
    call(C.lm_dist_set_timeout, 86400) -- a rank may have work of its own to end with; one that dies is still noticed
    dist.barrier { label = "the end of the program" }
  end
  C.lm_dist_finalize()
end

return dist
