--- Elementary functions through tensors, against the C library's in double precision, over floats from
-- the whole range: the bounds that kernels/math/functions.h states.
local lm = require "lumuon"
local arrays = require "spec.support.arrays"
local ffi = require "ffi"

local INF = math.huge

--- Every `step`-th float of both signs, and all those near zero, one and the ends of the range.
local function floats(step)
  local bits = {}
  for _, sign in ipairs { 0, 2 ^ 31 } do
    for u = 0, 0x7f800000, step do bits[#bits + 1] = sign + u end
    for _, centre in ipairs { 64, 0x00800000, 0x3f800000, 0x7f7fffc0 } do
      for d = -64, 64 do bits[#bits + 1] = sign + centre + d end
    end
  end
  local x = lm.empty(#bits)
  local p = ffi.cast("uint32_t *", x:pointer())
  for i = 1, #bits do p[i - 1] = bits[i] end
  return x
end

--- The distance between neighbouring floats around a result.
local function ulp(y)
  y = math.abs(y)
  if y < 2 ^ -126 then return 2 ^ -149 end
  local _, exponent = math.frexp(math.min(y, 3.4028234e38))
  return 2 ^ (exponent - 24)
end

local word = ffi.new("float[1]")
local function to_f32(y)
  word[0] = y
  return tonumber(word[0])
end

--- Worst error in ulps of op over the elements of x with low <= x <= high, and where.
local function worst(op, f, x, low, high)
  local y = x[op](x)
  local p, q = x:pointer(), y:pointer()
  local most, where = 0, 0
  for i = 0, x:numel() - 1 do
    local v = tonumber(p[i])
    if v >= low and v <= high then
      local want, got = f(v), tonumber(q[i])
      if got ~= to_f32(want) then
        local d = math.abs(got - want) / ulp(want)
        if d > most or d ~= d then most, where = d, v end
      end
    end
  end
  return most, where
end

local function sigmoid(x)
  if x < 0 then return math.exp(x) / (1 + math.exp(x)) end
  return 1 / (1 + math.exp(-x))
end

local FUNCTIONS = {
  exp = { math.exp, 1.2, -INF, INF },
  log = { math.log, 0.9, 0, INF },
  tanh = { math.tanh, 1.6, -INF, INF },
  sigmoid = { sigmoid, 2.4, -INF, INF },
  sin = { math.sin, 1.6, -1e6, 1e6 },
  cos = { math.cos, 1.6, -1e6, 1e6 },
  sqrt = { math.sqrt, 0.5, 0, INF },
}

describe("the function", function()
  local x = floats(12345)
  for name, case in pairs(FUNCTIONS) do
    it(("%s is within %.1f ulp of the true value in every kernel variant"):format(name, case[2]), function()
      arrays.each_variant(function(variant)
        local most, where = worst(name, case[1], x, case[3], case[4])
        assert.is_true(most <= case[2], ("%s (%s): %.3f ulp at %.9g"):format(name, variant, most, where))
      end)
    end)
  end

  it("sin and cos of huge arguments are the C library's", function()
    local y = lm.tensor { 1e7, 1e10, -1e20, 3e38, 12345678 }
    local list = y:tolist()
    arrays.each_variant(function()
      for i, v in ipairs(y:sin():tolist()) do assert.is_true(math.abs(v - math.sin(list[i])) < 1e-7) end
      for i, v in ipairs(y:cos():tolist()) do assert.is_true(math.abs(v - math.cos(list[i])) < 1e-7) end
    end)
  end)

  it("exp reaches every subnormal and the ends of the range", function()
    local y = lm.tensor { 88.72283, 88.7229, -87.5, -103, -103.97, -104, -1e30 }:exp():tolist()
    assert.is_true(y[1] > 3.4e38 and y[1] < INF)
    assert.equal(INF, y[2])
    assert.is_true(y[3] > 0 and y[3] < 2 ^ -126)
    assert.equal(2 ^ -149, y[4] / math.floor(y[4] / 2 ^ -149 + 0.5))
    assert.equal(2 ^ -149, y[5])
    assert.equal(0, y[6])
    assert.equal(0, y[7])
  end)

  it("tanh, sin and sign keep the sign of zero; odd functions are odd", function()
    local zero = lm.tensor { -0.0 }
    for _, name in ipairs { "tanh", "sin", "neg" } do
      local sign = name == "neg" and INF or -INF
      assert.equal(sign, zero[name](zero):reciprocal():item(), name)
    end
    local a = lm.randn(5000)
    for _, name in ipairs { "tanh", "sin" } do
      assert.equal(0, (a[name](a) + lm[name](-a)):abs():max():item())
    end
  end)

  it("sigmoid keeps its relative precision in both tails", function()
    local y = lm.tensor { -80, -88, -100, 80 }:sigmoid():tolist()
    for i, v in ipairs { -80, -88 } do assert.is_true(math.abs(y[i] / math.exp(v) - 1) < 1e-5) end
    assert.is_true(y[3] > 0)
    assert.equal(1, y[4])
  end)
end)
