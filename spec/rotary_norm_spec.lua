local lm = require "lumuon"
local engine = require "spec.support.engine"
local C = engine.C

-- The pair of ops that it fuses is its definition.
describe("rotary_norm", function()
  --- y and d sum(y * weight) / dx of f.
  local function run(f, x, cos, sin, eps, scale)
    local p = lm.parameter(x)
    local y = f(p, cos, sin, eps, scale)
    local weight = lm.randn(y:size(), { generator = lm.Generator(5, 2) })
    y:backward(weight:to(y:dtype()))
    return y:detach():to("f32"), p.grad:to("f32")
  end
  local function plain(x, cos, sin, eps, scale) return lm.nn.rms_norm(lm.nn.rotary(x, cos, sin), eps, scale) end

  local shapes = { { 2, 5, 3, 6 }, { 1, 1, 1, 2 }, { 2, 3, 4, 48 }, { 1, 3, 9, 128 }, { 1, 2, 2, 1026 } }
  for _, shape in ipairs(shapes) do
    for _, dtype in ipairs { "f32", "bf16" } do
      it(("is rms_norm of rotary: %s, %s"):format(table.concat(shape, " x "), dtype), function()
        local x = lm.randn(shape, { generator = lm.Generator(1, 1) }):to(dtype)
        local cos, sin = lm.nn.rotary_tables(shape[2] + 1, shape[4], 100)
        local bound = dtype == "bf16" and 1e-2 or 1e-6
        for _, eps in ipairs { -1, 0.5 } do
          local y, dx = run(lm.nn.rotary_norm, x, cos, sin, eps, 1.2)
          local want, want_dx = run(plain, x, cos, sin, eps, 1.2)
          assert.is_true((y - want):norm():item() <= bound * want:norm():item())
          assert.is_true((dx - want_dx):norm():item() <= bound * want_dx:norm():item() + 1e-6)
        end
      end)
    end
  end

  it("takes x as its result, and does not depend on threads", function()
    local x = lm.randn(3, 70, 4, 48)
    local cos, sin = lm.nn.rotary_tables(70, 48, 100)
    local want = lm.nn.rotary_norm(x, cos, sin)
    local before = lm.threads()
    lm.set_threads(before == 1 and 2 or 1)
    local same = (lm.nn.rotary_norm(x, cos, sin) - want):abs():max():item()
    lm.set_threads(before)
    assert.equal(0, same)
    engine.call(C.lm_rotary_norm, engine.box(x.h), x.h, cos.h, sin.h, -1, 1)
    assert.equal(0, (x - want):abs():max():item())
  end)

  it("refuses what does not fit", function()
    local function f32(...) return engine.tensor("f32", ...) end
    local x, cos, sin = f32({ 1, 3, 2, 6 }, 1), f32({ 4, 3 }, 1), f32({ 4, 3 }, 0)
    local function refuses(status, texts, own_x, c, eps, scale)
      engine.refuses(status, texts, C.lm_rotary_norm, engine.box(), own_x or x, c or cos, sin, eps or -1, scale or 1)
      engine.refuses(status, texts, C.lm_rotary_norm_backward, engine.box(), own_x or x, own_x or x, c or cos, sin,
        eps or -1, scale or 1)
    end
    refuses(C.LM_ESHAPE, { "x must be (batch, time, heads, head_dim), got f32 (3, 6)" }, f32({ 3, 6 }, 1))
    refuses(C.LM_ESHAPE, { "head_dim must be even, got 5" }, f32({ 1, 3, 2, 5 }, 1))
    refuses(C.LM_ESHAPE, { "x has 5 positions, the cos table only 4" }, f32({ 1, 5, 2, 6 }, 1))
    refuses(C.LM_ESHAPE, { "the cos table must be (positions, 3)" }, nil, f32({ 4, 4 }, 1))
    refuses(C.LM_EDTYPE, { "the cos table must be f32" }, nil, engine.tensor("bf16", { 4, 3 }, 1))
    refuses(C.LM_EINVAL, { "eps must be finite" }, nil, nil, 0 / 0)
    refuses(C.LM_EINVAL, { "scale must be finite" }, nil, nil, -1, 1 / 0)
    local grad = f32({ 1, 3, 2, 6 }, 1)
    engine.refuses(C.LM_EINVAL, { "overlaps" }, C.lm_rotary_norm_backward, engine.box(x), grad, x, cos, sin, -1, 1)
  end)
end)
