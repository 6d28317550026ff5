--- `lumuon bench optim`: AdamW in GB/s beside a copy, Muon in ms and GFLOP/s, for the shapes of a GPT.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local banks = require "lumuon.optim.banks"
local group_options = require "lumuon.optim.options"
local options = require "lumuon.options"
local group_table = require "lumuon.bench.groups"
local report = require "lumuon.bench.report"
local clock = require "lumuon.clock"
local ffi, C, call = lib.ffi, lib.C, lib.call

local M = { help = "AdamW in GB/s beside a copy, Muon in ms and GFLOP/s per shape" }

--- What nanochat's GPT of this depth has: { count, rows, cols } of its Muon groups, and the elements of
-- each of its AdamW tensors.
local function model_shapes(model)
  local muon, adamw = group_table.of(model)
  local elements = {}
  for _, group in ipairs(adamw) do
    for _, sizes in ipairs(group) do elements[#elements + 1] = sizes[1] * (sizes[2] or 1) end
  end
  return muon, elements
end

--- Seconds of each of n runs of f, after one that is not counted.
local function time(n, f)
  local seconds = {}
  f()
  for i = 1, n do
    local start = clock()
    f()
    seconds[i] = clock() - start
  end
  return seconds
end

local function random(...) return tensor.randn({ ... }) end

--- One fused AdamW step over all tensors, and a copy of as much memory: the two share a run, because
-- bandwidth drifts with what else the machine does.
local function bench_adamw(sizes, runs)
  local n, elements = #sizes, 0
  local arrays, keep = {}, {}
  for role = 1, 4 do
    arrays[role] = ffi.new("lm_tensor *[?]", n)
    for i, size in ipairs(sizes) do
      local t = role == 4 and tensor.rand(size) or random(size)
      keep[#keep + 1] = t
      arrays[role][i - 1] = t.h
      if role == 1 then elements = elements + size end
    end
  end
  local args = ffi.new("lm_adamw_args", { lr = 1e-3, beta1 = 0.8, beta2 = 0.95, eps = 1e-10, weight_decay = 0.1,
    step = 1 })
  local grads = ffi.cast("const lm_tensor **", arrays[2])
  local from, to = tensor.zeros(2 * elements), tensor.zeros(2 * elements) -- 16 bytes an element, as AdamW has
  local step, copy = {}, {}
  for _ = 1, runs do
    copy[#copy + 1] = time(1, function() call(C.lm_copy, to.h, from.h) end)[1]
    step[#step + 1] = time(1, function()
      call(C.lm_adamw_step, n, arrays[1], grads, arrays[3], arrays[4], args)
    end)[1]
  end
  for _, t in ipairs(keep) do t:free() end
  from:free()
  to:free()
  local seconds, copy_seconds = report.median(step), report.median(copy)
  local rate, copy_rate = 28 * elements / seconds / 1e9, 16 * elements / copy_seconds / 1e9
  return { tensors = n, elements = elements, ms = seconds * 1e3, gb_per_s = rate, copy_gb_per_s = copy_rate,
    share_of_copy = rate / copy_rate, runs = runs }
end

--- One fused Muon step over a bank.
local function bench_muon(count, rows, cols, precision, runs)
  local group = group_options.complete(1, { kind = "muon", lr = 0.02, weight_decay = 0.1, precision = precision })
  local param, grad, momentum = random(count, rows, cols), random(count, rows, cols), random(count, rows, cols)
  local second = rows >= cols and tensor.zeros(count, rows, 1) or tensor.zeros(count, 1, cols)
  local args = ffi.new("lm_muon_args", { lr = 1e-3, momentum = 0.95, beta2 = 0.95, weight_decay = 0.1, nesterov = 1 })
  banks.polar_args(args.polar, group)
  local seconds = report.median(time(runs, function()
    call(C.lm_muon_step, param.h, grad.h, momentum.h, second.h, args)
  end))
  for _, t in ipairs { param, grad, momentum, second } do t:free() end
  local m, n = math.min(rows, cols), math.max(rows, cols)
  local flop = count * group.ns_steps * (4 * m * m * n + 2 * m * m * m) -- as written: ALGORITHM's 20m2n + 10m3
  return { count = count, rows = rows, cols = cols, precision = precision, ms = seconds * 1e3, gflop = flop / 1e9,
    gflop_per_s = flop / seconds / 1e9, runs = runs }
end

local function parse_shape(text)
  local count, rows, cols = text:match("^(%d+),(%d+),(%d+)$")
  if not count then options.fail(("--shape=%s: expected three sizes, K,rows,cols"):format(text)) end
  return tonumber(count), tonumber(rows), tonumber(cols)
end

--- @param args of the command line; returns the exit code
function M.run(args)
  local o = options({
    model = { default = "d4", help = "shapes of nanochat's GPT of this depth: d4, d12, ..." },
    shape = { default = "", help = "one Muon bank K,rows,cols instead of a model's" },
    precision = { default = "both", choices = { "both", "f32", "bf16" }, help = "of Muon's products" },
    runs = { default = 7, min = 5, max = 1000, help = "timed runs of each" },
    threads = { default = 0, min = 0, max = 1024, help = "0: as many as there are" },
    json = { default = "", help = "write the figures to this file" },
  }, args)
  if o.threads > 0 then call(C.lm_set_threads, o.threads) end
  local machine = report.machine()
  local result = { bench = "optim", machine = machine, muon = {} }
  local shapes, sizes = model_shapes(o.model)
  if o.shape ~= "" then shapes, sizes = { { parse_shape(o.shape) } }, nil end
  print(("%s, %s kernels, %d threads, oneDNN %s"):format(machine.cpu, machine.kernels, machine.threads,
    machine.onednn))
  if sizes then
    result.model = o.model
    local a = bench_adamw(sizes, o.runs)
    result.adamw = a
    print(("\nAdamW  %d tensors, %d elements: %.2f ms, %.1f GB/s (28 bytes an element); copy %.1f GB/s; %.0f %% of it")
      :format(a.tensors, a.elements, a.ms, a.gb_per_s, a.copy_gb_per_s, 100 * a.share_of_copy))
  end
  print(("\n%-6s %5s %6s %6s  %9s %10s %9s"):format("Muon", "K", "rows", "cols", "ms", "GFLOP", "GFLOP/s"))
  for _, s in ipairs(shapes) do
    for _, precision in ipairs(o.precision == "both" and { "f32", "bf16" } or { o.precision }) do
      local r = bench_muon(s[1], s[2], s[3], precision, o.runs)
      result.muon[#result.muon + 1] = r
      print(("%-6s %5d %6d %6d  %9.2f %10.2f %9.0f"):format(r.precision, r.count, r.rows, r.cols, r.ms, r.gflop,
        r.gflop_per_s))
    end
  end
  report.save(o.json, result)
  return 0
end

return M
