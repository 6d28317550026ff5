--- The optimizer on N ranks: each keeps 1/N of its state and updates 1/N of the parameters.
--
-- Gradients are averaged inside the step, in three phases, so that communication runs under arithmetic:
--
--   1. launch every reduction, wait for none
--   2. unit by unit: wait for its reduction, update this rank's part, launch the gathering of the result
--   3. wait for the gathering
--
-- A unit is what is reduced, updated and gathered together:
--   * a Muon group: its K matrices lie in a bank of ceil(K/N)*N, so that each rank's part is one slice;
--     what is left over is zeros. Which rank gets a matrix more is decided by cost, see `deal_matrices`.
--   * an AdamW tensor of 1024 elements or more: each rank has a slice of its elements, padded so that they
--     are equal. reduce_scatter and all_gather work in place, on the memory of parameters and gradients.
--   * all smaller AdamW tensors of all groups: one all_reduce, every rank updates them all.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local dist = require "lumuon.dist"
local banks = require "lumuon.optim.banks"
local options = require "lumuon.optim.options"
local ffi, C, raise = lib.ffi, lib.C, lib.raise

local sharded = {}

local SMALL = 1024 -- elements
local ALIGN = 16 -- elements a slice is a multiple of, for whole cache lines

-- ---- a step ------------------------------------------------------------------------------------------------

--- Wait, whatever Ctrl-C says: a step is not stopped half-way.
function sharded.finish(handle, progress)
  while not handle:done() do
    if C.lm_work_wait(handle.work) == C.LM_EINTERRUPT then
      C.lm_interrupt_clear()
      progress.interrupted = true
    end
  end
  return handle:wait()
end

--- Begin to average a unit's gradients.
function sharded.launch(unit)
  local launch = unit.everywhere and dist.all_reduce or dist.reduce_scatter
  unit.reduction = launch(unit.grad, { op = "mean", async = true, label = unit.label })
end

--- The three phases; where `launched`, the first was begun before. write(progress, f, ...) calls the engine.
function sharded.step(opt, step, write, progress, launched)
  local units = opt.units
  for _, unit in ipairs(launched and {} or units) do sharded.launch(unit) end
  for _, unit in ipairs(units) do
    sharded.finish(unit.reduction, progress)
    unit.update(step, write, progress)
    if not unit.everywhere then
      unit.gathering = dist.all_gather(unit.param, { async = true, label = unit.label })
    end
  end
  for _, unit in ipairs(units) do
    if unit.gathering then sharded.finish(unit.gathering, progress) end
  end
end

--- Tell the other ranks whether this one's gradients have a problem (a message, or nil); for first_problem.
function sharded.tell(bad)
  local flags = lib.outside_scope(tensor.zeros, { dist.world_size() }, { dtype = "i32" })
  flags:pointer()[dist.rank()] = bad and 1 or 0
  return dist.all_gather(flags, { async = true, label = "whether gradients are finite" })
end

--- What every rank does about a gradient that is not finite: the first rank's message, or nil. told: see above.
function sharded.first_problem(told, bad)
  local flags = told:wait()
  local any = flags:sum():item() > 0
  flags:free()
  if not any then return nil end
  for rank, text in ipairs(dist.all_strings(bad or "", "gradients that are not finite")) do
    if text ~= "" then return ("rank %d: %s"):format(rank - 1, text) end
  end
end

-- ---- Muon: whose matrix is it ----------------------------------------------------------------------------------

--- Multiplications of one matrix's update, about: those of its orthogonalisation.
local function matrix_cost(slot)
  local rows, cols, cost = slot.params[1]:size(1), slot.params[1]:size(2), 0
  for _, r in ipairs(banks.piece_rows(slot, rows)) do
    local m, n = math.min(r, cols), math.max(r, cols)
    cost = cost + slot.group.ns_steps * (4 * m * m * n + 2 * m ^ 3)
  end
  return cost
end

--- Every rank has floor(K/N) matrices of a group, and those with the least work so far, over all groups, one
-- more where K is not a multiple of N. loads[r] is the work of rank r - 1.
local function deal_matrices(slot, loads)
  local size, rank, count = dist.world_size(), dist.rank(), #slot.params
  local share, cost = math.ceil(count / size), matrix_cost(slot)
  local by_load, quota = {}, {}
  for r = 1, size do by_load[r], quota[r] = r, math.floor(count / size) end
  table.sort(by_load, function(a, b)
    if loads[a] ~= loads[b] then return loads[a] < loads[b] end
    return a < b
  end)
  for i = 1, count % size do quota[by_load[i]] = quota[by_load[i]] + 1 end
  local deal = { places = {}, own = {}, first = rank * share + 1, total = share * size, share = share, quota = quota }
  local j = 1
  for r = 1, size do
    loads[r] = loads[r] + quota[r] * cost
    for k = 1, quota[r] do
      deal.places[j] = (r - 1) * share + k
      if r == rank + 1 then deal.own[#deal.own + 1] = j end
      j = j + 1
    end
  end
  return deal
end

local function muon_unit(slot, loads)
  banks.muon(slot, deal_matrices(slot, loads))
  return { label = options.group_label(slot.index, slot.group), kind = "muon", param = slot.bank, grad = slot.grad_bank,
    params = slot.params, cost = #slot.params * matrix_cost(slot),
    update = function(step, write, progress) banks.step(slot, step, write, progress) end }
end

-- ---- AdamW ------------------------------------------------------------------------------------------------------

--- A call of lm_adamw_step for a list of { param, grad, exp_avg, exp_avg_sq }.
local function adamw_update(slot, pieces)
  local arrays, n = {}, #pieces
  for i = 1, 4 do
    arrays[i] = ffi.new("lm_tensor *[?]", n)
    for k, piece in ipairs(pieces) do arrays[i][k - 1] = piece[i].h end
  end
  local grads, args = ffi.cast("const lm_tensor **", arrays[2]), ffi.new("lm_adamw_args")
  return function(step, write, progress)
    write(progress, C.lm_adamw_step, n, arrays[1], grads, arrays[3], arrays[4],
      banks.adamw_args(args, slot.group, step))
    return pieces, arrays -- kept alive with this function
  end
end

--- Tensor j of a group, by slices: parameter and gradient move into banks of their own.
local function large_tensor(slot, j)
  local p, size = slot.params[j], dist.world_size()
  local numel = p:numel()
  local slice = math.ceil(numel / size / ALIGN) * ALIGN
  local first, like = dist.rank() * slice + 1, { dtype = p:dtype(), device = p:device() }
  local large = { numel = numel, slice = slice, first = first,
    bank = tensor.zeros({ slice * size }, like), grad_bank = tensor.zeros({ slice * size }, like),
    exp_avg = tensor.zeros({ slice }, like), exp_avg_sq = tensor.zeros({ slice }, like) }
  local pieces = { { large.bank:narrow(1, first, slice), large.grad_bank:narrow(1, first, slice), large.exp_avg,
    large.exp_avg_sq } }
  slot.large[j] = large
  return { label = ("%s in %s"):format(slot.keys[j], options.group_label(slot.index, slot.group)), kind = "adamw",
    params = { p }, param = large.bank, grad = large.grad_bank, update = adamw_update(slot, pieces) }
end

--- One gradient buffer for all small AdamW tensors of a dtype on a device.
local function small_unit(members)
  local numel, grads, at, params = 0, {}, 1, {}
  local first = members[1].p
  for i, m in ipairs(members) do
    numel = numel + m.p:numel()
    params[i] = m.p
  end
  local buffer, updates = tensor.zeros({ numel }, { dtype = first:dtype(), device = first:device() }), {}
  for _, m in ipairs(members) do
    local n = m.p:numel()
    grads[m.p] = buffer:narrow(1, at, n):view(m.p:size())
    at = at + n
  end
  return { label = "small AdamW tensors", everywhere = true, grad = buffer, kind = "small", updates = updates,
    params = params, update = function(...)
      for _, update in ipairs(updates) do update(...) end
    end }, grads
end

local function is_small(p) return p:numel() < SMALL end

--- Small tensors of one lot have their gradients in one buffer.
local function lot_of(p) return p:dtype() .. " " .. p:device() end
local lots = { "f32 cpu", "bf16 cpu", "f32 cuda", "bf16 cuda" }

local function adamw_units(slot, small, units)
  slot.state, slot.large, slot.scratch = {}, {}, 0
  for j, p in ipairs(slot.params) do
    slot.state[j] = {}
    if is_small(p) then
      slot.state[j] = { exp_avg = tensor.zeros_like(p), exp_avg_sq = tensor.zeros_like(p) }
    else
      units[#units + 1] = large_tensor(slot, j)
    end
  end
  banks.settle(slot, function(j)
    local p, large = slot.params[j], slot.large[j]
    if not large then return nil, small[lot_of(p)].grads[p] end
    local function view(bank) return bank:narrow(1, 1, large.numel):view(p:size()) end
    return view(large.bank), view(large.grad_bank)
  end)
  local pieces = {} -- this group's small ones, a list for each lot
  for j, p in ipairs(slot.params) do
    if is_small(p) then
      local lot = lot_of(p)
      pieces[lot] = pieces[lot] or {}
      table.insert(pieces[lot], { p, slot.grads[j], slot.state[j].exp_avg, slot.state[j].exp_avg_sq })
    end
  end
  for lot, list in pairs(pieces) do table.insert(small[lot].unit.updates, adamw_update(slot, list)) end
end

-- ---- making it -----------------------------------------------------------------------------------------------

local function shown(value)
  if type(value) == "number" then
    local short = ("%.14g"):format(value)
    return tonumber(short) == value and short or ("%.17g"):format(value)
  end
  if type(value) ~= "table" then return tostring(value) end
  local parts = {}
  for i, v in ipairs(value) do parts[i] = shown(v) end
  return "{" .. table.concat(parts, ", ") .. "}"
end

--- Everything in which the ranks' groups must agree, a line each.
local function fingerprint(opt)
  local lines = {}
  for i, slot in ipairs(opt.slots) do
    local label, fields = options.group_label(i, slot.group), {}
    for j, p in ipairs(slot.params) do
      lines[#lines + 1] = ("%s: %s %s"):format(label, slot.keys[j], p:describe())
    end
    for name, value in pairs(slot.group) do
      if name ~= "params" then fields[#fields + 1] = ("%s: %s = %s"):format(label, name, shown(value)) end
    end
    table.sort(fields)
    for _, line in ipairs(fields) do lines[#lines + 1] = line end
  end
  return table.concat(lines, "\n")
end

--- The order of units in every phase, the same on all ranks. Collectives run one after the other, so all reductions
-- before the first gathering. To have always something to compute and something to send: Muon's units come first that
-- make about half of its arithmetic, those with most of it a byte, and are computed while AdamW's are being reduced;
-- AdamW's need hardly any arithmetic, and are gathered while the rest of Muon is computed. Small ones, which are not
-- gathered, come first, and the last gathering, that nothing hides, is that of a unit with few bytes.
local function in_order(units)
  local lists, arithmetic = { small = {}, muon = {}, adamw = {} }, 0
  for i, unit in ipairs(units) do
    unit.index = i
    table.insert(lists[unit.kind], unit)
    arithmetic = arithmetic + (unit.cost or 0)
  end
  local function sorted(list, key)
    table.sort(list, function(a, b)
      local x, y = key(a), key(b)
      if x ~= y then return x > y end
      return a.index < b.index
    end)
    return list
  end
  local function bytes(unit) return unit.grad:numel() end
  local order, rest, done = lists.small, {}, 0
  for _, unit in ipairs(sorted(lists.muon, function(unit) return unit.cost / bytes(unit) end)) do
    local list = done + unit.cost / 2 <= arithmetic / 2 and order or rest
    list[#list + 1], done = unit, done + unit.cost
  end
  for _, unit in ipairs(sorted(lists.adamw, bytes)) do order[#order + 1] = unit end
  for _, unit in ipairs(sorted(rest, bytes)) do order[#order + 1] = unit end
  return order
end

--- Deal the groups of opt to the ranks and move everything to its place. Rank 0's values of the parameters
-- become everybody's.
function sharded.set_up(opt)
  dist.agree("their parameter groups", fingerprint(opt))
  local units, small, loads = {}, {}, {}
  for r = 1, dist.world_size() do loads[r] = 0 end
  for _, slot in ipairs(opt.slots) do
    for _, p in ipairs(slot.kind == "adamw" and slot.params or {}) do
      if is_small(p) then
        local lot = lot_of(p)
        small[lot] = small[lot] or { members = {} }
        table.insert(small[lot].members, { p = p })
      end
    end
  end
  for _, lot in ipairs(lots) do
    if small[lot] then
      small[lot].unit, small[lot].grads = small_unit(small[lot].members)
      units[#units + 1] = small[lot].unit
    end
  end
  for _, slot in ipairs(opt.slots) do
    if slot.kind == "muon" then
      units[#units + 1] = muon_unit(slot, loads)
    else
      adamw_units(slot, small, units)
    end
  end
  opt.units, opt.loads = in_order(units), loads
  local copies = {}
  for _, unit in ipairs(opt.units) do
    if unit.param then copies[#copies + 1] = dist.broadcast(unit.param, { async = true, label = unit.label }) end
  end
  for _, slot in ipairs(opt.slots) do
    for j, p in ipairs(slot.params) do
      if slot.large and not slot.large[j] then
        copies[#copies + 1] = dist.broadcast(p, { async = true, label = slot.keys[j] })
      end
    end
  end
  for _, copy in ipairs(copies) do copy:wait() end
end

--- Who updates what, a line a group, and each rank's share of Muon's arithmetic.
function sharded.assignment(opt)
  local lines, total = {}, 0
  for i, slot in ipairs(opt.slots) do
    local label = options.group_label(i, slot.group)
    if slot.kind == "muon" then
      lines[#lines + 1] = ("%s: matrices a rank: %s"):format(label, table.concat(slot.deal.quota, ", "))
    else
      local sliced, everywhere = 0, 0
      for j in ipairs(slot.params) do
        if slot.large[j] then sliced = sliced + 1 else everywhere = everywhere + 1 end
      end
      lines[#lines + 1] = ("%s: %d tensors by slices, %d on every rank"):format(label, sliced, everywhere)
    end
  end
  for _, load in ipairs(opt.loads) do total = total + load end
  local shares = {}
  for r, load in ipairs(opt.loads) do shares[r] = ("%.1f %%"):format(100 * load / math.max(total, 1)) end
  lines[#lines + 1] = "Muon's arithmetic a rank: " .. table.concat(shares, ", ")
  return table.concat(lines, "\n")
end

-- ---- checks -----------------------------------------------------------------------------------------------

--- true; or false and what differs first, and between which ranks: a setting of a group, or a parameter. A learning
-- rate of one rank alone would not show in parameters, as each rank gets the others' slices as they are.
function sharded.audit(opt)
  local other = dist.difference("their groups' settings", ("steps: %d\n"):format(opt.steps) .. fingerprint(opt))
  if other then return false, other end
  local names, hashes = {}, {}
  for _, slot in ipairs(opt.slots) do
    for j, p in ipairs(slot.params) do
      names[#names + 1] = slot.keys[j]
      hashes[#hashes + 1] = dist.hash(p)
    end
  end
  local lists = {}
  for r, text in ipairs(dist.all_strings(table.concat(hashes, " "), "hashes of the parameters")) do
    lists[r] = {}
    for hash in text:gmatch("%x+") do table.insert(lists[r], hash) end
  end
  for i, name in ipairs(names) do
    for r = 2, #lists do
      if lists[r][i] ~= lists[1][i] then
        return false, ("the ranks' parameters differ, first in %s: rank 0 has hash %s, rank %d %s"):format(name,
          lists[1][i], r - 1, tostring(lists[r][i]))
      end
    end
  end
  return true
end

--- Refuse to show a state that is not here.
function sharded.refuse_state(key)
  raise("state: the state of %s lies on several ranks, or another; opt:state_dict() gathers it to rank 0", key)
end

return sharded
