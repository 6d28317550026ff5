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
-- @return { rows, cols, precision, threads, path, rule, kernel, ms }; ms: path -> milliseconds of five steps
--   on one matrix, or nil where the fixed rule was taken without a measurement
function tuning.choose(rows, cols, precision)
  local c = ffi.new("lm_muon_choice")
  lib.call(C.lm_muon_choose, c, rows, cols, precision == "bf16" and C.LM_PRECISION_BF16 or C.LM_PRECISION_F32)
  local ms
  if c.measured == 1 then
    ms = {}
    for path = C.LM_MUON_WRITTEN, C.LM_MUON_PATHS - 1 do
      if c.ms[path] > 0 then ms[ffi.string(C.lm_muon_path_name(path))] = c.ms[path] end
    end
  end
  return { rows = rows, cols = cols, precision = PRECISIONS[c.precision], threads = c.threads,
    path = ffi.string(C.lm_muon_path_name(c.path)), rule = ffi.string(C.lm_muon_path_name(c.rule)),
    kernel = ffi.string(c.kernel), ms = ms }
end

local function shown(ms) return ms and ("%.2f"):format(ms) or "-" end

--- Print the table for the shapes of nanochat's GPT of a depth.
function tuning.print(model)
  print(("Muon's products, ms a matrix of five steps on %d threads%s:\n"):format(C.lm_threads(),
    tuning.deterministic() and "; deterministic: by the fixed rule" or ""))
  print(("%6s %6s  %-9s %9s %9s %9s  %-8s %-8s %s"):format("rows", "cols", "precision", "written", "halves", "gram",
    "rule", "chosen", "kernel"))
  for _, group in ipairs((groups.of(model))) do
    for _, precision in ipairs { "bf16", "f32" } do
      local c = tuning.choose(group[2], group[3], precision)
      local ms = c.ms or {}
      print(("%6d %6d  %-9s %9s %9s %9s  %-8s %-8s %s"):format(c.rows, c.cols, c.precision, shown(ms.written),
        shown(ms.halves), shown(ms.gram), c.rule, c.path, c.path == "written" and "onednn" or c.kernel))
    end
  end
end

--- `lumuon info --tuning`.
function tuning.run(args)
  local o = options({
    tuning = { default = true, help = "how Muon's products are done, measured" },
    model = { default = "d12", help = "shapes of nanochat's GPT of this depth: d4, d12, ..." },
    threads = { default = 0, min = 0, max = 1024, help = "0: as many as there are" },
    deterministic = { default = tuning.deterministic(), help = "by the fixed rule, nothing measured" },
  }, args, "info --tuning")
  if o.threads > 0 then lib.call(C.lm_set_threads, o.threads) end
  tuning.set_deterministic(o.deterministic)
  tuning.print(o.model)
  return 0
end

return tuning
