--- Reductions against plain Lua: every op, set of dims, layout, dtype, kernel variant.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local engine = require "spec.support.engine"
local arrays = require "spec.support.arrays"

local C = lib.C
local INF, NAN = math.huge, 0 / 0
local FLOATS = { f32 = true, bf16 = true, f16 = true }

local function fold(f, first)
  return function(list)
    local a = first
    for _, x in ipairs(list) do a = f(a, x) end
    return a
  end
end
local sum = fold(function(a, x) return a + x end, 0)
local OPS = {
  sum = sum,
  mean = function(list) return sum(list) / #list end,
  max = fold(math.max, -INF),
  min = fold(math.min, INF),
  prod = fold(function(a, x) return a * x end, 1),
  norm = function(list) return math.sqrt(fold(function(a, x) return a + x * x end, 0)(list)) end,
}

local function values(shape, dtype, seed)
  local random = engine.random(seed)
  return arrays.make(shape, dtype, function()
    return FLOATS[dtype] and 1 + random() / 2 or math.floor((random() + 1) * 4)
  end)
end

--- Every set of dims of an n-dim tensor, as a list and a set.
local function each_dims(n, f)
  for mask = 0, 2 ^ n - 1 do
    local list, set, rest = {}, {}, mask
    for d = 1, n do
      if rest % 2 == 1 then
        list[#list + 1] = d
        set[d] = true
      end
      rest = math.floor(rest / 2)
    end
    f(list, set)
  end
end

describe("a reduction", function()
  for name, f in pairs(OPS) do
    it(name .. " agrees with plain Lua over any dims of any layout", function()
      for _, shape in ipairs { { 7 }, { 40, 3 }, { 3, 40 }, { 5, 1, 37 }, { 3, 4, 5, 6 } } do
        local a = values(shape, "f32", #shape)
        for layout, t in pairs(arrays.layouts(a, "f32")) do
          each_dims(#shape, function(list, set)
            for _, keepdim in ipairs { false, true } do
              local want = arrays.reduce(f, a, set, keepdim)
              arrays.check(t[name](t, list, keepdim), want, 2 ^ -23,
                ("%s of %s over {%s}"):format(name, layout, table.concat(list, ",")))
            end
          end)
        end
      end
    end)

    it(name .. " takes every dtype, in every kernel variant", function()
      for _, dtype in ipairs { "f32", "bf16", "f16", "i32", "u16", "u8" } do
        local a = values({ 33, 21 }, dtype, 5)
        local own = FLOATS[dtype] and dtype or "f32"
        for _, set in ipairs { { true }, { false, true } } do
          local want = arrays.reduce(f, a, set)
          for i = 1, #want do want[i] = arrays.round(own, arrays.round("f32", want[i])) end
          for layout, t in pairs(arrays.layouts(a, dtype)) do
            arrays.each_variant(function(variant)
              local y = t[name](t, set[1] and 1 or 2)
              assert.equal(own, y:dtype())
              arrays.check(y, want, own == "f32" and 2 ^ -23 or 2 ^ -7, name .. dtype .. layout .. variant)
            end)
          end
        end
      end
    end)

    it(name .. " is bitwise the same whatever the threads and the kernel variant", function()
      for _, shape in ipairs { { 300000 }, { 20000, 33 }, { 33, 20000 }, { 9, 3000, 5 } } do
        local t = lm.rand(shape, { generator = lm.Generator(3), low = -1, high = 1 })
        each_dims(#shape, function(list)
          local first
          for _, threads in ipairs { 1, 2, 3, 8 } do
            engine.with_threads(threads, function()
              arrays.each_variant(function()
                local bytes = engine.bytes(t[name](t, list).h)
                first = first or bytes
                assert.is_true(first == bytes, name)
              end)
            end)
          end
        end)
      end
    end)
  end

  it("keeps its precision over many elements", function()
    local n = 5000000
    local t = lm.full({ n }, 0.1)
    local tenth = t:item(1)
    for _, x in ipairs { t, t:view(1000, 5000), t:view(1000, 5000):t() } do
      assert.is_true(math.abs(x:sum():item() / (n * tenth) - 1) < 2 ^ -24)
      assert.is_true(math.abs(x:mean():item() / tenth - 1) < 2 ^ -24)
      assert.is_true(math.abs(x:norm():item() / (math.sqrt(n) * tenth) - 1) < 2 ^ -24)
    end
    local columns = t:view(1000000, 5):sum(1):tolist()
    for i = 1, 5 do assert.is_true(math.abs(columns[i] / (1e6 * tenth) - 1) < 2 ^ -23) end
  end)

  it("does not overflow where the result is a float", function()
    assert.is_true(math.abs(lm.full({ 4 }, 1e30):norm():item() / 2e30 - 1) < 1e-6)
    assert.is_true(math.abs(lm.full({ 4 }, 3e38):mean():item() / 3e38 - 1) < 1e-6)
    assert.equal(INF, lm.full({ 4 }, 3e38):sum():item())
  end)

  it("sees the elements of an expanded view as often as they appear", function()
    local x = lm.tensor { { 1 }, { 2 } }:expand(2, 1000)
    assert.equal(3000, x:sum():item())
    assert.same({ 1000, 2000 }, x:sum(2):tolist())
    assert.equal(2, x:max():item())
  end)

  it("of nothing is 0 for a sum, 1 for a product, NaN for a mean, an error for extremes", function()
    local x = lm.zeros(0, 3)
    assert.same({ 0, 0, 0 }, x:sum(1):tolist())
    assert.equal(0, x:sum():item())
    assert.equal(0, x:norm():item())
    assert.same({ 1, 1, 1 }, x:prod(1):tolist())
    assert.equal(3, x:mean(1):count_nonfinite())
    assert.same({}, x:sum(2):tolist())
    assert.same({}, x:max(2):tolist())
    for _, name in ipairs { "max", "min", "argmax", "argmin" } do
      arrays.refuses(function() x[name](x, 1) end, name .. ":", "(0, 3)")
    end
    arrays.refuses(function() x:max() end, "max:", "(0, 3)")
  end)

  it("passes a NaN on wherever it stands", function()
    for _, at in ipairs { 1, 17, 600, 40000, 70000 } do
      local x = lm.zeros(70000)
      x:narrow(1, at, 1):fill(NAN)
      for name in pairs(OPS) do assert.equal(1, x[name](x):count_nonfinite(), name .. at) end
      local m = x:view(700, 100)
      assert.equal(1, m:max(1):count_nonfinite())
      assert.equal(1, m:min(2):count_nonfinite())
      assert.equal(1, m:t():max(2):count_nonfinite())
    end
  end)

  it("takes negative dims, one or a table of them, each once", function()
    local x = lm.arange(1, 24):view(2, 3, 4)
    assert.same(x:sum(3):tolist(), x:sum(-1):tolist())
    assert.same(x:sum({ 1, 3 }):tolist(), x:sum({ -1, 1, 3 }):tolist())
    assert.same({ 1, 3, 1 }, x:mean({ 1, -1 }, true):size())
  end)

  it("refuses dims that are not there", function()
    local x = lm.zeros(2, 3)
    for name in pairs(OPS) do
      for _, bad in ipairs { 0, 3, -3, 1.5 } do
        arrays.refuses(function() x[name](x, bad) end, name, tostring(bad))
        arrays.refuses(function() x[name](x, { 1, bad }) end, name, tostring(bad))
      end
    end
    arrays.refuses(function() x:argmax(3) end, "argmax", "3")
    engine.refuses(C.LM_EINVAL, { "sum", "(2, 3)" }, C.lm_reduce, engine.box(nil), C.LM_SUM, x.h, 4, 0)
    engine.refuses(C.LM_EINVAL, { "reduce", "99" }, C.lm_reduce, engine.box(nil), 99, x.h, 1, 0)
    engine.refuses(C.LM_EINVAL, { "argmax", "(2, 3)" }, C.lm_arg_reduce, engine.box(nil), C.LM_MAX, x.h, 2, 0)
    engine.refuses(C.LM_ESHAPE, { "sum", "(2)", "(3)" }, C.lm_reduce, engine.box(lm.zeros(3).h), C.LM_SUM, x.h, 2, 0)
  end)

  it("writes into a given tensor of any layout and dtype", function()
    local x = lm.arange(1, 12):view(3, 4)
    local target = lm.zeros(4, 6, { dtype = "bf16" }):as_strided({ 4 }, { 6 }, 2)
    engine.call(C.lm_reduce, engine.box(target.h), C.LM_SUM, x.h, 1, 0)
    assert.same({ 15, 18, 21, 24 }, target:tolist())
  end)
end)

local BETTER = { argmax = function(x, y) return x > y end, argmin = function(x, y) return x < y end }

describe("argmax and argmin", function()
  it("agree with plain Lua along every dim, layout, dtype and variant; first of equals", function()
    for _, dtype in ipairs { "f32", "bf16", "f16", "i32", "u16", "u8" } do
      local random = engine.random(9)
      local a = arrays.make({ 6, 700, 3 }, dtype, function() return math.floor((random() + 1) * 100) end)
      for layout, t in pairs(arrays.layouts(a, dtype)) do
        arrays.each_variant(function(variant)
          for dim = 1, 3 do
            for name, better in pairs(BETTER) do
              local want = arrays.reduce(function(list)
                local best = 1
                for i = 2, #list do if better(list[i], list[best]) then best = i end end
                return best
              end, a, { [dim] = true })
              local y = t[name](t, dim)
              assert.equal("i32", y:dtype())
              arrays.check(y, want, nil, name .. dim .. dtype .. layout .. variant)
            end
          end
        end)
      end
    end
  end)

  it("tell large integers apart", function()
    local x = lm.tensor({ 16777216, 16777217, 16777216 }, { dtype = "i32" })
    assert.equal(2, x:argmax(1):item())
    assert.equal(2, (lm.tensor({ -16777216, -16777217 }, { dtype = "i32" })):argmin(1):item())
  end)

  it("take a NaN for the best, and all elements without a dim", function()
    local x = lm.zeros(1000)
    x:narrow(1, 700, 1):fill(NAN)
    x:narrow(1, 900, 1):fill(5)
    assert.equal(700, x:argmax(1):item())
    assert.equal(700, x:argmin(1):item())
    assert.equal(5, lm.tensor({ { 1, 3, 2 }, { 4, 9, 0 } }):argmax():item())
    assert.same({ 2, 1 }, lm.tensor({ { 1, 3, 2 }, { 4, 9, 0 } }):argmax(-1, true):size())
  end)
end)

describe("count_nonfinite", function()
  it("counts NaN and both infinities in any float dtype and layout, none in integers", function()
    for _, dtype in ipairs { "f32", "bf16", "f16" } do
      local a = arrays.make({ 70, 90 }, dtype, function(i)
        return i % 100 == 0 and NAN or i % 100 == 1 and INF or i % 100 == 2 and -INF or 65504
      end)
      for layout, t in pairs(arrays.layouts(a, dtype)) do
        arrays.each_variant(function(variant)
          assert.equal(63 * 3, t:count_nonfinite(), dtype .. layout .. variant)
        end)
      end
    end
    assert.equal(0, lm.full({ 3 }, 2147483647, { dtype = "i32" }):count_nonfinite())
    assert.equal(0, lm.zeros(0):count_nonfinite())
    assert.equal(0, lm.full({ 3 }, 3.4028234e38):count_nonfinite())
  end)
end)
