local lm = require "lumuon"
local lib = require "lumuon.lib"
local golden = dofile "spec/support/golden.lua"
local ffi, C = lib.ffi, lib.C

--- One fused step on lists of tensors, through the C API.
local function adamw(params, grads, exp_avg, exp_avg_sq, given)
  local args, arrays = ffi.new("lm_adamw_args", given), {}
  for role, list in ipairs { params, grads, exp_avg, exp_avg_sq } do
    arrays[role] = ffi.new("lm_tensor *[?]", #list)
    for i, t in ipairs(list) do arrays[role][i - 1] = t.h end
  end
  lib.call(C.lm_adamw_step, #params, arrays[1], ffi.cast("const lm_tensor **", arrays[2]), arrays[3], arrays[4], args)
end

local defaults = { lr = 0.01, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, weight_decay = 0.1, step = 1 }
local function with(changes)
  local args = {}
  for k, v in pairs(defaults) do args[k] = v end
  for k, v in pairs(changes) do args[k] = v end
  return args
end

describe("AdamW", function()
  for _, name in ipairs { "seed_adamw_small", "seed_adamw_large", "head_adamw_small", "head_adamw_large" } do
    it("follows nanochat's " .. name, function()
      local t, meta = golden.load(name)
      local betas, peer = golden.numbers(meta.hyper, "betas"), golden.numbers(meta.peer_error, "f32")
      local p = lm.parameter(t.init:select(1, 1), name)
      local opt = lm.optim.MuonAdamW { { kind = "adamw", params = { p }, lr = golden.number(meta.hyper, "lr"),
        betas = betas, eps = golden.number(meta.hyper, "eps"),
        weight_decay = golden.number(meta.hyper, "weight_decay") } }
      for step = 1, t.grads:size(1) do
        p.grad:copy(t.grads:select(1, step):select(1, 1))
        opt:step()
        local truth = t["params.f64"]:select(1, step):select(1, 1)
        local moved = golden.distance({ t.init:select(1, 1) }, { truth })
        assert.is_true(golden.distance({ p }, { truth }) <= 2 * peer[step] * moved)
      end
      for _, moment in ipairs { "exp_avg", "exp_avg_sq" } do
        local truth = t[moment .. ".f64"]
        assert.is_true(golden.distance({ opt:state(p)[moment] }, { truth }) <= 2e-7 * truth:norm():item())
      end
    end)
  end

  it("computes what its formula says, in doubles, element by element", function()
    local n, args = 37, with { step = 3, weight_decay = 0.05 }
    local p, g, m, v = lm.randn(n), lm.randn(n), lm.randn(n), lm.rand(n)
    local P, G, M, V = p:tolist(), g:tolist(), m:tolist(), v:tolist()
    adamw({ p }, { g }, { m }, { v }, args)
    for i = 1, n do
      M[i] = M[i] + (1 - args.beta1) * (G[i] - M[i])
      V[i] = V[i] + (1 - args.beta2) * (G[i] ^ 2 - V[i])
      P[i] = P[i] * (1 - args.lr * args.weight_decay) - args.lr / (1 - args.beta1 ^ 3) * M[i]
        / (math.sqrt(V[i] / (1 - args.beta2 ^ 3)) + args.eps)
      assert.is_true(math.abs(p:item(i) - P[i]) < 1e-6)
      assert.is_true(math.abs(m:item(i) - M[i]) < 1e-6)
      assert.is_true(math.abs(v:item(i) - V[i]) < 1e-6)
    end
  end)

  it("steps many tensors of all sizes as it steps each alone", function()
    local sizes = { 1, 0, 3, 40000, 17, 1, 16384, 5, 70001 }
    local function make()
      local lists = { {}, {}, {}, {} }
      for i, n in ipairs(sizes) do
        for role = 1, 4 do lists[role][i] = lm.rand(n, { generator = lm.Generator(7 * i + role) }) end
      end
      return lists
    end
    local together, alone = make(), make()
    for step = 1, 2 do
      adamw(together[1], together[2], together[3], together[4], with { step = step })
      for i = 1, #sizes do
        adamw({ alone[1][i] }, { alone[2][i] }, { alone[3][i] }, { alone[4][i] }, with { step = step })
      end
    end
    for role = 1, 4 do
      for i = 1, #sizes do assert.equal(0, together[role][i]:ne(alone[role][i]):sum():item()) end
    end
  end)

  it("gives the same bits with one thread and with two", function()
    local threads, results = C.lm_threads(), {}
    for run = 1, 2 do
      C.lm_set_threads(run)
      local t = {}
      for role = 1, 4 do t[role] = { lm.rand(100003, { generator = lm.Generator(role) }) } end
      for step = 1, 3 do adamw(t[1], t[2], t[3], t[4], with { step = step }) end
      results[run] = t[1][1]
    end
    C.lm_set_threads(threads)
    assert.equal(0, results[1]:ne(results[2]):sum():item())
  end)

  it("agrees with its other kernels to a few roundings", function()
    local variant, results = ffi.string(C.lm_cpu_variant()), {}
    for _, other in ipairs { "base", "avx2", "avx512" } do
      if C.lm_set_cpu_variant(other) == 0 then
        local t = {}
        for role = 1, 4 do t[role] = { lm.rand(1003, { generator = lm.Generator(role) }) } end
        for step = 1, 3 do adamw(t[1], t[2], t[3], t[4], with { step = step }) end
        results[#results + 1] = t[1][1]
      end
    end
    C.lm_set_cpu_variant(variant)
    for i = 2, #results do assert.is_true((results[i] - results[1]):abs():max():item() < 3e-7) end
  end)

  it("keeps any of its tensors in bf16, within a rounding of f32 ones", function()
    local start = { lm.randn(700), lm.randn(700), lm.randn(700), lm.rand(700) }
    for role = 1, 4 do start[role] = start[role]:to("bf16") end
    for halves = 0, 15 do
      local mixed, exact = {}, {}
      for role = 1, 4 do
        local half = math.floor(halves / 2 ^ (role - 1)) % 2 == 1
        mixed[role] = { half and start[role]:clone() or start[role]:to("f32") }
        exact[role] = { start[role]:to("f32") }
      end
      adamw(mixed[1], mixed[2], mixed[3], mixed[4], with {})
      adamw(exact[1], exact[2], exact[3], exact[4], with {})
      for role = 1, 4 do
        local got, want = mixed[role][1]:to("f32"), exact[role][1]
        local bound = mixed[role][1]:dtype() == "bf16" and 1 / 256 or 1e-6
        assert.equal(0, (got - want):abs():gt(want:abs() * bound + 1e-7):sum():item(), ("%d %d"):format(halves, role))
      end
    end
  end)

  it("takes an f32 gradient for a bf16 parameter", function()
    local p = lm.ones({ 600 }, { dtype = "bf16" })
    adamw({ p }, { lm.ones(600) }, { lm.zeros(600) }, { lm.zeros(600) }, with { lr = 0.5, weight_decay = 0 })
    assert.equal(0, p:ne(0.5):sum():item())
  end)

  it("decays without a gradient", function()
    local p = lm.ones(5)
    adamw({ p }, { lm.zeros(5) }, { lm.zeros(5) }, { lm.zeros(5) }, with { lr = 0.5, weight_decay = 0.5 })
    assert.same({ 0.75, 0.75, 0.75, 0.75, 0.75 }, p:tolist())
  end)

  it("refuses numbers out of range by their names and changes nothing", function()
    for name, values in pairs {
      lr = { -1, 0 / 0, 1 / 0 }, beta1 = { -0.1, 1, 0 / 0 }, beta2 = { -0.1, 1, 0 / 0 }, eps = { 0, -1, 0 / 0, 1 / 0 },
      weight_decay = { -1, 0 / 0, 1 / 0 }, step = { 0, -1, 1.5, 0 / 0, 1 / 0 },
    } do
      for _, value in ipairs(values) do
        local p = lm.ones(3)
        local args = with { [name] = value }
        local ok, message = pcall(adamw, { p }, { lm.ones(3) }, { lm.zeros(3) }, { lm.zeros(3) }, args)
        assert.is_false(ok)
        assert.truthy(message:find(name .. " = ", 1, true), message)
        assert.same({ 1, 1, 1 }, p:tolist())
      end
    end
  end)

  it("refuses tensors that do not fit, by role and number", function()
    local one, bad = { lm.ones(3), lm.ones(3) }, {
      { lm.ones(4), "(4)" }, { lm.ones({ 3 }, { dtype = "i32" }), "i32" },
      { lm.ones(6):as_strided({ 3 }, { 2 }, 0), "contiguous" },
    }
    for _, case in ipairs(bad) do
      local p = { lm.ones(3), lm.ones(3) }
      local ok, message = pcall(adamw, p, { lm.ones(3), case[1] }, one, one, with {})
      assert.is_false(ok)
      assert.truthy(message:find("grad 2", 1, true), message)
      assert.truthy(message:find(case[2], 1, true), message)
      assert.same({ 1, 1, 1 }, p[1]:tolist())
    end
  end)
end)
