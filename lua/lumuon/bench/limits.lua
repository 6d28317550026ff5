--- What this machine can do at most, measured in the run whose figures are compared with it.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local report = require "lumuon.bench.report"
local clock = require "lumuon.clock"
local ffi, C, call = lib.ffi, lib.C, lib.call

local limits = {}

--- Floating point operations a second of a precision, "f32" or "bf16", and the kernel that reached it.
function limits.products(precision)
  local rate, kernel = ffi.new("double[1]"), ffi.new("const char *[1]")
  call(C.lm_peak_rate, rate, kernel, precision == "bf16" and C.LM_PRECISION_BF16 or C.LM_PRECISION_F32)
  return rate[0], ffi.string(kernel[0])
end

--- Bytes a second past the caches, read and written ones counted alike: of a copy, and of a scaling in place
-- (which need not fetch what it writes).
function limits.memory(runs)
  local n = 2 ^ 25
  local from, to = tensor.zeros(n), tensor.zeros(n)
  local box = ffi.new("lm_tensor *[1]")
  box[0] = from.h
  local copies, scalings = {}, {}
  local function seconds(...)
    local begun = clock()
    call(...)
    return clock() - begun
  end
  for i = 0, runs do -- the first one does not count
    copies[i] = seconds(C.lm_copy, to.h, from.h)
    scalings[i] = seconds(C.lm_binary_scalar, box, C.LM_MUL, from.h, 0.5, 0)
  end
  from:free()
  to:free()
  return 8 * n / report.median(copies), 8 * n / report.median(scalings)
end

return limits
