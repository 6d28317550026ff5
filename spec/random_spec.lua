--- Random numbers: Philox4x32-10 against a plain Lua one that agrees with the published vectors; what
-- an element depends on; the shape of the distributions.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local engine = require "spec.support.engine"
local arrays = require "spec.support.arrays"
local bit = require "bit"

local C = lib.C

--- 32 x 32 -> 64 bits as (high, low), in doubles.
local function multiply(a, b)
  local product = 1ULL * a * b
  return tonumber(bit.rshift(product, 32)), tonumber(bit.band(product, 0xffffffffULL))
end
local function xor(a, b, c) return bit.bxor(a, b, c) % 2 ^ 32 end

local function philox(c0, c1, c2, c3, k0, k1)
  for _ = 1, 10 do
    local high0, low0 = multiply(c0, 0xd2511f53)
    local high1, low1 = multiply(c2, 0xcd9e8d57)
    c0, c1, c2, c3 = xor(high1, c1, k0), low1, xor(high0, c3, k1), low0
    k0, k1 = (k0 + 0x9e3779b9) % 2 ^ 32, (k1 + 0xbb67ae85) % 2 ^ 32
  end
  return c0, c1, c2, c3
end

--- Words first, first + 1, ... of (seed, stream); all whole numbers under 2^53.
local function words(n, seed, stream, first)
  local out, floor = {}, math.floor
  for i = 1, n do
    local p = first + i - 1
    local block = floor(p / 4)
    out[i] = select(p % 4 + 1, philox(block % 2 ^ 32, floor(block / 2 ^ 32), stream % 2 ^ 32,
      floor(stream / 2 ^ 32), seed % 2 ^ 32, floor(seed / 2 ^ 32)))
  end
  return out
end

describe("the Lua Philox of this spec", function()
  it("agrees with the vectors published with Random123", function()
    local hex = function(...) return ("%08x %08x %08x %08x"):format(...) end
    assert.equal("6627e8d5 e169c58d bc57ac4c 9b00dbd8", hex(philox(0, 0, 0, 0, 0, 0)))
    local ones = 0xffffffff
    assert.equal("408f276d 41c83b0e a20bc7c6 6d5451fd", hex(philox(ones, ones, ones, ones, ones, ones)))
    assert.equal("d16cfe09 94fdcceb 5001e420 24126ea1", hex(philox(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344,
      0xa4093822, 0x299f31d0)))
  end)
end)

describe("uniform numbers", function()
  it("are the words of Philox, for any seed, stream and position, in every kernel variant", function()
    for _, case in ipairs { { 0, 0, 0 }, { 1, 0, 3 }, { 2 ^ 40 + 12345, 7, 5 }, { 3, 2 ^ 33 + 1, 2 ^ 35 + 6 },
      { 0xdeadbeef, 0x12345678, 2 ^ 52 - 2000 } } do
      local seed, stream, position = unpack(case)
      local want = words(700, seed, stream, position)
      arrays.each_variant(function(variant)
        local whole = lm.empty({ 700 }, { dtype = "i32" })
        engine.call(C.lm_random_uniform, whole.h, -2 ^ 31, 2 ^ 31, seed, stream, position)
        local unit = lm.empty(700)
        engine.call(C.lm_random_uniform, unit.h, 0, 1, seed, stream, position)
        for i = 1, 700 do
          assert.equal(want[i] - 2 ^ 31, whole:item(i), variant)
          assert.equal(math.floor(want[i] / 256) / 2 ^ 24, unit:item(i), variant)
        end
      end)
    end
  end)

  it("depend on nothing but seed, stream and position: not on threads, kernels, layout, pieces", function()
    local all = lm.rand(100003, { generator = lm.Generator(5) })
    for _, threads in ipairs { 1, 2, 7 } do
      engine.with_threads(threads, function()
        assert.is_true(engine.bytes(all.h) == engine.bytes(lm.rand(100003, { generator = lm.Generator(5) }).h))
      end)
    end
    arrays.each_variant(function()
      assert.is_true(engine.bytes(all.h) == engine.bytes(lm.rand(100003, { generator = lm.Generator(5) }).h))
    end)
    local g, at = lm.Generator(5), 0
    for _, n in ipairs { 1, 2, 5, 509, 4, 3000, 96482 } do -- in pieces
      local piece = lm.rand(n, { generator = g })
      assert.is_true(engine.bytes(piece.h) == engine.bytes(all:narrow(1, at + 1, n).h))
      at = at + n
    end
    local strided = lm.zeros(50, 7):t()
    strided:uniform_(0, 1, lm.Generator(5))
    assert.same(all:narrow(1, 1, 350):view(7, 50):tolist(), strided:tolist())
    assert.not_same(lm.rand(5, { generator = lm.Generator(6) }):tolist(), all:narrow(1, 1, 5):tolist())
    assert.not_same(lm.rand(5, { generator = lm.Generator(5, 1) }):tolist(), all:narrow(1, 1, 5):tolist())
  end)

  it("come from a default generator that manual_seed starts afresh", function()
    lm.manual_seed(3)
    local a, b = lm.rand(5):tolist(), lm.randn(5):tolist()
    lm.manual_seed(3)
    assert.same(a, lm.rand(5):tolist())
    assert.same(b, lm.randn(5):tolist())
    assert.not_same(a, lm.rand(5):tolist())
  end)

  it("lie in [low, high), whatever rounding does", function()
    local n = 200000
    for _, range in ipairs { { 0, 1 }, { -3, 5 }, { 1, 1 + 2 ^ -22 }, { 16777216, 16777220 }, { -1, 0 }, { -2, -1 },
      { 1e30, 1.0001e30 }, { -1e-30, 1e-30 }, { 1000, 1000.01 } } do
      for _, dtype in ipairs { "f32", "bf16" } do
        local low, high = range[1], range[2]
        if dtype == "f32" or high - low > math.abs(high) / 100 then
          local x = lm.rand({ n }, { low = low, high = high, dtype = dtype, generator = lm.Generator(1) })
          local least = lm.tensor(low, { dtype = dtype }):item()
          assert.is_true(x:min():item() >= math.min(low, least), dtype .. low)
          assert.is_true(x:max():item() < high, ("%s: %.9g reached %.9g"):format(dtype, x:max():item(), high))
        end
      end
    end
    assert.same({ 2, 2 }, lm.rand({ 2 }, { low = 2, high = 2 }):tolist())
  end)

  it("are even: mean, variance, and a chi-square over 256 bins", function()
    local n = 2 ^ 20
    local x = lm.rand(n, { generator = lm.Generator(11) })
    assert.is_true(math.abs(x:mean():item() - 0.5) < 5 / math.sqrt(12 * n)) -- 5 standard errors
    local variance = (x - 0.5):square():mean():item()
    assert.is_true(math.abs(variance - 1 / 12) < 5 * math.sqrt(1 / 180 / n))
    local bins, p = {}, x:pointer()
    for i = 0, 255 do bins[i] = 0 end
    for i = 0, n - 1 do
      local b = math.floor(p[i] * 256)
      bins[b] = bins[b] + 1
    end
    local chi = 0
    for i = 0, 255 do chi = chi + (bins[i] - n / 256) ^ 2 / (n / 256) end
    assert.is_true(chi > 255 - 5 * math.sqrt(510) and chi < 255 + 5 * math.sqrt(510), chi)
  end)

  it("may be whole: every value of low..high-1, none other", function()
    for dtype, range in pairs { u8 = { 0, 256 }, u16 = { 65530, 65536 }, i32 = { -3, 3 } } do
      local x = lm.rand({ 20000 }, { dtype = dtype, low = range[1], high = range[2] })
      local seen, count = {}, 0
      for _, v in ipairs(x:tolist()) do
        assert.is_true(v >= range[1] and v < range[2] and v == math.floor(v))
        if not seen[v] then count = count + 1 end
        seen[v] = true
      end
      assert.equal(range[2] - range[1], count)
    end
  end)

  it("refuse bad bounds, and leave the generator and the tensor as they were", function()
    local x, g = lm.ones(3), lm.Generator(1)
    for _, bad in ipairs { { 1, 0 }, { 0 / 0, 1 }, { 0, 1 / 0 }, { -1 / 0, 0 }, { 0, 1e300 } } do
      arrays.refuses(function() x:uniform_(bad[1], bad[2], g) end, "uniform", "low")
    end
    arrays.refuses(function() lm.zeros(2, { dtype = "u8" }):uniform_(0, 257, g) end, "u8", "257")
    arrays.refuses(function() lm.zeros(2, { dtype = "i32" }):uniform_(0.5, 3, g) end, "i32", "0.5")
    arrays.refuses(function() lm.zeros(2, { dtype = "i32" }):uniform_(3, 3, g) end, "low < high")
    arrays.refuses(function() x:uniform_("a", 1) end, "uniform_", "string")
    arrays.refuses(function() x:uniform_(0, 1, 5) end, "generator", "number")
    arrays.refuses(function() x:normal_(0, -1, g) end, "normal", "std")
    arrays.refuses(function() x:normal_(0 / 0, 1, g) end, "normal", "mean")
    arrays.refuses(function() lm.zeros(2, { dtype = "i32" }):normal_(0, 1, g) end, "normal", "i32")
    arrays.refuses(function() lm.Generator(-1) end, "seed", "-1")
    arrays.refuses(function() lm.Generator(1.5) end, "seed", "1.5")
    arrays.refuses(function() lm.Generator(1, "x") end, "stream")
    arrays.refuses(function() lm.zeros(1, 3):expand(2, 3):uniform_() end, "expanded")
    assert.equal(0, g.position)
    assert.same({ 1, 1, 1 }, x:tolist())
  end)
end)

describe("normal numbers", function()
  it("are Box-Muller over the same words", function()
    local want = words(1000, 9, 2, 6)
    arrays.each_variant(function(variant)
      local x = lm.empty(999)
      engine.call(C.lm_random_normal, x.h, 1, 2, 9, 2, 7) -- starts at the second of a pair
      for i = 1, 999 do
        local j = i + 1
        local first = j % 2 == 1 and j or j - 1
        local r = math.sqrt(-2 * math.log((want[first] + 0.5) / 2 ^ 32))
        local angle = 2 * math.pi * math.floor(want[first + 1] / 256) / 2 ^ 24
        local z = 1 + 2 * r * (j % 2 == 1 and math.cos(angle) or math.sin(angle))
        assert.is_true(math.abs(x:item(i) - z) < 2e-6 * (1 + math.abs(z)), variant .. i)
      end
    end)
  end)

  it("depend on nothing but seed, stream and position: not on threads, kernels, layout, pieces", function()
    local all = lm.randn(60001, { generator = lm.Generator(8) })
    for _, threads in ipairs { 1, 3 } do
      engine.with_threads(threads, function()
        assert.is_true(engine.bytes(all.h) == engine.bytes(lm.randn(60001, { generator = lm.Generator(8) }).h))
      end)
    end
    arrays.each_variant(function()
      assert.is_true(engine.bytes(all.h) == engine.bytes(lm.randn(60001, { generator = lm.Generator(8) }).h))
    end)
    local g, at = lm.Generator(8), 0
    for _, n in ipairs { 1, 3, 2, 601, 59394 } do
      assert.is_true(engine.bytes(lm.randn(n, { generator = g }).h) == engine.bytes(all:narrow(1, at + 1, n).h))
      at = at + n
    end
    local strided = lm.zeros(50, 7):t():normal_(0, 1, lm.Generator(8))
    assert.same(all:narrow(1, 1, 350):view(7, 50):tolist(), strided:tolist())
    local half = lm.randn(1000, { dtype = "bf16", generator = lm.Generator(8) })
    arrays.check(half, arrays.of(all:narrow(1, 1, 1000):to("bf16")), nil)
  end)

  it("have the moments and the tails of a normal distribution, and no Inf", function()
    local n = 2 ^ 22
    local x = lm.randn(n, { generator = lm.Generator(21) })
    assert.equal(0, x:count_nonfinite())
    local function near(value, want, deviation) -- within 5 standard errors
      assert.is_true(math.abs(value - want) < 5 * deviation / math.sqrt(n), ("%g, expected %g"):format(value, want))
    end
    near(x:mean():item(), 0, 1)
    near(x:square():mean():item(), 1, math.sqrt(2))
    near((x ^ 3):mean():item(), 0, math.sqrt(15))
    near((x ^ 4):mean():item(), 3, math.sqrt(96))
    local beyond = { 0.317310507863, 0.0455002638964, 0.00269979606326, 6.334248366624e-5 }
    for z, p in ipairs(beyond) do
      near(x:abs():gt(z):mean():item(), p, math.sqrt(p * (1 - p)))
    end
    near(x:lt(0):mean():item(), 0.5, 0.5)
    local a, b = x:view(-1, 2):select(2, 1), x:view(-1, 2):select(2, 2) -- of one pair: independent
    near((a * b):mean():item(), 0, math.sqrt(2))
    local shifted = lm.randn(n, { mean = 10, std = 0.5, generator = lm.Generator(21) })
    assert.is_true(math.abs(shifted:mean():item() - 10) < 2.5 / math.sqrt(n) + 1e-6)
  end)
end)
