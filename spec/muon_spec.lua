local lm = require "lumuon"
local lib = require "lumuon.lib"
local golden = dofile "spec/support/golden.lua"
local ffi, C = lib.ffi, lib.C

local support = dofile "spec/support/muon.lua"
local muon, set_grads, random_matrices = support.muon, support.set_grads, support.random_matrices
local head = support.head

--- What the parameters moved by, divided by the step's lr.
local function updates(opt, params, grads, lr)
  local before = {}
  for k, p in ipairs(params) do before[k] = p:detach():clone() end
  set_grads(params, grads)
  opt:step()
  local list = {}
  for k, p in ipairs(params) do list[k] = (before[k] - p:detach()) / lr end
  return list
end

describe("Muon", function()
  for _, version in ipairs { "seed", "head" } do
    for _, shape in ipairs(support.shapes) do
      for _, precision in ipairs { "f32", "bf16" } do
        it(("follows nanochat's %s_%s in %s"):format(version, shape, precision), function()
          local steps, moments = support.follow(version, shape, precision)
          for _, reached in ipairs(steps) do assert.is_true(reached[1] <= reached[2]) end
          for _, reached in ipairs(moments) do assert.is_true(reached[1] <= reached[2]) end
        end)
      end
    end
  end

  --- A step by the formula, on one matrix; state: momentum and second, which it replaces.
  local function by_formula(p, g, state, o)
    local rows, cols = p:size(1), p:size(2)
    local dim, d = rows >= cols and 2 or 1, math.min(rows, cols)
    state.momentum = state.momentum + (g - state.momentum) * (1 - o.momentum)
    local u = g + (state.momentum - g) * o.momentum
    if o.row_equilibrate then u = u / (u * u):sum(2, true):sqrt() * (u:norm():item() / math.sqrt(rows)) end
    local x = lm.optim.polar_express(u, { precision = "f32", norm_scale = o.norm_scale })
    if o.renormalize then x = x * (math.sqrt(d) / x:norm():item()) end
    local norm = x:norm():item()
    state.second = state.second + ((x * x):mean(dim, true) - state.second) * (1 - o.beta2)
    x = x / state.second:sqrt()
    return p - x * (norm / x:norm():item() * o.lr * math.sqrt(math.max(1, rows / cols)))
  end

  it("steps matrices that are wider and higher than nanochat's here by the formula", function()
    for _, size in ipairs { { 140, 300 }, { 300, 140 }, { 270, 270 } } do
      for _, version in ipairs { {}, head } do
        local rows, cols = unpack(size)
        local o = { lr = 0.02, weight_decay = 0, momentum = 0.9, beta2 = 0.8 }
        for name, value in pairs(version) do o[name] = value end
        local start, grads = random_matrices(2, rows, cols, 21), random_matrices(2, rows, cols, 22)
        local uneven = lm.arange(11, rows + 10):view(rows, 1) * lm.arange(11, cols + 10):view(1, cols)
        for k = 1, 2 do grads[k] = grads[k] * uneven end -- no two rows or columns count alike
        local opt, params = muon(start, o)
        local expected, states = {}, {}
        for k = 1, 2 do
          expected[k] = start[k]
          states[k] = { momentum = lm.zeros(rows, cols),
            second = rows >= cols and lm.zeros(rows, 1) or lm.zeros(1, cols) }
        end
        for _ = 1, 2 do
          set_grads(params, grads)
          opt:step()
          for k = 1, 2 do expected[k] = by_formula(expected[k], grads[k], states[k], o) end
          grads[1], grads[2] = grads[2], grads[1]
        end
        local moved = golden.distance(start, expected)
        local far = golden.distance(params, expected) / moved
        assert.is_true(far < 2e-5, ("%d x %d: %.3g of the distance moved"):format(rows, cols, far))
        for k, state in ipairs(states) do
          local second = opt:state(params[k]).second_momentum_buffer
          assert.is_true(golden.distance({ second }, { state.second }) < 2e-5 * state.second:norm():item())
        end
      end
    end
  end)

  it("keeps a zero gradient's decay, and nothing becomes NaN", function()
    for _, options in ipairs { {}, head } do
      local opt, params = muon(random_matrices(3, 6, 9, 1), options)
      local before = params[2]:detach():clone()
      assert.is_true(opt:step())
      local expected = before * (1 - 0.02 * 0.1)
      assert.is_true(golden.distance({ params[2] }, { expected }) < 1e-6)
      assert.equal(0, params[1]:count_nonfinite())
      assert.equal(0, opt:state(params[1]).second_momentum_buffer:norm():item())
    end
  end)

  it("decays only where the parameter and its update agree in sign", function()
    local lr, wd = 0.02, 0.5
    local start, grads = random_matrices(1, 8, 8, 2), random_matrices(1, 8, 8, 3)
    local free, p_free = muon(start, { weight_decay = 0, lr = lr })
    local decayed, p_decayed = muon(start, { weight_decay = wd, lr = lr })
    local x = updates(free, p_free, grads, lr)[1]:tolist()
    updates(decayed, p_decayed, grads, lr)
    local p, plain, both = start[1]:tolist(), p_free[1]:tolist(), p_decayed[1]:tolist()
    local agreed = 0
    for i = 1, 8 do
      for j = 1, 8 do
        local mask = x[i][j] * p[i][j] >= 0 and 1 or 0
        agreed = agreed + mask
        assert.is_true(math.abs(plain[i][j] - lr * wd * p[i][j] * mask - both[i][j]) < 1e-6)
      end
    end
    assert.is_true(agreed > 0 and agreed < 64)
  end)

  it("keeps each matrix's norm through the variance reduction", function()
    local grads = random_matrices(4, 20, 30, 4)
    for _, renormalize in ipairs { false, true } do
      local opt, params = muon(random_matrices(4, 20, 30, 5), { weight_decay = 0, momentum = 0, lr = 1,
        renormalize = renormalize })
      for k, x in ipairs(updates(opt, params, grads, 1)) do
        local orthogonal = lm.optim.polar_express(grads[k], { precision = "f32" })
        local expected = renormalize and math.sqrt(20) or orthogonal:norm():item()
        assert.is_true(math.abs(x:norm():item() / expected - 1) < 1e-5)
      end
    end
  end)

  it("gives rows of one length where the smaller side is reduced", function()
    local opt, params = muon(random_matrices(1, 30, 20, 6), { weight_decay = 0, momentum = 0, lr = 1, beta2 = 0 })
    local x = updates(opt, params, random_matrices(1, 30, 20, 7), 1)[1]
    local rows = x:norm(2)
    assert.is_true(rows:max():item() / rows:min():item() < 1 + 1e-4)
  end)

  it("equilibrates: rows of a gradient that differ a thousandfold count alike", function()
    local scales = lm.tensor { { 1000 }, { 1 }, { 1e-3 }, { 30 } }
    local g = lm.randn({ 4, 12 }, { generator = lm.Generator(8) })
    local row_norms = g:norm(2, true)
    local flat = g / row_norms
    local function step(grad)
      local opt, params = muon({ lm.zeros(4, 12) }, { row_equilibrate = true, weight_decay = 0, momentum = 0, lr = 1 })
      return updates(opt, params, { grad }, 1)[1]
    end
    assert.is_true(golden.distance({ step(flat * scales) }, { step(flat) }) < 1e-4)
  end)

  it("looks ahead only with nesterov", function()
    local grads, start = random_matrices(1, 5, 7, 9), random_matrices(1, 5, 7, 10)
    local other = random_matrices(1, 5, 7, 11)
    local results = {}
    for i, nesterov in ipairs { true, false } do
      local opt, params = muon(start, { nesterov = nesterov, weight_decay = 0, lr = 1 })
      updates(opt, params, grads, 1)
      results[i] = updates(opt, params, other, 1)[1]
      local m = lm.zeros_like(grads[1])
      for _, g in ipairs { grads[1], other[1] } do m = m + 0.05 * (g - m) end
      local u = nesterov and other[1] + 0.95 * (m - other[1]) or m
      local direction = lm.optim.polar_express(u, { precision = "f32" })
      local cosine = (results[i] * direction):sum():item() / (results[i]:norm():item() * direction:norm():item())
      assert.is_true(cosine > 0.97, tostring(cosine))
    end
    assert.is_true(golden.distance({ results[1] }, { results[2] }) > 0.1)
  end)

  it("scales its step by sqrt(rows / cols) for tall matrices", function()
    for _, case in ipairs { { 8, 32, 1 }, { 16, 16, 1 }, { 32, 8, 2 } } do
      local opt, params = muon({ lm.zeros(case[1], case[2]) }, { weight_decay = 0, lr = 1, momentum = 0,
        renormalize = true })
      local x = updates(opt, params, random_matrices(1, case[1], case[2], 12), 1)[1]
      assert.is_true(math.abs(x:norm():item() / math.sqrt(math.min(case[1], case[2])) - case[3]) < 1e-4)
    end
  end)

  it("treats blocks of rows as matrices of their own", function()
    local start, grads = random_matrices(2, 24, 10, 13), random_matrices(2, 24, 10, 14)
    local function pieces(matrices, sizes)
      local list = {}
      for _, m in ipairs(matrices) do
        local row = 1
        for _, n in ipairs(sizes) do
          list[#list + 1] = m:narrow(1, row, n)
          row = row + n
        end
      end
      return list
    end
    for _, case in ipairs { { 3, { 8, 8, 8 } }, { { 8, 16 }, { 8, 16 } }, { 1, { 24 } } } do
      local whole, p = muon(start, { blocks = case[1] })
      for _ = 1, 2 do updates(whole, p, grads, 1) end
      for k = 1, 2 do
        local list = {}
        for i, piece in ipairs(pieces({ start[k] }, case[2])) do
          local opt, one = muon({ piece }, {})
          for _ = 1, 2 do updates(opt, one, { pieces({ grads[k] }, case[2])[i] }, 1) end
          list[i] = one[1]:detach()
        end
        assert.is_true(golden.distance(pieces({ p[k]:detach() }, case[2]), list) < 1e-5)
      end
    end
  end)

  it("steps the block first that needs most memory beside it: where that is short, nothing is written", function()
    local deterministic, threads = C.lm_deterministic(), C.lm_threads()
    finally(function()
      C.lm_set_deterministic(deterministic)
      C.lm_set_threads(threads)
      lib.call(C.lm_set_memory_limit, 0)
    end)
    C.lm_set_deterministic(1)
    C.lm_set_threads(1)
    local out = ffi.new("double[1]")
    local function needed(rows, cols)
      lib.call(C.lm_muon_scratch, out, C.LM_CPU, 1, rows, cols, C.LM_PRECISION_F32)
      return out[0]
    end
    -- the second: what is padded too much is done another way, which takes more
    for _, case in ipairs { { 128, { 64, 320 }, 320 }, { 96, { 96, 80 }, 80 } } do
      local cols, blocks, hungriest = unpack(case)
      local least, most = math.huge, 0
      for _, rows in ipairs(blocks) do
        least, most = math.min(least, needed(rows, cols)), math.max(most, needed(rows, cols))
      end
      assert.equal(most, needed(hungriest, cols))
      local opt, params = muon(random_matrices(1, blocks[1] + blocks[2], cols, 21), { blocks = blocks })
      assert.equal(hungriest, opt.slots[1].parts[1].param:size(2))
      assert.equal(most, opt.slots[1].scratch)
      params[1].grad:copy(random_matrices(1, blocks[1] + blocks[2], cols, 22)[1])
      local before = params[1]:tolist()
      local function step()
        lib.collect()
        C.lm_memory_trim()
        C.lm_memory_reset_peak()
        local live = C.lm_memory_live()
        local ok, message = pcall(opt.step, opt)
        return C.lm_memory_peak() - live, ok, message
      end
      if most > 2 * least then -- blocks of memory come in sizes
        lib.collect()
        lib.call(C.lm_set_memory_limit, C.lm_memory_live() + (least + most) / 2)
        local _, ok, message = step()
        lib.call(C.lm_set_memory_limit, 0)
        assert.is_false(ok)
        assert.truthy(message:find("out of memory", 1, true), message)
        assert.is_nil(message:find("updates of this step", 1, true), message)
        assert.same(before, params[1]:tolist())
        assert.equal(0, opt:state(params[1]).momentum_buffer:norm():item())
      end
      local taken, ok = step()
      assert.is_true(ok)
      assert.is_true(taken <= most * 9 / 8 + 256, ("%g bytes of %g"):format(taken, most))
    end
  end)

  it("takes one row, one column, one element, one matrix", function()
    for _, s in ipairs { { 1, 7 }, { 7, 1 }, { 1, 1 }, { 3, 5 } } do
      local opt, params = muon(random_matrices(1, s[1], s[2], 15), head)
      updates(opt, params, random_matrices(1, s[1], s[2], 16), 1)
      assert.equal(0, params[1]:count_nonfinite())
    end
  end)

  it("steps matrices without an element, one or more of them", function()
    for _, s in ipairs { { 0, 4 }, { 4, 0 }, { 0, 0 } } do
      for count = 1, 3 do
        local opt, params = muon(random_matrices(count, s[1], s[2], 15), head)
        opt:step()
        assert.same(s, params[count]:size())
        assert.same(s, params[count].grad:size())
      end
    end
  end)

  it("survives gradients of 1e25 and of 1e-30", function()
    for _, scale in ipairs { 1e25, 1e-30 } do
      local opt, params = muon(random_matrices(2, 9, 12, 17))
      local grads = random_matrices(2, 9, 12, 18)
      for k = 1, 2 do grads[k] = grads[k] * scale end
      updates(opt, params, grads, 1)
      assert.equal(0, params[1]:count_nonfinite() + params[2]:count_nonfinite())
    end
  end)

  it("gives the same bits twice, and agrees across threads and kernels", function()
    local variant, threads = ffi.string(C.lm_cpu_variant()), C.lm_threads()
    local start, grads = random_matrices(5, 40, 70, 19), random_matrices(5, 40, 70, 20)
    local function run()
      local opt, params = muon(start)
      for _ = 1, 3 do updates(opt, params, grads, 1) end
      local list = {}
      for k, p in ipairs(params) do list[k] = p:detach() end
      return list
    end
    local first = run()
    assert.equal(0, golden.distance(run(), first))
    for _, other in ipairs { "base", "avx2", "avx512" } do
      if C.lm_set_cpu_variant(other) == 0 then
        for n = 1, 3 do
          C.lm_set_threads(n)
          assert.is_true(golden.distance(run(), first) < 1e-5 * golden.distance(start, first))
        end
      end
    end
    C.lm_set_cpu_variant(variant)
    C.lm_set_threads(threads)
  end)

  it("refuses tensors and numbers that do not fit, at the border to C", function()
    local function attempt(changes, tensors)
      local t = { param = lm.ones(2, 3, 4), grad = lm.ones(2, 3, 4), momentum = lm.zeros(2, 3, 4),
        second = lm.zeros(2, 1, 4) }
      local args = ffi.new("lm_muon_args", { lr = 0.1, momentum = 0.9, beta2 = 0.9, nesterov = 1 })
      args.polar.ns_steps, args.polar.norm_scale = 1, 1.02
      for name, value in pairs(changes or {}) do args[name] = value end
      for name, value in pairs(tensors or {}) do t[name] = value end
      local ok, message = pcall(lib.call, C.lm_muon_step, t.param.h, t.grad.h, t.momentum.h, t.second.h, args)
      assert.is_false(ok)
      assert.equal(0, t.param:ne(1):sum():item())
      return message
    end
    for name, values in pairs { lr = { -1, 0 / 0, 1 / 0 }, momentum = { -0.1, 1, 0 / 0 }, beta2 = { 1, 0 / 0 },
      weight_decay = { -1, 0 / 0 } } do
      for _, value in ipairs(values) do
        assert.truthy(attempt({ [name] = value }):find(name .. " = ", 1, true))
      end
    end
    for expected, tensors in pairs {
      ["second_momentum must have shape (2, 1, 4), got (2, 3, 1)"] = { second = lm.zeros(2, 3, 1) },
      ["grad must have shape (2, 3, 4), got (2, 4, 3)"] = { grad = lm.zeros(2, 4, 3) },
      ["(K, rows, cols)"] = { momentum = lm.zeros(6, 4) },
      ["must be f32"] = { grad = lm.zeros({ 2, 3, 4 }, { dtype = "bf16" }) },
      ["not contiguous"] = { grad = lm.zeros(2, 4, 3):t() },
    } do
      local message = attempt(nil, tensors)
      assert.truthy(message:find(expected, 1, true), message)
    end
  end)

  it("changes nothing when it is interrupted", function()
    local opt, params = muon(random_matrices(2, 6, 8, 21))
    set_grads(params, random_matrices(2, 6, 8, 22))
    local before = params[1]:detach():clone()
    C.lm_interrupt()
    local ok, message = pcall(opt.step, opt)
    C.lm_interrupt_clear()
    assert.is_false(ok)
    assert.truthy(message:find("interrupted", 1, true), message)
    assert.equal(0, golden.distance({ params[1] }, { before }))
    assert.equal(0, opt:state(params[1]).momentum_buffer:norm():item())
    assert.equal(0, opt.steps)
    assert.is_true(opt:step())
  end)
end)
