--- A step as one launch: the same bits as without, whatever changes between two steps.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local devices = require "spec.support.devices"
local assert = require "luassert"
local C = lib.C

local list = {}

local NAMES = { "wte", "head", "half", "q", "k", "up" }
local SHAPES = { wte = { 40, 8 }, head = { 33 }, half = { 64 }, q = { 8, 24 }, k = { 8, 24 }, up = { 70, 210 } }

local function make(graph, more)
  local p = {}
  for i, name in ipairs(NAMES) do
    local t = lm.empty(SHAPES[name]):uniform_(-1, 1, lm.Generator(i))
    p[name] = lm.parameter(t:to("cuda"):to(name == "half" and "bf16" or "f32"), name)
  end
  local given = { graph = graph,
    { kind = "adamw", params = { p.wte, p.half }, lr = 0.1, weight_decay = 0.01 },
    { kind = "adamw", params = { p.head }, lr = 0.02, betas = { 0.9, 0.99 } },
    { kind = "muon", params = { p.q, p.k }, lr = 0.02, weight_decay = 0.01, precision = "f32" },
    { kind = "muon", params = { p.up }, lr = 0.02, precision = "bf16" },
  }
  for name, value in pairs(more or {}) do given[name] = value end
  return p, lm.optim.MuonAdamW(given)
end

local function fill(p, seed)
  for i, name in ipairs(NAMES) do
    p[name].grad:copy(lm.empty(SHAPES[name]):uniform_(-1, 1, lm.Generator(100 * seed + i)))
  end
end

--- Two optimizers, with a graph and without, stepped alike and compared to the last bit after each step.
-- change(step, p, opt) comes before each; returns the one with a graph.
local function alike(steps, change, more)
  local p, opt = make(true, more)
  local q, plain = make(nil, more)
  for step = 1, steps do
    for _, one in ipairs { { p, opt }, { q, plain } } do
      fill(one[1], step)
      change(step, one[1], one[2])
      assert.is_true(one[2]:step())
    end
    for _, name in ipairs(NAMES) do
      assert(p[name]:ne(q[name]):sum():item() == 0, ("step %d: %s differs"):format(step, name))
      for entry, t in pairs(opt:state(p[name])) do
        assert(t:ne(plain:state(q[name])[entry]):sum():item() == 0, ("step %d: %s of %s"):format(step, entry, name))
      end
    end
  end
  assert.equal(plain.steps, opt.steps)
  return opt, p
end

list[#list + 1] = { "has the bits of ten steps with changing hyperparameters, from one capture", function()
  local opt = alike(10, function(step, _, o)
    local groups = o.param_groups
    for _, g in ipairs(groups) do g.lr = g.initial_lr * (1 - step / 20) end
    groups[1].weight_decay, groups[1].betas, groups[1].eps = 0.01 * step, { 0.8 + 0.01 * step, 0.95 }, 1e-10 * step
    groups[3].momentum, groups[3].weight_decay, groups[3].beta2 = 0.85 + 0.01 * step, 0.1 / step, 0.9 + 0.005 * step
    groups[4].nesterov = step % 2 == 0
  end)
  assert.same({ plain = 1, captures = 1, launches = 9 }, opt:graph_counts())
  local _, without = make()
  assert.is_nil(without:graph_counts())
end }

list[#list + 1] = { "is captured again where more than numbers has changed", function()
  local before
  local opt = alike(10, function(step, p, o)
    if step == 4 then o.param_groups[3].ns_steps = 3 end
    if step == 7 then -- a gradient elsewhere
      before = p.head.grad -- kept: its memory is not given out again
      p.head.grad = before:clone()
    end
  end)
  assert(before)
  assert.same({ plain = 3, captures = 3, launches = 7 }, opt:graph_counts())
end }

list[#list + 1] = { "follows the form that Muon takes", function()
  local opt = alike(6, function(step)
    lib.call(C.lm_set_muon_path, step <= 3 and C.LM_MUON_AUTO or C.LM_MUON_WRITTEN)
  end)
  lib.call(C.lm_set_muon_path, C.LM_MUON_AUTO)
  assert.same({ plain = 2, captures = 2, launches = 4 }, opt:graph_counts())
end }

list[#list + 1] = { "does nothing on a NaN, within the graph, and goes on", function()
  for _, policy in ipairs { "skip", "error" } do
    local function run(graph)
      local p, opt = make(graph, { on_nonfinite = policy })
      for step = 1, 7 do
        fill(p, step)
        if step == 4 then p.k.grad[2][3] = 0 / 0 end
        assert.is_true(opt:step())
        if policy == "error" and step == 5 then
          local ok, message = pcall(function() return opt.steps end)
          assert.is_false(ok)
          assert(message:find("the gradient of group 3 (muon) has 1 NaN or Inf; nothing was changed", 1, true), message)
        end
      end
      assert.same(policy == "skip" and { 6, 1 } or { 5, 2 }, { opt.steps, (opt:skipped()) })
      return p, opt
    end
    local p, opt = run(true)
    local q = run()
    for _, name in ipairs(NAMES) do assert.equal(0, p[name]:ne(q[name]):sum():item(), name) end
    assert.same({ plain = 1, captures = 1, launches = 6 }, opt:graph_counts())
  end
end }

list[#list + 1] = { "waits for nothing, and leaves the garbage collector alone", function()
  if not devices.emulated() then return end
  local p, opt = make(true)
  fill(p, 1)
  opt:step() -- the first one may measure
  lib.collect() -- the end of an old graph waits
  devices.with_environment("LUMUON_EMULATED_WAIT", "refused", function()
    for _ = 1, 5 do
      for _ = 1, 20 do lm.zeros({ 10 }, { device = "cuda" }) end -- garbage
      assert.is_true(opt:step())
      lib.collect()
    end
  end)
  assert.equal(6, opt.steps)
end }

list[#list + 1] = { "frees tensors while a step is captured", function()
  local p, opt = make(true)
  fill(p, 1)
  opt:step()
  local graph, begun, again = opt.graph, opt.runs, opt.again
  lib.call(C.lm_graph_begin, graph, begun)
  assert.equal(0, begun[0])
  lm.zeros({ 10 }, { device = "cpu" }):free()
  local t = lm.empty({ 10 }, { device = "cuda" })
  t:free()
  local ok, message = pcall(lm.synchronize, "cuda")
  assert.is_false(ok)
  assert(message:find("cannot be part of a step that is captured", 1, true), message)
  lib.call(C.lm_graph_end, graph, again)
  assert.equal(1, again[0]) -- not the step that was rehearsed
  assert.is_true(opt:step())
  assert.is_true(opt:step())
  assert.same({ plain = 2, captures = 1, launches = 1 }, opt:graph_counts())
end }

list[#list + 1] = { "an error while a step is handed over changes nothing", function()
  local p, opt = make(true)
  for step = 1, 3 do
    fill(p, step)
    opt:step()
    local before = {}
    for _, name in ipairs(NAMES) do before[name] = p[name]:detach():to("cpu") end
    if step < 3 then -- before the capture, and before a launch
      C.lm_interrupt()
      local ok = pcall(opt.step, opt)
      C.lm_interrupt_clear()
      assert.is_false(ok)
    end
    for _, name in ipairs(NAMES) do assert.equal(0, p[name]:detach():to("cpu"):ne(before[name]):sum():item(), name) end
    assert.equal(step, opt.steps)
  end
end }

list[#list + 1] = { "keeps its scratch memory until it is freed", function()
  local p, opt = make(true)
  fill(p, 1)
  lib.collect()
  opt:step()
  opt:step()
  local x = lm.optim.polar_express(lm.ones({ 2, 30, 40 }, { device = "cuda" })) -- others' scratch lies elsewhere
  opt:step()
  assert(x:sum():item() > 0)
  local again = { make(true) }
  fill(again[1], 1)
  again[2]:step()
  again[2]:step()
  p, opt = nil, nil -- luacheck: ignore
  lib.collect()
  again[2]:step()
  assert.equal(3, again[2].steps)
end }

list[#list + 1] = { "is refused on the CPU, over ranks, and as what it is not", function()
  local function refused(given, ...)
    local ok, message = pcall(lm.optim.MuonAdamW, given)
    assert.is_false(ok)
    for _, text in ipairs { ... } do assert(message:find(text, 1, true), message) end
  end
  local function group(where)
    return { kind = "adamw", lr = 1, params = { lm.parameter(lm.ones({ 3 }, where), "bias") } }
  end
  refused({ group {}, graph = true }, "graph = true needs all parameters on a GPU", "bias lies on the CPU")
  refused({ group { device = "cuda" }, graph = true, shard = true }, "graph = true is for one process")
  refused({ group { device = "cuda" }, graph = "yes" }, "graph = yes is neither true nor false")
  refused({ group {}, grahp = true }, "did you mean 'graph'")
  local out = lib.ffi.new("lm_graph *[1]")
  assert.equal(C.LM_ENOTSUP, C.lm_graph_new(out, C.LM_CPU))
  assert.equal(C.LM_EINVAL, C.lm_graph_end(nil, nil))
end }

return list
