--- What this machine can do at most, measured in the run whose figures are compared with it.
--
-- A machine's speed drifts with what else runs on it, that of its memory by a half and more within seconds where its
-- host is shared. So limits are sampled all through a run: those of products between the groups that it measures, those
-- of memory also between the steps of each AdamW group.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local report = require "lumuon.bench.report"
local clock = require "lumuon.clock"
local ffi, C, call = lib.ffi, lib.C, lib.call

local Limits = {}
Limits.__index = Limits

local NUMBERS = 2 ^ 25 -- past the caches

--- Limits for products in a precision, "f32" or "bf16".
local function new(precision)
  local self = setmetatable({ precision = precision, from = tensor.zeros(NUMBERS), to = tensor.zeros(NUMBERS),
    copies = {}, scalings = {}, rate = 0 }, Limits)
  self.box = ffi.new("lm_tensor *[1]")
  self.box[0] = self.from.h
  for _ = 1, 2 do self:sample() end
  self.copies, self.scalings = {}, {} -- the first ones also fetched the memory from the system
  return self
end

--- Measure the memory's limits once more: some 20 ms.
function Limits:sample_memory()
  local begun = clock()
  call(C.lm_copy, self.to.h, self.from.h)
  local copied = clock()
  call(C.lm_binary_scalar, self.box, C.LM_MUL, self.from.h, 0.5, 0)
  local scaled = clock()
  table.insert(self.copies, copied - begun)
  table.insert(self.scalings, scaled - copied)
end

--- Measure each once more: some 40 ms.
function Limits:sample()
  self:sample_memory()
  local rate, kernel = ffi.new("double[1]"), ffi.new("const char *[1]")
  call(C.lm_peak_rate, rate, kernel, self.precision == "bf16" and C.LM_PRECISION_BF16 or C.LM_PRECISION_F32)
  self.rate, self.kernel = math.max(self.rate, rate[0]), ffi.string(kernel[0])
end

--- GB/s, medians of all samples or of those after the first `before` ones, with read and written bytes counted alike:
-- of a copy, and of a scaling in place (which need not fetch what it writes).
function Limits:memory(before)
  local function rate(seconds) return 8 * NUMBERS / report.median({ unpack(seconds, (before or 0) + 1) }) / 1e9 end
  return { copy_gb_per_s = rate(self.copies), in_place_gb_per_s = rate(self.scalings) }
end

--- The figures of the whole run: of memory, and the best rate of products, in GFLOP/s.
function Limits:figures()
  local figures = self:memory()
  figures.products_gflop_per_s, figures.kernel, figures.precision = self.rate / 1e9, self.kernel, self.precision
  figures.samples = #self.copies
  return figures
end

function Limits:free()
  self.from:free()
  self.to:free()
end

return { new = new }
