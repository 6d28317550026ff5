local lm = require "lumuon"
local lib = require "lumuon.lib"
local C = lib.C
local MuonAdamW = lm.optim.MuonAdamW

local function parameter(name, ...)
  return lm.parameter(lm.randn({ ... }, { generator = lm.Generator(#name + select("#", ...)) }), name)
end

--- A small model's parameters, with an optimizer over them.
local function model(changes)
  local p = { wte = parameter("wte", 10, 4), q = parameter("q", 6, 4), k = parameter("kk", 6, 4),
    scalars = parameter("scalars", 3) }
  local groups = {
    { kind = "adamw", params = { p.wte, p.scalars }, lr = 0.2, betas = { 0.8, 0.95 }, eps = 1e-10, weight_decay = 0.1 },
    { kind = "muon", params = { p.q, p.k }, lr = 0.02, momentum = 0.95, ns_steps = 5, beta2 = 0.95,
      weight_decay = 0.1 },
  }
  for name, value in pairs(changes or {}) do groups[name] = value end
  return p, MuonAdamW(groups), groups
end

local function fill_grads(p, seed)
  for i, name in ipairs { "wte", "q", "k", "scalars" } do p[name].grad:normal_(0, 1, lm.Generator(seed, i)) end
end

local function values(p)
  local all = {}
  for name, t in pairs(p) do all[name] = t:tolist() end
  return all
end

local function state_values(opt)
  local dict = opt:state_dict()
  local all = { step = dict.step }
  for key, entry in pairs(dict.state) do
    for name, t in pairs(entry) do all[key .. "." .. name] = t:tolist() end
  end
  return all
end

local function refusal(f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  return message
end

--- The message says each of these.
local function says(message, ...)
  for i = 1, select("#", ...) do
    local part = select(i, ...)
    assert.truthy(message:find(part, 1, true), ("'%s' lacks '%s'"):format(message, part))
  end
end

describe("MuonAdamW", function()
  describe("banks", function()
    it("hold a Muon group's parameters and gradients in one piece each, values kept", function()
      local p, q = parameter("a", 5, 3), parameter("b", 5, 3)
      p.grad:fill(3)
      local before = p:tolist()
      MuonAdamW { { kind = "muon", params = { p, q }, lr = 0.1 } }
      assert.same(before, p:tolist())
      assert.equal(3, p.grad:item(5, 3))
      for _, pair in ipairs { { p, q }, { p.grad, q.grad } } do
        assert.is_true(pair[1]:shares_storage(pair[2]))
        assert.equal(15, C.lm_tensor_offset(pair[2].h) - C.lm_tensor_offset(pair[1].h))
      end
      assert.is_false(p:shares_storage(p.grad))
    end)

    it("are what backward adds gradients to", function()
      local w = parameter("w", 4, 4)
      local opt = MuonAdamW { { kind = "muon", params = { w }, lr = 0.1 } }
      local bank = opt.slots[1].grad_bank
      lm.matmul(w, lm.ones(4, 1)):sum():backward()
      assert.equal(16, bank:sum():item())
      opt:zero_grad()
      assert.equal(0, w.grad:norm():item())
    end)

    it("allocate nothing from the system in later steps", function()
      local p, opt = model()
      for step = 1, 2 do
        fill_grads(p, step)
        opt:step()
      end
      local before = C.lm_memory_system_allocs()
      for _ = 1, 5 do opt:step() end
      assert.equal(before, C.lm_memory_system_allocs())
    end)

    it("take back a gradient that was replaced", function()
      local p, opt = model()
      local q, other = model()
      fill_grads(p, 1)
      fill_grads(q, 1)
      q.q.grad = q.q.grad:clone()
      opt:step()
      other:step()
      assert.same(p.q:tolist(), q.q:tolist())
      assert.is_true(q.q.grad:shares_storage(q.k.grad))
    end)

    it("are given up to a later optimizer, and the first one says so", function()
      local p, opt = model()
      MuonAdamW { { kind = "muon", params = { p.k, p.q }, lr = 0.1 } }
      says(refusal(opt.step, opt), "group 2 (muon)", "q", "another optimizer")
    end)
  end)

  describe("groups", function()
    local w, v = parameter("weight", 4, 3), parameter("vector", 4)
    local function muon(changes)
      local group = { kind = "muon", params = { w }, lr = 0.1 }
      for name, value in pairs(changes) do
        group[name] = value ~= "none" and value or nil
      end
      return function() return MuonAdamW { group } end
    end
    local function adamw(changes)
      changes.kind = "adamw"
      return muon(changes)
    end

    it("get every option and initial_lr", function()
      local opt = muon {}()
      local g = opt.param_groups[1]
      assert.same({ 0.1, 0.1, 0.95, true, 5, 1.02, false, false, 0.95, 0, 1 }, { g.lr, g.initial_lr, g.momentum,
        g.nesterov, g.ns_steps, g.norm_scale, g.row_equilibrate, g.renormalize, g.beta2, g.weight_decay, g.blocks })
      assert.equal(C.lm_cpu_fast_bf16() ~= 0 and "bf16" or "f32", g.precision)
      local a = adamw { params = { v } }().param_groups[1]
      assert.same({ { 0.8, 0.95 }, 1e-10, 0 }, { a.betas, a.eps, a.weight_decay })
    end)

    it("leave the user's table as it is", function()
      local group = { kind = "adamw", params = { v }, lr = 0.1 }
      MuonAdamW { group }
      assert.same({ kind = "adamw", params = { v }, lr = 0.1 }, group)
    end)

    for what, case in pairs {
      ["an unknown option"] = { muon { momentun = 0.9 }, "group 1 (muon)", "'momentun'", "'momentum'" },
      ["an option of the other kind"] = { adamw { ns_steps = 5 }, "group 1 (adamw)", "'ns_steps'" },
      ["a missing lr"] = { muon { lr = "none" }, "group 1 (muon)", "'lr' is missing" },
      ["an unknown kind"] = { muon { kind = "muom" }, "group 1", "'muom'", "'muon'" },
      ["no kind"] = { muon { kind = "none" }, "group 1", "kind = nil" },
      ["no params"] = { muon { params = "none" }, "group 1 (muon)", "params" },
      ["empty params"] = { muon { params = {} }, "group 1 (muon)", "empty" },
      ["a tensor for params"] = { muon { params = w }, "group 1 (muon)", "list", "tensor" },
      ["a number for a parameter"] = { muon { params = { w, 7 } }, "param 2", "number" },
      ["a tensor that is no parameter"] = { muon { params = { lm.zeros(4, 3) } }, "f32 (4, 3)", "no parameter" },
      ["a vector in a muon group"] = { muon { params = { w, v } }, "vector", "f32 (4)", "adamw" },
      ["mixed shapes in a muon group"] = { muon { params = { w, parameter("other", 3, 4) } }, "other", "f32 (3, 4)",
        "weight", "f32 (4, 3)" },
      ["a bf16 matrix in a muon group"] = { muon { params = { lm.parameter(lm.zeros({ 2, 2 }, { dtype = "bf16" }),
        "half") } }, "half", "bf16 (2, 2)", "f32" },
      ["a parameter twice in a group"] = { muon { params = { w, w } }, "weight", "twice" },
      ["two parameters of one name"] = { muon { params = { w, parameter("weight", 4, 3) } }, "'weight'" },
      ["a group that is no table"] = { function() MuonAdamW { 5 } end, "group 1", "number" },
      ["no groups"] = { function() MuonAdamW {} end, "no groups" },
      ["no table"] = { function() MuonAdamW(3) end, "number" },
      ["an unknown outer option"] = { function()
        MuonAdamW { { kind = "muon", params = { w }, lr = 0 }, on_nan = 1 }
      end, "'on_nan'" },
      ["an unknown policy"] = { function()
        MuonAdamW { { kind = "muon", params = { w }, lr = 0 }, on_nonfinite = "ignore" }
      end, "'ignore'", "'skip'" },
      ["blocks that do not divide"] = { muon { blocks = 3 }, "blocks = 3", "4 rows", "weight" },
      ["blocks that do not add up"] = { muon { blocks = { 1, 2 } }, "{1, 2}", "3", "4 rows" },
      ["more steps than coefficients"] = { muon { ns_steps = 6 }, "ns_steps = 6", "5" },
    } do
      it("refuse " .. what, function() says(refusal(case[1]), unpack(case, 2)) end)
    end

    it("refuse a parameter in two groups, naming both", function()
      local groups = { { kind = "adamw", params = { w }, lr = 1 }, { kind = "muon", params = { w }, lr = 1 } }
      says(refusal(MuonAdamW, groups), "weight", "group 1 (adamw)", "group 2 (muon)")
    end)

    it("refuse a shared weight given under two names", function()
      local a = parameter("first", 4, 3)
      local b = a:detach():view(4, 3)
      b.is_parameter, b.requires_grad, b.name = true, true, "second"
      says(refusal(MuonAdamW, { { kind = "adamw", params = { a, b }, lr = 1 } }), "first", "second", "same memory")
    end)

    it("refuse numbers out of range, by name and value", function()
      local nan, inf = 0 / 0, 1 / 0
      for name, bad in pairs {
        lr = { -1, nan, inf, "0.1" }, weight_decay = { -0.1, nan, inf }, momentum = { -0.1, 1, nan },
        beta2 = { 1, -1, nan }, ns_steps = { 0, -1, 2.5, 17, nan }, norm_scale = { 0, -1, nan, inf },
        precision = { "f16", 32 },
        nesterov = { 1 }, row_equilibrate = { 1 }, renormalize = { "yes" }, blocks = { 0, 1.5, {} },
        coefficients = { 5, {}, { { 1, 2 } }, { { 1, 2, nan } } },
      } do
        for _, value in ipairs(bad) do says(refusal(muon { [name] = value }), "group 1 (muon)", name .. " = ") end
      end
      for name, bad in pairs {
        betas = { 0.9, { 0.9 }, { 0.9, 1 }, { nan, 0.9 }, { 0.9, 0.9, 0.9 } }, eps = { 0, -1, nan },
      } do
        for _, value in ipairs(bad) do says(refusal(adamw { [name] = value }), "group 1 (adamw)", name .. " = ") end
      end
    end)

    it("leave parameters alone when refused", function()
      local a, b = parameter("a", 4, 3), parameter("b", 4)
      local h = a.h
      refusal(MuonAdamW, { { kind = "muon", params = { a }, lr = 1 }, { kind = "muon", params = { b }, lr = 1 } })
      assert.equal(h, a.h)
    end)

    it("must cover the model, and the missing ones are named", function()
      local p, opt = model()
      local mine = { q = p.q, k = p.k, wte = p.wte, scalars = p.scalars }
      assert.equal(opt, opt:covers(mine))
      mine.lost, mine.gone = parameter("x", 2), parameter("y", 3, 3)
      says(refusal(opt.covers, opt, mine), "2 of the model's parameters", "lost (f32 (2))", "gone (f32 (3, 3))")
      says(refusal(opt.covers, opt, { q = p.q, k = p.k, wte = p.wte }), "not in the model", "scalars")
      local methods = { named_parameters = function() return pairs(mine) end }
      says(refusal(MuonAdamW, { { kind = "muon", params = { p.q, p.k }, lr = 1 }, model = methods }), "wte", "scalars")
    end)
  end)

  describe("hyperparameters", function()
    it("are read at every step, and nothing is rebuilt", function()
      local p, opt = model()
      local q, other = model()
      fill_grads(p, 1)
      fill_grads(q, 1)
      local bank = opt.slots[2].bank
      opt:step()
      other:step()
      for _, g in ipairs(opt.param_groups) do g.lr = 0 end
      local before = values(p)
      opt:step()
      assert.same(before, values(p))
      opt.param_groups[2].lr, opt.param_groups[2].ns_steps, opt.param_groups[2].momentum = 0.5, 2, 0.1
      opt.param_groups[1].betas[1] = 0.5
      opt:step()
      assert.is_not.same(before.q, p.q:tolist())
      assert.equal(bank, opt.slots[2].bank)
    end)

    it("follow a schedule by initial_lr", function()
      local p, opt = model()
      fill_grads(p, 3)
      for step = 1, 3 do
        for _, g in ipairs(opt.param_groups) do g.lr = g.initial_lr * step / 3 end
        opt:step()
      end
      assert.equal(0.2, opt.param_groups[1].initial_lr)
      assert.equal(0.02, opt.param_groups[2].lr)
    end)

    it("out of range stop a step before it changes anything", function()
      for _, change in ipairs {
        { 2, "lr", 0 / 0 }, { 2, "momentum", 1 }, { 1, "betas", { 0.9 } }, { 2, "wieght_decay", 0.1 }, { 1, "eps" },
        { 2, "params", {} }, { 1, "kind", "muon" },
      } do
        local p, opt = model()
        fill_grads(p, 2)
        local before, state = values(p), state_values(opt)
        opt.param_groups[change[1]][change[2]] = change[3]
        says(refusal(opt.step, opt), "group " .. change[1])
        assert.same(before, values(p))
        opt.param_groups[change[1]][change[2]] = nil
        assert.same(state.step, opt.steps)
        for name, t in pairs(opt:state(p.q)) do assert.same(state["q." .. name], t:tolist()) end
      end
    end)
  end)

  describe("a gradient that is not finite", function()
    for _, bad in ipairs { 0 / 0, 1 / 0, -1 / 0 } do
      it(("of %s changes nothing and is named"):format(bad), function()
        for _, case in ipairs {
          { "q", "group 2 (muon)" }, { "k", "group 2 (muon)" }, { "scalars", "group 1 (adamw)" },
        } do
          for _, policy in ipairs { "error", "skip" } do
            local p, opt = model { on_nonfinite = policy }
            fill_grads(p, 4)
            opt:step()
            local before, state = values(p), state_values(opt)
            p[case[1]].grad:narrow(1, 2, 1):fill(bad)
            local ok, done, message = pcall(opt.step, opt)
            if policy == "error" then
              assert.is_false(ok)
              message = done
            else
              assert.is_true(ok)
              assert.is_false(done)
            end
            says(message, p[case[1]].name, case[2], "nothing was changed")
            assert.same(before, values(p))
            assert.same(state, state_values(opt))
            fill_grads(p, 5)
            assert.is_true(opt:step())
          end
        end
      end)
    end

    it("is counted in elements and in parameters", function()
      local p, opt = model { on_nonfinite = "skip" }
      p.q.grad:fill(0 / 0)
      p.k.grad:fill(0 / 0)
      local _, message = opt:step()
      says(message, "24 NaN or Inf among its 24 elements", "1 other parameters")
    end)
  end)

  describe("a gradient that is missing", function()
    it("is named", function()
      for _, name in ipairs { "q", "wte" } do
        local p, opt = model()
        p[name].grad = nil
        says(refusal(opt.step, opt), p[name].name, "no gradient")
      end
    end)
  end)

  describe("state", function()
    it("resumes bit for bit", function()
      local p, opt = model()
      for step = 1, 3 do
        fill_grads(p, step)
        opt:step()
      end
      opt.param_groups[2].momentum = 0.9
      local dict, saved = opt:state_dict(), {}
      for name, t in pairs(p) do saved[name] = t:detach():clone() end
      for step = 4, 6 do
        fill_grads(p, step)
        opt:step()
      end
      local q, other = model()
      for name, t in pairs(q) do t:copy(saved[name]) end
      other:load_state_dict(dict)
      assert.equal(3, other.steps)
      assert.equal(0.9, other.param_groups[2].momentum)
      for step = 4, 6 do
        fill_grads(q, step)
        other:step()
      end
      assert.same(values(p), values(q))
      assert.same(state_values(opt), state_values(other))
    end)

    it("is a copy, or views on request", function()
      local p, opt = model()
      local copy, views = opt:state_dict(), opt:state_dict { views = true }
      fill_grads(p, 1)
      opt:step()
      assert.equal(0, copy.state.q.momentum_buffer:norm():item())
      assert.is_true(views.state.q.momentum_buffer:norm():item() > 0)
      assert.equal(0, copy.step)
    end)

    it("goes through a safetensors file", function()
      local p, opt = model()
      fill_grads(p, 1)
      opt:step()
      local flat, path = {}, os.tmpname()
      local dict = opt:state_dict { views = true }
      for key, entry in pairs(dict.state) do
        for name, t in pairs(entry) do flat[key .. "/" .. name] = t end
      end
      lm.safetensors.save(path, flat)
      local loaded = lm.safetensors.load(path)
      os.remove(path)
      for key, entry in pairs(dict.state) do
        for name in pairs(entry) do entry[name] = loaded[key .. "/" .. name] end
      end
      local _, other = model()
      other:load_state_dict(dict)
      assert.same(state_values(opt), state_values(other))
    end)

    it("is by name and shaped like the parameters", function()
      local p, opt = model()
      local state = opt:state_dict().state
      assert.same({ 6, 4 }, state.q.momentum_buffer:size())
      assert.same({ 6, 1 }, state.q.second_momentum_buffer:size())
      assert.same({ 10, 4 }, state.wte.exp_avg:size())
      assert.same({ 3 }, state.scalars.exp_avg_sq:size())
      assert.is_true(opt:state(p.q).momentum_buffer:shares_storage(opt:state(p.k).momentum_buffer))
    end)

    it("that does not fit is refused whole", function()
      for what, case in pairs {
        ["no table"] = { function() return 5 end, "state_dict" },
        ["a bad step"] = { function(d) d.step = 1.5 return d end, "step = 1.5" },
        ["a group less"] = { function(d) d.param_groups[2] = nil return d end, "1 groups" },
        ["another kind"] = { function(d) d.param_groups[1].kind = "muon" return d end, "kind" },
        ["other names"] = { function(d) d.param_groups[1].params[1] = "x" return d end, "wte", "x" },
        ["a bad number"] = { function(d) d.param_groups[2].momentum = 2 return d end, "momentum = 2" },
        ["a missing parameter"] = { function(d) d.state.kk = nil return d end, "kk" },
        ["a missing moment"] = { function(d) d.state.q.momentum_buffer = nil return d end, "momentum_buffer", "q" },
        ["a wrong shape"] = { function(d) d.state.q.momentum_buffer = lm.zeros(4, 6) return d end, "(4, 6)", "(6, 4)" },
        ["a wrong dtype"] = { function(d)
          d.state.wte.exp_avg = lm.zeros({ 10, 4 }, { dtype = "bf16" })
          return d
        end, "bf16" },
        ["a stranger"] = { function(d) d.state.stranger = {} return d end, "stranger" },
        ["a strange moment"] = { function(d) d.state.q.exp_avg = lm.zeros(1) return d end, "exp_avg" },
        ["other blocks"] = { function(d) d.param_groups[2].blocks = 2 return d end, "blocks" },
      } do
        local p, opt = model()
        fill_grads(p, 7)
        opt:step()
        local before = state_values(opt)
        local _, source = model()
        says(refusal(opt.load_state_dict, opt, case[1](source:state_dict())), unpack(case, 2))
        assert.same(before, state_values(opt), what)
      end
    end)
  end)

  it("is whole when Ctrl-C comes between two groups", function()
    local p, opt = model()
    local q, other = model()
    fill_grads(p, 1)
    fill_grads(q, 1)
    other:step()
    -- The first write raises the flag, as a signal handler would; the rest must still be written.
    local banks = require "lumuon.optim.banks"
    local plain = banks.step
    local calls = 0
    banks.step = function(...)
      plain(...)
      calls = calls + 1
      if calls == 1 then C.lm_interrupt() end
    end
    local ok = pcall(opt.step, opt)
    banks.step = plain
    assert.equal(1, C.lm_interrupted())
    C.lm_interrupt_clear()
    assert.is_true(ok)
    assert.equal(1, opt.steps)
    assert.same(values(q), values(p))
  end)

  it("prints what it holds", function()
    local _, opt = model()
    says(tostring(opt), "group 1 (adamw): 2 parameters", "group 2 (muon): 2 parameters of f32 (6, 4), 48 elements")
  end)

  it("learns: a least-squares problem comes down a hundredfold", function()
    local generator = lm.Generator(11)
    local x, target = lm.randn({ 64, 16 }, { generator = generator }), lm.randn({ 16, 8 }, { generator = generator })
    local y = lm.matmul(x, target)
    local w, b = lm.parameter(lm.zeros(16, 8), "w"), lm.parameter(lm.ones(8), "b")
    local opt = MuonAdamW { { kind = "muon", params = { w }, lr = 0.1 }, { kind = "adamw", params = { b }, lr = 0.1 } }
    local first, last
    for step = 1, 150 do
      for _, g in ipairs(opt.param_groups) do g.lr = g.initial_lr * (1 - step / 151) end
      local loss = (lm.matmul(x, w) + b - y):square():mean()
      opt:zero_grad()
      loss:backward()
      opt:step()
      first, last = first or loss:item(), loss:item()
    end
    assert.is_true(last < first / 100, ("%g -> %g"):format(first, last))
  end)

  it("updates the group first that needs most memory beside it, by the engine's count", function()
    local function group(count, size)
      local params = {}
      for i = 1, count do params[i] = lm.parameter(lm.randn(size, size)) end
      return { kind = "muon", params = params, lr = 0.02, precision = "f32" }
    end
    local threads = C.lm_threads()
    finally(function() C.lm_set_threads(threads) end)
    C.lm_set_threads(2) -- each takes some
    local opt = lm.optim.MuonAdamW { group(16, 64), group(1, 192) } -- the second has fewer numbers
    assert.equal(2, opt.order[1].index)
    assert.is_true(opt.order[1].scratch > opt.order[2].scratch)
  end)
end)
