--- Gradients of every differentiable op against finite differences, and the rules of the tape.
--
-- The loss is a weighted sum of an op's results, taken in double; its derivative by the four-point
-- stencil (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h with h = 1/32, whose own error in f32 is about
-- 6e-8 |f| / h = 2e-6. Bound: |analytic - numeric| <= 1e-4 (1 + |numeric|).
local lm = require "lumuon"
local engine = require "spec.support.engine"
local arrays = require "spec.support.arrays"

local H, BOUND = 1 / 32, 1e-4

--- A parameter with values spread over (low, high), shuffled: far enough apart, and from 0, that the
-- kinks of max, abs and relu are not stepped over. With `snap` they are quarters plus it, so that
-- those of two inputs are apart too.
local function input(shape, seed, low, high, snap)
  local n = engine.count(shape)
  local random, list = engine.random(seed or 1), {}
  for i = 1, n do list[i] = (low or -2) + ((high or 2) - (low or -2)) * (i - 0.5) / n end
  for i = n, 2, -1 do -- shuffled
    local j = math.floor((random() + 1) / 2 * i) + 1
    list[i], list[j] = list[j], list[i]
  end
  for i = 1, snap and n or 0 do list[i] = math.floor(list[i] * 4) / 4 + snap end
  list.shape = shape
  return lm.parameter(arrays.tensor(list))
end

--- f(inputs...) -> tensor; every input is a parameter whose gradient is checked.
local function check(what, f, ...)
  local inputs = { ... }
  local out = f(...)
  local weights = engine.noise(17, out:numel())
  weights.shape = out:size()
  local function loss()
    return lm.no_grad(function() return engine.dot(arrays.of(f(unpack(inputs))), weights) end)
  end
  assert.is_true(out.requires_grad, what .. ": not recorded")
  out:backward(arrays.tensor(weights):to(out:dtype()))
  for k, x in ipairs(inputs) do
    local p, grad = x:pointer(), arrays.of(x.grad)
    for i = 1, x:numel() do
      local keep = p[i - 1]
      local function at(d)
        p[i - 1] = keep + d
        local value = loss()
        p[i - 1] = keep
        return value
      end
      local numeric = (8 * (at(H) - at(-H)) - (at(2 * H) - at(-2 * H))) / (12 * H)
      assert.is_true(math.abs(grad[i] - numeric) <= BOUND * (1 + math.abs(numeric)),
        ("%s: gradient %d of input %d is %.7g, by differences %.7g"):format(what, i, k, grad[i], numeric))
    end
  end
end

describe("the gradient of", function()
  local unary = { neg = {}, abs = {}, square = {}, sqrt = { 0.5, 4 }, rsqrt = { 0.7, 4 }, reciprocal = { 0.7, 4 },
    exp = {}, log = { 0.7, 4 }, sin = {}, cos = {}, tanh = {}, sigmoid = {}, relu = {}, relu2 = {} }
  for name, range in pairs(unary) do
    it(name .. " is right", function()
      check(name, function(x) return x[name](x) end, input({ 3, 4 }, 1, range[1], range[2]))
      check(name .. " of a view", function(x) return x:t()[name](x:t()) end, input({ 2, 4 }, 2, range[1], range[2]))
      check("lm." .. name, function(x) return lm[name](x) end, input({}, 3, range[1], range[2] or 3))
    end)
  end

  for _, name in ipairs { "add", "sub", "mul", "div", "pow", "maximum", "minimum" } do
    it(name .. " is right for both operands, broadcast too, and beside a number", function()
      local low, high = 0.7, 3
      for n, shapes in ipairs { { { 3, 4 }, { 3, 4 } }, { { 3, 4 }, { 4 } }, { { 3, 1 }, { 1, 4 } }, { {}, { 2, 3 } },
        { { 2, 3, 2 }, { 3, 1 } }, { { 1, 4 }, { 2, 1, 4 } } } do
        check(name .. n, function(a, b) return lm[name](a, b) end, input(shapes[1], n, low, high, 0.05),
          input(shapes[2], n + 7, low, high, 0.175))
      end
      check(name .. " number", function(x) return lm[name](x, 1.675) end, input({ 5 }, 1, low, high, 0.05))
      check("number " .. name, function(x) return lm[name](1.675, x) end, input({ 5 }, 1, low, high, 0.05))
      check(name .. " of itself", function(x) return lm[name](x, x:t() * 1.3) end, input({ 3, 3 }, 1, low, high))
      local fixed = lm.full({ 3, 4 }, 1.675)
      check(name .. " constant", function(x) return lm[name](x, fixed) end, input({ 3, 4 }, 2, low, high, 0.05))
      check("constant " .. name, function(x) return lm[name](fixed, x) end, input({ 4 }, 2, low, high, 0.05))
    end)
  end

  for _, name in ipairs { "sum", "mean", "max", "min", "prod", "norm" } do
    it(name .. " is right over any dims", function()
      for n, dims in ipairs { { 1 }, { 2 }, { 1, 3 }, { -1 }, { 1, 2, 3 } } do
        check(name .. n, function(x) return x[name](x, dims) end, input({ 2, 3, 2 }, n, 0.6, 3))
        check(name .. n .. " keepdim", function(x) return x[name](x, dims, true) end, input({ 2, 3, 2 }, n, 0.6, 3))
      end
      check(name .. " of all", function(x) return x[name](x) end, input({ 2, 3 }, 9, 0.6, 3))
      check(name .. " of a transpose", function(x) return x:t()[name](x:t(), 2) end, input({ 3, 2 }, 8, 0.6, 3))
    end)
  end

  it("prod is right where factors are zero", function()
    for _, list in ipairs { { 2, 0, 3, 4 }, { 0, 2, 0, 3 }, { 0, 0, 0, 0 } } do
      list.shape = { 4 }
      check("prod", function(x) return x:prod() end, lm.parameter(arrays.tensor(list)))
    end
    check("prod", function(x) return x:prod(2) end, lm.parameter(lm.tensor { { 1, 0, 2 }, { 3, 4, 5 }, { 0, 0, 1 } }))
  end)

  it("max and min is shared by equals", function()
    local x = lm.parameter(lm.tensor { { 1, 3, 3, 2 }, { 5, 5, 5, 5 } })
    x:max(2):sum():backward()
    assert.same({ { 0, 0.5, 0.5, 0 }, { 0.25, 0.25, 0.25, 0.25 } }, x.grad:tolist())
    x.grad:zero()
    x:min():backward()
    assert.same({ { 1, 0, 0, 0 }, { 0, 0, 0, 0 } }, x.grad:tolist())
  end)

  it("views is right", function()
    local views = {
      narrow = function(x) return x:narrow(2, 2, 2) end,
      ["narrow from the end"] = function(x) return x:narrow(-1, -3, 2) end,
      select = function(x) return x:select(1, 2) end,
      index = function(x) return x[-1] end,
      transpose = function(x) return x:transpose(1, 2) end,
      t = function(x) return x:t() end,
      permute = function(x) return x:unsqueeze(1):permute(3, 1, 2) end,
      ["permute of a table"] = function(x) return x:unsqueeze(1):permute { -1, 1, 2 } end,
      expand = function(x) return x:unsqueeze(2):expand(3, 2, 4) end,
      ["expand in front"] = function(x) return x:expand(2, 3, 4) end,
      squeeze = function(x) return x:narrow(1, 1, 1):squeeze(1) end,
      ["squeeze all"] = function(x) return x:unsqueeze(2):squeeze() end,
      unsqueeze = function(x) return x:unsqueeze(-1) end,
      view = function(x) return x:view(2, 6) end,
      reshape = function(x) return x:t():reshape(2, 6) end,
      flatten = function(x) return x:flatten() end,
      contiguous = function(x) return x:t():contiguous() end,
      ["contiguous already"] = function(x) return x:contiguous() * 1 end,
      clone = function(x) return x:t():clone() end,
      to = function(x) return x:to("f32") * 1 end,
    }
    for name, f in pairs(views) do
      check(name, f, input({ 3, 4 }, 4))
      check(name .. ", then more", function(x) return (f(x) * 2):tanh() end, input({ 3, 4 }, 5))
    end
  end)

  it("cat is right, also of many", function()
    for dim = 1, 2 do
      check("cat", function(a, b) return lm.cat({ a, b, a }, dim):square() end, input({ 2, 2 }, 1), input({ 2, 2 }, 2))
    end
    check("cat of many", function(x)
      local rows = {}
      for i = 1, 9 do rows[i] = x[i] end
      return lm.cat(rows, -1):tanh()
    end, input({ 9, 2 }, 3))
  end)

  it("matmul is right in every form", function()
    local forms = {
      { { 3, 4 }, { 4, 2 } }, { { 2, 3, 4 }, { 2, 4, 2 } }, { { 2, 3, 4 }, { 4, 2 } },
      { { 2, 2, 2, 3 }, { 2, 2, 3, 2 } },
      { { 1, 3 }, { 3, 1 } },
    }
    for n, shapes in ipairs(forms) do
      check("matmul" .. n, function(a, b) return a:matmul(b) end, input(shapes[1], n), input(shapes[2], n + 5))
      check("alpha" .. n, function(a, b) return a:matmul(b, 0.5) end, input(shapes[1], n), input(shapes[2], n + 5))
      local ta, tb = { unpack(shapes[1]) }, { unpack(shapes[2]) }
      ta[#ta], ta[#ta - 1] = ta[#ta - 1], ta[#ta]
      tb[#tb], tb[#tb - 1] = tb[#tb - 1], tb[#tb]
      check("transposed" .. n, function(a, b) return a:t():matmul(b:t()) end, input(ta, n), input(tb, n + 5))
    end
    check("x @ x", function(x) return x:matmul(x:t()) end, input({ 3, 4 }))
  end)

  it("linear is right, with and without a residual", function()
    check("linear", function(x, w) return lm.linear(x, w) end, input({ 2, 3, 4 }, 1), input({ 5, 4 }, 2))
    check("residual", function(x, w, r) return lm.linear(x, w, r) end, input({ 3, 4 }, 1), input({ 2, 4 }, 2),
      input({ 3, 2 }, 3))
    check("twice", function(x, w) return lm.linear(lm.linear(x, w):tanh(), w) end, input({ 3, 4 }, 1),
      input({ 4, 4 }, 2))
  end)

  it("softmax is right", function()
    check("softmax", function(x) return x:softmax() end, input({ 3, 5 }))
    check("softmax of a view", function(x) return x:t():softmax() end, input({ 3, 5 }))
  end)

  it("what a GPT is made of is right", function()
    local nn = lm.nn
    local idx = lm.tensor({ { 1, 0, 2 }, { 2, 2, 0 } }, { dtype = "i32" })
    check("embedding", function(w) return nn.embedding(w, idx) end, input({ 4, 3 }))
    check("rms_norm", function(x) return nn.rms_norm(x) end, input({ 3, 4 }))
    check("rms_norm of a view", function(x) return nn.rms_norm(x:t(), 0.1, 1.5) end, input({ 3, 4 }))
    local cos, sin = nn.rotary_tables(5, 4, 10000)
    check("rotary", function(x) return nn.rotary(x, cos, sin) end, input({ 2, 3, 2, 4 }))
    check("rotary_norm", function(x) return nn.rotary_norm(x, cos, sin, 0.1, 1.2) end, input({ 2, 3, 2, 4 }))
    for _, window in ipairs { -1, 1 } do
      check("attention", function(q, k, v) return nn.attention(q, k, v, window) end, input({ 1, 4, 2, 4 }, 1),
        input({ 1, 4, 1, 4 }, 2), input({ 1, 4, 1, 4 }, 3))
    end
    local targets = lm.tensor({ 1, -1, 3 }, { dtype = "i32" })
    for _, softcap in ipairs { 0, 2 } do
      check("cross_entropy", function(x) return nn.cross_entropy(x, targets, 4, softcap) end, input({ 3, 6 }))
      check("linear_cross_entropy", function(x, w) return nn.linear_cross_entropy(x, w, targets, 4, softcap) * 1.5 end,
        input({ 3, 2 }, 1), input({ 6, 2 }, 2))
    end
    check("scaled_add", function(a, x, b, y) return nn.scaled_add(a, x, b, y) end, input({ 1 }, 1), input({ 3, 4 }, 2),
      input({ 1 }, 3), input({ 3, 4 }, 4))
    check("gated_add", function(x, gate, y) return nn.gated_add(x, gate, y, 2) end, input({ 2, 3, 4 }, 1),
      input({ 2, 3 }, 2), input({ 2, 3, 4 }, 3))
  end)

  it("an op of the user's own is right", function()
    local cube = lm.Function {
      name = "cube",
      forward = function(ctx, x)
        ctx.x = x
        return x * x * x
      end,
      backward = function(ctx, grad) return 3 * grad * ctx.x * ctx.x end,
    }
    check("cube", cube, input({ 3, 4 }))
    check("cube of cube", function(x) return cube(cube(x:t()) * 0.5) end, input({ 2, 2 }, 1, -1, 1))
  end)

  it("a value that is used several times is the sum over its uses", function()
    check("x*x + x", function(x) return x * x + x end, input({ 3 }))
    check("diamond", function(x)
      local a = x:tanh()
      local b, c = a * 2, a:exp()
      return b * c + a - c:sum()
    end, input({ 4 }))
    check("chain of views", function(x)
      local y = x:narrow(1, 1, 2) + x:narrow(1, 2, 2)
      return y * x:sum(1, true) + y[1]
    end, input({ 3, 2 }))
    check("one operand twice", function(x, w) return lm.linear(x, w) * x:matmul(w:t()) + lm.linear(x * x, w) end,
      input({ 2, 3 }, 1), input({ 3, 3 }, 2))
    check("sum and mean of one", function(x)
      local y = x * 2
      return y:sum() * y:mean() + y:max() * y:norm()
    end, input({ 5 }, 1, 0.6, 3))
  end)

  it("has its tensor's dtype on the way back", function()
    local seen
    local watch = lm.Function { name = "watch", forward = function(_, x) return x * 1 end,
      backward = function(_, grad)
        seen = grad:dtype()
        return grad
      end }
    local x = lm.parameter(lm.tensor({ 1, 2, 3 }, { dtype = "bf16" }));
    (watch(x) * lm.tensor { 0.5 }):sum():backward() -- bf16 times f32 is f32
    assert.equal("bf16", seen)
    assert.same({ 0.5, 0.5, 0.5 }, x.grad:tolist())
  end)

  it("bf16 values has their precision", function()
    local x = lm.parameter(lm.tensor({ 1, 2, 3 }, { dtype = "bf16" }))
    local z = x * x * 2
    z:sum():backward()
    assert.equal("bf16", x.grad:dtype())
    assert.same({ 4, 8, 12 }, x.grad:tolist())
    local y = lm.parameter(lm.tensor { 1, 2, 3 })
    y:to("bf16"):square():sum():backward()
    assert.equal("f32", y.grad:dtype())
    assert.same({ 2, 4, 6 }, y.grad:tolist())
  end)
end)

describe("the tape", function()
  it("adds into the gradients of leaves", function()
    local x = lm.parameter(lm.tensor { 1, 2 })
    for i = 1, 3 do
      (x * 2):sum():backward()
      assert.same({ 2 * i, 2 * i }, x.grad:tolist())
    end
    x.grad:zero()
    x:sum():backward()
    assert.same({ 1, 1 }, x.grad:tolist())
    x:backward(lm.tensor { 5, 6 })
    assert.same({ 6, 7 }, x.grad:tolist())
  end)

  it("leaves the gradient it is given to start from alone", function()
    local x, g = lm.parameter(lm.tensor { 1, 2 }), lm.tensor { 3, 4 }
    local y = x + 1
    local z = y + y
    z:backward(g)
    assert.same({ 3, 4 }, g:tolist())
    assert.same({ 6, 8 }, x.grad:tolist())
  end)

  it("records nothing that needs no gradient", function()
    local x, c = lm.parameter(lm.zeros(2)), lm.ones(2)
    assert.is_false((c * 2).requires_grad)
    assert.is_false(lm.no_grad(function() return x * 2 end).requires_grad)
    assert.is_false(x:detach().requires_grad)
    assert.is_true((x * c).requires_grad)
    assert.is_false(x:gt(0).requires_grad)
    assert.is_false(pcall(lm.no_grad, function() error("inside") end))
    assert.is_true((x * 2).requires_grad) -- recording again after the error
    local y = x:detach() * 3 + x
    y:sum():backward()
    assert.same({ 1, 1 }, x.grad:tolist())
    assert.is_nil(c.grad)
  end)

  it("refuses a second walk, a start that is no scalar, and what was not recorded", function()
    local x = lm.parameter(lm.tensor { 1, 2 })
    local y = x * 2
    local loss = y:sum()
    loss:backward()
    arrays.refuses(function() loss:backward() end, "backward", "already walked")
    arrays.refuses(function() (y * 2):sum():backward() end, "already walked")
    arrays.refuses(function() (x * 2):backward() end, "backward", "(2)", "2 elements")
    arrays.refuses(function() (x * 2):backward(lm.zeros(3)) end, "backward", "(2)")
    arrays.refuses(function() lm.zeros(2):sum():backward() end, "backward", "requires a gradient")
    assert.same({ 2, 2 }, x.grad:tolist())
  end)

  it("refuses to change a recorded result in place, but not a leaf or a detached one", function()
    local x = lm.parameter(lm.tensor { 1, 2 })
    local y = x:exp()
    for _, f in ipairs { function() y:add_(1) end, function() y:exp_() end, function() y:zero() end,
      function() y:copy(x) end, function() y:fill(1) end, function() y:axpy_(1, x) end, function() y:uniform_() end } do
      arrays.refuses(f, "recorded result", "detach")
    end
    x:add_(1)
    assert.same({ 2, 3 }, x:tolist())
  end)

  it("tells a user's op what is wrong with it", function()
    local x = lm.parameter(lm.zeros(2, 3))
    local function op(forward, backward)
      return lm.Function { name = "mine", forward = forward, backward = backward }
    end
    arrays.refuses(function() op(function(_, a) return a * 2 end, function() return 1 end)(x):sum():backward() end,
      "mine", "number", "(2, 3)")
    arrays.refuses(function()
      op(function(_, a) return a * 2 end, function() return lm.zeros(3) end)(x):sum():backward()
    end, "mine", "(3)", "(2, 3)")
    arrays.refuses(function() op(function() return 1 end, function() end)(x) end, "mine", "forward", "number")
    arrays.refuses(function() lm.Function { forward = function() end } end, "Function", "backward")
    arrays.refuses(function() lm.Function { forward = print, backward = print, nmae = "x" } end, "nmae")
    arrays.refuses(function()
      op(function(_, a) return a * 2 end, function(_, g) return g end)(x, 2, 3, 4, 5, 6, 7, 8)
    end, "mine", "7")
    -- no gradient for an input is fine
    op(function(_, a, b) return a + b end, function(_, g) return nil, g end)(x, x):sum():backward()
    assert.same({ { 1, 1, 1 }, { 1, 1, 1 } }, x.grad:tolist())
  end)

  it("makes parameters of floats only, with values of their own", function()
    local source = lm.tensor { 1, 2 }
    local p = lm.parameter(source)
    assert.is_false(p:shares_storage(source))
    assert.same({ 0, 0 }, p.grad:tolist())
    arrays.refuses(function() lm.parameter(lm.zeros(2, { dtype = "i32" })) end, "parameter", "i32")
    arrays.refuses(function() lm.parameter(3) end, "parameter", "number")
  end)

  it("tells when nothing more will be added to a leaf's gradient", function()
    local function leaf(name) return lm.parameter(lm.ones(2), name) end
    local a, b, c, unused = leaf "a", leaf "b", leaf "c", leaf "unused"
    local told, expected = {}, { a = 5, b = 3, c = 2 } -- d loss / d leaf
    local loss = (b * 3):sum() -- walked last
    loss = loss + (a * 1):sum()
    loss = loss + (c * a * 2):sum() + (a * 2):sum()
    require("lumuon.autograd").backward(loss, nil, {
      begin = function(uses) assert.is_true(uses[a] and uses[b] and uses[c] and not uses[unused]) end,
      final = function(p)
        told[#told + 1] = p.name
        assert.same({ expected[p.name], expected[p.name] }, p.grad:tolist(), p.name)
      end,
    })
    assert.same({ "c", "a", "b" }, told)
  end)

  it("holds no memory after backward", function()
    local x = lm.parameter(lm.zeros(1000, 1000))
    collectgarbage()
    local before = engine.C.lm_memory_live()
    lm.scope(function()
      local y = x
      for _ = 1, 5 do y = (y * 1.5):tanh() end
      y:sum():backward()
    end)
    assert.equal(before, engine.C.lm_memory_live())
  end)
end)
