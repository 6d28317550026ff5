--- Where a group's parameters, gradients and moments lie, and the engine calls that move them.
--
-- A slot is a group as the optimizer keeps it: slot.params and slot.keys (names) in order, slot.group
-- (the user's table), slot.state[j] (the tensors of parameter j), slot.scratch (bytes a step needs).
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local options = require "lumuon.optim.options"
local ffi, C, raise = lib.ffi, lib.C, lib.raise

local banks = {}

-- ---- checks that need the parameters -----------------------------------------------------------------

local function slices(slot, rows)
  local blocks = slot.group.blocks
  if type(blocks) == "number" then
    if rows % blocks ~= 0 then
      raise("%s: blocks = %d does not divide the %d rows of %s", options.group_label(slot.index, slot.group), blocks,
        rows, slot.keys[1])
    end
    return nil
  end
  local total = 0
  for _, n in ipairs(blocks) do total = total + n end
  if total ~= rows then
    raise("%s: blocks = {%s} adds up to %d, %s has %d rows", options.group_label(slot.index, slot.group),
      table.concat(blocks, ", "), total, slot.keys[1], rows)
  end
  return blocks
end

--- Refuse what Muon cannot take, by the parameter's name.
function banks.check(slot)
  local label, first = options.group_label(slot.index, slot.group), slot.params[1]
  for j, p in ipairs(slot.params) do
    if p:dim() ~= 2 then
      raise("%s: %s is %s, and Muon takes matrices (2 dims); put it into an adamw group", label, slot.keys[j],
        p:describe())
    end
    if p:dtype() ~= "f32" then
      raise("%s: %s is %s; Muon's parameters are kept in f32", label, slot.keys[j], p:describe())
    end
    if p:size(1) ~= first:size(1) or p:size(2) ~= first:size(2) then
      raise("%s: %s is %s but %s is %s; a muon group holds matrices of one shape: make a group for each", label,
        slot.keys[j], p:describe(), slot.keys[1], first:describe())
    end
  end
  slices(slot, first:size(1))
end

-- ---- memory --------------------------------------------------------------------------------------------

--- t points at view's memory from now on, with the values it has.
local function move(t, view)
  view:copy(t:detach())
  local old, h = t.h, view.h
  view.h = nil -- t owns the handle now
  t.collected = view.collected
  t.h = h
  ffi.gc(old, nil)
  C.lm_tensor_free(old)
  return h
end

local function ensure_grad(p)
  if not p.grad then p.grad = tensor.zeros_like(p) end
  return p.grad
end

--- Equal slices of every matrix are the bank under another shape; unequal ones are steps of their own.
local function muon_parts(slot, rows, cols)
  local count, unequal = #slot.params, slices(slot, rows)
  local function second_shape(n, r) return r >= cols and { n, r, 1 } or { n, 1, cols } end
  if not unequal then
    local n = slot.group.blocks
    slot.second = tensor.zeros(second_shape(count * n, rows / n))
    for j = 1, count do
      local own = slot.second:narrow(1, (j - 1) * n + 1, n)
      slot.state[j].second_momentum_buffer = n == 1 and own:select(1, 1) or own
    end
    local shape = { count * n, rows / n, cols }
    return { { param = slot.bank:view(shape), grad = slot.grad_bank:view(shape), momentum = slot.momentum:view(shape),
      second = slot.second } }
  end
  local parts = {}
  for j = 1, count do
    local row, entries = 1, 0
    for _, n in ipairs(unequal) do entries = entries + (n >= cols and n or cols) end
    local second, at = tensor.zeros(entries), 1
    slot.state[j].second_momentum_buffer = second
    for _, n in ipairs(unequal) do
      local size = n >= cols and n or cols
      local function piece(bank) return bank:narrow(1, j, 1):narrow(2, row, n) end
      parts[#parts + 1] = { param = piece(slot.bank), grad = piece(slot.grad_bank), momentum = piece(slot.momentum),
        second = second:narrow(1, at, size):view(second_shape(1, n)) }
      row, at = row + n, at + size
    end
  end
  return parts
end

--- Move a Muon group's parameters and gradients into banks and make their moments.
function banks.muon(slot)
  local rows, cols, count = slot.params[1]:size(1), slot.params[1]:size(2), #slot.params
  slot.bank = tensor.empty(count, rows, cols)
  slot.grad_bank = tensor.empty(count, rows, cols)
  slot.momentum = tensor.zeros(count, rows, cols)
  slot.state, slot.handles, slot.grads, slot.grad_handles = {}, {}, {}, {}
  for j, p in ipairs(slot.params) do
    slot.handles[j] = move(p, slot.bank:select(1, j))
    slot.grads[j] = ensure_grad(p)
    slot.grad_handles[j] = move(p.grad, slot.grad_bank:select(1, j))
    slot.state[j] = { momentum_buffer = slot.momentum:select(1, j) }
  end
  slot.parts = muon_parts(slot, rows, cols)
  slot.args = ffi.new("lm_muon_args")
  slot.scratch = 8 * count * rows * cols
end

--- Moments of an AdamW group, in the parameters' dtype.
function banks.adamw(slot)
  local n = #slot.params
  slot.state = {}
  for j, p in ipairs(slot.params) do
    ensure_grad(p)
    slot.state[j] = { exp_avg = tensor.zeros_like(p), exp_avg_sq = tensor.zeros_like(p) }
  end
  for _, role in ipairs { "param", "grad", "exp_avg", "exp_avg_sq" } do
    slot[role .. "_array"] = ffi.new("lm_tensor *[?]", n)
  end
  for j = 1, n do
    slot.exp_avg_array[j - 1] = slot.state[j].exp_avg.h
    slot.exp_avg_sq_array[j - 1] = slot.state[j].exp_avg_sq.h
  end
  slot.args = ffi.new("lm_adamw_args")
  slot.scratch = 0
end

local function same_shape(a, b)
  return table.concat(a:size(), ",") == table.concat(b:size(), ",")
end

local function check_grad(slot, j, p)
  local grad = p.grad
  if not lib.is_tensor(grad) or grad.h == nil then
    raise("%s: %s has no gradient (p.grad is %s); opt:zero_grad() keeps them in place",
      options.group_label(slot.index, slot.group), slot.keys[j], lib.is_tensor(grad) and "freed" or tostring(grad))
  end
  return grad
end

--- Before a step: the parameters are still where they were put, and a p.grad that the user replaced is
-- copied to its place.
function banks.refresh(slot)
  for j, p in ipairs(slot.params) do
    if p.h == nil then
      raise("%s: %s was freed", options.group_label(slot.index, slot.group), slot.keys[j])
    end
    local grad = check_grad(slot, j, p)
    if slot.kind == "muon" then
      if p.h ~= slot.handles[j] or slot.grads[j].h ~= slot.grad_handles[j] then
        raise("%s: %s no longer lies in this optimizer's bank (another optimizer was made with it)",
          options.group_label(slot.index, slot.group), slot.keys[j])
      end
      if grad ~= slot.grads[j] then
        if not same_shape(grad, p) then
          raise("%s: the gradient of %s is %s, the parameter %s", options.group_label(slot.index, slot.group),
            slot.keys[j], grad:describe(), p:describe())
        end
        slot.grads[j]:copy(grad)
        p.grad = slot.grads[j]
      end
    end
  end
end

-- ---- steps ---------------------------------------------------------------------------------------------

--- Fill an lm_polar_args from a group's options.
function banks.polar_args(args, group)
  args.ns_steps = group.ns_steps
  args.precision = group.precision == "bf16" and C.LM_PRECISION_BF16 or C.LM_PRECISION_F32
  args.norm_scale = group.norm_scale
  for i = 1, group.ns_steps do
    local row = group.coefficients[i]
    for k = 1, 3 do args.coefficients[3 * (i - 1) + k - 1] = row[k] end
  end
  return args
end

local function muon_step(slot, write, progress)
  local group, args = slot.group, slot.args
  args.lr, args.momentum, args.beta2, args.weight_decay = group.lr, group.momentum, group.beta2, group.weight_decay
  args.nesterov = group.nesterov and 1 or 0
  args.row_equilibrate = group.row_equilibrate and 1 or 0
  args.renormalize = group.renormalize and 1 or 0
  banks.polar_args(args.polar, group)
  for _, part in ipairs(slot.parts) do
    write(progress, C.lm_muon_step, part.param.h, part.grad.h, part.momentum.h, part.second.h, args)
  end
end

local function adamw_step(slot, step, write, progress)
  local group, args = slot.group, slot.args
  args.lr, args.beta1, args.beta2 = group.lr, group.betas[1], group.betas[2]
  args.eps, args.weight_decay, args.step = group.eps, group.weight_decay, step
  for j, p in ipairs(slot.params) do
    slot.param_array[j - 1] = p.h
    slot.grad_array[j - 1] = p.grad.h
  end
  write(progress, C.lm_adamw_step, #slot.params, slot.param_array, ffi.cast("const lm_tensor **", slot.grad_array),
    slot.exp_avg_array, slot.exp_avg_sq_array, args)
end

--- One step of one group; step counts from 1. write(progress, f, ...) calls the engine.
function banks.step(slot, step, write, progress)
  if slot.kind == "muon" then return muon_step(slot, write, progress) end
  return adamw_step(slot, step, write, progress)
end

return banks
