--- `mpirun -n N lumuon bench dist`: the sharded optimizer's bytes on the wire, bytes of state and times.
--
-- Times are of the three phases alone: what a step adds to forward and backward. `arithmetic` is the updates
-- without communication, `communication` the collectives without updates, `one by one` a step that waits for
-- each collective where it is launched, `overlapped` the step as it is. The slowest rank counts. --tokens=N does
-- forward and backward too: see lumuon.bench.backward.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local autograd = require "lumuon.autograd"
local optim = require "lumuon.optim"
local sharded = require "lumuon.optim.sharded"
local dist = require "lumuon.dist"
local options = require "lumuon.options"
local group_table = require "lumuon.bench.groups"
local report = require "lumuon.bench.report"
local backward = require "lumuon.bench.backward"
local clock = require "lumuon.clock"
local C, call = lib.C, lib.call

local M = { help = "several processes: bytes on the wire, state a rank, overlap (under mpirun)" }

local function make_groups(muon, adamw, precision)
  local generator, groups, count = tensor.Generator(1), {}, 0
  local function parameter(sizes)
    count = count + 1
    local p = autograd.parameter(tensor.randn(sizes, { generator = generator, std = 0.02 }), "p" .. count)
    p.grad:normal_(0, 1, tensor.Generator(2 + dist.rank(), count))
    return p
  end
  for _, sizes in ipairs(adamw) do
    local params = {}
    for i, s in ipairs(sizes) do params[i] = parameter(s) end
    groups[#groups + 1] = { kind = "adamw", lr = 1e-3, params = params }
  end
  for _, s in ipairs(muon) do
    local params = {}
    for i = 1, s[1] do params[i] = parameter { s[2], s[3] } end
    groups[#groups + 1] = { kind = "muon", lr = 1e-3, params = params, precision = precision }
  end
  groups.shard = true
  return groups
end

--- Bytes one process alone would hold, and the least a rank must send in a step: of each gradient and each
-- parameter (N-1)/N, of what is all-reduced twice that.
local function ideal(muon, adamw, size)
  local state, elements = 0, 0
  for _, s in ipairs(muon) do
    state = state + 4 * s[1] * (s[2] * s[3] + math.max(s[2], s[3]))
    elements = elements + s[1] * s[2] * s[3]
  end
  for _, list in ipairs(adamw) do
    for _, s in ipairs(list) do
      local n = s[1] * (s[2] or 1)
      state, elements = state + 8 * n, elements + n
    end
  end
  return state, 2 * 4 * elements * (size - 1) / size
end

local box

--- The slowest rank's seconds of f().
local function timed(f)
  dist.barrier()
  local begun = clock()
  f()
  box:fill(clock() - begun)
  return dist.all_reduce(box, "max"):item()
end

local PHASES = { "arithmetic", "communication", "one_by_one", "overlapped" }
local WITH_BACKWARD = { "pass", "in_step", "in_backward" }

--- Lists of seconds from rounds in which each of the named functions is timed once, one after the other: a machine
-- whose speed changes changes them together.
local function rounds(runs, names, p)
  local lists = {}
  for _, name in ipairs(names) do lists[name] = {} end
  for i = 1, runs do
    for _, name in ipairs(names) do lists[name][i] = timed(p[name]) end
  end
  return lists
end

local function medians_of(lists)
  local medians = {}
  for name, list in pairs(lists) do medians[name] = report.median(list) end
  return medians
end

--- Medians of the phases, and that of overlapped / max(arithmetic, communication).
local function time_phases(runs, p)
  local lists, ratios = rounds(runs, PHASES, p), {}
  for i = 1, runs do
    ratios[i] = lists.overlapped[i] / math.max(lists.arithmetic[i], lists.communication[i])
  end
  return medians_of(lists), report.median(ratios)
end

local function write(_, f, ...) call(f, ...) end

local function phases(opt)
  local step, progress = 0, {}
  local function launch(unit) return unit.everywhere and dist.all_reduce or dist.reduce_scatter end
  local function update(unit) unit.update(step, write, progress) end
  local function gather(unit, how) return not unit.everywhere and dist.all_gather(unit.param, how) or nil end
  local function next_step() step = step + 1 end
  local p = {}
  function p.arithmetic()
    next_step()
    for _, unit in ipairs(opt.units) do update(unit) end
  end
  function p.communication()
    for _, unit in ipairs(opt.units) do launch(unit)(unit.grad, { op = "mean" }) end
    for _, unit in ipairs(opt.units) do gather(unit) end
  end
  function p.one_by_one()
    next_step()
    for _, unit in ipairs(opt.units) do
      launch(unit)(unit.grad, { op = "mean" })
      update(unit)
      gather(unit)
    end
  end
  function p.overlapped()
    next_step()
    sharded.step(opt, step, write, progress)
  end
  return p
end

--- @param args of the command line; returns the exit code
function M.run(args)
  local o = options({
    model = { default = "d12", help = "groups of nanochat's GPT of this depth: d4, d12, ..." },
    scale = { default = 8, min = 1, help = "divide widths and vocabulary by this" },
    runs = { default = 5, min = 3, max = 1000, help = "timed runs of each" },
    precision = { default = "f32", choices = { "f32", "bf16" }, help = "of Muon's products" },
    delay = { default = 0.0, min = 0, max = 1000, type = "number",
      help = "slow communication down by this many times the time of the arithmetic" },
    tokens = { default = 0, min = 0, max = 65536,
      help = "also time steps with forward and backward of a GPT on so many tokens a rank" },
    threads = { default = 0, min = 0, max = 1024, help = "of each rank; 0: its share of the cores" },
    json = { default = "", help = "write the figures to this file" },
  }, args, "bench dist")
  local muon, adamw = group_table.of(o.model, o.scale)
  local rank, size = dist.init()
  if rank == 0 then report.check(o.json) end
  if o.threads > 0 then call(C.lm_set_threads, o.threads) end
  box = tensor.zeros(1)
  local opt = optim.MuonAdamW(make_groups(muon, adamw, o.precision))
  local single, least = ideal(muon, adamw, size)
  local p = phases(opt)
  p.arithmetic() -- scratch memory, caches
  local before = dist.wire_bytes()
  p.overlapped()
  local wire = dist.wire_bytes() - before
  local plain = time_phases(o.runs, p)
  local shares, sent = {}, {}
  for i, text in ipairs(dist.all_strings(("%d %.0f"):format(opt:state_bytes(), wire))) do
    local bytes, out = text:match("(%d+) (%d+)")
    shares[i], sent[i] = tonumber(bytes) / single, tonumber(out)
  end
  if o.delay > 0 and least > 0 then call(C.lm_dist_set_delay, o.delay * plain.arithmetic / wire) end
  local times, of_the_longer = time_phases(o.runs, p)
  local with_backward
  if o.tokens > 0 then
    local b = backward.phases(o.model, o.scale, o.tokens, o.precision)
    for _ = 1, 2 do -- the second pass is the first whose reductions begin early
      for _, name in ipairs(WITH_BACKWARD) do b[name]() end
    end
    with_backward = medians_of(rounds(o.runs, WITH_BACKWARD, b))
  end
  call(C.lm_dist_set_delay, 0)
  local result = { bench = "dist", machine = report.machine(), model = o.model, scale = o.scale, ranks = size,
    precision = o.precision, transport = dist.transport(), state_bytes_alone = single, state_share = shares,
    wire_bytes = sent, wire_least = least, arithmetic_ms = times.arithmetic * 1e3,
    communication_ms = times.communication * 1e3, communication_without_delay_ms = plain.communication * 1e3,
    delay = o.delay, one_by_one_ms = times.one_by_one * 1e3, overlapped_ms = times.overlapped * 1e3,
    of_the_longer = of_the_longer }
  print(("%s, widths / %d, %d ranks over %s, %d threads each, products in %s"):format(o.model, o.scale, size,
    result.transport, C.lm_threads(), o.precision))
  print(opt:assignment())
  local worst, most = 0, 0
  for i = 1, size do worst, most = math.max(worst, shares[i]), math.max(most, sent[i]) end
  print(("state a rank       %.1f MB alone; at most %.2f %% of it (1/%d is %.2f %%)"):format(single / 1e6, 100 * worst,
    size, 100 / size))
  print(("bytes on the wire  %.3f MB a rank and step; the least is %.3f MB%s"):format(most / 1e6, least / 1e6,
    least > 0 and (" (%.2f %% more)"):format(100 * (most / least - 1)) or ""))
  print(("step               arithmetic %.1f ms, communication %.1f ms%s"):format(times.arithmetic * 1e3,
    times.communication * 1e3,
    o.delay > 0 and (" (%.1f ms without the delay)"):format(plain.communication * 1e3) or ""))
  print(("                   one by one %.1f ms, overlapped %.1f ms: %.2f times the longer of the two"):format(
    times.one_by_one * 1e3, times.overlapped * 1e3, of_the_longer))
  if with_backward then
    local t = with_backward
    result.tokens, result.pass_ms = o.tokens, t.pass * 1e3
    result.step_after_backward_ms, result.step_during_backward_ms = t.in_step * 1e3, t.in_backward * 1e3
    print(("with %-5d tokens  forward and backward %.1f ms; and a step %.1f ms, with overlap = 'backward' %.1f ms")
      :format(o.tokens, t.pass * 1e3, t.in_step * 1e3, t.in_backward * 1e3))
  end
  if rank == 0 then report.save(o.json, result) end
  return 0
end

return M
