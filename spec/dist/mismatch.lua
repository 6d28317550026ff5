-- A worker of spec/dist_spec.lua: one rank makes another call than the others.
local lm = require "lumuon"
local o = lm.options { what = "", start = 20.5 }
if o.what == "alone" then return print("hello") end
if o.what == "late" and (os.getenv("OMPI_COMM_WORLD_RANK") or os.getenv("RANK")) == "1" then
  local ffi = require "ffi"
  ffi.cdef "int raise(int);"
  local SIGSTOP = 19
  ffi.C.raise(SIGSTOP)
end
local rank = lm.dist.init { timeout = 20, start_timeout = o.start }
local t = lm.zeros(8)
if o.what == "kind" then
  if rank == 1 then lm.dist.all_gather(t, { label = "eight" }) else lm.dist.all_reduce(t, { label = "eight" }) end
elseif o.what == "count" then
  lm.dist.all_reduce(rank == 1 and lm.zeros(9) or t, { label = "eight" })
elseif o.what == "end" and rank == 0 then
  lm.dist.all_reduce(t, { label = "one more" })
elseif o.what == "error" and rank == 1 then
  error("a recipe's own mistake")
elseif o.what == "error" then
  lm.dist.barrier()
elseif o.what == "exit" then
  if rank == 1 then os.exit(7) end
  lm.dist.barrier()
end
