--- How Muon's products are done: the table of `lumuon info --tuning`, and what pins the choice.
local lib = require "lumuon.lib"
local options = require "lumuon.options"
local groups = require "lumuon.bench.groups"
local ffi, C = lib.ffi, lib.C

local tuning = {}

local PRECISIONS = { [0] = "f32", [1] = "bf16" }

--- Choose nothing by measurement, so that two runs cannot choose differently (or, with false, do again).
-- The environment's LUMUON_DETERMINISTIC=1 is the default of a process.
function tuning.set_deterministic(on)
  if type(on) ~= "boolean" then
    lib.raise("set_deterministic: true or false expected, got %s", lib.is_tensor(on) and "a tensor" or tostring(on))
  end
  C.lm_set_deterministic(on and 1 or 0)
end

function tuning.deterministic() return C.lm_deterministic() == 1 end

--- How matrices of this shape are done: as a step would, this measures what was not measured before.
-- @param precision "f32" or "bf16"
-- @param device "cpu" (default) or "cuda"
-- @param count matrices of the group (1): a GPU multiplies up to 8 at once to measure
-- @return { rows, cols, count, device, precision, threads, path, rule, kernel, ms }; ms: path -> milliseconds of
--   five steps on one matrix, or nil where the fixed rule was taken without a measurement
function tuning.choose(rows, cols, precision, device, count)
  local c, code = ffi.new("lm_muon_choice"), lib.device_code(device or "cpu")
  lib.call(C.lm_muon_choose, c, code, count or 1, rows, cols,
    precision == "bf16" and C.LM_PRECISION_BF16 or C.LM_PRECISION_F32)
  local ms
  if c.measured == 1 then
    ms = {}
    for path = C.LM_MUON_WRITTEN, C.LM_MUON_PATHS - 1 do
      if c.ms[path] > 0 then ms[ffi.string(C.lm_muon_path_name(path))] = c.ms[path] end
    end
  end
  return { rows = rows, cols = cols, count = c.count, device = code == C.LM_CUDA and "cuda" or "cpu",
    precision = PRECISIONS[c.precision], threads = c.threads, path = ffi.string(C.lm_muon_path_name(c.path)),
    rule = ffi.string(C.lm_muon_path_name(c.rule)), kernel = ffi.string(c.kernel), ms = ms }
end

local function shown(ms) return ms and ("%.2f"):format(ms) or "-" end

--- What multiplies on the path that was chosen: the Gram form is halved on the CPU, whole on a GPU.
local function multiplier(c)
  if c.device == "cuda" then return c.path == "halves" and c.kernel or "cublaslt" end
  return c.path == "written" and "onednn" or c.kernel
end

--- Print the table for the shapes of nanochat's GPT of a depth.
function tuning.print(model, device, scale)
  local shapes = groups.of(model, scale)
  local on_gpu = lib.device_code(device or "cpu") == C.LM_CUDA
  local by = on_gpu and "on " .. ffi.string(C.lm_cuda_info()) or ("on %d threads"):format(C.lm_threads())
  print(("Muon's products, ms a matrix of five steps %s%s:\n"):format(by,
    tuning.deterministic() and "; deterministic: by the fixed rule" or ""))
  print(("%6s %6s  %-9s %9s %9s %9s  %-8s %-8s %s"):format("rows", "cols", "precision", "written", "halves", "gram",
    "rule", "chosen", "kernel"))
  for _, group in ipairs(shapes) do
    for _, precision in ipairs { "bf16", "f32" } do
      local c = tuning.choose(group[2], group[3], precision, device, group[1])
      local ms = c.ms or {}
      print(("%6d %6d  %-9s %9s %9s %9s  %-8s %-8s %s"):format(c.rows, c.cols, c.precision, shown(ms.written),
        shown(ms.halves), shown(ms.gram), c.rule, c.path, multiplier(c)))
    end
  end
end

--- `lumuon info --tuning`.
function tuning.run(args)
  local o = options({
    tuning = { default = true, help = "how Muon's products are done, measured" },
    model = { default = "d12", help = "shapes of nanochat's GPT of this depth: d4, d12, ..." },
    device = { default = "cpu", help = "cpu, or cuda: where they are done" },
    scale = { default = 1, min = 1, help = "divides the widths of the shapes: for trying it out" },
    threads = { default = 0, min = 0, max = 1024, help = "0: as many as there are" },
    deterministic = { default = tuning.deterministic(), help = "by the fixed rule, nothing measured" },
  }, args, "info --tuning")
  if o.threads > 0 then lib.call(C.lm_set_threads, o.threads) end
  tuning.set_deterministic(o.deterministic)
  tuning.print(o.model, o.device, o.scale)
  return 0
end

return tuning
