--- Tensors: creation, views, reading, printing, and what they refuse.
local lm = require "lumuon"
local engine = require "spec.support.engine"
local arrays = require "spec.support.arrays"

local DTYPES = { "f32", "bf16", "f16", "i32", "u16", "u8" }

--- 111, 112, ... : digits name the 1-based indices.
local function counted(...)
  local sizes = { ... }
  local t = lm.zeros(sizes)
  for d = 1, #sizes do
    local shape = {}
    for e = 1, #sizes do shape[e] = e == d and sizes[d] or 1 end
    t:add_(lm.arange(1, sizes[d]):mul_(10 ^ (#sizes - d)):view(shape))
  end
  return t
end

describe("a tensor is made", function()
  it("of zeros, ones, one value, in every dtype", function()
    for _, dtype in ipairs(DTYPES) do
      local z, o = lm.zeros(2, 3, { dtype = dtype }), lm.ones({ 2, 3 }, { dtype = dtype })
      assert.equal(dtype, z:dtype())
      assert.equal("cpu", z:device())
      assert.same({ 2, 3 }, z:size())
      assert.same({ { 0, 0, 0 }, { 0, 0, 0 } }, z:tolist())
      assert.same({ { 1, 1, 1 }, { 1, 1, 1 } }, o:tolist())
      assert.same({ 7, 7 }, lm.full({ 2 }, 7, { dtype = dtype }):tolist())
    end
    assert.equal("f32", lm.empty(3):dtype())
    assert.same({ { 1, 0 }, { 0, 1 } }, lm.eye(2):tolist())
  end)

  it("without dims, without elements, with up to eight dims", function()
    assert.same({}, lm.zeros():size())
    assert.equal(1, lm.zeros():numel())
    assert.equal(5, lm.full({}, 5):item())
    assert.equal(0, lm.zeros(3, 0, 2):numel())
    assert.same({ {}, {} }, lm.zeros(2, 0):tolist())
    assert.equal(8, lm.zeros(1, 2, 1, 2, 1, 2, 1, 2):dim())
    arrays.refuses(function() lm.zeros(1, 1, 1, 1, 1, 1, 1, 1, 1) end, "9 dims", "8")
  end)

  it("like another", function()
    local x = lm.zeros(2, 3, { dtype = "bf16" })
    assert.equal("bf16", lm.empty_like(x):dtype())
    assert.same({ 2, 3 }, lm.zeros_like(x:t()):t():size())
    assert.equal("i32", lm.zeros_like(x, { dtype = "i32" }):dtype())
  end)

  it("as a range, its end included", function()
    assert.same({ 1, 2, 3, 4, 5 }, lm.arange(1, 5):tolist())
    assert.same({ 0, 0.5, 1 }, lm.arange(0, 1, 0.5):tolist())
    assert.same({ 3, 2, 1 }, lm.arange(3, 1, -1, { dtype = "i32" }):tolist())
    assert.same({}, lm.arange(2, 1):tolist())
    assert.same({ 2, 4 }, lm.arange(2, 5, 2, { dtype = "u8" }):tolist())
    local long = lm.arange(1, 100000)
    for _, i in ipairs { 1, 16384, 16385, 70000, 100000 } do assert.equal(i, long:item(i)) end
    arrays.refuses(function() lm.arange(1, 5, 0) end, "step")
    arrays.refuses(function() lm.arange("1", 5) end, "arange")
  end)

  it("from numbers and nested tables", function()
    for _, dtype in ipairs(DTYPES) do
      local list = { { { 1, 2 }, { 3, 4 }, { 5, 6 } }, { { 7, 8 }, { 9, 10 }, { 11, 12 } } }
      local t = lm.tensor(list, { dtype = dtype })
      assert.same({ 2, 3, 2 }, t:size())
      assert.same(list, t:tolist())
    end
    assert.same({}, lm.tensor(3):size())
    assert.same({ 0 }, lm.tensor({}):size())
    assert.same({ 2, 0 }, lm.tensor({ {}, {} }):size())
    assert.is_true(math.abs(lm.tensor(0.1, { dtype = "bf16" }):item() - 0.1) < 0.0004)
  end)

  it("from nothing that is ragged, no number, or out of its dtype's range", function()
    arrays.refuses(function() lm.tensor { { 1, 2 }, { 3 } } end, "unequal length", "2 and 1")
    arrays.refuses(function() lm.tensor { 1, { 2 } } end, "side by side")
    arrays.refuses(function() lm.tensor { { 1 }, { { 2 } } } end, "tensor:")
    arrays.refuses(function() lm.tensor { { { 1 } }, { 2 } } end, "tensor:")
    arrays.refuses(function() lm.tensor { { {} }, { 2 } } end, "tensor:")
    arrays.refuses(function() lm.tensor { 1, "2" } end, "string")
    arrays.refuses(function() lm.tensor "abc" end, "string")
    arrays.refuses(function() lm.tensor() end, "nil")
    arrays.refuses(function() lm.tensor(lm.zeros(3)) end, "tensor", "clone")
    arrays.refuses(function() lm.tensor({ 1.5 }, { dtype = "i32" }) end, "1.5", "i32")
    arrays.refuses(function() lm.tensor({ 256 }, { dtype = "u8" }) end, "256", "u8", "255")
    arrays.refuses(function() lm.tensor({ -1 }, { dtype = "u16" }) end, "-1", "u16")
    arrays.refuses(function() lm.tensor({ 2 ^ 31 }, { dtype = "i32" }) end, "2147483648", "i32")
    arrays.refuses(function() lm.tensor({ 0 / 0 }, { dtype = "i32" }) end, "nan", "i32")
  end)

  it("of no bad size, dtype, device or option", function()
    for _, bad in ipairs { -1, 2.5, 0 / 0, math.huge, "3" } do
      arrays.refuses(function() lm.zeros(2, bad) end, "zeros", "size", tostring(bad), "dim 2")
    end
    arrays.refuses(function() lm.zeros(2, { dtype = "f64" }) end, "f64", "f32, bf16, f16, i32, u16, u8")
    arrays.refuses(function() lm.zeros(2, { device = "tpu" }) end, "tpu", "cpu")
    arrays.refuses(function() lm.zeros(2, { dtpye = "f32" }) end, "dtpye", "did you mean 'dtype'")
    arrays.refuses(function() lm.full(3, 4) end, "full", "number")
    arrays.refuses(function() lm.full({ 3 }, "x") end, "full", "string")
    arrays.refuses(function() lm.zeros(2 ^ 40, 2 ^ 40) end, "more bytes than can be counted")
  end)
end)

describe("a view", function()
  it("shares memory with what it looks at", function()
    local x = counted(3, 4)
    for _, v in ipairs { x:narrow(1, 2, 1), x:select(2, 3), x:t(), x:view(12), x:unsqueeze(1), x[2],
      x:transpose(1, 2), x:permute(2, 1), x:expand(2, 3, 4), x:detach() } do
      assert.is_true(v:shares_storage(x))
    end
    x[2]:fill(0)
    x:select(2, -1):fill(5)
    assert.same({ { 11, 12, 13, 5 }, { 0, 0, 0, 5 }, { 31, 32, 33, 5 } }, x:tolist())
    assert.is_false(x:clone():shares_storage(x))
  end)

  it("narrows", function()
    local x = counted(4, 5)
    assert.same({ { 23, 24 }, { 33, 34 } }, x:narrow(1, 2, 2):narrow(2, 3, 2):tolist())
    assert.same(x:narrow(1, 3, 2):tolist(), x:narrow(-2, -2, 2):tolist())
    assert.same({ 0, 5 }, x:narrow(1, 5, 0):size())
    arrays.refuses(function() x:narrow(1, 4, 2) end, "narrow", "2 elements from 4", "size 4", "(4, 5)")
    arrays.refuses(function() x:narrow(1, 0, 1) end, "narrow")
    arrays.refuses(function() x:narrow(1, -5, 1) end, "narrow", "-5")
    arrays.refuses(function() x:narrow(1, 1.5, 1) end, "1.5")
    arrays.refuses(function() x:narrow(1, 1, -1) end, "-1")
    arrays.refuses(function() x:narrow(3, 1, 1) end, "dim 3", "1..2")
    arrays.refuses(function() x:narrow(1) end, "narrow", "nil")
  end)

  it("selects, also by x[i]", function()
    local x = counted(2, 3, 4)
    assert.same({ 211, 212, 213, 214 }, x:select(1, 2):select(1, 1):tolist())
    assert.same({ { 113, 123, 133 }, { 213, 223, 233 } }, x:select(3, 3):tolist())
    assert.same({ { 114, 124, 134 }, { 214, 224, 234 } }, x:select(-1, -1):tolist())
    assert.equal(234, x[2][3][4]:item())
    assert.equal(234, x[-1][-1][-1]:item())
    for _, bad in ipairs { 0, 3, -3, 1.5 } do
      arrays.refuses(function() x:select(1, bad) end, "select", tostring(bad), "(2, 3, 4)")
      arrays.refuses(function() local _ = x[bad] end, tostring(bad))
    end
    arrays.refuses(function() x:select(4, 1) end, "dim 4", "1..3")
    arrays.refuses(function() local _ = x[1][1][1][1] end, "select")
    assert.is_nil(x.no_such_method)
  end)

  it("transposes and permutes", function()
    local x = counted(2, 3, 4)
    assert.equal(213, x:transpose(1, 3):item(3, 1, 2))
    assert.same({ 2, 4, 3 }, x:t():size())
    assert.equal(x:item(2, 3, 1), x:permute(3, 1, 2):item(1, 2, 3))
    assert.same({ 4, 2, 3 }, x:permute { -1, 1, 2 }:size())
    arrays.refuses(function() x:permute(1, 2) end, "permute", "(2, 3, 4)")
    arrays.refuses(function() x:permute(1, 2, 2) end, "dim 2 twice")
    arrays.refuses(function() x:permute(1, 2, 4) end, "dim 4")
    arrays.refuses(function() x:transpose(1, 4) end, "dim 4")
    arrays.refuses(function() lm.zeros(3):t() end, "at least 2 dims", "(3)")
  end)

  it("expands", function()
    local x = lm.tensor { { 1 }, { 2 } }
    assert.same({ { 1, 1, 1 }, { 2, 2, 2 } }, x:expand(2, 3):tolist())
    assert.same({ { { 1 }, { 2 } }, { { 1 }, { 2 } } }, x:expand(2, -1, -1):tolist())
    assert.same({ 2, 2, 3 }, x:expand { 2, 2, 3 }:size())
    arrays.refuses(function() x:expand(3, 3) end, "expand", "(2, 1)", "(3, 3)")
    arrays.refuses(function() x:expand(2) end, "expand", "(2, 1)")
    arrays.refuses(function() x:expand(2, -2) end, "expand")
    arrays.refuses(function() x:expand(-1, 2, 1) end, "expand")
  end)

  it("takes another shape", function()
    local x = lm.arange(1, 12)
    assert.same({ { 1, 2, 3, 4 }, { 5, 6, 7, 8 }, { 9, 10, 11, 12 } }, x:view(3, -1):tolist())
    assert.same({ 2, 3, 2 }, x:view({ 2, 3, 2 }):size())
    assert.equal(7, lm.tensor({ { 7 } }):view():item())
    assert.same({ 0, 5 }, lm.zeros(5, 0):view(0, 5):size())
    arrays.refuses(function() x:view(5, -1) end, "view", "12 elements", "(5, -1)")
    arrays.refuses(function() x:view(5, 2) end, "(5, 2)")
    arrays.refuses(function() x:view(-1, -1) end, "view")
    arrays.refuses(function() x:view(2.5, -1) end, "2.5")
    arrays.refuses(function() x:view(3, 4):t():view(12) end, "not contiguous", "reshape")
    assert.same({ 1, 5, 9, 2, 6, 10, 3, 7, 11, 4, 8, 12 }, x:view(3, 4):t():reshape(12):tolist())
    assert.same({ 1, 5, 9, 2, 6, 10, 3, 7, 11, 4, 8, 12 }, x:view(3, 4):t():flatten():tolist())
    assert.same({ 2, 6 }, x:view(2, 3, 2):flatten(2, 3):size())
    assert.same({ 6, 2 }, x:view(2, 3, 2):flatten(1, -2):size())
  end)

  it("squeezes and unsqueezes", function()
    local x = counted(2, 1, 3, 1)
    assert.same({ 2, 3 }, x:squeeze():size())
    assert.same({ 2, 3, 1 }, x:squeeze(2):size())
    assert.same({ 2, 1, 3 }, x:squeeze(-1):size())
    assert.same({ 1, 2, 1, 3, 1 }, x:unsqueeze(1):size())
    assert.same({ 2, 1, 3, 1, 1 }, x:unsqueeze(-1):size())
    assert.same({ 2, 1, 1, 3, 1 }, x:unsqueeze(3):size())
    assert.same(x:tolist(), x:unsqueeze(3):squeeze(3):tolist())
    assert.same({ 1 }, lm.tensor(3):unsqueeze(1):size())
    arrays.refuses(function() x:squeeze(1) end, "squeeze", "dim 1", "(2, 1, 3, 1)")
    arrays.refuses(function() x:unsqueeze(6) end, "dim 6")
  end)

  it("takes any strides that stay inside the storage", function()
    local x = lm.arange(1, 10)
    assert.same({ { 2, 5 }, { 3, 6 }, { 4, 7 } }, x:as_strided({ 3, 2 }, { 1, 3 }, 1):tolist())
    assert.same({ { 1, 2, 3 }, { 2, 3, 4 } }, x:as_strided({ 2, 3 }, { 1, 1 }):tolist())
    arrays.refuses(function() x:as_strided({ 3, 2 }, { 1, 8 }, 0) end, "outside the storage", "(3, 2)")
    arrays.refuses(function() x:as_strided({ 2 }, { 1 }, 9) end, "outside the storage")
    arrays.refuses(function() x:as_strided({ 2 }, { 1 }, -1) end, "outside the storage")
    arrays.refuses(function() x:as_strided({ 2 }, { -1 }, 5) end, "outside the storage")
    arrays.refuses(function() x:as_strided({ 2 ^ 40, 2 ^ 40 }, { 2 ^ 50, 2 ^ 50 }, 0) end, "bytes")
    arrays.refuses(function() x:as_strided({ 2, 2 }, { 1 }) end, "as_strided", "stride")
    arrays.refuses(function() x:as_strided({ 2 }, { 1.5 }) end, "as_strided", "1.5")
    arrays.refuses(function() x:as_strided({ 2 }, { 1 }, "x") end, "as_strided", "offset")
  end)

  it("knows whether it is contiguous", function()
    local x = counted(3, 4)
    assert.is_true(x:is_contiguous())
    assert.is_false(x:t():is_contiguous())
    assert.is_true(x:t():contiguous():is_contiguous())
    assert.is_true(x:narrow(1, 2, 2):is_contiguous())
    assert.is_false(x:narrow(2, 2, 2):is_contiguous())
    assert.equal(x, x:contiguous())
    assert.same({ 4, 1 }, x:stride())
    assert.equal(4, x:t():stride(2))
  end)

  it("refuses dims that are not whole or not there", function()
    local x = lm.zeros(2, 3)
    for _, bad in ipairs { 0, 3, -3, 1.5, "1" } do
      arrays.refuses(function() x:size(bad) end, "size", "dim " .. bad)
      arrays.refuses(function() x:stride(bad) end, "stride", "dim " .. bad)
      arrays.refuses(function() x:transpose(1, bad) end, "transpose", "dim " .. bad)
      arrays.refuses(function() x:squeeze(bad) end, "squeeze", "dim " .. bad)
      arrays.refuses(function() x:flatten(bad) end, "flatten", "dim " .. bad)
    end
    assert.equal(3, x:size(-1))
    assert.equal(2, x:size(-2))
  end)
end)

describe("a tensor is read", function()
  it("element by element, from any layout and dtype", function()
    for _, dtype in ipairs(DTYPES) do
      local a = arrays.make({ 3, 5 }, dtype, function(i) return i end)
      for _, t in pairs(arrays.layouts(a, dtype)) do
        for i = 1, 3 do
          for j = 1, 5 do
            assert.equal(a[(i - 1) * 5 + j], t:item(i, j))
            assert.equal(a[(i - 1) * 5 + j], t:item(i - 4, j - 6))
          end
        end
      end
    end
    assert.equal(7, lm.tensor({ { { 7 } } }):item())
  end)

  it("not at indices that are outside or not whole", function()
    local x = lm.zeros(2, 3)
    for _, bad in ipairs { 0, 4, -4, 1.5, 0 / 0, math.huge, "1" } do
      arrays.refuses(function() x:item(1, bad) end, "item", tostring(bad), "1..3", "dim 2", "(2, 3)")
    end
    arrays.refuses(function() x:item() end, "item", "6 elements")
    arrays.refuses(function() x:item(1) end, "1 indices", "(2, 3)")
    arrays.refuses(function() x:item(1, 1, 1) end, "3 indices")
    local C, ffi = engine.C, engine.ffi
    local index, number = ffi.new("int64_t[2]"), ffi.new("double[1]")
    for _, bad in ipairs { { 2, 0 }, { 0, 3 }, { -1, 0 }, { 0, 2 ^ 62 } } do
      index[0], index[1] = bad[1], bad[2]
      engine.refuses(C.LM_EINDEX, { "(2, 3)" }, C.lm_tensor_get, number, x.h, index)
      engine.refuses(C.LM_EINDEX, { "(2, 3)" }, C.lm_tensor_set, x.h, index, 1)
    end
  end)

  it("whole, as nested tables", function()
    assert.equal(3, lm.tensor(3):tolist())
    assert.same({ { 11, 21 }, { 12, 22 }, { 13, 23 } }, counted(2, 3):t():tolist())
  end)

  it("through a pointer, if contiguous", function()
    local x = lm.arange(1, 3)
    x:pointer()[1] = 9
    assert.same({ 1, 9, 3 }, x:tolist())
    arrays.refuses(function() lm.zeros(2, 3):t():pointer() end, "pointer", "contiguous", "(3, 2)")
    arrays.refuses(function() lm.zeros(2, { dtype = "bf16" }):pointer() end, "pointer", "bf16")
  end)

  it("in print, with shape, dtype, device and values", function()
    assert.equal("tensor f32 () cpu 2.5000", tostring(lm.tensor(2.5)))
    local small = lm.tensor({ { 1, 2 }, { 3, 4 } }, { dtype = "i32" })
    assert.equal("tensor i32 (2, 2) cpu\n  [1, 2]\n  [3, 4]", tostring(small))
    assert.equal("tensor f32 (0) cpu []", tostring(lm.zeros(0)))
    local long = tostring(lm.arange(1, 100))
    assert.is_truthy(long:find("f32 (100) cpu", 1, true) and long:find("[  1,   2,   3, ...,  98,  99, 100]", 1, true))
    local big = tostring(lm.zeros(1000, 1000))
    assert.is_true(#big < 500)
    assert.is_truthy(tostring(lm.tensor { 1e-8, 1 }):find("e-08", 1, true))
    assert.is_truthy(tostring(lm.tensor { 1, 0 / 0, 1 / 0 }):find("inf", 1, true))
    assert.is_truthy(tostring(lm.parameter(lm.zeros(2))):find("requires_grad", 1, true))
    assert.is_truthy(tostring(lm.zeros(2, 3, 4)):find("f32 (2, 3, 4)", 1, true))
  end)
end)

describe("a tensor is joined", function()
  it("with others along a dim", function()
    local a, b = counted(2, 2), counted(1, 2)
    assert.same({ { 11, 12 }, { 21, 22 }, { 11, 12 } }, lm.cat({ a, b }):tolist())
    assert.same({ { 11, 12, 11, 21 }, { 21, 22, 12, 22 } }, lm.cat({ a, a:t() }, -1):tolist())
    local many = {}
    for i = 1, 20 do many[i] = lm.tensor { i } end
    assert.same(lm.arange(1, 20):tolist(), lm.cat(many):tolist())
    arrays.refuses(function() lm.cat({ a, lm.zeros(2, 3) }) end, "cat", "(2, 3)", "(2, 2)")
    arrays.refuses(function() lm.cat({ a, lm.zeros(2) }) end, "cat", "(2)", "(2, 2)")
    arrays.refuses(function() lm.cat({ a, a }, 3) end, "dim 3")
    arrays.refuses(function() lm.cat({}) end, "cat", "no tensors")
    arrays.refuses(function() lm.cat({ a, 1 }) end, "cat", "number")
    arrays.refuses(function() lm.cat(a, a) end, "cat", "table")
  end)
end)

describe("a freed tensor", function()
  it("is refused by every op, and free() again is fine", function()
    local x, y = lm.zeros(2, 2), lm.ones(2, 2)
    x:free()
    x:free()
    assert.equal("tensor (freed)", tostring(x))
    local ops = { "add", "sub", "mul", "div", "pow", "maximum", "minimum", "eq", "lt", "matmul", "copy" }
    for _, name in ipairs(ops) do
      arrays.refuses(function() x[name](x, y) end, name, "freed")
      arrays.refuses(function() y[name](y, x) end, name, "freed")
    end
    for _, name in ipairs { "neg", "exp", "tanh", "sum", "mean", "max", "norm", "size", "dim", "numel", "dtype",
      "device", "t", "clone", "contiguous", "item", "tolist", "argmax", "count_nonfinite", "svdvals", "exp_",
      "zero", "uniform_", "normal_", "stride", "is_contiguous", "reshape", "squeeze", "flatten", "detach",
      "softmax", "pointer", "backward" } do
      assert.has_error(function() x[name](x, 1) end, nil, name)
      arrays.refuses(function() x[name](x, 1) end, "freed")
    end
    for name, arguments in pairs { fill = { 1 }, add_ = { 1 }, axpy_ = { 1, y }, narrow = { 1, 1, 1 },
      select = { 1, 1 }, transpose = { 1, 2 }, permute = { 1, 2 }, expand = { 2, 2 }, view = { 4 },
      as_strided = { { 1 }, { 1 }, 0 }, to = { "bf16" }, unsqueeze = { 1 } } do
      arrays.refuses(function() x[name](x, unpack(arguments)) end, "freed")
    end
    arrays.refuses(function() y:axpy_(1, x) end, "axpy_", "freed")
    arrays.refuses(function() lm.zeros_like(x) end, "freed")
    arrays.refuses(function() lm.cat { y, x } end, "freed")
    arrays.refuses(function() lm.parameter(x) end, "freed")
    arrays.refuses(function() local _ = x[1] end, "freed")
    arrays.refuses(function() y:shares_storage(x) end, "freed")
    assert.same({ { 1, 1 }, { 1, 1 } }, y:tolist())
  end)

  it("leaves its views alive", function()
    local x = lm.arange(1, 4)
    local v = x:narrow(1, 2, 2)
    x:free()
    assert.same({ 2, 3 }, v:tolist())
  end)
end)

describe("assignment to an index", function()
  it("fills, or copies into, that part", function()
    local x = lm.zeros(2, 3)
    x[1] = 5
    x[-1] = lm.arange(1, 3)
    assert.same({ { 5, 5, 5 }, { 1, 2, 3 } }, x:tolist())
    assert.equal("f32 (3)", x[1]:describe())
    x[2][3] = 7
    assert.equal(7, x:item(2, 3))
  end)
  it("refuses other indices and values, and changes nothing", function()
    local x = lm.zeros(2, 3)
    arrays.refuses(function() x[3] = 1 end, "index 3")
    arrays.refuses(function() x[1.5] = 1 end, "index 1.5")
    arrays.refuses(function() x[1] = "a" end, "got string")
    arrays.refuses(function() x[1] = lm.zeros(2) end, "(2)")
    assert.same({ { 0, 0, 0 }, { 0, 0, 0 } }, x:tolist())
  end)
end)

describe("nested tables", function()
  it("are refused where they go deeper than a tensor", function()
    local circle = {}
    circle[1] = circle
    arrays.refuses(function() lm.tensor(circle) end, "nested deeper than 8")
  end)
end)

describe("set_threads", function()
  it("refuses what is no number of threads", function()
    for _, n in ipairs { "a", 0, 1.5, 1e10, 0 / 0 } do
      arrays.refuses(function() lm.set_threads(n) end, "set_threads")
    end
  end)
end)
