local lm = require "lumuon"
local lib = require "lumuon.lib"

--- a @ b by definition, on nested tables.
local function product(a, b)
  local c = {}
  for i = 1, #a do
    c[i] = {}
    for j = 1, #b[1] do
      local sum = 0
      for k = 1, #b do sum = sum + a[i][k] * b[k][j] end
      c[i][j] = sum
    end
  end
  return c
end

--- Relative above 1, absolute below.
local function largest_difference(t, want)
  local got, most = t:tolist(), 0
  for i = 1, #want do
    for j = 1, #want[i] do most = math.max(most, math.abs(got[i][j] - want[i][j]) / (1 + math.abs(want[i][j]))) end
  end
  return most
end

--- Into an existing tensor: out = alpha a b + beta out.
local function matmul_into(out, a, b, alpha, beta)
  return lib.into(out, lib.C.lm_matmul, a.h, b.h, alpha, beta)
end

-- How a matrix can lie in memory: each takes sizes and returns a view with random values.
local layouts = {
  ["as rows"] = function(m, n, o) return lm.randn({ m, n }, o) end,
  ["transposed"] = function(m, n, o) return lm.randn({ n, m }, o):t() end,
  ["inside a wider one"] = function(m, n, o) return lm.randn({ m + 2, n + 5 }, o):narrow(1, 2, m):narrow(2, 3, n) end,
  ["every other column"] = function(m, n, o)
    return lm.randn({ m, 2 * n }, o):as_strided({ m, n }, { 2 * n, 2 }, 0)
  end,
  ["one row, repeated"] = function(m, n, o) return lm.randn({ 1, n }, o):expand(m, n) end,
}

describe("matmul", function()
  for _, dtype in ipairs { "f32", "bf16" } do
    local tolerance = dtype == "f32" and 1e-5 or 1 / 256

    for name, layout in pairs(layouts) do
      it(("multiplies %s matrices that lie %s"):format(dtype, name), function()
        local generator = lm.Generator(1)
        local o = { dtype = dtype, generator = generator }
        for _, s in ipairs { { 1, 1, 1 }, { 5, 7, 3 }, { 1, 9, 4 }, { 9, 1, 4 }, { 4, 9, 1 }, { 33, 17, 40 } } do
          local a, b = layout(s[1], s[2], o), layout(s[2], s[3], o)
          local c = lm.matmul(a, b)
          assert.same({ s[1], s[3] }, c:size())
          assert.equal(dtype, c:dtype())
          assert.is_true(largest_difference(c, product(a:tolist(), b:tolist())) < tolerance)
        end
      end)

      it(("writes %s results that lie %s"):format(dtype, name), function()
        if name == "one row, repeated" then return end -- nothing to write into
        local o = { dtype = dtype, generator = lm.Generator(2) }
        local a, b, out = lm.randn({ 6, 8 }, o), lm.randn({ 8, 5 }, o), layout(6, 5, o)
        local before, want = out:tolist(), product(a:tolist(), b:tolist())
        for i = 1, 6 do
          for j = 1, 5 do want[i][j] = 0.5 * want[i][j] - 2 * before[i][j] end
        end
        matmul_into(out, a, b, 0.5, -2)
        assert.is_true(largest_difference(out, want) < tolerance)
      end)
    end
  end

  it("adds a product of bf16 matrices to an f32 result", function()
    local o = { dtype = "bf16", generator = lm.Generator(3) }
    local a, b = lm.randn({ 20, 30 }, o), lm.randn({ 30, 10 }, o)
    local out = lm.full({ 20, 10 }, 1)
    local want = product(a:tolist(), b:tolist())
    for i = 1, 20 do
      for j = 1, 10 do want[i][j] = want[i][j] + 1 end
    end
    matmul_into(out, a, b, 1, 1)
    assert.is_true(largest_difference(out, want) < 1e-4)
  end)

  it("casts mixed operands to f32", function()
    local a, b = lm.randn({ 4, 6 }, { dtype = "bf16" }), lm.randn(6, 3)
    local c = lm.matmul(a, b)
    assert.equal("f32", c:dtype())
    assert.is_true(largest_difference(c, product(a:tolist(), b:tolist())) < 1e-5)
  end)

  it("multiplies batches, with a matrix each or one for all", function()
    local a, b = lm.randn(2, 3, 4, 5), lm.randn(2, 3, 5, 6)
    local w = lm.randn(5, 6)
    local each, one = lm.matmul(a, b), lm.matmul(a, w)
    local permuted = lm.matmul(a:permute(2, 1, 3, 4), b:permute(2, 1, 3, 4))
    for i = 1, 2 do
      for j = 1, 3 do
        local ai = a:select(1, i):select(1, j):tolist()
        local want = product(ai, b:select(1, i):select(1, j):tolist())
        assert.is_true(largest_difference(each:select(1, i):select(1, j), want) < 1e-5)
        assert.is_true(largest_difference(permuted:select(1, j):select(1, i), want) < 1e-5)
        assert.is_true(largest_difference(one:select(1, i):select(1, j), product(ai, w:tolist())) < 1e-5)
      end
    end
  end)

  it("gives zeros, or beta times the result, where there is nothing to sum", function()
    assert.same({ { 0, 0 }, { 0, 0 } }, lm.matmul(lm.empty(2, 0), lm.empty(0, 2)):tolist())
    local out = lm.tensor { { 1, 2 }, { 3, 4 } }
    matmul_into(out, lm.empty(2, 0), lm.empty(0, 2), 1, 0.5)
    assert.same({ { 0.5, 1 }, { 1.5, 2 } }, out:tolist())
    assert.same({ 0, 3 }, lm.matmul(lm.empty(0, 4), lm.randn(4, 3)):size())
    assert.same({ 3, 0 }, lm.matmul(lm.randn(3, 4), lm.empty(4, 0)):size())
    assert.same({ 0, 3, 2 }, lm.matmul(lm.empty(0, 3, 4), lm.randn(4, 2)):size())
  end)

  it("does not read the result where beta is 0", function()
    local out = lm.full({ 3, 3 }, 0 / 0)
    matmul_into(out, lm.full({ 3, 3 }, 1), lm.full({ 3, 3 }, 2), 1, 0)
    assert.same({ { 6, 6, 6 }, { 6, 6, 6 }, { 6, 6, 6 } }, out:tolist())
  end)

  it("may write over an operand", function()
    local a, b = lm.randn(5, 5), lm.randn(5, 5)
    local want = product(a:tolist(), b:tolist())
    matmul_into(a, a, b, 1, 0)
    assert.is_true(largest_difference(a, want) < 1e-5)
  end)

  it("gives the same bits each time, and with other kernels", function()
    local a, b = lm.randn(65, 130), lm.randn(130, 70)
    local first = lm.matmul(a, b):tolist()
    local variant = lib.ffi.string(lib.C.lm_cpu_variant())
    for _, other in ipairs { "base", "avx2", "avx512" } do
      if lib.C.lm_set_cpu_variant(other) == 0 then assert.same(first, lm.matmul(a, b):tolist()) end
    end
    assert.equal(0, lib.C.lm_set_cpu_variant(variant))
  end)

  it("takes more kinds of bf16 products than it keeps ready", function()
    for n = 1, 300 do
      local a, b = lm.ones({ 2, n }, { dtype = "bf16" }), lm.ones({ n, 2 }, { dtype = "bf16" })
      local sum = lm.matmul(a, b, 1):item(1, 2)
      assert.is_true(math.abs(sum - n) <= n / 256)
    end
  end)

  for what, case in pairs {
    ["sizes that do not fit"] = { { 2, 3 }, { 4, 2 }, "3 columns, the second 4 rows" },
    ["a vector"] = { { 3 }, { 3, 2 }, "at least 2 dims" },
    ["batches of unequal sizes"] = { { 2, 3, 4 }, { 5, 4, 3 }, "leading dims" },
    ["a batch times a deeper one"] = { { 3, 4 }, { 5, 4, 3 }, "leading dims" },
  } do
    it("refuses " .. what, function()
      local ok, message = pcall(lm.matmul, lm.zeros(case[1]), lm.zeros(case[2]))
      assert.is_false(ok)
      assert.truthy(message:find("matmul", 1, true), message)
      assert.truthy(message:find(case[3], 1, true), message)
    end)
  end

  it("refuses integers, a result of the wrong shape, and NaN factors", function()
    local ok, message = pcall(lm.matmul, lm.zeros({ 2, 2 }, { dtype = "i32" }), lm.zeros(2, 2))
    assert.is_false(ok)
    assert.truthy(message:find("i32 (2, 2)", 1, true), message)
    ok, message = pcall(matmul_into, lm.zeros(2, 3), lm.zeros(2, 2), lm.zeros(2, 2), 1, 0)
    assert.is_false(ok)
    assert.truthy(message:find("(2, 3)", 1, true), message)
    ok, message = pcall(matmul_into, lm.zeros(2, 2), lm.zeros(2, 2), lm.zeros(2, 2), 0 / 0, 0)
    assert.is_false(ok)
    assert.truthy(message:find("alpha", 1, true), message)
  end)

  it("runs a long product in blocks of rows, which change nothing", function()
    -- 7e10 operations are past the bound, halves of them are not
    local a = lm.randn(4000, 3000, { generator = lm.Generator(1) })
    local b = lm.randn(3000, 3000, { generator = lm.Generator(2) })
    for _, dtype in ipairs { "f32", "bf16" } do
      local x, y = a:to(dtype), b:to(dtype)
      for label, left in pairs { plain = x, transposed = x:t():contiguous():t() } do
        local whole = left:matmul(y)
        local halves = lm.cat { left:narrow(1, 1, 2000):matmul(y), left:narrow(1, 2001, 2000):matmul(y) }
        local off = (whole:to("f32") - halves:to("f32")):norm():item() / halves:to("f32"):norm():item()
        assert.is_true(off < 1e-6, ("%s %s: %.2e"):format(dtype, label, off))
      end
    end
  end)
end)
