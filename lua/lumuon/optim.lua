--- The combined optimizer: Muon for matrices, AdamW for everything else.
--
--     local opt = lm.optim.MuonAdamW{
--       { kind = "adamw", params = { wte, head }, lr = 0.2, betas = {0.8, 0.95}, eps = 1e-10, weight_decay = 0 },
--       { kind = "muon", params = matrices, lr = 0.02, momentum = 0.95, ns_steps = 5, beta2 = 0.95,
--         weight_decay = 0.1 },
--       model = model,             -- optional: every parameter of it must be in a group
--       on_nonfinite = "error",    -- or "skip": what step() does about a NaN or Inf in a gradient; on a GPU
--                                  -- the device decides, and the host hears of it when it reads a number
--       shard = true,              -- by default: if there are several ranks
--       graph = true,              -- on one GPU: a step is one launch of a CUDA graph, from the second one on
--       overlap = "step",          -- or "backward", with opt:backward(loss): see lumuon.optim.overlap
--     }
--     for _, g in ipairs(opt.param_groups) do g.lr = g.initial_lr * multiplier end
--     opt:step()
--
-- Hyperparameters are plain numbers in opt.param_groups, read afresh and checked at every step;
-- lumuon.optim.options lists them with their defaults and ranges.
--
-- The parameters of a Muon group live in one bank (K, rows, cols), their gradients in another: making
-- the optimizer moves the data there and points p and p.grad at their part of it. Nothing is stacked
-- or copied in a step. (Views of a parameter that were made before keep the old memory: make the
-- optimizer before them.)
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local options = require "lumuon.optim.options"
local banks = require "lumuon.optim.banks"
local sharded = require "lumuon.optim.sharded"
local overlap = require "lumuon.optim.overlap"
local state = require "lumuon.optim.state"
local device = require "lumuon.optim.device"
local dist = require "lumuon.dist"
local ffi, C, raise = lib.ffi, lib.C, lib.raise

local MuonAdamW = {}

--- opt.steps, where a GPU counts them: waits for it.
function MuonAdamW:__index(key)
  if key == "steps" then return device.steps(self) end
  return MuonAdamW[key]
end

function MuonAdamW:__newindex(key, value)
  if key == "steps" and self.tally then return device.set_steps(self, value) end
  rawset(self, key, value)
end

-- ---- making one ------------------------------------------------------------------------------------

local outer_options = { on_nonfinite = true, model = true, shard = true, overlap = true, graph = true }

local function check_outer(given)
  if type(given) ~= "table" or lib.is_tensor(given) then
    raise("MuonAdamW: expected a list of groups, got %s", lib.is_tensor(given) and "a tensor" or type(given))
  end
  for key in pairs(given) do
    if type(key) ~= "number" and not outer_options[key] then
      local near = lib.nearest(tostring(key), { "on_nonfinite", "model", "shard", "overlap", "graph" })
      raise("MuonAdamW: unknown option '%s'%s", tostring(key), near and ("; did you mean '%s'?"):format(near)
        or " (it takes a list of groups, on_nonfinite, model, shard, overlap, graph)")
    end
  end
  if #given == 0 then raise("MuonAdamW: no groups") end
  for key in pairs(given) do
    if type(key) == "number" and given[key - 1] == nil and key ~= 1 then
      raise("MuonAdamW: group %s is there, but nothing at %s", tostring(key), tostring(key - 1))
    end
  end
  local policy = given.on_nonfinite or "error"
  if policy ~= "error" and policy ~= "skip" then
    raise("MuonAdamW: on_nonfinite = '%s' is neither 'error' nor 'skip'", tostring(policy))
  end
  if given.overlap ~= nil and given.overlap ~= "step" and given.overlap ~= "backward" then
    raise("MuonAdamW: overlap = '%s' is neither 'step' nor 'backward'", tostring(given.overlap))
  end
  if given.shard ~= nil and type(given.shard) ~= "boolean" then
    raise("MuonAdamW: shard = %s is neither true nor false", tostring(given.shard))
  end
  if given.graph ~= nil and type(given.graph) ~= "boolean" then
    raise("MuonAdamW: graph = %s is neither true nor false", tostring(given.graph))
  end
  if given.shard == false and dist.world_size() > 1 then
    raise("MuonAdamW: shard = false, but there are %d ranks, whose gradients must be averaged", dist.world_size())
  end
  return policy
end

--- A parameter's key in state_dict and name in messages.
local function key_of(p, i, j) return p.name or ("group %d param %d"):format(i, j) end

--- Raise where a list has a hole, as { a, model.misspelt, b } has: what is behind it would be left out.
local function check_list(what, list)
  local n = 0
  while list[n + 1] ~= nil do n = n + 1 end
  for key in pairs(list) do
    if type(key) == "number" and not (key >= 1 and key <= n and key % 1 == 0) then
      raise("%s: entry %d is nil, but there is one at %s", what, n + 1, tostring(key))
    elseif type(key) ~= "number" then
      raise("%s: has an entry '%s', and is a list", what, tostring(key))
    end
  end
end

--- Every parameter once, whole, and in memory of its own.
local function check_params(i, group, seen)
  local label, params = options.group_label(i, group), group.params
  if type(params) ~= "table" or lib.is_tensor(params) then
    raise("%s: params must be a list of parameters, got %s", label,
      lib.is_tensor(params) and "a tensor" or type(params))
  end
  if next(params) == nil then raise("%s: params is empty", label) end
  check_list(label .. ": params", params)
  for j, p in ipairs(params) do
    if not lib.is_tensor(p) then raise("%s: param %d is a %s, not a parameter", label, j, type(p)) end
    local key = key_of(p, i, j)
    if p.h == nil then raise("%s: %s was freed", label, key) end
    if not p.is_parameter then
      raise("%s: param %d, %s, is no parameter; make it with lm.parameter(t, name)", label, j, p:describe())
    end
    if seen[p] then
      raise("parameter %s %s is in groups twice: %s and %s", key, p:describe(), seen[p], label)
    end
    if seen[key] then raise("two parameters are called '%s': in %s and %s", key, seen[key], label) end
    if p:device() ~= group.params[1]:device() then
      raise("%s: %s lies on %s, %s on %s; a group lies on one device", label, key_of(group.params[1], i, 1),
        group.params[1]:device(), key, p:device())
    end
    local address = p:numel() > 0 and ("%s %.0f"):format(p:device(), C.lm_tensor_address(p.h)) or key
    if seen[address] then
      raise("%s: %s %s is the same memory as %s; put a shared weight in once", label, key, p:describe(),
        seen[address])
    end
    seen[p], seen[key], seen[address] = label, label, key
  end
end

--- What a group needs beside the user's table: its parameters by name, and their state.
local function make_slot(i, group)
  local slot = { kind = group.kind, index = i, group = group, params = {}, keys = {},
    blocks = banks.blocks_text(group.blocks) }
  for j, p in ipairs(group.params) do
    slot.params[j] = p
    slot.keys[j] = key_of(p, i, j)
  end
  return slot
end

local function construct(given)
  local policy = check_outer(given)
  local self = setmetatable({ param_groups = {}, slots = {}, steps = 0, on_nonfinite = policy,
    overlap = given.overlap or "step", passed_over = { count = 0 } }, MuonAdamW)
  local seen = {}
  for i, one in ipairs(given) do
    local group = options.complete(i, one)
    check_params(i, group, seen)
    local slot = make_slot(i, group)
    if group.kind == "muon" then banks.check(slot) end
    self.param_groups[i], self.slots[i] = group, slot
  end
  if given.model ~= nil then self:covers(given.model) end
  if given.graph then device.check_graph(self, given.shard) end
  if given.shard or dist.world_size() > 1 then
    lib.outside_scope(sharded.set_up, self)
  else
    for _, slot in ipairs(self.slots) do lib.outside_scope(banks[slot.kind], slot) end
  end
  lib.outside_scope(device.set_up, self, given.graph)
  -- Those that need most scratch memory go first: if it cannot be had, nothing has been written yet.
  self.order = {}
  for i, slot in ipairs(self.slots) do self.order[i] = slot end
  table.sort(self.order, function(a, b)
    if a.scratch ~= b.scratch then return a.scratch > b.scratch end
    return a.index < b.index
  end)
  return self
end

--- Raise unless every parameter of the model is in a group, and nothing else: names the missing ones.
-- model: anything with :named_parameters(), or a table of name -> parameter. Returns the optimizer.
function MuonAdamW:covers(model)
  local owned, missing, known = {}, {}, {}
  for _, slot in ipairs(self.slots) do
    for j, p in ipairs(slot.params) do owned[p] = slot.keys[j] end
  end
  if type(model) ~= "table" then raise("covers: expected a model, got %s", type(model)) end
  local function look(name, p)
    known[p] = true
    if not owned[p] then missing[#missing + 1] = ("%s (%s)"):format(name, p:describe()) end
  end
  if model.named_parameters then
    for name, p in model:named_parameters() do look(name, p) end
  else
    for name, p in pairs(model) do look(name, p) end
  end
  if #missing > 0 then
    table.sort(missing)
    raise("%d of the model's parameters %s in no group: %s", #missing, #missing == 1 and "is" or "are",
      table.concat(missing, ", "))
  end
  local strangers = {}
  for p, key in pairs(owned) do
    if not known[p] then strangers[#strangers + 1] = key end
  end
  if #strangers > 0 then
    table.sort(strangers)
    raise("in a group but not in the model: %s", table.concat(strangers, ", "))
  end
  return self
end

-- ---- a step ------------------------------------------------------------------------------------------

--- Write through f(...); once something has been written, Ctrl-C waits until everything is. progress.later: nothing
-- is written before all has been handed over (lumuon.optim.device).
local function write(progress, f, ...)
  local status = lib.status(f, ...)
  if status == C.LM_ENOMEM then
    lib.collect()
    status = lib.status(f, ...)
  end
  while status == C.LM_EINTERRUPT and progress.done > 0 do
    C.lm_interrupt_clear()
    progress.interrupted = true
    status = lib.status(f, ...)
  end
  if status ~= 0 then
    if progress.interrupted then C.lm_interrupt() end
    raise("%s%s", ffi.string(C.lm_last_error()), progress.done > 0
      and (" (after %d updates of this step: load a checkpoint before going on)"):format(progress.done) or "")
  end
  if not progress.later then progress.done = progress.done + 1 end
end

local number = ffi.new("double[1]")

local function nonfinite(t)
  lib.call(C.lm_count_nonfinite, number, t.h)
  return number[0]
end

--- Which gradients have a NaN or Inf: a message, or nil. counts: how many, by parameter, where that is known.
local function find_nonfinite(self, counts)
  local first, more = nil, 0
  for _, slot in ipairs(self.slots) do
    if counts or slot.kind == "adamw" or nonfinite(slot.grad_bank) > 0 then
      for j, p in ipairs(slot.params) do
        local count = counts and counts[p] or nonfinite(p.grad)
        if count > 0 and not first then
          first = ("the gradient of %s %s in %s has %d NaN or Inf among its %d elements"):format(slot.keys[j],
            p:describe(), options.group_label(slot.index, slot.group), count, p:numel())
        elseif count > 0 then
          more = more + 1
        end
      end
    end
  end
  if not first then return nil end
  return first .. (more > 0 and (", and so have %d other parameters'"):format(more) or "") .. "; nothing was changed"
end

local function check_groups(self)
  for i, slot in ipairs(self.slots) do
    local group = self.param_groups[i]
    if group ~= slot.group then
      raise("group %d of param_groups was replaced; change its fields, or make a new optimizer", i)
    end
    if group.kind ~= slot.kind or #group.params ~= #slot.params then
      raise("%s: kind and params cannot change; make a new optimizer", options.group_label(i, group))
    end
    for j, p in ipairs(slot.params) do
      if group.params[j] ~= p then
        raise("%s: param %d was %s and is another now; make a new optimizer", options.group_label(i, group), j,
          slot.keys[j])
      end
    end
    options.check(i, group)
    if banks.blocks_text(group.blocks) ~= slot.blocks then
      raise("%s: blocks cannot change from {%s} to {%s}; make a new optimizer", options.group_label(i, group),
        slot.blocks, banks.blocks_text(group.blocks))
    end
    banks.refresh(slot, self.flight ~= nil)
  end
end

local function write_all(self)
  local progress = { done = 0, interrupted = false }
  local launched = overlap.take(self)
  if self.graph then
    device.step_by_graph(self, write, progress)
  elseif self.units then
    sharded.step(self, self.steps + 1, write, progress, launched)
    self.steps = self.steps + 1
  else
    local step = (self.tally and self.issued or self.steps) + 1
    for _, slot in ipairs(self.order) do banks.step(slot, step, write, progress, self.tally) end
    self[self.tally and "issued" or "steps"] = step
  end
  if progress.interrupted then C.lm_interrupt() end -- the next engine call tells
end

--- The last backward pass before a step, loss:backward(grad). With overlap = "backward" and several ranks the
-- gradients are averaged while it runs, as they become complete: from here to step() they are not the user's
-- (zero_grad() gives them up). With overlap = "step" it is loss:backward(grad) and nothing else.
function MuonAdamW:backward(loss, grad)
  tensor.live(loss, "backward")
  if self.overlap == "step" then return loss:backward(grad) end
  check_groups(self)
  overlap.backward(self, loss, grad, nonfinite, function(counts) return find_nonfinite(self, counts) end)
end

--- Move every parameter by its gradient. Returns true; or, with on_nonfinite = "skip", false and a
-- message where a gradient has a NaN or Inf (an error otherwise). Whatever goes wrong is found before
-- anything is written: parameters, moments and the step count are then as they were. With several ranks a
-- NaN on one is a NaN on all, and afterwards the gradients are undefined: zero_grad() before the next ones.
--
-- On a GPU this returns true at once, and the device looks at the gradients: where they have a NaN or Inf, it changes
-- nothing. With "error" it also holds back the steps after that one, until a call that waits for a number
-- (loss:item()) raises the error; with "skip" it goes on, and opt:skipped() tells.
function MuonAdamW:step()
  check_groups(self)
  local told, bad = overlap.told(self)
  if not told then
    bad = not self.graph and not device.guard(self) and find_nonfinite(self) or nil
    told = self.units and sharded.tell(bad)
  end
  if self.units then bad = sharded.first_problem(told, bad) end
  if bad then
    overlap.land(self)
    local over = self.passed_over
    over.count, over.message = over.count + 1, bad
    if self.on_nonfinite == "skip" then return false, bad end
    raise("step: %s", bad)
  end
  lib.uninterrupted(write_all, self)
  return true
end

--- How many steps of this optimizer changed nothing because a gradient had a NaN or Inf, and a message about the
-- last one, or nil. On a GPU this waits for the device.
function MuonAdamW:skipped()
  if self.tally then return device.skipped(self) end
  return self.passed_over.count, self.passed_over.message
end

--- With graph = true: { plain = steps that ran as ever, captures = of a step, launches = of what was captured }.
function MuonAdamW:graph_counts() return device.graph_counts(self) end

--- Every gradient = 0.
function MuonAdamW:zero_grad()
  overlap.land(self)
  for _, slot in ipairs(self.slots) do
    if slot.kind == "muon" then
      banks.refresh(slot)
      slot.grad_bank:fill(0)
    else
      for _, p in ipairs(slot.params) do
        if p.grad then p.grad:fill(0) end
      end
    end
  end
end

-- ---- state ---------------------------------------------------------------------------------------------

--- The tensors of one parameter's state, views that move with it: exp_avg and exp_avg_sq, or
-- momentum_buffer and second_momentum_buffer.
function MuonAdamW:state(p)
  for _, slot in ipairs(self.slots) do
    for j, own in ipairs(slot.params) do
      if own == p then
        if next(slot.state[j]) == nil then sharded.refuse_state(slot.keys[j]) end
        local copy = {} -- a table of their own: another tensor put into it would not be the optimizer's
        for name, t in pairs(slot.state[j]) do copy[name] = t end
        return copy
      end
    end
  end
  raise("state: not a parameter of this optimizer")
end

--- All that a later run needs to go on exactly: { step = n, param_groups = { { kind =, lr =, ...,
-- params = { names } } }, state = { name = { exp_avg = tensor, ... } } }. The tensors are copies (of several
-- ranks: in the CPU's memory, on rank 0; the others get nil, and all must call it). how:
--   views = true     the live tensors instead, where they are this process's
--   each = f         f(parameter's name, entry's name, tensor) for one after the other instead of the state; a
--                    tensor is gone after its call, so that a group's is held at most
function MuonAdamW:state_dict(how)
  local each = type(how) == "table" and how.each
  local dict = { step = self.steps, param_groups = {}, state = not each and {} or nil }
  for i, slot in ipairs(self.slots) do dict.param_groups[i] = state.group(slot) end
  local several, copies = dist.world_size() > 1, not (how and how.views)
  state.take(self, each or function(key, name, t, live)
    if live and copies then t = t:clone() end
    dict.state[key] = dict.state[key] or {}
    dict.state[key][name] = several and t:keep() or t
  end, "state_dict")
  if dist.rank() > 0 then return nil end
  return dict
end

--- Bytes of optimizer state in this process.
function MuonAdamW:state_bytes()
  local bytes = 0
  local function add(t) bytes = bytes + t:numel() * C.lm_dtype_size(C.lm_tensor_dtype(t.h)) end
  for _, slot in ipairs(self.slots) do
    if slot.kind == "muon" then
      add(slot.momentum)
      add(slot.second)
    else
      for j, whole in ipairs(slot.state) do
        local own = slot.large and slot.large[j] or whole
        add(own.exp_avg)
        add(own.exp_avg_sq)
      end
    end
  end
  return bytes
end

--- Do all ranks have the same settings, and the same parameters, bit by bit? true; or false and the first that
-- differs.
function MuonAdamW:audit()
  if not self.units then return true end
  return sharded.audit(self)
end

--- Who updates what, as text.
function MuonAdamW:assignment()
  if not self.units then return "one process updates everything" end
  return sharded.assignment(self)
end

--- Go on where state_dict() was taken: step count, hyperparameters, moments. Everything is checked
-- before anything is written. Parameters themselves are the model's to load. Of several ranks rank 0's dict is
-- everyone's, and the others may give nil. Without param_groups the hyperparameters stay as they are.
function MuonAdamW:load_state_dict(dict)
  state.load(self, dict)
  return self
end

--- "MuonAdamW after 12 steps" and a line a group.
function MuonAdamW:__tostring()
  local lines = { ("MuonAdamW after %d steps"):format(self.steps) }
  for i, slot in ipairs(self.slots) do
    local elements, shape = 0, slot.kind == "muon" and " of " .. slot.params[1]:describe() or ""
    for _, p in ipairs(slot.params) do elements = elements + p:numel() end
    lines[#lines + 1] = ("  %s: %d parameters%s, %d elements, lr %g, weight_decay %g"):format(
      options.group_label(i, slot.group), #slot.params, shape, elements, slot.group.lr, slot.group.weight_decay)
  end
  return table.concat(lines, "\n")
end

local optim = {}

--- The optimizer; see the top of this file.
optim.MuonAdamW = setmetatable({}, { __call = function(_, groups) return construct(groups) end })

--- Polar Express coefficients, (a, b, c) a row.
optim.polar_express_coefficients = options.polar_express

--- Orthogonalise a matrix or a bank of them (K, rows, cols): the polar factor, nearly. how: ns_steps,
-- precision, norm_scale, coefficients as in a Muon group.
function optim.polar_express(t, how)
  local group = options.complete_polar(how or {}, t:device())
  tensor.live(t, "polar_express")
  local bank = t:dim() == 2 and t:unsqueeze(1) or t
  local out = lib.result(C.lm_polar_express, bank:to("f32"):contiguous().h,
    banks.polar_args(ffi.new("lm_polar_args"), group))
  return t:dim() == 2 and out:squeeze(1) or out
end

return optim
