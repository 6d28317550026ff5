--- Where a group's parameters, gradients and moments lie, and the engine calls that move them.
--
-- A slot is a group as the optimizer keeps it: slot.params and slot.keys (names) in order, slot.group
-- (the user's table), slot.state[j] (the tensors of parameter j), slot.scratch (bytes a step needs).
-- Of several processes each updates a part of the parameters: lumuon.optim.sharded.
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

function banks.blocks_text(blocks)
  return type(blocks) == "table" and table.concat(blocks, ", ") or tostring(blocks)
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

--- How the matrices of a group lie in its bank and which of them this process updates. Here: all. places[j]
-- is the slice of the bank (of `total`) that holds matrix j; own lists the j whose slices begin at `first`;
-- there is room for the moments of `share` matrices.
local function whole(slot)
  local deal = { places = {}, own = {}, first = 1, total = #slot.params, share = #slot.params }
  for j = 1, #slot.params do deal.places[j], deal.own[j] = j, j end
  return deal
end

--- Rows of the pieces that a matrix is taken apart into.
function banks.piece_rows(slot, rows)
  local unequal = slices(slot, rows)
  if unequal then return unequal end
  local list = {}
  for i = 1, slot.group.blocks do list[i] = rows / slot.group.blocks end
  return list
end

--- The second momentum of n pieces of r rows each.
local function second_shape(n, r, cols) return r >= cols and { n, r, 1 } or { n, 1, cols } end

--- One matrix's second momenta in their logical shape: (rows, 1) or (1, cols); with equal pieces a piece more
-- in front; unequal ones behind each other.
local function second_sizes(slot)
  local rows, cols = slot.params[1]:size(1), slot.params[1]:size(2)
  local pieces, entries = banks.piece_rows(slot, rows), 0
  for _, r in ipairs(pieces) do entries = entries + math.max(r, cols) end
  if slices(slot, rows) then return { entries } end
  local shape = second_shape(#pieces, rows / #pieces, cols)
  return #pieces == 1 and { shape[2], shape[3] } or shape
end

function banks.second_view(slot, entries) return entries:view(second_sizes(slot)) end

--- What state parameter j has: name -> { dtype =, sizes = }.
function banks.state_shapes(slot, j)
  local p = slot.params[j]
  local like = { dtype = p:dtype(), sizes = p:size() }
  if slot.kind == "adamw" then return { exp_avg = like, exp_avg_sq = like } end
  return { momentum_buffer = like, second_momentum_buffer = { dtype = "f32", sizes = second_sizes(slot) } }
end

--- Second momenta, and what is given to the engine. Equal pieces of every matrix are the bank under another
-- shape: one call. Unequal ones are calls of their own.
local function muon_parts(slot, rows, cols)
  local deal, pieces, entries = slot.deal, banks.piece_rows(slot, rows), 0
  for _, r in ipairs(pieces) do entries = entries + math.max(r, cols) end
  slot.second = tensor.zeros({ deal.share, entries }, slot.like)
  for k, j in ipairs(deal.own) do
    slot.state[j].second_momentum_buffer = banks.second_view(slot, slot.second:select(1, k))
  end
  local count = #deal.own
  if count == 0 then return {} end
  if not slices(slot, rows) then
    local n = #pieces
    local shape = { count * n, rows / n, cols }
    local function own(bank) return bank:narrow(1, deal.first, count):view(shape) end
    return { { param = own(slot.bank), grad = own(slot.grad_bank),
      momentum = slot.momentum:narrow(1, 1, count):view(shape),
      second = slot.second:narrow(1, 1, count):view(second_shape(count * n, rows / n, cols)) } }
  end
  local parts = {}
  for k = 1, count do
    local row, at, place = 1, 1, deal.first + k - 1
    for _, n in ipairs(pieces) do
      local size = math.max(n, cols)
      local function piece(bank, index) return bank:narrow(1, index, 1):narrow(2, row, n) end
      local second = slot.second:select(1, k):narrow(1, at, size):view(second_shape(1, n, cols))
      parts[#parts + 1] = { param = piece(slot.bank, place), grad = piece(slot.grad_bank, place),
        momentum = piece(slot.momentum, k), second = second }
      row, at = row + n, at + size
    end
  end
  return parts
end

--- Put the hungriest of a Muon group's engine calls first: where memory is short, nothing of the group has been
-- written. Returns the bytes that it takes beside its tensors.
local function hungriest_first(slot)
  local bytes, out, device = {}, ffi.new("double[1]"), lib.device_code(slot.like.device)
  local precision = slot.group.precision == "bf16" and C.LM_PRECISION_BF16 or C.LM_PRECISION_F32
  for _, part in ipairs(slot.parts) do
    local count, rows, cols = unpack(part.param:size())
    out[0] = 0
    if count * rows * cols > 0 then lib.call(C.lm_muon_scratch, out, device, count, rows, cols, precision) end
    bytes[part] = out[0]
  end
  table.sort(slot.parts, function(a, b) return bytes[a] > bytes[b] end)
  return bytes[slot.parts[1]] or 0
end

--- Move a Muon group's parameters and gradients into banks and make the moments. deal: see `whole`.
function banks.muon(slot, deal)
  local rows, cols = slot.params[1]:size(1), slot.params[1]:size(2)
  deal = deal or whole(slot)
  slot.deal = deal
  slot.like = { device = slot.params[1]:device() }
  slot.bank = tensor.zeros({ deal.total, rows, cols }, slot.like)
  slot.grad_bank = tensor.zeros({ deal.total, rows, cols }, slot.like)
  slot.momentum = tensor.zeros({ deal.share, rows, cols }, slot.like)
  slot.state = {}
  banks.settle(slot, function(j)
    return slot.bank:select(1, deal.places[j]), slot.grad_bank:select(1, deal.places[j])
  end)
  for j = 1, #slot.params do slot.state[j] = {} end
  for k, j in ipairs(deal.own) do slot.state[j].momentum_buffer = slot.momentum:select(1, k) end
  slot.parts = muon_parts(slot, rows, cols)
  slot.args = ffi.new("lm_muon_args")
  slot.scratch = hungriest_first(slot)
end

--- Move every parameter and its gradient to the two views that place(j) returns, for good. A parameter whose
-- first view is nil stays where it is.
function banks.settle(slot, place)
  slot.handles, slot.grads, slot.grad_handles = {}, {}, {}
  for j, p in ipairs(slot.params) do
    local param_view, grad_view = place(j)
    slot.handles[j] = param_view and move(p, param_view) or p.h
    slot.grads[j] = ensure_grad(p)
    slot.grad_handles[j] = move(p.grad, grad_view)
  end
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

--- Before a step: the parameters and moments are still where they were put, and a p.grad that the user
-- replaced fits and is copied to its place (unless it is being averaged: in_flight). What is wrong must be found
-- here, while no group is written yet.
function banks.refresh(slot, in_flight)
  for j, p in ipairs(slot.params) do
    if p.h == nil then
      raise("%s: %s was freed", options.group_label(slot.index, slot.group), slot.keys[j])
    end
    local grad = check_grad(slot, j, p)
    for name, t in pairs(slot.state[j]) do
      if t.h == nil then
        raise("%s: %s of %s was freed", options.group_label(slot.index, slot.group), name, slot.keys[j])
      end
    end
    if slot.handles then
      if p.h ~= slot.handles[j] or slot.grads[j].h ~= slot.grad_handles[j] then
        raise("%s: %s no longer lies in this optimizer's bank (another optimizer was made with it)",
          options.group_label(slot.index, slot.group), slot.keys[j])
      end
      if grad ~= slot.grads[j] then
        if in_flight then
          raise("%s: the gradient of %s was replaced after opt:backward(), which had begun to average it",
            options.group_label(slot.index, slot.group), slot.keys[j])
        end
        if not same_shape(grad, p) then
          raise("%s: the gradient of %s is %s, the parameter %s", options.group_label(slot.index, slot.group),
            slot.keys[j], grad:describe(), p:describe())
        end
        slot.grads[j]:copy(grad)
        p.grad = slot.grads[j]
      end
    elseif not (same_shape(grad, p) and (grad:dtype() == "f32" or grad:dtype() == "bf16") and grad:is_contiguous()) then
      raise("%s: the gradient of %s is %s%s, the parameter %s; it must be contiguous, of that shape, f32 or bf16",
        options.group_label(slot.index, slot.group), slot.keys[j], grad:describe(),
        grad:is_contiguous() and "" or ", not contiguous", p:describe())
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

--- Fill an lm_adamw_args from a group's options.
function banks.adamw_args(args, group, step)
  args.lr, args.beta1, args.beta2 = group.lr, group.betas[1], group.betas[2]
  args.eps, args.weight_decay, args.step = group.eps, group.weight_decay, step
  return args
end

local function adamw_step(slot, step, write, progress, tally)
  local args = banks.adamw_args(slot.args, slot.group, step)
  args.tally = tally and tally.h or nil
  for j, p in ipairs(slot.params) do
    slot.param_array[j - 1] = p.h
    slot.grad_array[j - 1] = p.grad.h
  end
  write(progress, C.lm_adamw_step, #slot.params, slot.param_array, ffi.cast("const lm_tensor **", slot.grad_array),
    slot.exp_avg_array, slot.exp_avg_sq_array, args)
end

--- One step of one group; step counts from 1. write(progress, f, ...) calls the engine. tally: where a GPU counts the
-- steps, or nil.
function banks.step(slot, step, write, progress, tally)
  if slot.kind == "muon" then return muon_step(slot, write, progress) end
  return adamw_step(slot, step, write, progress, tally)
end

return banks
