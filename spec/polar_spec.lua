local lm = require "lumuon"
local lib = require "lumuon.lib"
local golden = dofile "spec/support/golden.lua"
local C = lib.C
local polar = lm.optim.polar_express

describe("Polar Express", function()
  for _, name in ipairs { "wide", "tall", "square" } do
    it("goes through nanochat's iterates of a " .. name .. " matrix", function()
      local t = golden.load("polar_express")
      local input, iterates = t[name .. ".input"], t[name .. ".iterates"]
      for steps = 1, iterates:size(1) do
        local truth = iterates:select(1, steps)
        local size = truth:norm():item()
        for precision, limit in pairs { f32 = 5e-6, bf16 = 4e-2 } do
          local x = polar(input, { ns_steps = steps, precision = precision })
          assert.is_true(golden.distance({ x }, { truth }) < limit * size)
        end
      end
    end)
  end

  --- An orthogonal matrix: the polar factor of a random one, iterated until exact.
  local function rotation(n, seed)
    local x = polar(lm.randn({ n, n }, { generator = lm.Generator(seed) }), { precision = "f32" })
    for _ = 1, 40 do x = 1.5 * x - 0.5 * lm.matmul(x, lm.matmul(x:t(), x)) end
    return x
  end

  it("brings singular values from 1e-3 to 1 into 0.859 to 1.141", function()
    local n, values = 48, {}
    for i = 1, n do values[i] = 10 ^ (-3 * (i - 1) / (n - 1)) end
    local diagonal = lm.tensor(values)
    local x = lm.matmul(rotation(n, 1) * diagonal, rotation(n, 2))
    -- norm_scale such that the largest singular value that enters is 1
    local y = polar(x, { precision = "f32", norm_scale = 1 / x:norm():item() })
    local sigma = y:svdvals()
    assert.is_true(sigma:min():item() > 0.8588) -- 0.85887 and 1.14113 in exact arithmetic
    assert.is_true(sigma:max():item() < 1.1412)
  end)

  it("diverges, as the paper says, once a singular value enters above 1.022", function()
    local function of_identity(largest) -- whose singular values enter as `largest`
      return polar(lm.eye(4), { precision = "f32", norm_scale = 1 / (largest * 2) })
    end
    assert.is_true(of_identity(1.02):svdvals():max():item() < 1.2)
    local out = of_identity(1.03)
    assert.is_true(out:count_nonfinite() > 0 or out:norm():item() > 1e3)
  end)

  --- The steps as the paper writes them, in Lua.
  local function as_written(x, steps)
    x = x / (x:norm():item() * 1.02 + 1e-6)
    for k = 1, steps do
      local a, b, c = unpack(lm.optim.polar_express_coefficients[k])
      local gram = lm.matmul(x, x:t())
      x = x * a + lm.matmul(gram * b + lm.matmul(gram, gram) * c, x)
    end
    return x
  end

  for _, size in ipairs { { 64, 64 }, { 64, 127 }, { 64, 128 }, { 70, 300 } } do
    it(("is nearly as exact for %d x %d as the steps as written"):format(size[1], size[2]), function()
      local m, n = size[1], size[2]
      local left, right = rotation(m, 1), rotation(n, 2):narrow(1, 1, m)
      for decades = 0, 4 do
        local sigma, norm = {}, 0
        for i = 1, m do
          sigma[i] = 10 ^ (-decades * (i - 1) / (m - 1))
          norm = norm + sigma[i] ^ 2
        end
        local x = lm.matmul(left * lm.tensor(sigma), right)
        for steps = 1, 5 do
          local exact = {}
          for i = 1, m do
            local v = sigma[i] / (math.sqrt(norm) * 1.02 + 1e-6)
            for k = 1, steps do
              local a, b, c = unpack(lm.optim.polar_express_coefficients[k])
              v = a * v + b * v ^ 3 + c * v ^ 5
            end
            exact[i] = v
          end
          local truth = lm.matmul(left * lm.tensor(exact), right)
          local limit = 3 * golden.distance({ as_written(x, steps) }, { truth }) + 1e-6 * truth:norm():item()
          local wide = polar(x, { precision = "f32", ns_steps = steps })
          local tall = polar(x:t(), { precision = "f32", ns_steps = steps })
          assert.is_true(golden.distance({ wide }, { truth }) < limit)
          assert.is_true(golden.distance({ tall:t() }, { truth }) < limit)
        end
      end
    end)
  end

  it("gives zero for zero", function()
    for _, precision in ipairs { "f32", "bf16" } do
      assert.equal(0, polar(lm.zeros(5, 9), { precision = precision }):norm():item())
    end
  end)

  it("does not care about the scale of an ordinary matrix, up to 1e25", function()
    local x = lm.randn({ 20, 30 }, { generator = lm.Generator(4) })
    local one = polar(x, { precision = "f32" })
    for _, scale in ipairs { 1e-2, 1e3, 1e25 } do
      local difference = (polar(x * scale, { precision = "f32" }) - one):norm():item() / one:norm():item()
      assert.is_true(difference < 2e-4, ("%g: %g"):format(scale, difference))
    end
  end)

  it("shrinks what is tiny beside its eps of 1e-6, as nanochat does", function()
    local x = lm.randn({ 45, 45 }, { generator = lm.Generator(4) })
    local tiny = polar(x * (1e-10 / x:norm():item()), { precision = "f32" })
    assert.is_true(tiny:norm():item() > 0 and tiny:norm():item() < 3)
    assert.is_true(polar(x, { precision = "f32" }):norm():item() > 6)
  end)

  it("takes one row, one column, one number, no matrix at all", function()
    for _, s in ipairs { { 1, 9 }, { 9, 1 }, { 1, 1 } } do
      local norm = polar(lm.randn(s), { precision = "f32" }):norm():item()
      assert.is_true(norm > 0.859 and norm < 1.141)
    end
    assert.same({ 0, 3, 4 }, polar(lm.zeros(0, 3, 4)):size())
    assert.same({ 2, 0, 4 }, polar(lm.zeros(2, 0, 4)):size())
  end)

  it("treats a bank as its matrices, and a matrix as its transpose", function()
    for _, precision in ipairs { "f32", "bf16" } do
      local bound = precision == "f32" and 2e-5 or 5e-2
      local bank = lm.randn({ 5, 18, 33 }, { generator = lm.Generator(6) })
      local all = polar(bank, { precision = precision })
      for k = 1, 5 do
        local one = polar(bank:select(1, k), { precision = precision })
        assert.is_true(golden.distance({ one }, { all:select(1, k) }) <= bound)
        local other = polar(bank:select(1, k):t(), { precision = precision })
        assert.is_true(golden.distance({ other:t() }, { one }) < bound * one:norm():item())
      end
    end
  end)

  it("agrees with its other kernels and thread counts", function()
    local variant, threads = lib.ffi.string(C.lm_cpu_variant()), C.lm_threads()
    local bank = lm.randn({ 3, 70, 150 }, { generator = lm.Generator(8) }) -- in Gram form
    local first = polar(bank, { precision = "f32" })
    for _, other in ipairs { "base", "avx2", "avx512" } do
      if C.lm_set_cpu_variant(other) == 0 then
        for n = 1, 3 do
          C.lm_set_threads(n)
          local difference = golden.distance({ polar(bank, { precision = "f32" }) }, { first })
          assert.is_true(difference <= 5e-6 * first:norm():item())
        end
      end
    end
    C.lm_set_cpu_variant(variant)
    C.lm_set_threads(threads)
    assert.equal(0, polar(bank, { precision = "f32" }):ne(first):sum():item())
  end)

  it("refuses what it cannot use", function()
    for message, call in pairs {
      ["(K, rows, cols)"] = function() return polar(lm.zeros(4)) end,
      ["ns_steps = 0"] = function() return polar(lm.zeros(2, 2), { ns_steps = 0 }) end,
      ["ns_steps = 6"] = function() return polar(lm.zeros(2, 2), { ns_steps = 6 }) end,
      ["norm_scale = -1"] = function() return polar(lm.zeros(2, 2), { norm_scale = -1 }) end,
      ["precision = 'f64'"] = function() return polar(lm.zeros(2, 2), { precision = "f64" }) end,
      ["unknown option 'steps'"] = function() return polar(lm.zeros(2, 2), { steps = 3 }) end,
    } do
      local ok, found = pcall(call)
      assert.is_false(ok)
      assert.truthy(found:find(message, 1, true), found)
    end
  end)
end)
