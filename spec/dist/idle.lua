-- A worker of spec/rendezvous_spec.lua: rank 1 is killed while rank 0 has nothing to say to it; or something
-- else that listens on a port.
local lm = require "lumuon"
local ffi = require "ffi"
local o = lm.options { listen = 0 }
ffi.cdef [[
  int raise(int);
  int socket(int, int, int);
  int bind(int, const void *, unsigned);
  int listen(int, int);
]]
local AF_INET, SOCK_STREAM, SIGKILL = 2, 1, 9
local function busy(seconds)
  local t, begun = lm.ones(300, 300), os.time()
  while os.time() - begun < seconds do lm.scope(function() return (t * 2):sum():item() end) end
end
if o.listen > 0 then
  local address = ffi.new("uint8_t[16]", AF_INET, 0, math.floor(o.listen / 256), o.listen % 256)
  local fd = ffi.C.socket(AF_INET, SOCK_STREAM, 0)
  assert(ffi.C.bind(fd, address, 16) == 0 and ffi.C.listen(fd, 1) == 0)
  return busy(20)
end
local rank = lm.dist.init { timeout = 20 }
lm.dist.barrier()
if rank == 1 then ffi.C.raise(SIGKILL) end
busy(20)
