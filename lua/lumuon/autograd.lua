--- Reverse-mode automatic differentiation, as a tape of Lua tables.
--
-- An op is a forward and a backward over engine calls. When an input requires a gradient, calling the
-- op makes a node: the op, its inputs, and what its forward saved. `loss:backward()` walks the nodes
-- from the newest to the oldest, hands each the gradient of its result, and adds what it returns to
-- its inputs: for a leaf (lm.parameter), straight into leaf.grad.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local raw = require "lumuon.raw"
require "lumuon.views"
local C, call, raise, is_tensor, T = lib.C, lib.call, lib.raise, lib.is_tensor, lib.methods
local table_clear = require "table.clear"

local autograd = {}

local enabled = true -- false inside lm.no_grad and inside forwards and backwards
local newest = 0 -- nodes are numbered in the order they are made

local function restore(before, ok, ...)
  enabled = before
  if not ok then error((...), 0) end
  return ...
end

local function without_grad(f, ...)
  local before = enabled
  enabled = false
  return restore(before, pcall(f, ...))
end

--- Run f(...) without recording for gradients.
function autograd.no_grad(f, ...)
  if type(f) ~= "function" then raise("no_grad: expected a function, got %s", type(f)) end
  if coroutine.running() then return lib.unyielding("no_grad", without_grad, f, ...) end
  return without_grad(f, ...)
end

--- Whether ops are being recorded.
function autograd.is_grad_enabled() return enabled end

local function wants_grad(x) return type(x) == "table" and x.requires_grad == true end

local function record(def, node, out)
  newest = newest + 1
  node.id = newest
  node.def = def
  out.requires_grad = true
  out.node = node
  return out
end

--- For the library's own ops, whose forwards use engine calls only. Returns the op as a function of up
-- to seven arguments; forward(node, ...) saves what backward needs in node (nil if nothing is
-- recorded); backward(node, grad) returns a gradient, or nil, for each argument in order. node[i] is
-- argument i.
--
-- What backward returns is `grad` itself or new memory that nobody else holds, so that later
-- contributions can be added into it; an op whose backward returns views of grad says `views`.
function autograd.define(name, forward, backward, views)
  local def = { name = name, backward = backward, own = true, fresh = not views }
  return function(a, b, c, d, e, f, g)
    if not (enabled and (wants_grad(a) or wants_grad(b) or wants_grad(c) or wants_grad(d)
        or wants_grad(e) or wants_grad(f) or wants_grad(g))) then
      return forward(nil, a, b, c, d, e, f, g)
    end
    -- fields that are set later are there from the start, so that the table does not grow
    local node = { a, b, c, d, e, f, g, id = 0, def = def, grad = false, owned = false, done = false, y = nil,
      out = nil }
    local out = forward(node, a, b, c, d, e, f, g)
    if out == a then return a end -- nothing to do: x:contiguous() of a contiguous x
    return record(def, node, out)
  end
end

--- An op of the user's own:
--
--     local cube = lm.Function{ name = "cube",
--       forward  = function(ctx, x) ctx.x = x; return x * x * x end,
--       backward = function(ctx, grad) return 3 * grad * ctx.x * ctx.x end }
--     local y = cube(x)
--
-- forward(ctx, ...) returns one tensor; backward(ctx, grad) returns a gradient (or nil) for each of
-- forward's arguments, of that argument's shape. ctx.needs[i] tells whether argument i wants one.
-- Without a backward, an op made of other ops needs no Function at all: call them.
function autograd.Function(def)
  if type(def) ~= "table" or type(def.forward) ~= "function" or type(def.backward) ~= "function" then
    raise("Function: expected { name = ..., forward = function, backward = function }")
  end
  for key in pairs(def) do
    if key ~= "name" and key ~= "forward" and key ~= "backward" then
      raise("Function: unknown field '%s' (name, forward, backward)", tostring(key))
    end
  end
  local own = { name = def.name or "Function", backward = def.backward, fresh = false }
  return function(...)
    if select("#", ...) > 7 then raise("%s: %d arguments; an op takes at most 7", own.name, select("#", ...)) end
    local ctx, wanted = { ... }, false
    ctx.needs, ctx.grad = {}, false
    for i = 1, select("#", ...) do
      ctx.needs[i] = wants_grad(ctx[i])
      wanted = wanted or ctx.needs[i]
    end
    local out = autograd.no_grad(def.forward, ctx, ...)
    if not is_tensor(out) then raise("%s: forward must return a tensor, got %s", own.name, type(out)) end
    if not (enabled and wanted) then return out end
    if out.requires_grad then out = out:detach() end -- an input handed back as it is
    return record(own, ctx, out)
  end
end

--- The gradient tensor of a leaf, made of zeros where there is none yet.
local function leaf_grad(leaf)
  if not leaf.grad then
    leaf.grad = lib.outside_scope(tensor.zeros_like, leaf)
  end
  return leaf.grad
end

--- For backwards that can add into memory: the gradient of x gathered so far (of a leaf: its .grad),
-- if there is one and it may be written into; else nil. What was added there is not returned as well.
function autograd.gathered_grad(x)
  if not x.requires_grad then return nil end
  local source = x.node
  if not source then return leaf_grad(x) end
  return source.owned and source.grad or nil
end

local function same_shape(a, b)
  local n = C.lm_tensor_ndim(a.h)
  if n ~= C.lm_tensor_ndim(b.h) then return false end
  for d = 0, n - 1 do
    if C.lm_tensor_size(a.h, d) ~= C.lm_tensor_size(b.h, d) then return false end
  end
  return true
end

-- A gradient on its way is freed once no node holds it, so that the next one can have its memory
-- while that is still in the cache. g.holders counts the nodes that hold g; what a user's backward
-- returned, or gave us to start from, is never freed.
local function hold(g) g.holders = (g.holders or 0) + 1 end

local function release(g)
  g.holders = g.holders - 1
  if g.holders == 0 then g:free() end
end

--- Add g, returned by node's backward for `input`; `grad` is the gradient the backward was given.
local function accumulate(node, grad, input, g)
  if g == nil or not wants_grad(input) then return end
  if not node.def.own then
    if not (is_tensor(g) and g.h ~= nil and same_shape(g, input)) then
      raise("%s: backward returned %s as the gradient of %s", node.def.name,
        is_tensor(g) and g:describe() or type(g), input:describe())
    end
    hold(g)
  end
  local source = input.node
  local fresh = node.def.fresh and g ~= grad
  if source and C.lm_tensor_dtype(g.h) ~= C.lm_tensor_dtype(input.h) then -- bf16 goes on as bf16
    local cast = raw.to(g, input:dtype())
    if g ~= grad and not g.holders then g:free() end
    g, fresh = cast, true
  end
  if source and not source.grad then
    source.grad = g
    source.owned = fresh
    hold(g)
    return
  end
  if not source then
    call(C.lm_axpy, leaf_grad(input).h, 1, g.h)
  elseif source.owned then
    call(C.lm_axpy, source.grad.h, 1, g.h)
  else -- perhaps another node's too: not to be written into
    local sum = raw.add(source.grad, g)
    release(source.grad)
    source.grad, source.owned = sum, true
    hold(sum)
  end
  if g ~= grad and not g.holders then g:free() end
end

local function distribute(node, grad, a, b, c, d, e, f, g)
  accumulate(node, grad, node[1], a)
  if b then accumulate(node, grad, node[2], b) end
  if c then accumulate(node, grad, node[3], c) end
  if d then accumulate(node, grad, node[4], d) end
  if e then accumulate(node, grad, node[5], e) end
  if f then accumulate(node, grad, node[6], f) end
  if g then accumulate(node, grad, node[7], g) end
  if node.def.own then release(grad) end
end

local function newer(a, b) return a.id > b.id end

--- Leaves whose gradients must not be written now -> why, as the end of a sentence: an optimizer that has begun
-- to average them over the ranks puts them here.
autograd.closed = setmetatable({}, { __mode = "k" })

local function check_open(leaf)
  local why = autograd.closed[leaf]
  if why then raise("backward: the gradient of %s %s", leaf.name or leaf:describe(), why) end
end

--- Every node that the result of `last` came from, newest first.
local function collect_nodes(last)
  local nodes, seen, n = { last }, { [last] = true }, 1
  local at = 1
  while at <= n do
    local node = nodes[at]
    if node.done then
      raise("backward: part of this graph was already walked by an earlier backward(); run the forward again")
    end
    for i = 1, 7 do
      local input = node[i]
      local wanted = wants_grad(input)
      local source = wanted and input.node
      if source and not seen[source] then
        seen[source] = true
        n = n + 1
        nodes[n] = source
      elseif wanted and not source then
        check_open(input)
      end
    end
    at = at + 1
  end
  table.sort(nodes, newer)
  return nodes
end

--- leaf -> how many times nodes have it as an input.
local function count_uses(nodes)
  local uses = {}
  for _, node in ipairs(nodes) do
    for i = 1, 7 do
      local input = node[i]
      if wants_grad(input) and not input.node then uses[input] = (uses[input] or 0) + 1 end
    end
  end
  return uses
end

--- node has been walked: tell of the leaves that no other node has as an input.
local function tell_final(node, uses, watcher)
  for i = 1, 7 do
    local input = node[i]
    local left = wants_grad(input) and uses[input]
    if left then
      uses[input] = left - 1
      if left == 1 then watcher.final(input) end
    end
  end
end

local function walk(t, grad, watcher)
  local last = t.node
  if not last then -- a leaf itself
    check_open(t)
    if watcher then watcher.begin { [t] = 1 } end
    call(C.lm_axpy, leaf_grad(t).h, 1, grad.h)
    if watcher then watcher.final(t) end
    return
  end
  local nodes = collect_nodes(last)
  local uses = watcher and count_uses(nodes)
  if watcher then watcher.begin(uses) end
  last.grad = grad
  hold(grad)
  hold(grad) -- the caller's
  for i = 1, #nodes do
    local node = nodes[i]
    local g = node.grad
    node.done = true -- also if its backward fails: what it has added must not be added again
    if g then distribute(node, g, node.def.backward(node, g)) end
    if watcher then tell_final(node, uses, watcher) end
    table_clear(node)
    node.done = true
  end
end

--- t:backward(grad) for one who wants to know when a leaf's gradient is complete: watcher.begin(uses) is called
-- before the walk, with a key for every leaf that t came from; watcher.final(leaf) once for each of them, when
-- nothing more will be added in this walk.
function autograd.backward(t, grad, watcher)
  tensor.live(t, "backward")
  if not t.requires_grad then
    raise("backward: nothing here requires a gradient (made inside lm.no_grad, or of no lm.parameter)")
  end
  if grad == nil then
    if t:numel() ~= 1 then
      raise("backward: %s has %d elements; give the gradient to start from", t:describe(), t:numel())
    end
    grad = tensor.zeros_like(t):fill(1)
  elseif not (is_tensor(grad) and same_shape(grad, t)) then
    raise("backward: the gradient must have the tensor's shape %s", t:describe())
  end
  autograd.no_grad(walk, t, grad, watcher)
end

--- Add d t / d leaf to the .grad of every leaf that t came from. t has one element, or `grad` of t's
-- shape is given. The graph is freed as it is walked.
function T.backward(t, grad) autograd.backward(t, grad) end

--- A leaf with a copy of t's values: what optimizers move. Its gradient is p.grad, zeros at first.
function autograd.parameter(t, name)
  tensor.live(t, "parameter")
  local p = lib.outside_scope(T.clone, t:detach())
  if p:dtype() ~= "f32" and p:dtype() ~= "bf16" then
    raise("parameter: must be f32 or bf16, got %s", p:describe())
  end
  p.requires_grad = true
  p.is_parameter = true
  p.name = name
  leaf_grad(p)
  return p
end

return autograd
