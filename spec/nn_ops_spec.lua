--- The ops a GPT needs besides attention, each against its definition in double precision; gradients
-- against central differences of that definition.
local engine = require "spec.support.engine"
local C, ffi = engine.C, engine.ffi

local F32 = 3e-6 -- distance |got - want| / (1 + |want|) that f32 arithmetic may make here
local BF16 = 2 ^ -8 -- half a unit of bf16's eight bits, rounded up

local function bound(dtype) return dtype == "bf16" and BF16 or F32 end

local function f32(shape, values) return engine.tensor("f32", shape, values) end
local function i32(shape, values) return engine.tensor("i32", shape, values) end

--- t with its last two dims swapped: not contiguous.
local function turned(t)
  local n = C.lm_tensor_ndim(t)
  local shape, strides = ffi.new("int64_t[8]"), ffi.new("int64_t[8]")
  for d = 0, n - 1 do shape[d], strides[d] = C.lm_tensor_size(t, d), C.lm_tensor_stride(t, d) end
  shape[n - 2], shape[n - 1] = shape[n - 1], shape[n - 2]
  strides[n - 2], strides[n - 1] = strides[n - 1], strides[n - 2]
  return engine.results(1, C.lm_tensor_view, t, n, shape, strides, 0)
end

--- The same bytes from f whatever the number of threads.
local function threads_do_not_matter(f)
  local first
  for _, threads in ipairs { 1, 2, 3 } do
    engine.with_threads(threads, function()
      local all = {}
      for n, t in ipairs { f() } do all[n] = engine.bytes(t) end
      first = first or table.concat(all)
      assert.is_true(first == table.concat(all))
    end)
  end
end

--- f's results in every kernel variant within `distance` of the first's.
local function variants_agree(f, distance)
  local first
  for _, variant in ipairs(engine.variants()) do
    engine.with_variant(variant, function()
      local all = { f() }
      first = first or all
      for n = 1, #all do engine.near(engine.values(all[n]), engine.values(first[n]), distance or F32, variant) end
    end)
  end
end

describe("embedding", function()
  local idx_values = { 3, 0, 3, 6, 3, 1 }

  it("copies the rows that are asked for", function()
    for _, dtype in ipairs { "f32", "bf16" } do
      local table_, values = engine.random_tensor(dtype, { 7, 5 }, 1)
      local out = engine.results(1, C.lm_embedding, table_, i32({ 2, 3 }, idx_values))
      assert.equal(C.lm_tensor_dtype(table_), C.lm_tensor_dtype(out))
      assert.equal(3, C.lm_tensor_ndim(out))
      local got = engine.values(out)
      for n, row in ipairs(idx_values) do
        for c = 1, 5 do assert.equal(values[row * 5 + c], got[(n - 1) * 5 + c]) end
      end
    end
  end)

  it("converts into a result of another dtype", function()
    local table_, values = engine.random_tensor("bf16", { 7, 600 }, 1)
    local out = engine.empty("f32", { 6, 600 })
    engine.call(C.lm_embedding, engine.box(out), table_, i32({ 6 }, idx_values))
    local got = engine.values(out)
    for n, row in ipairs(idx_values) do
      for c = 1, 600 do assert.equal(values[row * 600 + c], got[(n - 1) * 600 + c]) end
    end
  end)

  it("adds gradients to the rows they came from, rounding once", function()
    for _, dtype in ipairs { "f32", "bf16" } do
      for _, grad_dtype in ipairs { "f32", "bf16" } do
        local table_, want = engine.random_tensor(dtype, { 7, 513 }, 1)
        local grad, grad_values = engine.random_tensor(grad_dtype, { 6, 513 }, 2)
        engine.call(C.lm_embedding_backward, table_, grad, i32({ 6 }, idx_values))
        for n, row in ipairs(idx_values) do
          for c = 1, 513 do
            want[row * 513 + c] = want[row * 513 + c] + grad_values[(n - 1) * 513 + c]
          end
        end
        engine.near(engine.values(table_), want, bound(dtype))
      end
    end
  end)

  it("gives the same bits whatever the threads", function()
    local idx, next_number = {}, engine.random(5)
    for n = 1, 300 do idx[n] = math.floor((next_number() + 1) * 5) end
    local grad = engine.random_tensor("f32", { 300, 700 }, 2)
    threads_do_not_matter(function()
      local table_ = f32({ 10, 700 }, 0)
      engine.call(C.lm_embedding_backward, table_, grad, i32({ 300 }, idx))
      return table_
    end)
  end)

  it("refuses an index outside the table before writing anything", function()
    local table_ = f32({ 7, 5 }, 1)
    local grad, grad_table = f32({ 2, 3, 5 }, 1), f32({ 7, 5 }, 0)
    local out = f32({ 2, 3, 5 }, 9)
    for _, bad in ipairs { 7, -1, 2147483647, -2147483648 } do
      local idx = i32({ 2, 3 }, { 0, 1, 2, 3, bad, 99 })
      local text = "index %d at position (2, 2) of i32 (2, 3) is outside the vocabulary of 7 (0 to 6)"
      local texts = { text:format(bad) }
      engine.refuses(C.LM_EINDEX, texts, C.lm_embedding, engine.box(out), table_, idx)
      engine.refuses(C.LM_EINDEX, texts, C.lm_embedding_backward, grad_table, grad, idx)
    end
    for _, v in ipairs(engine.values(out)) do assert.equal(9, v) end
    for _, v in ipairs(engine.values(grad_table)) do assert.equal(0, v) end
  end)

  it("refuses shapes and dtypes that do not fit", function()
    local idx, box = i32({ 2 }, 0), engine.box()
    engine.refuses(C.LM_ESHAPE, { "table must be (vocabulary, channels), got f32 (3)" }, C.lm_embedding, box,
      f32({ 3 }, 0), idx)
    engine.refuses(C.LM_EDTYPE, { "idx must be i32, got f32 (2)" }, C.lm_embedding, box, f32({ 3, 2 }, 0),
      f32({ 2 }, 0))
    engine.refuses(C.LM_EDTYPE, { "table must be f32 or bf16, got i32" }, C.lm_embedding, box, i32({ 3, 2 }, 0), idx)
    engine.refuses(C.LM_ESHAPE, { "table f32 (2, 3) is not contiguous; use :contiguous()" }, C.lm_embedding, box,
      turned(f32({ 3, 2 }, 0)), idx)
    engine.refuses(C.LM_ESHAPE, { "idx i32 (2, 3) is not contiguous; use :contiguous()" }, C.lm_embedding, box,
      f32({ 3, 2 }, 0), turned(i32({ 3, 2 }, 0)))
    engine.refuses(C.LM_ESHAPE, { "the result must have shape (2, 3), got (2, 2)" }, C.lm_embedding,
      engine.box(f32({ 2, 2 }, 0)), f32({ 4, 3 }, 0), idx)
    local table_ = f32({ 2, 3 }, 0)
    engine.refuses(C.LM_EINVAL, { "overlaps table" }, C.lm_embedding, engine.box(table_), table_, idx)
    engine.refuses(C.LM_ESHAPE, { "grad_out must have shape (2, 3), got (2, 4)" }, C.lm_embedding_backward, table_,
      f32({ 2, 4 }, 0), idx)
    engine.refuses(C.LM_EINVAL, { "missing or was freed" }, C.lm_embedding_backward, table_, nil, idx)
  end)

  it("takes no indices at all", function()
    local out = engine.results(1, C.lm_embedding, f32({ 3, 2 }, 0), i32({ 0 }, 0))
    assert.equal(0, C.lm_tensor_numel(out))
    engine.call(C.lm_embedding_backward, f32({ 3, 2 }, 0), out, i32({ 0 }, 0))
    engine.refuses(C.LM_EINDEX, { "vocabulary of 0" }, C.lm_embedding, engine.box(), f32({ 0, 2 }, 0), i32({ 1 }, 0))
  end)
end)

describe("rms_norm", function()
  local function reference(x, columns, eps, scale)
    local out = {}
    for first = 0, #x - 1, columns do
      local sum = 0
      for c = 1, columns do sum = sum + x[first + c] ^ 2 end
      local r = scale / math.sqrt(sum / columns + eps)
      for c = 1, columns do out[first + c] = r * x[first + c] end
    end
    return out
  end

  for _, columns in ipairs { 1, 2, 31, 64, 513, 1100 } do
    for _, dtype in ipairs { "f32", "bf16" } do
      it(("is its definition and has its gradient: %d columns of %s"):format(columns, dtype), function()
        local x, values = engine.random_tensor(dtype, { 3, columns }, 1, 2)
        local out = engine.results(1, C.lm_rms_norm, x, 0.25, 1.2)
        assert.equal(C.lm_tensor_dtype(x), C.lm_tensor_dtype(out))
        engine.near(engine.values(out), reference(values, columns, 0.25, 1.2), bound(dtype))
        local grad, grad_values = engine.random_tensor(dtype, { 3, columns }, 2)
        local got = engine.results(1, C.lm_rms_norm_backward, grad, x, 0.25, 1.2)
        local at = engine.sample(#values, 60)
        local want = engine.numeric_gradient(function()
          return engine.dot(reference(values, columns, 0.25, 1.2), grad_values)
        end, values, at)
        engine.near(engine.pick(engine.values(got), at), want, bound(dtype))
      end)
    end
  end

  it("takes the dtype's machine epsilon for a negative eps", function()
    for dtype, eps in pairs { f32 = 2 ^ -23, bf16 = 2 ^ -7 } do
      local x, values = engine.random_tensor(dtype, { 4, 16 }, 1, math.sqrt(eps))
      local out = engine.results(1, C.lm_rms_norm, x, -1, 1)
      engine.near(engine.values(out), reference(values, 16, eps, 1), bound(dtype))
    end
  end)

  it("works in place and into another dtype", function()
    local x, values = engine.random_tensor("f32", { 5, 40 }, 1)
    local want = reference(values, 40, 1e-5, 1)
    local other = engine.empty("bf16", { 5, 40 })
    engine.call(C.lm_rms_norm, engine.box(other), x, 1e-5, 1)
    engine.near(engine.values(other), want, BF16)
    engine.call(C.lm_rms_norm, engine.box(x), x, 1e-5, 1)
    engine.near(engine.values(x), want, F32)
  end)

  it("gives zeros for zeros", function()
    local x = f32({ 2, 3 }, 0)
    local out = engine.results(1, C.lm_rms_norm, x, -1, 1)
    for _, v in ipairs(engine.values(out)) do assert.equal(0, v) end
  end)

  it("does not depend on threads, nor on the variant beyond rounding", function()
    local x = engine.random_tensor("f32", { 400, 99 }, 1)
    local grad = engine.random_tensor("f32", { 400, 99 }, 2)
    local function both()
      return engine.results(1, C.lm_rms_norm, x, -1, 1), (engine.results(1, C.lm_rms_norm_backward, grad, x, -1, 1))
    end
    threads_do_not_matter(both)
    variants_agree(both)
  end)

  it("refuses what does not fit", function()
    local x, box = f32({ 2, 3 }, 1), engine.box()
    engine.refuses(C.LM_ESHAPE, { "rms_norm: x needs at least 1 dim" }, C.lm_rms_norm, box, f32({}, 1), -1, 1)
    engine.refuses(C.LM_EINVAL, { "eps must be finite" }, C.lm_rms_norm, box, x, 0 / 0, 1)
    engine.refuses(C.LM_EINVAL, { "scale must be finite, got inf" }, C.lm_rms_norm, box, x, -1, 1 / 0)
    engine.refuses(C.LM_EDTYPE, { "x must be f32 or bf16, got i32" }, C.lm_rms_norm, box, i32({ 2, 3 }, 1), -1, 1)
    engine.refuses(C.LM_ESHAPE, { "x f32 (3, 2) is not contiguous" }, C.lm_rms_norm, box, turned(x), -1, 1)
    engine.refuses(C.LM_ESHAPE, { "grad_out must have shape (2, 3), got (3, 2)" }, C.lm_rms_norm_backward, box,
      f32({ 3, 2 }, 1), x, -1, 1)
  end)
end)

describe("rotary", function()
  local function tables(steps, half)
    local cos, sin = {}, {}
    for t = 0, steps - 1 do
      for i = 0, half - 1 do
        cos[t * half + i + 1] = math.cos(t * 100 ^ (-i / half))
        sin[t * half + i + 1] = math.sin(t * 100 ^ (-i / half))
      end
    end
    return f32({ steps, half }, cos), f32({ steps, half }, sin), cos, sin
  end

  for _, dtype in ipairs { "f32", "bf16" } do
    it("turns each pair of channels by its position's angle: " .. dtype, function()
      for _, half in ipairs { 1, 5, 32, 300 } do
        local x, values = engine.random_tensor(dtype, { 2, 3, 2, 2 * half }, 1)
        local cos, sin, c, s = tables(7, half)
        local out = engine.results(1, C.lm_rotary, x, cos, sin, 0)
        local want = {}
        for row = 0, 11 do
          local t = math.floor(row / 2) % 3
          for i = 1, half do
            local a, b = row * 2 * half + i, row * 2 * half + half + i
            local cosine, sine = c[t * half + i], s[t * half + i]
            want[a] = values[a] * cosine + values[b] * sine
            want[b] = -values[a] * sine + values[b] * cosine
          end
        end
        engine.near(engine.values(out), want, bound(dtype))
        -- The rotation is orthogonal: its transpose, which is its gradient, undoes it, in place too.
        engine.call(C.lm_rotary, engine.box(out), out, cos, sin, 1)
        engine.near(engine.values(out), values, 2 * bound(dtype))
      end
    end)
  end

  it("does not depend on threads or variant", function()
    local x = engine.random_tensor("f32", { 3, 50, 4, 32 }, 1)
    local cos, sin = tables(50, 16)
    local function f() return (engine.results(1, C.lm_rotary, x, cos, sin, 0)) end
    threads_do_not_matter(f)
    variants_agree(f)
  end)

  it("refuses what does not fit", function()
    local cos, sin = tables(4, 3)
    local function refuses(status, texts, x, c, s)
      engine.refuses(status, texts, C.lm_rotary, engine.box(), x, c or cos, s or sin, 0)
    end
    refuses(C.LM_ESHAPE, { "(batch, time, heads, head_dim), got f32 (2, 4, 6)" }, f32({ 2, 4, 6 }, 1))
    refuses(C.LM_ESHAPE, { "head_dim must be even, got 7" }, f32({ 1, 4, 1, 7 }, 1))
    refuses(C.LM_ESHAPE, { "x has 5 positions, the cos table only 4" }, f32({ 1, 5, 1, 6 }, 1))
    refuses(C.LM_ESHAPE, { "the cos table must be (positions, 4)", "f32 (4, 3)" }, f32({ 1, 4, 1, 8 }, 1))
    refuses(C.LM_ESHAPE, { "x has 3 positions, the sin table only 2" }, f32({ 1, 3, 1, 6 }, 1), cos, (tables(2, 3)))
    refuses(C.LM_EDTYPE, { "the sin table must be f32, got bf16" }, f32({ 1, 3, 1, 6 }, 1), cos,
      engine.tensor("bf16", { 4, 3 }, 1))
    refuses(C.LM_ESHAPE, { "not contiguous" }, turned(f32({ 1, 3, 6, 2 }, 1)))
  end)
end)

describe("cross_entropy", function()
  local function reference(logits, targets, columns, vocabulary, cap)
    local sum, count, all = 0, 0, {}
    for n, target in ipairs(targets) do
      local most, z = -math.huge, {}
      for c = 0, vocabulary - 1 do
        local l = logits[(n - 1) * columns + c + 1]
        z[c] = cap > 0 and cap * math.tanh(l / cap) or l
        most = math.max(most, z[c])
      end
      local total = 0
      for c = 0, vocabulary - 1 do total = total + math.exp(z[c] - most) end
      all[n] = most + math.log(total)
      if target >= 0 then
        sum, count = sum + (all[n] - z[target]), count + 1
      end
    end
    return sum / count, all
  end

  local cases = {
    { columns = 5, vocabulary = 5, cap = 0 }, { columns = 64, vocabulary = 45, cap = 15 },
    { columns = 1, vocabulary = 1, cap = 0 }, { columns = 1200, vocabulary = 1100, cap = 2 },
    { columns = 1024, vocabulary = 1024, cap = 0 },
  }
  for _, case in ipairs(cases) do
    for _, dtype in ipairs { "f32", "bf16" } do
      it(("is its definition and has its gradient: %d of %d columns, softcap %g, %s"):format(case.vocabulary,
        case.columns, case.cap, dtype), function()
        local columns, vocabulary, cap = case.columns, case.vocabulary, case.cap
        local targets = { vocabulary - 1, -1, 0, math.floor(vocabulary / 2) }
        local logits, values = engine.random_tensor(dtype, { 2, 2, columns }, 1, 6)
        local goal = i32({ 2, 2 }, targets)
        local loss, lse = engine.results(2, C.lm_cross_entropy, logits, goal, vocabulary, cap)
        local want, want_lse = reference(values, targets, columns, vocabulary, cap)
        assert.equal(0, C.lm_tensor_ndim(loss))
        engine.near(engine.values(loss), { want }, F32, "loss")
        engine.near(engine.values(lse), want_lse, F32, "lse")

        local seed = f32({}, 3)
        local grad = engine.results(1, C.lm_cross_entropy_backward, seed, logits, goal, lse, vocabulary, cap)
        assert.equal(C.lm_tensor_dtype(logits), C.lm_tensor_dtype(grad))
        local got, at = engine.values(grad), engine.sample(#values, 50)
        for n, target in ipairs(targets) do
          if target >= 0 then at[#at + 1] = (n - 1) * columns + target + 1 end
          for c = vocabulary + 1, columns do assert.equal(0, got[(n - 1) * columns + c]) end
        end
        local numeric = engine.numeric_gradient(function()
          return 3 * reference(values, targets, columns, vocabulary, cap)
        end, values, at)
        engine.near(engine.pick(got, at), numeric, bound(dtype))
        for c = 1, columns do assert.equal(0, got[columns + c]) end -- the ignored row

        -- Over the logits themselves: the same bits.
        engine.call(C.lm_cross_entropy_backward, engine.box(logits), seed, logits, goal, lse, vocabulary, cap)
        assert.is_true(engine.bytes(logits) == engine.bytes(grad))
      end)
    end
  end

  it("survives logits of any size", function()
    local values = { 1000, -1000, 500, 88, -math.huge, 3, 2, 1, -1e30, 1e30, 0, 0 }
    local targets = { 0, 1, 1 }
    local loss, lse = engine.results(2, C.lm_cross_entropy, f32({ 3, 4 }, values), i32({ 3 }, targets), 4, 0)
    local want, want_lse = reference(values, targets, 4, 4, 0)
    engine.near(engine.values(loss), { want }, F32)
    engine.near(engine.values(lse), want_lse, F32)
  end)

  it("passes a NaN on", function()
    local loss = engine.results(2, C.lm_cross_entropy, f32({ 1, 3 }, { 1, 0 / 0, 2 }), i32({ 1 }, 0), 3, 0)
    local value = engine.values(loss)[1]
    assert.is_true(value ~= value)
  end)

  it("is NaN without a single target, and its gradient 0", function()
    local logits, targets = f32({ 2, 3 }, 1), i32({ 2 }, -1)
    local loss, lse = engine.results(2, C.lm_cross_entropy, logits, targets, 3, 0)
    local value = engine.values(loss)[1]
    assert.is_true(value ~= value)
    local grad = engine.results(1, C.lm_cross_entropy_backward, f32({}, 1), logits, targets, lse, 3, 0)
    for _, v in ipairs(engine.values(grad)) do assert.equal(0, v) end
  end)

  it("does not depend on threads, nor on the variant beyond rounding", function()
    local logits = engine.random_tensor("f32", { 70, 600 }, 1, 5)
    local idx, next_number = {}, engine.random(5)
    for n = 1, 70 do idx[n] = math.floor((next_number() + 1) * 290) end
    local targets = i32({ 70 }, idx)
    local function f()
      local loss, lse = engine.results(2, C.lm_cross_entropy, logits, targets, 590, 15)
      return loss, lse, (engine.results(1, C.lm_cross_entropy_backward, f32({}, 1), logits, targets, lse, 590, 15))
    end
    threads_do_not_matter(f)
    variants_agree(f)
  end)

  it("refuses a target outside the vocabulary before writing anything", function()
    local logits, lse = f32({ 2, 2, 8 }, 1), f32({ 2, 2 }, 7)
    for _, bad in ipairs { 6, -2, 2147483647 } do
      local targets = i32({ 2, 2 }, { 0, -1, bad, 5 })
      local text = "target %d at position (2, 1) of i32 (2, 2) is outside the vocabulary of 6 (0 to 5, or -1 to ignore)"
      local texts = { text:format(bad) }
      local loss = f32({}, 7)
      engine.refuses(C.LM_EINDEX, texts, C.lm_cross_entropy, engine.box(loss), engine.box(lse), logits, targets, 6, 0)
      engine.refuses(C.LM_EINDEX, texts, C.lm_cross_entropy_backward, engine.box(logits), loss, logits, targets, lse,
        6, 0)
      for _, t in ipairs { loss, lse } do
        for _, v in ipairs(engine.values(t)) do assert.equal(7, v) end
      end
      for _, v in ipairs(engine.values(logits)) do assert.equal(1, v) end
    end
  end)

  it("refuses what does not fit", function()
    local logits, targets, lse = f32({ 3, 8 }, 1), i32({ 3 }, 0), f32({ 3 }, 0)
    local function refuses(status, texts, l, t, vocabulary, cap)
      engine.refuses(status, texts, C.lm_cross_entropy, engine.box(), engine.box(), l or logits, t or targets,
        vocabulary or 8, cap or 0)
    end
    refuses(C.LM_EINVAL, { "vocab_size 9 is not in 1..8", "f32 (3, 8)" }, nil, nil, 9)
    refuses(C.LM_EINVAL, { "vocab_size 0 is not in 1..8" }, nil, nil, 0)
    refuses(C.LM_EINVAL, { "softcap must be finite" }, nil, nil, 8, 0 / 0)
    refuses(C.LM_EINVAL, { "softcap must be finite" }, nil, nil, 8, 1 / 0)
    refuses(C.LM_ESHAPE, { "targets must have shape (3), got (4)" }, nil, i32({ 4 }, 0))
    refuses(C.LM_EDTYPE, { "targets must be i32, got f32 (3)" }, nil, f32({ 3 }, 0))
    refuses(C.LM_EDTYPE, { "logits must be f32 or bf16, got i32" }, i32({ 3, 8 }, 0))
    refuses(C.LM_ESHAPE, { "logits f32 (8, 3) is not contiguous" }, turned(logits), i32({ 8 }, 0), 3)
    local function refuses_backward(status, texts, seed, own_lse, grad)
      engine.refuses(status, texts, C.lm_cross_entropy_backward, engine.box(grad), seed, logits, targets, own_lse, 8, 0)
    end
    refuses_backward(C.LM_ESHAPE, { "grad_loss must have one element, got f32 (2)" }, f32({ 2 }, 1), lse)
    refuses_backward(C.LM_EDTYPE, { "grad_loss must be f32" }, i32({}, 1), lse)
    refuses_backward(C.LM_ESHAPE, { "lse must have shape (3), got (4)" }, f32({}, 1), f32({ 4 }, 1))
    refuses_backward(C.LM_ESHAPE, { "the result must have shape (3, 8), got (8, 3)" }, f32({}, 1), lse,
      f32({ 8, 3 }, 1))
  end)
end)

describe("softmax", function()
  it("is its definition over the last dim", function()
    for _, dtype in ipairs { "f32", "bf16" } do
      for _, columns in ipairs { 1, 7, 1100 } do
        local x, values = engine.random_tensor(dtype, { 3, columns }, 1, 20)
        local want = {}
        for first = 0, #values - 1, columns do
          local sum = 0
          for c = 1, columns do sum = sum + math.exp(values[first + c]) end
          for c = 1, columns do want[first + c] = math.exp(values[first + c]) / sum end
        end
        engine.near(engine.values(engine.results(1, C.lm_softmax, x)), want, bound(dtype))
        engine.call(C.lm_softmax, engine.box(x), x) -- in place
        engine.near(engine.values(x), want, bound(dtype))
      end
    end
  end)

  it("gives nothing to -Inf, and survives large values", function()
    local x = f32({ 2, 3 }, { -math.huge, 0, 0, 1e30, 0, -1e30 })
    assert.same({ 0, 0.5, 0.5, 1, 0, 0 }, engine.values(engine.results(1, C.lm_softmax, x)))
  end)

  it("does not depend on threads, nor on the variant beyond rounding", function()
    local x = engine.random_tensor("f32", { 90, 333 }, 1, 5)
    local function f() return (engine.results(1, C.lm_softmax, x)) end
    threads_do_not_matter(f)
    variants_agree(f)
  end)

  it("refuses what does not fit", function()
    engine.refuses(C.LM_ESHAPE, { "softmax: needs at least 1 dim" }, C.lm_softmax, engine.box(), f32({}, 1))
    engine.refuses(C.LM_ESHAPE, { "not contiguous" }, C.lm_softmax, engine.box(), turned(f32({ 2, 3 }, 1)))
    engine.refuses(C.LM_EDTYPE, { "f32 or bf16" }, C.lm_softmax, engine.box(), i32({ 2 }, 1))
  end)
end)
