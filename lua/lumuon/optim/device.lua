--- Steps of an optimizer that lies on a GPU as a whole: the host issues them and waits for nothing.
--
-- Gradients are looked at there. How many steps went ahead and how many did not is counted there as well, in the
-- tally, from which AdamW has its step count: the host need not hear of a skipped step before the next one. It reads
-- the tally when somebody asks: opt.steps, opt:skipped(), a checkpoint.
--
-- Of several ranks, or with groups on both devices, the host looks at the gradients, and counts.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local dist = require "lumuon.dist"
local banks = require "lumuon.optim.banks"
local options = require "lumuon.optim.options"
local ffi, C, raise = lib.ffi, lib.C, lib.raise

local device = {}

local MOST = 2 ^ 31 - 1 -- steps that a tally counts

--- Raise where graph = true cannot be: before anything is moved.
function device.check_graph(opt, shard)
  if shard or dist.world_size() > 1 then
    raise("MuonAdamW: graph = true is for one process: several ranks communicate between the groups' updates")
  end
  for _, slot in ipairs(opt.slots) do
    if slot.params[1]:device() == "cpu" then
      raise("MuonAdamW: graph = true needs all parameters on a GPU, and %s lies on the CPU", slot.keys[1])
    end
  end
end

--- Give opt a tally if all its parameters lie on a GPU and no other rank must agree; and a graph if it is to have one.
function device.set_up(opt, graph)
  local all = true
  for _, slot in ipairs(opt.slots) do
    if slot.params[1]:device() == "cpu" then all = false else opt.on_gpu = true end
  end
  if not (opt.on_gpu and all) or opt.units then return end
  local names, n = {}, 0
  for _, slot in ipairs(opt.slots) do
    if slot.kind == "muon" then
      n = n + 1
      names[n] = options.group_label(slot.index, slot.group)
    else
      for _, key in ipairs(slot.keys) do
        n = n + 1
        names[n] = key
      end
    end
  end
  opt.tally = tensor.zeros({ C.LM_TALLY_SIZE }, { dtype = "i32", device = "cuda" })
  opt.guarded = { n = n, names = names, pointers = ffi.new("const char *[?]", n, names),
    handles = ffi.new("const lm_tensor *[?]", n) }
  opt.issued = 0 -- the step count as far as the host knows
  rawset(opt, "steps", nil)
  if not graph then return end
  local out = ffi.new("lm_graph *[1]")
  lib.call(C.lm_graph_new, out, C.LM_CUDA)
  opt.graph, opt.runs, opt.again = ffi.gc(out[0], C.lm_graph_free), ffi.new("int[1]"), ffi.new("int[1]")
end

--- Have the device look at all gradients and decide whether the updates that follow do anything. False where that is
-- the host's to do.
function device.guard(opt)
  if not opt.on_gpu then return false end
  if not opt.tally then
    lib.call(C.lm_guard_gradients, C.LM_CUDA, 0, nil, nil, nil, C.LM_NONFINITE_ERROR)
    return false
  end
  local g, i = opt.guarded, 0
  for _, slot in ipairs(opt.slots) do
    if slot.kind == "muon" then
      g.handles[i] = slot.grad_bank.h
      i = i + 1
    else
      for _, p in ipairs(slot.params) do
        g.handles[i] = p.grad.h
        i = i + 1
      end
    end
  end
  lib.call(C.lm_guard_gradients, C.LM_CUDA, g.n, g.handles, g.pointers, opt.tally.h,
    opt.on_nonfinite == "skip" and C.LM_NONFINITE_SKIP or C.LM_NONFINITE_ERROR)
  return true
end

--- A step through opt.graph. The first one runs as ever, the second is captured, and the others hand over their
-- hyperparameters and launch what was captured; after a change of anything else it begins anew. write(progress, f,
-- ...) calls the engine.
function device.step_by_graph(opt, write, progress)
  local function updates()
    device.guard(opt)
    for _, slot in ipairs(opt.order) do banks.step(slot, opt.issued + 1, write, progress, opt.tally) end
  end
  repeat
    lib.call(C.lm_graph_begin, opt.graph, opt.runs)
    progress.later = opt.runs[0] == 0
    local ok, message = pcall(updates)
    if not ok then
      C.lm_graph_abort(opt.graph)
      error(message, 0)
    end
    lib.call(C.lm_graph_end, opt.graph, opt.again)
  until opt.again[0] == 0
  opt.issued = opt.issued + 1
end

--- How opt's steps were done, or nil without a graph.
function device.graph_counts(opt)
  if not opt.graph then return nil end
  local counts = ffi.new("double[?]", C.LM_GRAPH_COUNTS)
  lib.call(C.lm_graph_counts, opt.graph, counts)
  return { plain = counts[C.LM_GRAPH_PLAIN], captures = counts[C.LM_GRAPH_CAPTURES],
    launches = counts[C.LM_GRAPH_LAUNCHES] }
end

--- What the device has counted: waits for it. The host knows the step count again.
local function read(opt)
  local here = opt.tally:to("cpu")
  local counts = here:tolist()
  here:free()
  opt.issued = counts[C.LM_TALLY_MADE + 1]
  return counts
end

--- The steps made.
function device.steps(opt) return read(opt)[C.LM_TALLY_MADE + 1] end

--- How many steps changed nothing, and what the last of them that had a NaN or Inf had.
function device.skipped(opt)
  local counts = read(opt)
  local bad, others = counts[C.LM_TALLY_BAD + 1], counts[C.LM_TALLY_OTHERS + 1]
  if bad == 0 then return counts[C.LM_TALLY_SKIPPED + 1] end
  return counts[C.LM_TALLY_SKIPPED + 1], ("the gradient of %s had %d NaN or Inf%s; nothing was changed"):format(
    opt.guarded.names[counts[C.LM_TALLY_GRADIENT + 1] + 1], bad,
    others > 0 and (", and so had %d other%s"):format(others, others > 1 and "s" or "") or "")
end

--- Raise where so many steps cannot be counted.
function device.check_steps(opt, steps)
  if not opt.tally or steps <= MOST then return end
  raise("load_state_dict: step = %.0f is more than a GPU counts, %.0f", steps, MOST)
end

--- From now on `steps` steps were made. Ctrl-C is told afterwards.
function device.set_steps(opt, steps)
  device.check_steps(opt, steps)
  local made, interrupted = opt.tally:narrow(1, C.LM_TALLY_MADE + 1, 1), false
  local status = lib.status(C.lm_fill, made.h, steps)
  while status == C.LM_EINTERRUPT do
    C.lm_interrupt_clear()
    interrupted, status = true, lib.status(C.lm_fill, made.h, steps)
  end
  if status ~= 0 then raise("%s", ffi.string(C.lm_last_error())) end
  opt.issued = steps
  if interrupted then C.lm_interrupt() end
end

return device
