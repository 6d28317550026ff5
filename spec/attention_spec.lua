--- Attention against its definition in double precision.
local engine = require "spec.support.engine"
local C = engine.C

-- The definition: every query, every key, no tiles. Returns out and lse as flat arrays.
local function reference(s, q, k, v)
  local out, lse = {}, {}
  local group = s.H / s.Hkv
  local window = s.window < 0 and s.T or s.window
  local p = {}
  for b = 0, s.B - 1 do
    for h = 0, s.H - 1 do
      local kv_head = math.floor(h / group)
      for t = 0, s.T - 1 do
        local at = ((b * s.T + t) * s.H + h) * s.D
        local first, most = math.max(0, t - window), -math.huge
        for j = first, t do
          local other, sum = ((b * s.T + j) * s.Hkv + kv_head) * s.D, 0
          for d = 1, s.D do sum = sum + q[at + d] * k[other + d] end
          p[j] = s.scale * sum
          most = math.max(most, p[j])
        end
        local sum = 0
        for j = first, t do
          p[j] = math.exp(p[j] - most)
          sum = sum + p[j]
        end
        lse[(b * s.H + h) * s.T + t + 1] = most + math.log(sum)
        for d = 1, s.D do out[at + d] = 0 end
        for j = first, t do
          local other, weight = ((b * s.T + j) * s.Hkv + kv_head) * s.D, p[j] / sum
          for d = 1, s.D do out[at + d] = out[at + d] + weight * v[other + d] end
        end
      end
    end
  end
  return out, lse
end

local function shape(B, T, H, Hkv, D, window, dtype)
  return { B = B, T = T, H = H, Hkv = Hkv, D = D, window = window or -1, scale = 1 / math.sqrt(D),
    dtype = dtype or "f32" }
end

local function describe_shape(s)
  return ("B=%d T=%d H=%d Hkv=%d D=%d window=%d %s"):format(s.B, s.T, s.H, s.Hkv, s.D, s.window, s.dtype)
end

local function inputs(s, sharpness)
  local q, qv = engine.random_tensor(s.dtype, { s.B, s.T, s.H, s.D }, 1, sharpness or 2)
  local k, kv = engine.random_tensor(s.dtype, { s.B, s.T, s.Hkv, s.D }, 2, sharpness or 2)
  local v, vv = engine.random_tensor(s.dtype, { s.B, s.T, s.Hkv, s.D }, 3)
  return { q = q, k = k, v = v, q_values = qv, k_values = kv, v_values = vv }
end

local function forward(s, i)
  return engine.results(2, C.lm_attention, i.q, i.k, i.v, s.scale, s.window)
end

local function backward(s, i, grad, out, lse)
  return engine.results(3, C.lm_attention_backward, grad, i.q, i.k, i.v, out, lse, s.scale, s.window)
end

local shapes = {
  shape(1, 1, 1, 1, 1), shape(2, 5, 2, 1, 6), shape(1, 31, 3, 3, 12), shape(1, 33, 4, 2, 36),
  shape(2, 64, 2, 2, 32), shape(1, 65, 6, 2, 7), shape(1, 100, 2, 1, 64), shape(1, 130, 1, 1, 128),
  shape(1, 7, 2, 1, 8, 0), shape(1, 40, 2, 1, 8, 1), shape(1, 100, 2, 2, 12, 31), shape(1, 150, 4, 2, 16, 32),
  shape(1, 200, 1, 1, 20, 64), shape(1, 200, 1, 1, 20, 65), shape(1, 50, 1, 1, 4, 49), shape(1, 50, 1, 1, 4, 500),
}

describe("attention", function()
  for _, s in ipairs(shapes) do
    it("is the definition's: " .. describe_shape(s), function()
      local i = inputs(s)
      local out, lse = forward(s, i)
      local want, want_lse = reference(s, i.q_values, i.k_values, i.v_values)
      engine.near(engine.values(out), want, 3e-6, "out")
      engine.near(engine.values(lse), want_lse, 2e-6, "lse")
    end)
  end

  for _, s in ipairs(shapes) do
    it("has the gradients of its definition: " .. describe_shape(s), function()
      local i = inputs(s)
      local grad, grad_values = engine.random_tensor(s.dtype, { s.B, s.T, s.H, s.D }, 4)
      local out, lse = forward(s, i)
      local grads = { backward(s, i, grad, out, lse) }
      local function loss()
        return engine.dot((reference(s, i.q_values, i.k_values, i.v_values)), grad_values)
      end
      for which, name in ipairs { "q", "k", "v" } do
        local x = i[name .. "_values"]
        local at = engine.sample(#x, 37 + which) -- each costs two references
        local want = engine.numeric_gradient(loss, x, at)
        engine.near(engine.pick(engine.values(grads[which]), at), want, 1e-5, "grad_" .. name)
      end
    end)
  end

  it("takes bf16, within its rounding", function()
    for _, s in ipairs { shape(2, 33, 4, 2, 12, -1, "bf16"), shape(1, 130, 2, 1, 32, 40, "bf16") } do
      local i = inputs(s)
      local out, lse = forward(s, i)
      local want = reference(s, i.q_values, i.k_values, i.v_values)
      engine.near(engine.values(out), want, 2 ^ -8, "out")
      -- Gradients against the f32 path on the same values: out's rounding enters delta as well.
      local as_f32 = shape(s.B, s.T, s.H, s.Hkv, s.D, s.window)
      local j = {}
      for _, name in ipairs { "q", "k", "v" } do
        local heads = name == "q" and s.H or s.Hkv
        j[name] = engine.tensor("f32", { s.B, s.T, heads, s.D }, i[name .. "_values"])
      end
      local grad, grad_values = engine.random_tensor("bf16", { s.B, s.T, s.H, s.D }, 4)
      local grads = { backward(s, i, grad, out, lse) }
      local exact_out, exact_lse = forward(as_f32, j)
      local exact = { backward(as_f32, j, engine.tensor("f32", { s.B, s.T, s.H, s.D }, grad_values), exact_out,
        exact_lse) }
      for which = 1, 3 do
        assert.equal(C.LM_BF16, C.lm_tensor_dtype(grads[which]))
        engine.near(engine.values(grads[which]), engine.values(exact[which]), 0.02, "grad " .. which)
      end
    end
  end)

  it("writes into results that are given, of either dtype", function()
    local s = shape(1, 37, 2, 1, 10)
    local i = inputs(s)
    local out, lse = forward(s, i)
    local own = engine.empty("bf16", { 1, 37, 2, 10 })
    local own_lse = engine.empty("f32", { 1, 2, 37 })
    engine.call(C.lm_attention, engine.box(own), engine.box(own_lse), i.q, i.k, i.v, s.scale, -1)
    engine.near(engine.values(own), engine.values(out), 2 ^ -8)
    assert.equal(engine.bytes(lse), engine.bytes(own_lse))
  end)

  it("stays exact where scores are huge", function()
    local s = shape(1, 80, 1, 1, 16)
    local i = inputs(s, 40) -- scores up to thousands: all weight on one key
    local out, lse = forward(s, i)
    local want, want_lse = reference(s, i.q_values, i.k_values, i.v_values)
    engine.near(engine.values(out), want, 1e-3, "out") -- a score of 3000 has an error of 2e-4
    engine.near(engine.values(lse), want_lse, 1e-6, "lse")
  end)

  it("needs far less memory than the T x T scores", function()
    local s = shape(1, 2048, 1, 1, 8)
    local i = inputs(s)
    local grad = engine.random_tensor("f32", { 1, s.T, 1, 8 }, 4)
    engine.with_threads(1, function()
      local before = C.lm_memory_live()
      C.lm_memory_reset_peak()
      local out, lse = forward(s, i)
      backward(s, i, grad, out, lse)
      assert.is_true(C.lm_memory_peak() - before < s.T * s.T * 4 / 10)
    end)
  end)

  it("does not depend on the number of threads", function()
    local s = shape(3, 70, 4, 2, 24, 50)
    local i = inputs(s)
    local grad = engine.random_tensor("f32", { s.B, s.T, s.H, s.D }, 4)
    local first
    for _, threads in ipairs { 1, 2, 3 } do
      engine.with_threads(threads, function()
        local out, lse = forward(s, i)
        local dq, dk, dv = backward(s, i, grad, out, lse)
        local all = engine.bytes(out) .. engine.bytes(lse) .. engine.bytes(dq) .. engine.bytes(dk) .. engine.bytes(dv)
        first = first or all
        assert.is_true(first == all)
      end)
    end
  end)

  it("is the same in every kernel variant up to rounding", function()
    local s = shape(1, 75, 2, 1, 20, 33)
    local i = inputs(s)
    local grad = engine.random_tensor("f32", { s.B, s.T, s.H, s.D }, 4)
    local first
    for _, variant in ipairs(engine.variants()) do
      engine.with_variant(variant, function()
        local out, lse = forward(s, i)
        local all = { out, lse, backward(s, i, grad, out, lse) }
        first = first or all
        for n = 1, 5 do engine.near(engine.values(all[n]), engine.values(first[n]), 3e-6, variant) end
      end)
    end
  end)

  it("takes an empty batch", function()
    local s = shape(0, 5, 2, 1, 4)
    local i = inputs(s)
    local out, lse = forward(s, i)
    local dq = backward(s, i, engine.empty("f32", { 0, 5, 2, 4 }), out, lse)
    assert.equal(0, C.lm_tensor_numel(dq))
  end)

  it("refuses what does not fit and says why", function()
    local function t(...) return engine.tensor("f32", { ... }, 0) end
    local function refuses(status, texts, q, k, v, scale, out, lse)
      engine.refuses(status, texts, C.lm_attention, engine.box(out), engine.box(lse), q, k, v, scale or 1, -1)
    end
    local q, k = t(2, 3, 4, 8), t(2, 3, 2, 8)
    refuses(C.LM_ESHAPE, { "attention: q must be (batch, time, heads, head_dim)", "f32 (2, 3, 4)" }, t(2, 3, 4), k, k)
    refuses(C.LM_ESHAPE, { "k must have q's batch", "(2, 3, 4, 8)", "(2, 4, 2, 8)" }, q, t(2, 4, 2, 8), k)
    refuses(C.LM_ESHAPE, { "k must have q's batch", "(2, 3, 2, 6)" }, q, t(2, 3, 2, 6), k)
    refuses(C.LM_ESHAPE, { "v must have shape (2, 3, 2, 8), got (2, 3, 4, 8)" }, q, k, q)
    refuses(C.LM_ESHAPE, { "multiple", "4 and 3" }, q, t(2, 3, 3, 8), t(2, 3, 3, 8))
    refuses(C.LM_ESHAPE, { "multiple", "4 and 0" }, q, t(2, 3, 0, 8), t(2, 3, 0, 8))
    refuses(C.LM_EDTYPE, { "k must be f32 or bf16, got i32" }, q, engine.tensor("i32", { 2, 3, 2, 8 }, 0), k)
    refuses(C.LM_EINVAL, { "scale must be finite" }, q, k, k, 0 / 0)
    refuses(C.LM_EINVAL, { "overlaps q" }, q, k, k, 1, q)
    refuses(C.LM_ESHAPE, { "the result must have shape (2, 3, 4, 8), got (2, 3, 2, 8)" }, q, k, k, 1, t(2, 3, 2, 8))
    refuses(C.LM_ESHAPE, { "must have shape (2, 4, 3)" }, q, k, k, 1, nil, t(2, 3, 4))
    refuses(C.LM_EDTYPE, { "must be f32" }, q, k, k, 1, nil, engine.tensor("bf16", { 2, 4, 3 }, 0))
    local turned = engine.results(1, C.lm_tensor_view, q, 4, engine.ffi.new("int64_t[4]", 2, 3, 4, 8),
      engine.ffi.new("int64_t[4]", 96, 8, 24, 1), 0)
    refuses(C.LM_ESHAPE, { "q f32 (2, 3, 4, 8) is not contiguous; use :contiguous()" }, turned, k, k)
    refuses(C.LM_EINVAL, { "tensor 2 is missing or was freed" }, q, nil, k)

    local out, lse = forward({ scale = 1, window = -1 }, { q = q, k = k, v = k })
    local function refuses_backward(status, texts, grad, own_out, own_lse, grad_k)
      engine.refuses(status, texts, C.lm_attention_backward, engine.box(), engine.box(grad_k), engine.box(), grad, q,
        k, k, own_out, own_lse, 1, -1)
    end
    refuses_backward(C.LM_ESHAPE, { "grad_out must have shape (2, 3, 4, 8), got (2, 3, 2, 8)" }, k, out, lse)
    refuses_backward(C.LM_ESHAPE, { "attention_backward: out must have shape" }, q, k, lse)
    refuses_backward(C.LM_ESHAPE, { "lse must have shape (2, 4, 3)" }, q, out, t(2, 3, 4))
    refuses_backward(C.LM_EDTYPE, { "lse must be f32" }, q, out, engine.tensor("bf16", { 2, 4, 3 }, 0))
    refuses_backward(C.LM_EINVAL, { "overlaps k" }, q, out, lse, k)
  end)

  it("stops when interrupted", function()
    local s = shape(1, 5, 1, 1, 4)
    local i = inputs(s)
    C.lm_interrupt()
    local box = engine.box()
    local status = C.lm_attention(box, engine.box(), i.q, i.k, i.v, 1, -1)
    C.lm_interrupt_clear()
    assert.equal(C.LM_EINTERRUPT, status)
    assert.is_true(box[0] == nil)
  end)
end)
