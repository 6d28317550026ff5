--- Elementwise ops against plain Lua: every op, layout, dtype and kernel variant.
local lm = require "lumuon"
local engine = require "spec.support.engine"
local arrays = require "spec.support.arrays"

local INF, NAN = math.huge, 0 / 0
local DTYPES = { "f32", "bf16", "f16", "i32", "u16", "u8" }
local FLOATS = { f32 = true, bf16 = true, f16 = true }
local ROUNDING = { f32 = 2 ^ -24, bf16 = 2 ^ -8, f16 = 2 ^ -11 }

--- Values from low to high, with whole numbers for integer dtypes.
local function values(shape, dtype, low, high, seed)
  local random = engine.random(seed or 1)
  return arrays.make(shape, dtype, function()
    local x = low + (random() + 1) / 2 * (high - low)
    if not FLOATS[dtype] then x = math.max(0, math.floor(math.abs(x))) end
    return x
  end)
end

local function map(a, f)
  local out = { shape = a.shape }
  for i = 1, #a do out[i] = f(a[i]) end
  return out
end

local function sign(x) return x > 0 and 1 or x < 0 and -1 or x end
local function half_even(x)
  local low = math.floor(x)
  local d = x - low
  if d > 0.5 or (d == 0.5 and low % 2 == 1) then low = low + 1 end
  return low
end

-- name -> { f in double, low, high, ulps (0: exactly rounded) }
local UNARY = {
  neg = { function(x) return -x end, -5, 5, 0 },
  abs = { math.abs, -5, 5, 0 },
  sign = { sign, -5, 5, 0 },
  square = { function(x) return x * x end, -5, 5, 0 },
  sqrt = { math.sqrt, 0, 50, 0 },
  rsqrt = { function(x) return 1 / math.sqrt(x) end, 0.01, 50, 2 },
  reciprocal = { function(x) return 1 / x end, 0.1, 50, 1 },
  exp = { math.exp, -20, 20, 2 },
  log = { math.log, 0.001, 1000, 2 },
  sin = { math.sin, -100, 100, 3 },
  cos = { math.cos, -100, 100, 3 },
  tanh = { math.tanh, -3, 3, 4 },
  sigmoid = { function(x) return 1 / (1 + math.exp(-x)) end, -10, 10, 4 },
  relu = { function(x) return math.max(x, 0) end, -5, 5, 0 },
  relu2 = { function(x) return math.max(x, 0) ^ 2 end, -5, 5, 0 },
  floor = { math.floor, -5, 5, 0 },
  ceil = { math.ceil, -5, 5, 0 },
  round = { half_even, -5, 5, 0 },
  isfinite = { function() return 1 end, -5, 5, 0 },
}

-- name -> { f in double, ulps }
local function truth(f) return function(x, y) return f(x, y) and 1 or 0 end end
local BINARY = {
  add = { function(x, y) return x + y end, 0 },
  sub = { function(x, y) return x - y end, 0 },
  mul = { function(x, y) return x * y end, 0 },
  div = { function(x, y) return x / y end, 0 },
  pow = { function(x, y) return x ^ y end, 2 },
  maximum = { math.max, 0 },
  minimum = { math.min, 0 },
  eq = { truth(function(x, y) return x == y end), 0 },
  ne = { truth(function(x, y) return x ~= y end), 0 },
  lt = { truth(function(x, y) return x < y end), 0 },
  le = { truth(function(x, y) return x <= y end), 0 },
  gt = { truth(function(x, y) return x > y end), 0 },
  ge = { truth(function(x, y) return x >= y end), 0 },
}
local COMPARES = { eq = true, ne = true, lt = true, le = true, gt = true, ge = true }

--- What the header promises for the dtype of an allocated result.
local function result_dtype(op, a, b)
  if COMPARES[op] then return "u8" end
  if FLOATS[a] and FLOATS[b] then return a == b and a or "f32" end
  if FLOATS[a] or FLOATS[b] then return FLOATS[a] and a or b end
  return (op == "div" or op == "pow") and "f32" or "i32"
end

--- Exactly rounded results must agree in every bit; others within `ulps` of f32 and the rounding of the
-- dtype.
local function check(t, want, dtype, ulps, what)
  want = map(want, function(x) return arrays.round(dtype, arrays.round("f32", x)) end)
  if ulps == 0 then
    arrays.check(t, want, nil, what)
  else
    arrays.check(t, want, ulps * 2 ^ -23 + (ROUNDING[dtype] or 0), what, dtype == "f16" and 1e-4 or 1e-30)
  end
end

describe("a unary op", function()
  for name, op in pairs(UNARY) do
    it(name .. " agrees with plain Lua in every dtype, layout and kernel variant", function()
      for _, dtype in ipairs(DTYPES) do
        local a = values({ 37, 29 }, dtype, op[2], op[3])
        if name == "rsqrt" or name == "reciprocal" or name == "log" then
          a = map(a, function(x) return x == 0 and 1 or x end)
        end
        local want = map(a, op[1])
        local own = name == "isfinite" and "u8" or FLOATS[dtype] and dtype or "f32"
        for layout, t in pairs(arrays.layouts(a, dtype)) do
          arrays.each_variant(function(variant)
            local y = t[name](t)
            assert.equal(own, y:dtype())
            check(y, want, own, op[4], ("%s of %s %s (%s)"):format(name, layout, dtype, variant))
          end)
        end
      end
    end)

    it(name .. "_ works in place, in every layout", function()
      local a = values({ 11, 13 }, "f32", math.max(op[2], 0.5), op[3])
      for layout, t in pairs(arrays.layouts(a, "f32")) do
        assert.equal(t, t[name .. "_"](t))
        check(t, map(a, op[1]), "f32", op[4], layout)
      end
    end)
  end

  it("handles zeros, infinities and NaN as IEEE says", function()
    local x = lm.tensor { 0, INF, -INF, NAN }
    local want = {
      exp = { 1, INF, 0, NAN }, log = { -INF, INF, NAN, NAN }, sqrt = { 0, INF, NAN, NAN },
      tanh = { 0, 1, -1, NAN }, sigmoid = { 0.5, 1, 0, NAN }, relu = { 0, INF, 0, NAN },
      sign = { 0, 1, -1, NAN }, reciprocal = { INF, 0, -0, NAN }, isfinite = { 1, 0, 0, 0 },
      sin = { 0, NAN, NAN, NAN }, cos = { 1, NAN, NAN, NAN }, rsqrt = { INF, 0, NAN, NAN },
      floor = { 0, INF, -INF, NAN }, relu2 = { 0, INF, 0, NAN },
    }
    arrays.each_variant(function(variant)
      for name, list in pairs(want) do
        list.shape = { 4 }
        arrays.check(x[name](x), list, nil, name .. " " .. variant)
      end
    end)
  end)

  it("takes tensors without elements and without dims", function()
    assert.same({ 0, 3 }, lm.zeros(0, 3):exp():size())
    assert.equal(4, lm.tensor(2):square():item())
    assert.same({}, lm.tensor(2):square():size())
  end)
end)

describe("a binary op", function()
  for name, op in pairs(BINARY) do
    it(name .. " agrees with plain Lua for every pair of dtypes and variant", function()
      for i, da in ipairs(DTYPES) do
        for j, db in ipairs(DTYPES) do
          local a = values({ 23, 31 }, da, 0.25, 9, i)
          local b = values({ 23, 31 }, db, 0.25, 4, 10 + j)
          for k = 1, #b do -- some equal elements, no division by 0
            b[k] = math.max(b[k], 1)
            if k % 3 == 0 then a[k], b[k] = math.floor(b[k]), math.floor(b[k]) end
          end
          local want, own = arrays.zip(op[1], a, b), result_dtype(name, da, db)
          local ta, tb = arrays.tensor(a, da), arrays.tensor(b, db)
          arrays.each_variant(function(variant)
            local y = ta[name](ta, tb)
            assert.equal(own, y:dtype())
            check(y, want, own, op[2], ("%s %s %s (%s)"):format(da, name, db, variant))
          end)
        end
      end
    end)

    it(name .. " broadcasts, from every layout", function()
      local shapes = {
        { { 7, 5 }, { 7, 5 } }, { { 7, 5 }, { 5 } }, { { 7, 5 }, { 7, 1 } }, { { 1, 5 }, { 7, 1 } },
        { { 4, 1, 6 }, { 3, 6 } }, { {}, { 3, 4 } }, { { 2, 3, 4, 5 }, { 3, 1, 5 } }, { { 1 }, {} },
        { { 0, 3 }, { 1, 3 } }, { { 600, 3 }, { 3 } },
      }
      for _, pair in ipairs(shapes) do
        local a = values(pair[1], "f32", 0.5, 3, 3)
        local b = values(pair[2], "f32", 0.5, 3, 4)
        local want = arrays.zip(op[1], a, b)
        for la, ta in pairs(arrays.layouts(a, "f32")) do
          for lb, tb in pairs(arrays.layouts(b, "f32")) do
            check(ta[name](ta, tb), want, COMPARES[name] and "u8" or "f32", op[2], name .. " " .. la .. " " .. lb)
          end
        end
        local wide = arrays.broadcast_shape(a, b)
        local ta, tb = arrays.tensor(a):expand(wide), arrays.tensor(b):expand(wide)
        check(ta[name](ta, tb), want, COMPARES[name] and "u8" or "f32", op[2], name .. " of expanded views")
      end
    end)

    it(name .. " takes a number on either side", function()
      for _, dtype in ipairs(DTYPES) do
        local a = values({ 17, 33 }, dtype, 1, 6, 5)
        for i = 1, #a do a[i] = math.max(a[i], 1) end
        local t = arrays.tensor(a, dtype)
        arrays.each_variant(function(variant)
          for _, number in ipairs { 2, 2.5 } do
            local own = result_dtype(name, dtype, number == 2 and "i32" or FLOATS[dtype] and dtype or "f32")
            local y, z = lm[name](t, number), lm[name](number, t)
            assert.equal(own, y:dtype())
            assert.equal(own, z:dtype())
            check(y, map(a, function(x) return op[1](x, number) end), own, op[2], name .. " number " .. variant)
            check(z, map(a, function(x) return op[1](number, x) end), own, op[2], "number " .. name .. variant)
          end
        end)
      end
    end)

    it(name .. "_ keeps its tensor's dtype and layout", function()
      for _, dtype in ipairs { "f32", "bf16", "i32", "u8" } do
        local whole = not FLOATS[dtype] -- whole numbers stay whole, or the op is refused: below
        local a, b = values({ 9, 14 }, dtype, 3, 9, 6), values({ 14 }, whole and "u8" or "f32", 1, 3, 7)
        local want = arrays.zip(op[1], a, b)
        for layout, t in pairs(arrays.layouts(a, dtype)) do
          if not (name == "pow" and dtype ~= "f32") and not (name == "div" and whole) then
            assert.equal(t, t[name .. "_"](t, arrays.tensor(b, whole and "u8" or "f32")))
            assert.equal(dtype, t:dtype())
            check(t, want, dtype, op[2], name .. "_ " .. dtype .. " " .. layout)
          end
        end
      end
    end)
  end

  it("never cuts fractions off in place", function()
    local t = lm.arange(1, 4, 1, { dtype = "i32" })
    for _, f in ipairs {
      function() t:mul_(0.5) end, function() t:div_(2) end, function() t:pow_(2) end, function() t:sqrt_() end,
      function() t:add_(lm.ones(4)) end, function() t:axpy_(0.5, t) end, function() t:axpy_(1, lm.ones(4)) end,
    } do
      local ok, message = pcall(f)
      assert.is_false(ok)
      assert.is_truthy(message:find("would be cut to integers in i32 (4)", 1, true), message)
    end
    assert.same({ -2, -4, -6, -8 }, t:mul_(2):neg_():tolist())
    assert.same({ 2, 4, 6, 8 }, t:axpy_(-2, lm.tensor({ -2, -4, -6, -8 }, { dtype = "i32" })):tolist())
  end)

  it("has operators", function()
    local x, y = lm.tensor { 1, 2, 3 }, lm.tensor { 4, 5, 6 }
    assert.same({ 5, 7, 9 }, (x + y):tolist())
    assert.same({ -3, -3, -3 }, (x - y):tolist())
    assert.same({ 4, 10, 18 }, (x * y):tolist())
    assert.same({ 4, 2.5, 2 }, (y / x):tolist())
    assert.same({ 1, 4, 9 }, (x ^ 2):tolist())
    assert.same({ 2, 4, 8 }, (2 ^ x):tolist())
    assert.same({ 2, 4, 6 }, (2 * x):tolist())
    assert.same({ 9, 8, 7 }, (10 - x):tolist())
    assert.same({ 6, 3, 2 }, (6 / x):tolist())
    assert.same({ -1, -2, -3 }, (-x):tolist())
  end)

  it("passes NaN on in maximum and minimum, from either side", function()
    local x, y = lm.tensor { NAN, 1, NAN }, lm.tensor { 1, NAN, NAN }
    arrays.each_variant(function()
      for _, name in ipairs { "maximum", "minimum" } do
        assert.equal(3, x[name](x, y):count_nonfinite())
      end
    end)
  end)

  it("may write into an operand that overlaps another", function()
    local x = lm.arange(1, 2000)
    x:narrow(1, 1, 1999):add_(x:narrow(1, 2, 1999))
    local y = lm.arange(1, 2000)
    y:narrow(1, 2, 1999):add_(y:narrow(1, 1, 1999))
    local z = lm.arange(1, 9):view(3, 3)
    z:add_(z:t())
    local w = lm.tensor { { 1, 2 }, { 3, 4 } }
    w:add_(w:narrow(1, 1, 1))
    for i = 1, 1999 do
      assert.equal(2 * i + 1, x:item(i))
      assert.equal(2 * i + 1, y:item(i + 1))
    end
    assert.same({ { 2, 6, 10 }, { 6, 10, 14 }, { 10, 14, 18 } }, z:tolist())
    assert.same({ { 2, 4 }, { 4, 6 } }, w:tolist())
  end)

  it("refuses shapes that do not broadcast, naming both", function()
    for name in pairs(BINARY) do
      local x, y = lm.zeros(3, 4), lm.zeros(3, 5)
      arrays.refuses(function() x[name](x, y) end, name .. ":", "(3, 4)", "(3, 5)", "dim 2")
      arrays.refuses(function() x[name .. "_"](x, y) end, "(3, 4)", "(3, 5)")
      -- in place the result must have the first operand's shape
      local row = lm.zeros(4)
      arrays.refuses(function() row[name .. "_"](row, x) end, "(4)", "(3, 4)")
      assert.same({ 0, 0, 0, 0 }, row:tolist())
    end
  end)

  it("refuses to write into an expanded tensor", function()
    local x = lm.zeros(1, 3):expand(2, 3)
    arrays.refuses(function() x:add_(1) end, "add", "expanded", "clone")
    arrays.refuses(function() x:copy(lm.zeros(2, 3)) end, "copy", "expanded")
    arrays.refuses(function() x:axpy_(1, lm.zeros(2, 3)) end, "axpy", "expanded")
  end)

  it("refuses what is no tensor", function()
    local x = lm.zeros(3)
    arrays.refuses(function() local _ = x + "1" end, "add", "string")
    arrays.refuses(function() x:mul(nil) end, "mul", "nil")
    arrays.refuses(function() x:mul_({}) end, "mul_", "table")
  end)
end)

describe("axpy_", function()
  it("adds a multiple of a broadcast tensor of any dtype", function()
    for _, dy in ipairs { "f32", "bf16" } do
      for _, dx in ipairs(DTYPES) do
        local a, b = values({ 19, 40 }, dy, 1, 8, 8), values({ 40 }, dx, 1, 8, 9)
        local want = arrays.zip(function(y, x) return y + 0.5 * x end, a, b)
        arrays.each_variant(function(variant)
          for layout, t in pairs(arrays.layouts(a, dy)) do
            check(t:axpy_(0.5, arrays.tensor(b, dx)), want, dy, 0, layout .. dy .. dx .. variant)
          end
        end)
      end
    end
  end)

  it("refuses shapes that do not fit", function()
    arrays.refuses(function() lm.zeros(3):axpy_(1, lm.zeros(2, 3)) end, "axpy", "(2, 3)", "(3)")
  end)
end)

describe("copy and to", function()
  it("convert between every two dtypes, in every layout", function()
    for i, from in ipairs(DTYPES) do
      for _, into in ipairs(DTYPES) do
        local a = values({ 21, 50 }, from, 0, 200, i)
        for layout, source in pairs(arrays.layouts(a, from)) do
          arrays.each_variant(function()
            for target, t in pairs(arrays.layouts(map(a, function() return 0 end), into)) do
              t:copy(source)
              check(t, a, into, 0, ("%s %s to %s %s"):format(from, layout, into, target))
            end
          end)
        end
      end
    end
  end)

  it("keep every integer exactly", function()
    local x = lm.tensor({ 2147483647, -2147483648, 16777217, -1 }, { dtype = "i32" })
    assert.same({ 2147483647, -2147483648, 16777217, -1 }, x:clone():tolist())
    assert.same({ 16777217, 16777217 }, lm.zeros({ 2 }, { dtype = "i32" }):fill(16777217):tolist())
    local y = lm.arange(2147483640, 2147483647, 1, { dtype = "i32" })
    assert.equal(2147483647, y:item(8))
    assert.equal(65535, lm.tensor({ 65535 }, { dtype = "u16" }):to("i32"):item())
  end)

  it("truncate floats towards zero", function()
    assert.same({ 0, 255, 3 }, lm.tensor({ -0.9, 255.9, 3.5 }):to("u8"):tolist())
    assert.same({ -1, 1 }, lm.tensor({ -1.9, 1.9 }):to("i32"):tolist())
  end)

  it("refuse values that an integer dtype cannot hold, and change nothing", function()
    local t = lm.ones({ 3 }, { dtype = "u8" })
    for _, bad in ipairs { 256, -1, 1e30, INF, -INF, NAN } do
      arrays.refuses(function() t:copy(lm.tensor { 2, bad, 3 }) end, "copy", "u8")
      arrays.refuses(function() lm.tensor({ 2, bad * 1e10, 3 }):to("i32") end, "copy", "i32")
    end
    arrays.refuses(function() t:copy(lm.tensor({ 1, 2, 300 }, { dtype = "i32" })) end, "300", "u8")
    arrays.refuses(function() t:fill(2.5) end, "fill", "2.5", "u8")
    arrays.refuses(function() t:fill(NAN) end, "fill", "u8")
    arrays.refuses(function() lm.full({ 2 }, 65536, { dtype = "u16" }) end, "65536", "u16")
    arrays.refuses(function() lm.arange(0, 300, 1, { dtype = "u8" }) end, "arange", "300", "u8")
    arrays.refuses(function() lm.arange(0, 2, 0.5, { dtype = "i32" }) end, "arange", "0.5", "i32")
    assert.same({ 1, 1, 1 }, t:tolist())
  end)

  it("copy between overlapping parts of one tensor as if apart", function()
    for _, n in ipairs { 10, 5000 } do
      local x = lm.arange(1, n)
      x:narrow(1, 2, n - 1):copy(x:narrow(1, 1, n - 1))
      local y = lm.arange(1, n)
      y:narrow(1, 1, n - 1):copy(y:narrow(1, 2, n - 1))
      for i = 1, n do
        assert.equal(math.max(1, i - 1), x:item(i))
        assert.equal(math.min(n, i + 1), y:item(i))
      end
    end
    local m = lm.arange(1, 16):view(4, 4)
    m:copy(m:t())
    assert.same({ 1, 5, 9, 13 }, m[1]:tolist())
    assert.same({ 4, 8, 12, 16 }, m[4]:tolist())
  end)

  it("refuse shapes that do not broadcast", function()
    arrays.refuses(function() lm.zeros(3):copy(lm.zeros(4)) end, "copy", "(4)", "(3)")
    arrays.refuses(function() lm.zeros(3):copy(lm.zeros(1, 3)) end, "(1, 3)", "(3)")
  end)
end)
