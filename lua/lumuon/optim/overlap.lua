--- overlap = "backward": the averaging of gradients begins while the backward pass still runs.
--
--     local opt = lm.optim.MuonAdamW{ ..., overlap = "backward" }
--     for i = 1, n - 1 do loss_of(i):backward() end    -- micro-batches, if there are several
--     opt:backward(loss_of(n))                         -- the last one: no gradient is written after it
--     opt:step()
--
-- A unit (see lumuon.optim.sharded) is launched when nothing more will be added to any of its gradients.
--
-- Every rank must launch in the same order, while the graphs of two ranks may differ: the order is the one in which
-- rank 0's units became ready in its first pass, and a unit waits for those before it. In that first pass all are
-- launched at the end.
--
-- Whether all gradients are finite is not known before the last one is written, when others have been averaged
-- already. Each is looked at before its reduction, the ranks tell each other ahead of the last reduction, and a step
-- that is skipped has changed gradients, but neither parameters nor moments.
local autograd = require "lumuon.autograd"
local dist = require "lumuon.dist"
local sharded = require "lumuon.optim.sharded"
local raise = require("lumuon.lib").raise

local overlap = {}

local CLOSED = "was given to opt:backward(), which averages it over the ranks: step() or zero_grad() comes next "
  .. "(of several micro-batches only the last one's loss goes to opt:backward)"

local function for_every_param(opt, f)
  for _, slot in ipairs(opt.slots) do
    for _, p in ipairs(slot.params) do f(p) end
  end
end

--- Launch what is ready, in order, but not the last unit: what the ranks tell each other goes before it.
local function launch_ready(flight)
  local order = flight.order
  while flight.next < #order and flight.left[order[flight.next]] == 0 do
    sharded.launch(order[flight.next])
    flight.next = flight.next + 1
  end
end

local function watcher(opt, nonfinite)
  local flight = { order = opt.backward_order, next = 1, left = {}, ready = {}, counts = {}, unit_of = {} }
  local units = opt.units or {}
  local function ready(unit)
    flight.ready[#flight.ready + 1] = unit
    if flight.order then launch_ready(flight) end
  end
  local function begin(uses)
    opt.flight = flight
    for_every_param(opt, function(p) autograd.closed[p] = CLOSED end)
    for _, unit in ipairs(units) do
      flight.left[unit] = 0
      for _, p in ipairs(unit.params) do
        flight.unit_of[p] = unit
        if uses[p] then
          flight.left[unit] = flight.left[unit] + 1
        else
          flight.counts[p] = nonfinite(p.grad)
        end
      end
    end
    for _, unit in ipairs(units) do
      if flight.left[unit] == 0 then ready(unit) end
    end
  end
  local function final(p)
    local unit = flight.unit_of[p]
    if not unit then return end -- another optimizer's, or nobody's
    flight.counts[p] = nonfinite(p.grad)
    flight.left[unit] = flight.left[unit] - 1
    if flight.left[unit] == 0 then ready(unit) end
  end
  return { begin = begin, final = final }
end

--- Rank 0's order of `ready`, as every rank's units.
local function agreed_order(ready)
  local by_index, numbers, order = {}, {}, {}
  for i, unit in ipairs(ready) do numbers[i], by_index[unit.index] = unit.index, unit end
  local first = dist.all_strings(table.concat(numbers, " "), "order of the reductions")[1]
  for index in first:gmatch("%d+") do order[#order + 1] = by_index[tonumber(index)] end
  return order
end

--- The last backward pass before a step. nonfinite(t) counts a tensor's NaN and Inf; describe(counts) makes the
-- message of what is found, or nil.
function overlap.backward(opt, loss, grad, nonfinite, describe)
  if opt.flight then raise("backward: opt:backward() was called before; step() or zero_grad() comes next") end
  local ok, message = pcall(autograd.backward, loss, grad, watcher(opt, nonfinite))
  local flight = opt.flight
  if not ok then
    if flight then flight.failed = true end
    error(message, 0)
  end
  if not opt.units then return end
  if not flight.order then
    opt.backward_order = agreed_order(flight.ready)
    flight.order = opt.backward_order
    launch_ready(flight)
  end
  flight.bad = describe(flight.counts)
  flight.told = sharded.tell(flight.bad)
  sharded.launch(flight.order[flight.next])
  flight.next = flight.next + 1
end

--- At a step: what the ranks told each other about gradients that are not finite, and this one's message, if that
-- is under way. Raises where overlap = "backward" and there was no backward pass to go with it.
function overlap.told(opt)
  local flight = opt.flight
  if opt.overlap == "step" then return nil end
  if not flight then
    raise("step: overlap = 'backward', but there was no opt:backward(loss) since the last step")
  end
  if flight.failed then raise("step: the last opt:backward() ended with an error; zero_grad() first") end
  return flight.told, flight.bad
end

--- Wait for what is under way and forget it: gradients may be written again.
function overlap.land(opt)
  local flight = opt.flight
  if not flight then return end
  for i = 1, flight.next - 1 do sharded.finish(flight.order[i].reduction, {}) end
  overlap.take(opt)
end

--- The step that waits for what is under way begins. Returns whether anything is.
function overlap.take(opt)
  if not opt.flight then return false end
  opt.flight = nil
  for_every_param(opt, function(p) autograd.closed[p] = nil end)
  return true
end

return overlap
