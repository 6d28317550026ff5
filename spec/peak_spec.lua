local lib = require "lumuon.lib"
local engine = require "spec.support.engine"
local ffi, C = lib.ffi, lib.C

local rate, kernel = ffi.new("double[1]"), ffi.new("const char *[1]")
local function peak(precision)
  lib.call(C.lm_peak_rate, rate, kernel, precision)
  return rate[0], ffi.string(kernel[0])
end

describe("the limit of products", function()
  it("is what the best instructions of this CPU do", function()
    local features = ffi.string(C.lm_cpu_features())
    local f32, name = peak(C.LM_PRECISION_F32)
    local bf16, name16 = peak(C.LM_PRECISION_BF16)
    for _ = 1, 2 do -- in turns, the best of each: what else the machine does slows both
      f32, bf16 = math.max(f32, (peak(C.LM_PRECISION_F32))), math.max(bf16, (peak(C.LM_PRECISION_BF16)))
    end
    assert.is_true(f32 > 1e9 and f32 < 1e16)
    if features:find("avx512f", 1, true) then assert.equal("avx512", name) end
    if features:find("avx512_bf16", 1, true) or features:find("amx_bf16", 1, true) then
      assert.truthy(name16 == "avx512_bf16" or name16 == "amx_bf16", name16)
      assert.is_true(bf16 > 1.2 * f32) -- twice on a quiet machine, more with tiles
    else
      assert.equal(name, name16)
    end
  end)

  it("is no less than what a product reaches", function()
    local n = 512
    local a, out = engine.tensor("f32", { n, n }, 1), engine.box(engine.tensor("f32", { n, n }, 0))
    local clock, best, limit = require "lumuon.clock", math.huge, 0
    for _ = 1, 5 do -- in turns: what else the machine does slows both
      limit = math.max(limit, (peak(C.LM_PRECISION_F32)))
      local begun = clock()
      lib.call(C.lm_matmul, out, a, a, 1, 0)
      best = math.min(best, clock() - begun)
    end
    assert.is_true(2 * n ^ 3 / best < 1.5 * limit)
  end)

  it("is refused for what is no precision", function()
    engine.refuses(C.LM_EINVAL, { "peak_rate", "precision = 7" }, C.lm_peak_rate, rate, kernel, 7)
  end)
end)
