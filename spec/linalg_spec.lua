--- Singular values: against those that are known, and the laws they obey.
local lm = require "lumuon"
local engine = require "spec.support.engine"
local arrays = require "spec.support.arrays"

local function near(got, want, bound)
  assert.equal(#want, #got)
  for i = 1, #want do
    local near_enough = math.abs(got[i] - want[i]) <= bound * (want[1] + 1e-30)
    assert.is_true(near_enough, ("%d: %.9g, expected %.9g"):format(i, got[i], want[i]))
  end
end

--- An m x n matrix with orthonormal columns (m >= n): Gram-Schmidt twice in doubles.
local function orthonormal(m, n, seed)
  local random, columns = engine.random(seed), {}
  for j = 1, n do
    local c = {}
    for i = 1, m do c[i] = random() end
    for _ = 1, 2 do
      for k = 1, j - 1 do
        local s = engine.dot(c, columns[k])
        for i = 1, m do c[i] = c[i] - s * columns[k][i] end
      end
    end
    local length = math.sqrt(engine.dot(c, c))
    for i = 1, m do c[i] = c[i] / length end
    columns[j] = c
  end
  return columns
end

--- U diag(sigma) V' as nested tables.
local function with_values(m, n, sigma, seed)
  local u, v = orthonormal(m, #sigma, seed), orthonormal(n, #sigma, seed + 1)
  local rows = {}
  for i = 1, m do
    rows[i] = {}
    for j = 1, n do
      local s = 0
      for k = 1, #sigma do s = s + u[k][i] * sigma[k] * v[k][j] end
      rows[i][j] = s
    end
  end
  return rows
end

describe("svdvals", function()
  it("finds the values a matrix was made with: tall, wide, square, repeated, wide-ranging", function()
    for _, case in ipairs {
      { 7, 7, { 9, 5, 4, 3, 2, 1, 0.5 } }, { 20, 5, { 3, 3, 3, 1, 1 } }, { 4, 30, { 100, 10, 1, 0.1 } },
      { 6, 6, { 1, 1, 1, 1, 1, 1 } }, { 40, 39, nil }, { 1, 1, { 3 } }, { 1, 9, { 2 } }, { 9, 1, { 2 } },
    } do
      local m, n, sigma = unpack(case, 1, 3)
      if not sigma then
        sigma = {}
        for i = 1, math.min(m, n) do sigma[i] = 50 / i end
      end
      local rows = with_values(m, n, sigma, m * 10 + n)
      arrays.each_variant(function()
        near(lm.tensor(rows):svdvals():tolist(), sigma, 3e-7)
        near(lm.tensor(rows):t():svdvals():tolist(), sigma, 3e-7)
      end)
      near(lm.tensor(rows, { dtype = "bf16" }):svdvals():tolist(), sigma, 2 ^ -7)
    end
  end)

  it("finds zeros in matrices without full rank", function()
    assert.same({ 0, 0, 0 }, lm.zeros(3, 5):svdvals():tolist())
    local rows = with_values(12, 9, { 8, 4, 2 }, 3)
    local sigma = lm.tensor(rows):svdvals():tolist()
    for i = 4, 9 do assert.is_true(sigma[i] < 1e-6) end
    near({ sigma[1], sigma[2], sigma[3] }, { 8, 4, 2 }, 3e-7)
    near(lm.ones(6, 4):svdvals():tolist(), { math.sqrt(24), 0, 0, 0 }, 1e-7)
    near(lm.eye(65):svdvals():tolist(), lm.ones(65):tolist(), 0)
    local column = lm.zeros(5, 5)
    column:select(2, 3):fill(2)
    near(column:svdvals():tolist(), { math.sqrt(20), 0, 0, 0, 0 }, 1e-7)
  end)

  it("agrees with the Frobenius norm, scales with the matrix, and falls", function()
    for _, shape in ipairs { { 64, 64 }, { 200, 30 }, { 30, 200 }, { 129, 130 } } do
      local a = lm.randn(shape, { generator = lm.Generator(4) })
      local s = a:svdvals()
      assert.is_true(math.abs(s:norm():item() / a:norm():item() - 1) < 1e-6)
      local list = s:tolist()
      for i = 2, #list do assert.is_true(list[i] <= list[i - 1]) end
      near((a * 2 ^ -60):svdvals():mul(2 ^ 60):tolist(), list, 1e-7)
      near((a * 2 ^ 100):svdvals():mul(2 ^ -100):tolist(), list, 1e-7)
    end
  end)

  it("takes batches and any layout, whatever the threads", function()
    local a = lm.randn(3, 2, 11, 7, { generator = lm.Generator(4) })
    local all = a:svdvals()
    assert.same({ 3, 2, 7 }, all:size())
    for i = 1, 3 do
      for j = 1, 2 do assert.same(a[i][j]:svdvals():tolist(), all[i][j]:tolist()) end
    end
    assert.same(all[2][1]:tolist(), a:permute(2, 4, 1, 3)[1]:select(2, 2):t():svdvals():tolist())
    assert.same({ 0, 5 }, lm.zeros(0, 5, 9):svdvals():size())
    assert.same({ 0 }, lm.zeros(0, 9):svdvals():size())
    local big, first = lm.randn(200, 210, { generator = lm.Generator(4) }), nil
    for _, threads in ipairs { 1, 2, 3 } do
      engine.with_threads(threads, function()
        local bytes = engine.bytes(big:svdvals().h)
        first = first or bytes
        assert.is_true(bytes == first)
      end)
    end
  end)

  it("refuses NaN, Inf, vectors and integers", function()
    for _, bad in ipairs { 0 / 0, 1 / 0 } do
      local x = lm.zeros(4, 4)
      x[2][2]:fill(bad)
      arrays.refuses(function() x:svdvals() end, "singular_values", "(4, 4)", "NaN or Inf")
      engine.refuses(engine.C.LM_ENONFINITE, { "1 " }, engine.C.lm_singular_values, engine.box(nil), x.h)
    end
    arrays.refuses(function() lm.zeros(4):svdvals() end, "2 dims", "(4)")
    arrays.refuses(function() lm.zeros(4, 4, { dtype = "i32" }):svdvals() end, "i32")
  end)
end)
