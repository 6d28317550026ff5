--- Wall-clock time.
local ffi = require "ffi"

ffi.cdef [[
typedef struct { long seconds, nanoseconds; } lm_timespec;
int clock_gettime(int clock, lm_timespec *now);
]]
local CLOCK_MONOTONIC = 1
local spec = ffi.new("lm_timespec")

--- Seconds since some fixed moment, never going back.
local function clock()
  ffi.C.clock_gettime(CLOCK_MONOTONIC, spec)
  return tonumber(spec.seconds) + tonumber(spec.nanoseconds) * 1e-9
end

return clock
