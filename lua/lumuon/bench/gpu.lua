--- `lumuon bench gpu`: what a GPU reaches, against its own limits measured in the same run.
--
-- Limits: a copy from device memory to device memory in bytes a second (read and written ones counted), and a
-- large bf16 product in operations a second. Medians; the host waits for the device only around what is timed.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local raw = require "lumuon.raw"
local optim = require "lumuon.optim"
local options = require "lumuon.options"
local clock = require "lumuon.clock"
local group_table = require "lumuon.bench.groups"
local report = require "lumuon.bench.report"
local session = require "lumuon.bench.session"
local steps = require "lumuon.bench.steps"
local ffi, C, call = lib.ffi, lib.C, lib.call

local M = { help = "a GPU: bandwidth, products, AdamW, Polar Express, optimizer and training steps" }

local own = {
  depths = { default = "12,24", help = "of nanochat's GPT whose optimizer step is measured" },
  train_depth = { default = 12, min = 1, help = "of the GPT whose training step is measured" },
  sequence_lens = { default = "1024,2048", help = "tokens a row of that training step" },
  batch_tokens = { default = 32768, min = 2, help = "tokens a training step" },
  vocab_size = { default = 32768, min = 64, help = "tokens there are" },
  elements = { default = 2 ^ 26, min = 1024, help = "numbers copied, and parameters of AdamW" },
  product = { default = 8192, min = 16, help = "rows, columns and inner size of the large product" },
  scale = { default = 1, min = 1, help = "divides the widths of the optimizer's groups: for trying it out" },
  runs = { default = 7, min = 3, max = 100, help = "timed runs of each" },
  json = { default = "", help = "write the figures to this file" },
}

local function wait() call(C.lm_synchronize, C.LM_CUDA) end

--- Median seconds of f(), each run `times` calls between two waits for the device.
local function timed(runs, times, f)
  f()
  f()
  local seconds = {}
  for r = 1, runs do
    wait()
    local begun = clock()
    for _ = 1, times do f() end
    wait()
    seconds[r] = (clock() - begun) / times
  end
  return report.median(seconds)
end

local function numbers(what, text)
  local list = {}
  for word in text:gmatch("[^,]+") do
    local n = tonumber(word)
    if not n or n < 1 or n % 1 ~= 0 then options.fail(("--%s=%s: expected whole numbers"):format(what, text)) end
    list[#list + 1] = n
  end
  return list
end

-- ---- limits --------------------------------------------------------------------------------------------------

local function measure_limits(o)
  return lib.scope(function()
    local n = o.elements
    local from, to = tensor.zeros({ n }, { device = "cuda" }), tensor.zeros({ n }, { device = "cuda" })
    local copy = timed(o.runs, 10, function() call(C.lm_copy, to.h, from.h) end)
    local size = o.product
    local a = tensor.randn({ size, size }, { device = "cuda", dtype = "bf16" })
    local b = tensor.randn({ size, size }, { device = "cuda", dtype = "bf16" })
    local out = tensor.zeros({ size, size }, { device = "cuda", dtype = "bf16" })
    local product = timed(o.runs, 3, function() raw.matmul(a, b, 1, out, 0) end)
    return { copy_gb_per_s = 8 * n / copy / 1e9, product_tflop_per_s = 2 * size ^ 3 / product / 1e12, product = size }
  end)
end

-- ---- optimizers ----------------------------------------------------------------------------------------------

local function measure_adamw(o, limit)
  return lib.scope(function()
    local group = { kind = "adamw", count = 1, sizes = { o.elements } }
    local ours = steps.new({ group }, "bf16", "cuda")
    local seconds = timed(o.runs, 5, function() ours:time(1) end)
    ours:free()
    local rate = 28 * o.elements / seconds / 1e9
    return { parameters = o.elements, ms = seconds * 1e3, gb_per_s = rate, share_of_copy = rate / limit.copy_gb_per_s }
  end)
end

--- Operations of Polar Express as written, a matrix.
local function polar_operations(rows, cols)
  local m, n = math.min(rows, cols), math.max(rows, cols)
  return 5 * (4 * m * m * n + 2 * m ^ 3)
end

local function measure_polar(o, limit)
  local list = {}
  for _, group in ipairs(group_table.list("d12")) do
    local rows, cols = group.sizes[1] / o.scale, (group.sizes[2] or 0) / o.scale
    if group.kind == "muon" and math.min(rows, cols) >= 32 and rows % 1 == 0 and cols % 1 == 0 then
      list[#list + 1] = lib.scope(function()
        local x = tensor.randn({ group.count, rows, cols }, { device = "cuda" })
        local seconds = timed(o.runs, 2, function() optim.polar_express(x):free() end)
        local rate = group.count * polar_operations(rows, cols) / seconds / 1e12
        local did = steps.muon_report()
        return { name = group.name, shape = { group.count, rows, cols }, ms = seconds * 1e3, tflop_per_s = rate,
          share_of_product = rate / limit.product_tflop_per_s, path = did.path,
          executed_tflop_per_s = did.operations / seconds / 1e12 }
      end)
    end
  end
  return list
end

--- opt:step() of nanochat's groups at a depth, and each group's share of it.
local function measure_step(o, depth)
  return lib.scope(function()
    local groups = {}
    for _, group in ipairs(group_table.list("d" .. depth)) do
      local sizes = {}
      for d, size in ipairs(group.sizes) do sizes[d] = math.max(1, math.floor(size / o.scale)) end
      local embedding = group.name == "wte" or group.name == "value_embeds"
      groups[#groups + 1] = { name = group.name, kind = group.kind, count = group.count, sizes = sizes,
        dtype = embedding and "bf16" or nil }
    end
    local ours = steps.new(groups, "bf16", "cuda")
    local row = { depth = depth, ms = timed(o.runs, 3, function() ours:whole() end) * 1e3, groups = {} }
    for i, group in ipairs(groups) do
      local ms = timed(o.runs, 3, function() ours:time(i) end) * 1e3
      local cost = ours:cost(i)
      row.groups[i] = { name = group.name, kind = group.kind, shape = { group.count, unpack(group.sizes) }, ms = ms,
        path = cost.path, bytes = cost.bytes, operations = cost.operations, scratch_bytes = cost.scratch_bytes }
    end
    ours:free()
    local by_graph = steps.new(groups, "bf16", "cuda", true)
    row.graph_ms = timed(o.runs, 3, function() by_graph:whole() end) * 1e3
    by_graph:free()
    return row
  end)
end

-- ---- training ------------------------------------------------------------------------------------------------

local function measure_training(o, sequence_len)
  local rows = math.max(1, math.floor(o.batch_tokens / sequence_len))
  local begun = clock()
  local run = session.open("d" .. o.train_depth, { "--device=cuda", "--dtype=bf16", "--sequence_len=" .. sequence_len,
    "--batch_size=" .. rows, "--vocab_size=" .. o.vocab_size })
  local loss = run.train_step()
  local first = clock() - begun
  C.lm_device_memory(C.LM_CUDA, C.LM_MEMORY_RESET_PEAK)
  local seconds = timed(o.runs, 1, run.train_step)
  local tokens = rows * sequence_len
  local figures = { depth = o.train_depth, sequence_len = sequence_len, rows = rows, ms = seconds * 1e3,
    tokens_per_second = tokens / seconds, first_step_s = first, first_loss = loss,
    model_tflop_per_s = tokens * run.model:flops_per_token() / seconds / 1e12,
    peak_bytes = C.lm_device_memory(C.LM_CUDA, C.LM_MEMORY_PEAK) }
  lib.collect()
  return figures
end

-- ---- all of it -----------------------------------------------------------------------------------------------

--- What is known is written after each figure: a later one may fail.
-- @param args of the command line; returns the exit code
function M.run(args)
  local o = options(own, args, "bench gpu")
  lib.device_code("cuda") -- or an error that says why there is none
  local f = { bench = "gpu", machine = report.machine(), gpu = ffi.string(C.lm_cuda_info()), scale = o.scale }
  print(f.gpu)
  report.check(o.json)
  local function put(name, value)
    f[name] = value
    report.save(o.json, f)
  end
  put("limits", measure_limits(o))
  print(("copy %.0f GB/s; a bf16 product of %d: %.1f TFLOP/s"):format(f.limits.copy_gb_per_s, o.product,
    f.limits.product_tflop_per_s))
  put("adamw", measure_adamw(o, f.limits))
  print(("AdamW, %.0f parameters in f32: %.3f ms, %.0f GB/s, %.0f%% of the copy"):format(f.adamw.parameters, f.adamw.ms,
    f.adamw.gb_per_s, 100 * f.adamw.share_of_copy))
  put("polar_express", measure_polar(o, f.limits))
  for _, row in ipairs(f.polar_express) do
    print(("Polar Express, %-10s %-16s %8.3f ms  %6.1f TFLOP/s as written, %.0f%% of the product; %s"):format(row.name,
      table.concat(row.shape, " x "), row.ms, row.tflop_per_s, 100 * row.share_of_product, row.path))
  end
  f.optimizer, f.training = {}, {}
  for i, depth in ipairs(numbers("depths", o.depths)) do
    f.optimizer[i] = measure_step(o, depth)
    put("optimizer", f.optimizer)
    print(("optimizer step, d%d: %.2f ms; as a graph %.2f ms"):format(depth, f.optimizer[i].ms,
      f.optimizer[i].graph_ms))
  end
  for i, length in ipairs(numbers("sequence_lens", o.sequence_lens)) do
    local row = measure_training(o, length)
    f.training[i] = row
    put("training", f.training)
    print(("training step, d%d, %d x %d: %.1f ms, %.0f tok/s, %.1f TFLOP/s; first step after %.2f s"):format(row.depth,
      row.rows, length, row.ms, row.tokens_per_second, row.model_tflop_per_s, row.first_step_s))
  end
  return 0
end

return M
