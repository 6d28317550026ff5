--- Steps that the host does not wait for: what the device counts, and what it does about a NaN.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local devices = require "spec.support.devices"
local assert = require "luassert"

local list = {}

local SHAPES = { wte = { 40, 8 }, head = { 33 }, q = { 8, 24 }, k = { 8, 24 } }

--- Parameters and an optimizer on a device, the same on both.
local function make(where, more)
  local p = {}
  for i, name in ipairs { "wte", "head", "q", "k" } do
    local t = lm.empty(SHAPES[name]):uniform_(-1, 1, lm.Generator(i))
    p[name] = lm.parameter(t:to(where), name)
  end
  local given = {
    { kind = "adamw", params = { p.wte }, lr = 0.1, weight_decay = 0.01 },
    { kind = "adamw", params = { p.head }, lr = 0.02, betas = { 0.9, 0.99 } },
    { kind = "muon", params = { p.q, p.k }, lr = 0.02, weight_decay = 0.01, precision = "f32" },
  }
  for name, value in pairs(more or {}) do given[name] = value end
  return p, lm.optim.MuonAdamW(given)
end

local function fill(p, seed)
  for i, name in ipairs { "wte", "head", "q", "k" } do
    p[name].grad:copy(lm.empty(SHAPES[name]):uniform_(-1, 1, lm.Generator(100 * seed + i)))
  end
end

local function values(p)
  local all = {}
  for _, name in ipairs { "wte", "head", "q", "k" } do all[#all + 1] = p[name]:detach() end
  return unpack(all)
end

--- f(where) on both devices, within rounding.
local function compare(f) devices.compare({ devices.random("f32", {}) }, function(t) return f(t:device()) end, 3e-5) end

list[#list + 1] = { "a skipped step does not count, and the host need not hear of it", function()
  compare(function(where)
    local p, opt = make(where, { on_nonfinite = "skip" })
    for step = 1, 5 do
      fill(p, step)
      if step == 2 or step == 3 then p.q.grad[2][3] = 0 / 0 end
      if step == 3 then p.head.grad[4] = 1 / 0 end
      opt:step()
      if step == 4 and where ~= "cpu" then assert.equal(4, opt.issued) end -- as far as the host knows
    end
    local count, message = opt:skipped()
    assert.equal(2, count)
    local told = where == "cpu" and "" or " had 1 NaN or Inf, and so had 1 other;"
    told = "the gradient of head" .. told
    assert(message:find(told, 1, true), message)
    assert.equal(3, opt.steps)
    fill(p, 6)
    opt:step()
    assert.equal(4, opt.steps)
    return values(p)
  end)
end }

list[#list + 1] = { "an error holds back the steps after it, and none of them counts", function()
  compare(function(where)
    local p, opt = make(where)
    fill(p, 1)
    opt:step()
    p.wte.grad[1][1] = 0 / 0
    if where == "cpu" then
      assert.is_false((pcall(opt.step, opt)))
    else
      opt:step()
      fill(p, 2)
      opt:step()
      local ok, message = pcall(function() return opt.steps end)
      assert.is_false(ok)
      assert(message:find("the gradient of wte has 1 NaN or Inf; nothing was changed", 1, true), message)
      local count, about = opt:skipped()
      assert.equal(2, count)
      assert(about:find("wte", 1, true), about)
    end
    assert.equal(1, opt.steps)
    fill(p, 3)
    opt:step()
    assert.equal(2, opt.steps)
    return values(p)
  end)
end }

list[#list + 1] = { "of two optimizers each has its count, and the error names the one's gradient", function()
  local p, opt = make("cuda")
  local q, other = make("cuda")
  fill(p, 1)
  fill(q, 1)
  p.k.grad[1][1] = 0 / 0
  q.head.grad[1] = 0 / 0
  opt:step()
  other:step() -- held back, whatever it has
  local ok, message = pcall(lm.synchronize, "cuda")
  assert.is_false(ok)
  assert(message:find("the gradient of group 3 (muon) has 1 NaN", 1, true), message)
  assert.same({ 0, 0, 1 }, { opt.steps, other.steps, (opt:skipped()) })
  fill(p, 2)
  opt:step()
  assert.same({ 1, 0 }, { opt.steps, other.steps })
end }

list[#list + 1] = { "state goes on elsewhere with the steps that were made", function()
  local p, opt = make("cuda", { on_nonfinite = "skip" })
  for step = 1, 3 do
    fill(p, step)
    if step == 2 then p.q.grad[1][1] = 0 / 0 end
    opt:step()
  end
  local dict = opt:state_dict()
  assert.equal(2, dict.step)
  local q, other = make("cuda", { on_nonfinite = "skip" })
  for name in pairs(SHAPES) do q[name]:detach():copy(p[name]:detach()) end
  other:load_state_dict(dict)
  assert.equal(2, other.steps)
  for step = 4, 5 do
    fill(p, step)
    fill(q, step)
    opt:step()
    other:step()
  end
  for name in pairs(SHAPES) do assert.equal(0, p[name]:ne(q[name]):sum():item(), name) end
  assert.equal(4, other.steps)
  dict.step = 2 ^ 31
  local ok, message = pcall(other.load_state_dict, other, dict)
  assert.is_false(ok)
  assert(message:find("2147483648 is more than a GPU counts", 1, true), message)
end }

list[#list + 1] = { "a step does not wait for the device", function()
  if not devices.emulated() then return end
  for _, policy in ipairs { "error", "skip" } do
    local p, opt = make("cuda", { on_nonfinite = policy })
    fill(p, 1)
    opt:step() -- the first one may measure
    devices.with_environment("LUMUON_EMULATED_WAIT", "refused", function()
      for _ = 1, 3 do assert.is_true(opt:step()) end
      opt:zero_grad()
    end)
    assert.equal(4, opt.steps)
  end
end }

list[#list + 1] = { "refuses a tally that is none", function()
  local ffi, C = lib.ffi, lib.C
  local t = lm.zeros({ 4 }, { device = "cuda" })
  local one = ffi.new("lm_tensor *[1]", t.h)
  local grads = ffi.cast("const lm_tensor **", one)
  local function refused(tally, ...)
    local args = ffi.new("lm_adamw_args", { lr = 0, eps = 1, step = 1 })
    args.tally = tally.h
    local ok, message = pcall(lib.call, C.lm_adamw_step, 1, one, grads, one, one, args)
    assert.is_false(ok)
    for _, text in ipairs { ... } do assert(message:find(text, 1, true), message) end
  end
  refused(lm.zeros(5, { dtype = "i32" }), "the tally lies on cpu, the tensors on cuda")
  refused(lm.zeros(5, { device = "cuda" }), "the tally", "i32")
  refused(lm.zeros(4, { dtype = "i32", device = "cuda" }), "the tally", "(5)")
  local ok, message = pcall(lib.call, C.lm_guard_gradients, C.LM_CUDA, 0, nil, nil, nil, 7)
  assert.is_false(ok)
  assert(message:find("policy = 7", 1, true), message)
end }

return list
