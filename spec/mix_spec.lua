--- scaled_add and gated_add against their definitions in double precision.
local engine = require "spec.support.engine"
local C = engine.C

local F32, BF16 = 3e-6, 2 ^ -8
local function bound(dtype) return dtype == "bf16" and BF16 or F32 end
local function f32(shape, values) return engine.tensor("f32", shape, values) end

describe("scaled_add", function()
  for _, dtype in ipairs { "f32", "bf16" } do
    it("is a x + b y with its gradients: " .. dtype, function()
      for _, n in ipairs { 1, 17, 600, 40000 } do -- 40000: more than one block of partial sums
        local x, xv = engine.random_tensor(dtype, { n }, 1)
        local y, yv = engine.random_tensor(dtype, { n }, 2)
        local g, gv = engine.random_tensor(dtype, { n }, 3)
        local a, b = f32({}, 1.25), f32({ 1 }, -0.5)
        local want, want_x, want_y, want_a, want_b = {}, {}, {}, 2, 3
        for i = 1, n do
          want[i] = 1.25 * xv[i] - 0.5 * yv[i]
          want_x[i], want_y[i] = 1.25 * gv[i], 7 - 0.5 * gv[i]
          want_a, want_b = want_a + gv[i] * xv[i], want_b + gv[i] * yv[i]
        end
        local out = engine.results(1, C.lm_scaled_add, a, x, b, y)
        assert.equal(C.lm_tensor_dtype(x), C.lm_tensor_dtype(out))
        engine.near(engine.values(out), want, bound(dtype))

        local grad_a, grad_b, grad_y = f32({}, 2), f32({ 1 }, 3), engine.tensor(dtype, { n }, 7)
        local box = engine.box()
        engine.call(C.lm_scaled_add_backward, grad_a, box, grad_b, grad_y, g, a, x, b, y)
        local grad_x = engine.ffi.gc(box[0], C.lm_tensor_free)
        engine.near(engine.values(grad_x), want_x, bound(dtype), "grad_x")
        engine.near(engine.values(grad_y), want_y, bound(dtype), "grad_y")
        engine.near(engine.values(grad_a), { want_a }, F32, "grad_a")
        engine.near(engine.values(grad_b), { want_b }, F32, "grad_b")

        -- Only what is asked for, grad_x over grad_out.
        engine.call(C.lm_scaled_add_backward, nil, engine.box(g), nil, nil, g, a, x, b, y)
        assert.is_true(engine.bytes(g) == engine.bytes(grad_x))
        engine.call(C.lm_scaled_add_backward, grad_a, nil, nil, nil, g, a, x, b, y)
      end
    end)
  end

  it("mixes dtypes and works in place", function()
    local x, xv = engine.random_tensor("bf16", { 30 }, 1)
    local y, yv = engine.random_tensor("f32", { 30 }, 2)
    local want = {}
    for i = 1, 30 do want[i] = 2 * xv[i] + 3 * yv[i] end
    engine.call(C.lm_scaled_add, engine.box(y), engine.tensor("bf16", {}, 2), x, f32({}, 3), y)
    engine.near(engine.values(y), want, F32)
  end)

  it("does not depend on the number of threads", function()
    local x = engine.random_tensor("f32", { 100000 }, 1)
    local y = engine.random_tensor("f32", { 100000 }, 2)
    local first
    for _, threads in ipairs { 1, 2, 3 } do
      engine.with_threads(threads, function()
        local grad_a, grad_b, one = f32({}, 0), f32({}, 0), f32({}, 1)
        engine.call(C.lm_scaled_add_backward, grad_a, nil, grad_b, nil, x, one, x, one, y)
        local all = engine.bytes(grad_a) .. engine.bytes(grad_b)
        first = first or all
        assert.is_true(first == all)
      end)
    end
  end)

  it("refuses what does not fit", function()
    local one, x = f32({}, 1), f32({ 2, 3 }, 1)
    local function refuses(status, texts, a, x_, b, y)
      engine.refuses(status, texts, C.lm_scaled_add, engine.box(), a, x_, b, y)
    end
    refuses(C.LM_ESHAPE, { "a must have one element, got f32 (2)" }, f32({ 2 }, 1), x, one, x)
    refuses(C.LM_ESHAPE, { "b must have one element, got f32 (2, 3)" }, one, x, x, x)
    refuses(C.LM_ESHAPE, { "y must have shape (2, 3), got (3, 2)" }, one, x, one, f32({ 3, 2 }, 1))
    refuses(C.LM_EDTYPE, { "x must be f32 or bf16, got i32" }, one, engine.tensor("i32", { 2, 3 }, 1), one, x)
    local function refuses_backward(status, texts, grad_a, grad_y, g, grad_x)
      engine.refuses(status, texts, C.lm_scaled_add_backward, grad_a, engine.box(grad_x), nil, grad_y, g, one, x, one,
        x)
    end
    refuses_backward(C.LM_ESHAPE, { "grad_a must have one element" }, x, nil, x)
    refuses_backward(C.LM_ESHAPE, { "grad_y must have shape (2, 3), got (3)" }, nil, f32({ 3 }, 1), x)
    refuses_backward(C.LM_ESHAPE, { "grad_out must have shape (2, 3), got (6)" }, nil, nil, f32({ 6 }, 1))
    refuses_backward(C.LM_EINVAL, { "overlaps x" }, nil, nil, f32({ 2, 3 }, 1), x)
    refuses_backward(C.LM_EINVAL, { "overlaps x" }, nil, x, f32({ 2, 3 }, 1))
  end)
end)

describe("gated_add", function()
  local function reference(x, gate, y, columns, scale)
    local out = {}
    for i = 1, #x do
      local row = math.floor((i - 1) / columns) + 1
      out[i] = x[i] + scale / (1 + math.exp(-gate[row])) * y[i]
    end
    return out
  end

  for _, dtype in ipairs { "f32", "bf16" } do
    it("adds scale * sigmoid(gate) * y, with its gradients: " .. dtype, function()
      for _, columns in ipairs { 1, 9, 64, 700 } do
        local x, xv = engine.random_tensor(dtype, { 3, 2, columns }, 1)
        local y, yv = engine.random_tensor(dtype, { 3, 2, columns }, 2)
        local gate, gv = engine.random_tensor(dtype, { 3, 2 }, 3, 4)
        local out = engine.results(1, C.lm_gated_add, x, gate, y, 2)
        engine.near(engine.values(out), reference(xv, gv, yv, columns, 2), bound(dtype))
        local g, grad_values = engine.random_tensor(dtype, { 3, 2, columns }, 4)
        local grad_gate, grad_y = engine.results(2, C.lm_gated_add_backward, g, gate, y, 2)
        local function loss() return engine.dot(reference(xv, gv, yv, columns, 2), grad_values) end
        engine.near(engine.values(grad_gate), engine.numeric_gradient(loss, gv), bound(dtype), "grad_gate")
        local at = engine.sample(#yv, 60)
        engine.near(engine.pick(engine.values(grad_y), at), engine.numeric_gradient(loss, yv, at), bound(dtype),
          "grad_y")
        engine.call(C.lm_gated_add, engine.box(x), x, gate, y, 2) -- in place
        assert.is_true(engine.bytes(x) == engine.bytes(out))
      end
    end)
  end

  it("refuses what does not fit", function()
    local x, gate = f32({ 2, 3, 4 }, 1), f32({ 2, 3 }, 0)
    local function refuses(status, texts, x_, gate_, y, scale)
      engine.refuses(status, texts, C.lm_gated_add, engine.box(), x_, gate_, y, scale or 1)
    end
    refuses(C.LM_ESHAPE, { "gate must have shape (2, 3), got (2, 4)" }, x, f32({ 2, 4 }, 0), x)
    refuses(C.LM_ESHAPE, { "y must have shape (2, 3, 4), got (2, 3, 5)" }, x, gate, f32({ 2, 3, 5 }, 0))
    refuses(C.LM_ESHAPE, { "y needs at least 1 dim" }, f32({}, 0), f32({}, 0), f32({}, 0))
    refuses(C.LM_EINVAL, { "scale must be finite" }, x, gate, x, 0 / 0)
    refuses(C.LM_EDTYPE, { "gate must be f32 or bf16" }, x, engine.tensor("i32", { 2, 3 }, 0), x)
    engine.refuses(C.LM_ESHAPE, { "grad_out must have shape (2, 3, 4), got (2, 3)" }, C.lm_gated_add_backward,
      engine.box(), engine.box(), gate, gate, x, 1)
    local narrow = f32({ 2, 3, 1 }, 1)
    local same = engine.results(1, C.lm_tensor_view, narrow, 2, engine.ffi.new("int64_t[2]", 2, 3),
      engine.ffi.new("int64_t[2]", 3, 1), 0)
    engine.refuses(C.LM_EINVAL, { "overlaps y" }, C.lm_gated_add_backward, engine.box(same), engine.box(),
      f32({ 2, 3, 1 }, 1), gate, narrow, 1)
  end)
end)
