-- A worker of spec/dist_spec.lua and spec/rendezvous_spec.lua: rank 2 stands still, or is elsewhere, while the others
-- wait in different collectives, some of them not for it.
local lm = require "lumuon"
local ffi = require "ffi"
local o = lm.options { what = "stop" }
local rank = lm.dist.init { timeout = 1, start_timeout = 20 }
lm.dist.barrier()
if o.what == "stop" then
  -- rank 2 passes on to rank 3 what comes from rank 0; rank 1 has all of it, and goes on
  local t = lm.zeros(16e6)
  lm.dist.barrier()
  local before = lm.dist.wire_bytes()
  local work = lm.dist.broadcast(t, { async = true, label = "the broadcast" })
  if rank == 2 then
    while lm.dist.wire_bytes() < before + 3e6 do end
    ffi.cdef "int raise(int);"
    local SIGSTOP = 19
    ffi.C.raise(SIGSTOP)
  end
  work:wait()
elseif rank == 2 then
  local begun = os.time()
  while os.time() - begun < 6 do end
end
lm.dist.barrier { label = "behind it" }
