--- The optimizer's state, taken out and put back piece by piece, in one process or many.
--
-- A piece is what moves at a time: half of a Muon group's state, or one tensor of AdamW's. Rank 0 has all of one
-- piece at most, beside what every rank keeps anyway, and where a rank cannot go on (no memory, a full disk,
-- Ctrl-C) all of them have its message before the next piece. Pieces travel in the CPU's memory.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local dist = require "lumuon.dist"
local banks = require "lumuon.optim.banks"
local options = require "lumuon.optim.options"
local sharded = require "lumuon.optim.sharded"
local device = require "lumuon.optim.device"
local raise = lib.raise

local state = {}

local entries = { adamw = { "exp_avg", "exp_avg_sq" }, muon = { "momentum_buffer", "second_momentum_buffer" } }

--- A list of { label =, part = what this rank has of it, everywhere = whether that is all of it, each = a function }:
-- each(whole, f) calls f(parameter's name, entry's name, tensor) for all that is in it.
local function pieces(opt)
  local list = {}
  local function add(label, part, everywhere, each)
    list[#list + 1] = { label = "state of " .. label, part = part, everywhere = everywhere, each = each }
  end
  local function add_bank(slot, name, bank, view)
    add(options.group_label(slot.index, slot.group), bank, false, function(whole, f)
      for j, key in ipairs(slot.keys) do f(key, name, view(whole:select(1, slot.deal.places[j]))) end
    end)
  end
  local function add_tensor(slot, j, name)
    local key, large = slot.keys[j], slot.large and slot.large[j]
    if not large then return add(key, slot.state[j][name], true, function(whole, f) f(key, name, whole) end) end
    add(key, large[name], false, function(whole, f)
      f(key, name, whole:narrow(1, 1, large.numel):view(slot.params[j]:size()))
    end)
  end
  for _, slot in ipairs(opt.slots) do
    if slot.kind == "muon" and opt.units then
      add_bank(slot, "momentum_buffer", slot.momentum, function(one) return one end)
      add_bank(slot, "second_momentum_buffer", slot.second, function(one) return banks.second_view(slot, one) end)
    else
      for j in ipairs(slot.keys) do
        for _, name in ipairs(entries[slot.kind]) do add_tensor(slot, j, name) end
      end
    end
  end
  return list
end

--- Sizes of the ranks' parts behind each other.
local function whole_sizes(part)
  local sizes = part:size()
  sizes[1] = sizes[1] * dist.world_size()
  return sizes
end

--- Wait for a collective; Ctrl-C is a problem that the others must hear of.
local function finish(handle)
  local progress = {}
  sharded.finish(handle, progress)
  return progress.interrupted and "interrupted" or nil
end

--- Call f(parameter's name, entry's name, tensor, live) for all of the state: on rank 0, and every rank must come.
-- live: the tensor is the optimizer's own; else it lasts until f returns, unless f keeps it. An error in f, as one on
-- any rank, is every rank's; `what` begins its message.
function state.take(opt, f, what)
  local first = dist.rank() == 0
  local function own(key, name, t) f(key, name, t, true) end
  if dist.world_size() == 1 then
    for _, piece in ipairs(pieces(opt)) do piece.each(piece.part, own) end
    return
  end
  local problem
  for _, piece in ipairs(pieces(opt)) do
    lib.scope(function()
      local part, whole
      if piece.everywhere then
        if first then problem = dist.attempt(problem, piece.each, piece.part, own) end
        return
      end
      problem = dist.attempt(problem, function()
        part = piece.part:to("cpu")
        if first then whole = tensor.empty(whole_sizes(part), { dtype = part:dtype() }) end
      end)
      dist.check_all(what, problem)
      problem = finish(dist.gather(part, whole, { async = true, label = piece.label }))
      if first then problem = dist.attempt(problem, piece.each, whole, f) end
    end)
  end
  dist.check_all(what, problem)
end

--- The reverse: read(parameter's name, entry's name, into), on rank 0, fills a contiguous tensor on the CPU.
local function put(opt, read, what)
  local first, several = dist.rank() == 0, dist.world_size() > 1
  local problem
  for i, piece in ipairs(pieces(opt)) do
    lib.scope(function()
      local part, whole
      problem = dist.attempt(problem, function()
        part = piece.part:device() == "cpu" and piece.part
          or tensor.empty(piece.part:size(), { dtype = piece.part:dtype() })
        whole = (piece.everywhere or not several) and part
          or first and tensor.zeros(whole_sizes(part), { dtype = part:dtype() }) or nil
        if first then piece.each(whole, read) end
      end)
      dist.check_all(what, problem and i > 1 and problem .. state.half_way or problem)
      local how = { async = true, label = piece.label }
      if piece.everywhere and several then
        problem = finish(dist.broadcast(part, how))
      elseif several then
        problem = finish(dist.scatter(part, whole, how))
      end
      if part ~= piece.part then problem = dist.attempt(problem, piece.part.copy, piece.part, part) end
    end)
  end
  dist.check_all(what, problem and problem .. state.half_way)
end

--- What is said where an error leaves neither the old values nor the new ones.
state.half_way = " (some of it has been written: load a checkpoint before going on)"

--- put; the first Ctrl-C waits for its end.
function state.put(opt, read, what) lib.uninterrupted(put, opt, read, what) end

-- ---- hyperparameters ------------------------------------------------------------------------------------------

--- Plain numbers and lists, copied.
local function copied(value)
  if type(value) ~= "table" then return value end
  local c = {}
  for k, v in pairs(value) do c[k] = copied(v) end
  return c
end

--- A group as state_dict() has it.
function state.group(slot)
  local group = {}
  for name, value in pairs(slot.group) do
    if name ~= "params" then group[name] = copied(value) end
  end
  group.params = copied(slot.keys)
  return group
end

--- Numbers, strings, true, false and tables of them as text: n1.5; s3:abc t f {keys and values}
local function encode(value)
  local kind = type(value)
  if kind == "number" then return ("n%.17g;"):format(value) end
  if kind == "string" then return ("s%d:%s"):format(#value, value) end
  if kind == "boolean" then return value and "t" or "f" end
  local parts = {}
  for k, v in pairs(value) do parts[#parts + 1] = encode(k) .. encode(v) end
  return "{" .. table.concat(parts) .. "}"
end

--- The value that begins at `at`, and where the next one does.
local function decode(text, at)
  local kind = text:sub(at, at)
  if kind == "n" then
    local number, after = text:match("^([^;]*);()", at + 1)
    return tonumber(number), after
  elseif kind == "s" then
    local length, first = text:match("^(%d+):()", at + 1)
    return text:sub(first, first + length - 1), first + length
  elseif kind ~= "{" then
    return kind == "t", at + 1
  end
  local value, key = {}
  at = at + 1
  while text:sub(at, at) ~= "}" do
    key, at = decode(text, at)
    value[key], at = decode(text, at)
  end
  return value, at + 1
end

--- Rank 0's value on every rank.
function state.of_rank_0(value, label)
  if dist.world_size() == 1 then return value end
  return (decode(dist.all_strings(dist.rank() == 0 and encode(value) or "", label)[1], 1))
end

-- ---- loading ----------------------------------------------------------------------------------------------------

local function load_problem(format, ...) raise("load_state_dict: " .. format, ...) end

--- The group's hyperparameters as the dict has them, checked.
local function check_group(slot, given)
  local i, label = slot.index, options.group_label(slot.index, slot.group)
  if type(given) ~= "table" or given.kind ~= slot.kind then
    load_problem("group %d is of kind %s, here it is %s", i,
      type(given) == "table" and tostring(given.kind) or type(given), label)
  end
  local names = type(given.params) == "table" and given.params or {}
  for j = 1, math.max(#names, #slot.keys) do
    if names[j] ~= slot.keys[j] then
      load_problem("param %d of %s is %s, in the state it is %s", j, label, tostring(slot.keys[j]), tostring(names[j]))
    end
  end
  local group = copied(given)
  group.params = slot.group.params
  options.check(i, group)
  if banks.blocks_text(group.blocks) ~= slot.blocks then
    load_problem("%s has blocks = {%s}, the state {%s}", label, slot.blocks, banks.blocks_text(group.blocks))
  end
  group.params = nil
  return group
end

local function check_entries(key, own, given)
  if type(given) ~= "table" then load_problem("no state for %s", key) end
  for name, shape in pairs(own) do
    local needed = ("%s (%s)"):format(shape.dtype, table.concat(shape.sizes, ", "))
    if given[name] == nil then load_problem("%s of %s is missing", name, key) end
    if given[name] ~= needed then load_problem("%s of %s is %s, needs %s", name, key, given[name], needed) end
  end
  for name in pairs(given) do
    if not own[name] then load_problem("%s has an unknown entry '%s'", key, tostring(name)) end
  end
end

--- Raise unless opt can go on from there; given[parameter's name][entry's name] describes a tensor, "f32 (2, 3)".
-- saved: hyperparameters, or nil. Returns those of each group.
function state.check(opt, step, given, saved)
  if not lib.is_whole(step) or step < 0 then load_problem("step = %s is not a whole number >= 0", tostring(step)) end
  device.check_steps(opt, step)
  if saved and #saved ~= #opt.slots then load_problem("%d groups, the optimizer has %d", #saved, #opt.slots) end
  local groups, known = {}, {}
  for i, slot in ipairs(opt.slots) do
    groups[i] = saved and check_group(slot, saved[i]) or {}
    for j, key in ipairs(slot.keys) do
      check_entries(key, banks.state_shapes(slot, j), given[key])
      known[key] = true
    end
  end
  for key in pairs(given) do
    if not known[key] then load_problem("state for %s, which no group has", tostring(key)) end
  end
  return groups
end

--- The shapes of all of the state: parameter's name -> entry's name -> { dtype =, sizes = }.
function state.shapes(opt)
  local shapes = {}
  for _, slot in ipairs(opt.slots) do
    for j, key in ipairs(slot.keys) do shapes[key] = banks.state_shapes(slot, j) end
  end
  return shapes
end

--- Raise unless everything is still where it was put.
function state.refresh(opt)
  for _, slot in ipairs(opt.slots) do banks.refresh(slot) end
end

local function check_dict(opt, dict)
  local saved = type(dict) == "table" and dict.param_groups
  if type(dict) ~= "table" or (saved ~= nil and type(saved) ~= "table") or type(dict.state) ~= "table" then
    load_problem("expected a table made by state_dict()")
  end
  local given = {}
  for key, own in pairs(dict.state) do
    given[key] = type(own) == "table" and {} or own
    for name, t in pairs(type(own) == "table" and own or {}) do
      given[key][name] = lib.is_tensor(t) and (t.h ~= nil and t:describe() or nil) or nil
      if not lib.is_tensor(t) then given[key][name] = type(t) end
    end
  end
  return { step = dict.step, groups = state.check(opt, dict.step, given, saved) }
end

--- What MuonAdamW:load_state_dict does.
function state.load(opt, dict)
  local what, plan = "load_state_dict", nil
  dist.check_all(what, dist.attempt(nil, function()
    state.refresh(opt)
    if dist.rank() == 0 then plan = check_dict(opt, dict) end
  end))
  plan = state.of_rank_0(plan, "hyperparameters to go on with")
  state.put(opt, function(key, name, into) into:copy(dict.state[key][name]) end, what)
  for i, slot in ipairs(opt.slots) do
    for name, value in pairs(plan.groups[i]) do slot.group[name] = value end
  end
  opt.steps = plan.step
end

return state
