local lm = require "lumuon"
local engine = require "spec.support.engine"
local C = engine.C

local function f32(shape, values) return engine.tensor("f32", shape, values) end
local function i32(shape, values) return engine.tensor("i32", shape, values) end

-- The pair of ops that it fuses is its definition.
describe("linear_cross_entropy", function()
  --- loss, d loss / dx and d loss / dw of f.
  local function run(f, x, w, targets, vocabulary, softcap, seed)
    local px, pw = lm.parameter(x, "x"), lm.parameter(w, "w")
    local loss = f(px * 1, pw, targets, vocabulary, softcap)
    loss:backward(seed)
    return loss, px.grad:to("f32"), pw.grad
  end
  local function plain(x, w, targets, vocabulary, softcap)
    return lm.nn.cross_entropy(lm.linear(x, w), targets, vocabulary, softcap)
  end

  local function random_targets(rows, vocabulary, seed)
    local next_number, list = engine.random(seed), {}
    for n = 1, rows do list[n] = n % 5 == 0 and -1 or math.floor((next_number() + 1) / 2 * vocabulary) end
    return lm.tensor(list, { dtype = "i32" })
  end

  local function compare(case)
    local g = lm.Generator(3, 1)
    local x = lm.randn(case.rows, case.channels, { generator = g }):to(case.dtype or "f32")
    local w = lm.randn(case.columns, case.channels, { generator = g }) * (case.size / math.sqrt(case.channels))
    local targets = random_targets(case.rows, case.vocabulary, 7)
    local seed = lm.full({}, 0.5)
    local loss, dx, dw = run(lm.nn.linear_cross_entropy, x, w, targets, case.vocabulary, case.softcap, seed)
    local want, want_dx, want_dw = run(plain, x, w, targets, case.vocabulary, case.softcap, seed)
    local bound = case.dtype == "bf16" and 2e-2 or 3e-6
    assert.is_true(math.abs(loss:item() - want:item()) <= bound * math.abs(want:item()))
    for name, pair in pairs { x = { dx, want_dx }, w = { dw, want_dw } } do
      local off, norm = (pair[1] - pair[2]):norm():item(), pair[2]:norm():item()
      assert.is_true(off <= bound * norm, ("grad of %s: %g of %g"):format(name, off, norm))
    end
    if case.columns > case.vocabulary then
      assert.equal(0, dw:narrow(1, case.vocabulary + 1, case.columns - case.vocabulary):norm():item())
    end
  end

  local cases = {
    { rows = 7, channels = 3, columns = 5, vocabulary = 5, softcap = 0, size = 1 },
    { rows = 1, channels = 1, columns = 1, vocabulary = 1, softcap = 15, size = 1 },
    { rows = 130, channels = 24, columns = 1152, vocabulary = 1101, softcap = 15, size = 2 }, -- all small
    { rows = 130, channels = 24, columns = 1152, vocabulary = 1101, softcap = 15, size = 30 }, -- some not
    { rows = 60, channels = 16, columns = 640, vocabulary = 600, softcap = 2, size = 1, dtype = "bf16" },
    { rows = 60, channels = 16, columns = 640, vocabulary = 640, softcap = 0, size = 3, dtype = "bf16" },
  }
  for _, case in ipairs(cases) do
    it(("is cross_entropy of linear: %d rows, %d of %d columns, softcap %g, %s"):format(case.rows, case.vocabulary,
      case.columns, case.softcap, case.dtype or "f32"), function() compare(case) end)
  end

  it("is the same over several blocks of rows", function()
    compare { rows = 100, channels = 2, columns = 400000, vocabulary = 399999, softcap = 15, size = 3 }
  end)

  it("takes leading dims, and gives only the gradients that are wanted", function()
    local x, w = lm.randn(2, 3, 4), lm.randn(6, 4)
    local targets = lm.tensor({ { 0, 1, 2 }, { 3, -1, 5 } }, { dtype = "i32" })
    local want = plain(x, w, targets):item()
    assert.near(want, lm.nn.linear_cross_entropy(x, w, targets):item(), 1e-6)
    local p = lm.parameter(x)
    lm.nn.linear_cross_entropy(p, w, targets):backward()
    assert.same({ 2, 3, 4 }, p.grad:size())
    assert.equal(0, p.grad:select(1, 2):select(1, 2):norm():item()) -- the row without a target
    local q = lm.parameter(w)
    lm.nn.linear_cross_entropy(x, q, targets):backward()
    assert.is_true(q.grad:norm():item() > 0)
  end)

  it("does not depend on threads", function()
    local x, w, targets = lm.randn(70, 16), lm.randn(900, 16), random_targets(70, 900, 2)
    local before, seen = lm.threads(), {}
    for n = 1, 2 do
      lm.set_threads(n)
      local loss, dx, dw = run(lm.nn.linear_cross_entropy, x, w, targets, 900, 15)
      seen[n] = { loss:item(), dx, dw }
    end
    lm.set_threads(before)
    assert.near(seen[1][1], seen[2][1], 1e-6) -- the products' sums may differ
    assert.is_true((seen[1][3] - seen[2][3]):abs():max():item() < 1e-6)
  end)

  it("is NaN without a single target, its gradients 0; a NaN goes through", function()
    local x, w = lm.randn(2, 3), lm.randn(4, 3)
    local loss, dx, dw = run(lm.nn.linear_cross_entropy, x, w, lm.full({ 2 }, -1, { dtype = "i32" }), 4, 15)
    assert.is_true(loss:item() ~= loss:item())
    assert.equal(0, dx:norm():item() + dw:norm():item())
    x[1] = 0 / 0
    local bad = lm.nn.linear_cross_entropy(x, w, lm.zeros({ 2 }, { dtype = "i32" }), 4, 15):item()
    assert.is_true(bad ~= bad)
  end)

  it("survives rows of nothing but -Inf, and huge logits", function()
    local x = lm.tensor { { 1, 0 }, { 0, 1e30 } }
    local w = lm.tensor { { -1 / 0, 1 }, { 3, -1 } }
    local targets = lm.tensor({ 1, 0 }, { dtype = "i32" })
    local want = plain(x, w, targets, 2, 15):item()
    local got = lm.nn.linear_cross_entropy(x, w, targets, 2, 15):item()
    assert.is_true(want == got or (want ~= want and got ~= got))
  end)

  it("refuses what does not fit before it writes anything", function()
    local x, w, targets = f32({ 3, 4 }, 1), f32({ 8, 4 }, 1), i32({ 3 }, 0)
    local loss, dx, dw = f32({}, 7), f32({ 3, 4 }, 7), f32({ 8, 4 }, 7)
    local function refuses(status, texts, own_x, own_w, own_targets, vocabulary, softcap, own_dx, own_dw)
      engine.refuses(status, texts, C.lm_linear_cross_entropy, engine.box(loss), engine.box(own_dx or dx),
        engine.box(own_dw or dw), own_x or x, own_w or w, own_targets or targets, vocabulary or 8, softcap or 0)
      for _, t in ipairs { loss, dx, dw } do
        for _, v in ipairs(engine.values(t)) do assert.equal(7, v) end
      end
    end
    refuses(C.LM_EINDEX, { "target 8 at position (1) of i32 (3)" }, nil, nil, i32({ 3 }, 8))
    refuses(C.LM_EINDEX, { "target -2" }, nil, nil, i32({ 3 }, -2))
    refuses(C.LM_EINVAL, { "vocab_size 9 is not in 1..8", "f32 (8, 4)" }, nil, nil, nil, 9)
    refuses(C.LM_EINVAL, { "vocab_size 0" }, nil, nil, nil, 0)
    refuses(C.LM_EINVAL, { "softcap must be finite" }, nil, nil, nil, 8, 0 / 0)
    refuses(C.LM_ESHAPE, { "w must be (vocabulary, 4)", "f32 (8, 5)" }, nil, f32({ 8, 5 }, 1))
    refuses(C.LM_ESHAPE, { "w must be (vocabulary, 4)" }, nil, f32({ 4 }, 1))
    refuses(C.LM_EDTYPE, { "w must be f32, got bf16" }, nil, engine.tensor("bf16", { 8, 4 }, 1))
    refuses(C.LM_ESHAPE, { "targets must have shape (3), got (4)" }, nil, nil, i32({ 4 }, 0))
    refuses(C.LM_EDTYPE, { "targets must be i32" }, nil, nil, f32({ 3 }, 0))
    refuses(C.LM_EINVAL, { "overlaps" }, nil, nil, nil, 8, 0, x)
    refuses(C.LM_EINVAL, { "overlaps" }, nil, nil, nil, 8, 0, nil, w)
  end)
end)
