--- Misuse found by throwing junk at every op: each case is told at the user's line, or does what it says.
local lm = require "lumuon"
local ffi = require "ffi"
local arrays = require "spec.support.arrays"
local refuses = arrays.refuses

describe("a NaN with bits of a file's choosing", function()
  it("reaches Lua as a number", function()
    local x = lm.empty(17)
    local bits = ffi.cast("uint32_t *", x:pointer())
    for i = 0, 15 do bits[i] = 0xff800001 + i * 0x00080000 end
    bits[16] = 0xffffffff
    local list = x:tolist()
    for i = 1, 17 do
      assert.equal("number", type(x:item(i)))
      assert.equal("number", type(list[i]))
      assert.is_true(x:item(i) ~= x:item(i) and list[i] ~= list[i])
    end
    assert.truthy(tostring(x):find("nan", 1, true))
    for _, dtype in ipairs { "bf16", "f16" } do
      local narrow = x:to(dtype)
      for i = 1, 17 do assert.equal("number", type(narrow:item(i))) end
      assert.equal("number", type(narrow:tolist()[17]))
    end
  end)
end)

describe("a token", function()
  it("outside the vocabulary is refused where the table is padded, too", function()
    local model = lm.models.gpt.GPT { n_layer = 2, n_head = 2, n_embd = 32, sequence_len = 8, vocab_size = 45 }
    local function tokens(...) return lm.tensor({ { ... } }, { dtype = "i32" }) end
    refuses(function() local _ = model:forward(tokens(1, 45, 2)) end, "index 45", "vocabulary of 45")
    refuses(function() local _ = model:forward(tokens(1, 63, 2), tokens(1, 2, 3)) end, "index 63")
    refuses(function() local _ = model:forward(tokens(1, 2, 3), tokens(1, 2, 45)) end, "target 45")
    refuses(function() local _ = model:generate({ 50 }, 1) end, "index 50")
    model:forward(tokens(44, 0, 1), tokens(0, 1, 44)):backward()
    assert.equal(0, model.wte.grad:narrow(1, 46, 19):abs():sum():item())
  end)
end)

describe("GPT", function()
  it("names an option of another type", function()
    local function make(name, value)
      return function()
        lm.models.gpt.GPT { n_layer = 2, n_head = 2, n_embd = 32, sequence_len = 8, vocab_size = 45, [name] = value }
      end
    end
    refuses(make("short_window", 5), "short_window must be a function")
    refuses(make("smear", 1), "smear must be a boolean")
    refuses(make("qk_scale", "x"), "qk_scale must be a number")
    refuses(make("ve_gate_channels", 2.5), "ve_gate_channels")
  end)
end)

describe("a coroutine", function()
  it("cannot yield inside a scope or lm.no_grad, which would take other code's tensors along", function()
    for _, name in ipairs { "scope", "no_grad" } do
      local resume = coroutine.wrap(function()
        lm[name](function() coroutine.yield(1) end)
      end)
      refuses(resume, name, "cannot yield")
      assert.equal(2, lm.ones(2):sum():item())
      assert.is_true((lm.parameter(lm.ones(1)) * 2).requires_grad)
    end
  end)

  it("can use both, with their results and errors", function()
    local function numbers()
      for i = 1, 3 do
        local a, b, c = lm.scope(function(x) return lm.full({ 2 }, x), nil, "c" end, i)
        assert.equal("c", c)
        assert.is_nil(b)
        coroutine.yield(a)
      end
      error("the end", 0)
    end
    local resume = coroutine.wrap(function() return lm.no_grad(function() return 1 end), numbers() end)
    local seen = 0
    for i = 1, 3 do seen = seen + resume():sum():item() / i end
    assert.equal(6, seen)
    local ok, message = pcall(resume)
    assert.is_false(ok)
    assert.equal("the end", message)
  end)
end)

describe("lm.scope", function()
  it("frees a tensor that only a scope inside it returned", function()
    local x
    lm.scope(function()
      x = lm.zeros(4)
      lm.scope(function() return x end)
    end)
    assert.is_nil(x.h)
  end)
end)

describe("x[i] = value", function()
  it("fills or copies into the slice", function()
    local x = lm.zeros(2, 2)
    x[1] = 3
    x[2][1] = lm.tensor(4)
    x[-1][2] = 5
    assert.same({ { 3, 3 }, { 4, 5 } }, x:tolist())
    refuses(function() x[3] = 1 end, "index 3")
    local y = lm.parameter(x) * 2
    refuses(function() y[1] = 1 end, "recorded result")
  end)
end)

describe("gradients", function()
  it("are not lost in as_strided without a word", function()
    local p = lm.parameter(lm.ones(4))
    refuses(function() local _ = p:as_strided({ 2 }, { 2 }) end, "as_strided", "gradient")
    assert.same({ 1, 1 }, p:detach():as_strided({ 2 }, { 2 }):tolist())
    assert.same({ 1, 1 }, lm.no_grad(function() return p:as_strided({ 2 }, { 2 }) end):tolist())
  end)

  it("of a cross-entropy never overwrite a parameter", function()
    local p = lm.parameter(lm.randn(2, 4))
    local before = p:tolist()
    lm.nn.cross_entropy(p, lm.tensor({ 0, 1 }, { dtype = "i32" }), nil, nil, true):backward()
    assert.same(before, p:tolist())
    assert.is_true(p.grad:norm():item() > 0)
  end)

  it("of powers at 0 are finite", function()
    local p = lm.parameter(lm.zeros(2));
    (p ^ 0 + p ^ 2 + p ^ 1):sum():backward()
    assert.same({ 1, 1 }, p.grad:tolist())
    local q = lm.parameter(lm.tensor { 2, 3 });
    (lm.tensor { 0, 1 } ^ q + 0 ^ q):sum():backward()
    assert.same({ 0, 0 }, q.grad:tolist())
  end)

  it("are not added again by a second backward after one that failed", function()
    local p = lm.parameter(lm.ones(2))
    local fail = lm.Function { name = "fail", forward = function(_, a, b) return a + b end,
      backward = function(_, g) return g, lm.ones(5) end }
    local y = (fail(p * 2, p * 3))
    refuses(function() y:backward(lm.ones(2)) end, "fail", "f32 (5)")
    refuses(function() y:backward(lm.ones(2)) end, "already walked")
    assert.same({ 0, 0 }, p.grad:tolist())
  end)
end)

describe("an argument that is no number, table or function", function()
  it("is named", function()
    local x = lm.ones(2, 2)
    for text, f in pairs {
      ["scope: expected a function"] = function() lm.scope(5) end,
      ["no_grad: expected a function"] = function() lm.no_grad(x) end,
      ["eye: size nil"] = function() lm.eye() end,
      ["empty_like: options"] = function() lm.empty_like(x, 3) end,
      ["sum: dims"] = function() local _ = x:sum(true) end,
      ["expand"] = function() local _ = x:expand(2, {}) end,
      ["as_strided: strides"] = function() local _ = x:as_strided({ 2 }, 1) end,
      ["as_strided: sizes"] = function() local _ = x:as_strided(2, { 1 }) end,
      ["matmul: alpha"] = function() local _ = x:matmul(x, "2") end,
      ["linear: expected a tensor"] = function() lm.nn.linear(nil, x) end,
      ["rms_norm: eps"] = function() lm.nn.rms_norm(x, "small") end,
      ["rms_norm: scale"] = function() lm.nn.rms_norm(x, 1, x) end,
      ["rotary_tables: head_dim"] = function() lm.nn.rotary_tables(4, nil, 100) end,
      ["rotary_tables: base"] = function() lm.nn.rotary_tables(4, 4) end,
      ["attention: window"] = function()
        local q = lm.ones(1, 2, 1, 4)
        lm.nn.attention(q, q, q, 1.5)
      end,
      ["cross_entropy: vocab_size"] = function()
        lm.nn.cross_entropy(x, lm.zeros({ 2 }, { dtype = "i32" }), 1.5)
      end,
      ["gated_add: scale"] = function() lm.nn.gated_add(x, lm.ones(2), x, {}) end,
      ["polar_express: options"] = function() lm.optim.polar_express(x, 5) end,
    } do refuses(f, text) end
  end)
end)

describe("the optimizer", function()
  local function two()
    local p, q = lm.parameter(lm.ones(4), "p"), lm.parameter(lm.eye(4), "q")
    p.grad:fill(1)
    q.grad:fill(1)
    return p, q, function(adamw)
      adamw = adamw or {}
      adamw.kind, adamw.params, adamw.lr = "adamw", { p }, adamw.lr or 0.1
      return lm.optim.MuonAdamW { { kind = "muon", params = { q }, lr = 0.1 }, adamw }
    end
  end

  it("refuses numbers that f32 makes infinite or zero", function()
    local _, _, make = two()
    refuses(function() make { lr = 1e39 } end, "lr = 1e+39")
    refuses(function() make { eps = 1e-60 } end, "eps = 1e-60")
    refuses(function() make { weight_decay = 1e300 } end, "weight_decay")
  end)

  it("has changed no group when another's gradient does not fit", function()
    local p, q, make = two()
    local opt = make()
    for _, grad in ipairs { lm.ones(1), lm.ones({ 4 }, { dtype = "i32" }), lm.ones(8):as_strided({ 4 }, { 2 }) } do
      p.grad = grad
      refuses(function() opt:step() end, "gradient of p")
      assert.same(lm.eye(4):tolist(), q:tolist())
    end
    assert.equal(0, opt:state_dict().step)
  end)

  it("refuses lists with a hole, behind which parameters would be left out", function()
    local p, q = lm.parameter(lm.ones(2)), lm.parameter(lm.ones(2))
    local function make(params, more)
      lm.optim.MuonAdamW { { kind = "adamw", params = params, lr = 1 }, [3] = more }
    end
    refuses(function() make { p, nil, q } end, "entry 2 is nil")
    refuses(function() make { nil, p } end, "entry 1 is nil")
    refuses(function() make { p, other = q } end, "'other'")
    refuses(function() make({ p }, { kind = "adamw", params = { q }, lr = 1 }) end, "nothing at 2")
  end)

  it("refuses blocks that change after it was made", function()
    local _, q, make = two()
    local opt = make()
    opt.param_groups[1].blocks = 2
    refuses(function() opt:step() end, "blocks cannot change")
    assert.same(lm.eye(4):tolist(), q:tolist())
  end)

  it("keeps its moments whatever a user does to the table of them", function()
    local p, q, make = two()
    local opt = make()
    opt:state(p).exp_avg = lm.zeros(4)
    collectgarbage()
    opt:step()
    assert.is_true(opt:state(p).exp_avg:item(1) ~= 0)
    local before = q:tolist()
    opt:state(p).exp_avg_sq:free()
    refuses(function() opt:step() end, "exp_avg_sq of p was freed")
    assert.same(before, q:tolist())
  end)
end)
