--- Muon's forms on the GPU: which one is taken, and what lm_muon_last tells of it.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local devices = require "spec.support.devices"
local tuning = require "lumuon.tuning"
local assert = require "luassert"
local ffi, C = lib.ffi, lib.C

local list = {}

local function last()
  local report = ffi.new("lm_muon_report")
  lib.call(C.lm_muon_last, report)
  return report
end

--- f() with nothing measured yet, and everything as it was afterwards.
local function afresh(f)
  local before = lm.deterministic()
  lm.set_deterministic(false)
  lib.call(C.lm_set_muon_kernel, "auto") -- forgets
  local ok, message = pcall(f)
  lib.call(C.lm_set_muon_path, C.LM_MUON_AUTO)
  lib.call(C.lm_set_muon_kernel, "auto")
  lib.call(C.lm_set_gpu_muon_kernel, "auto")
  lm.set_deterministic(before)
  if not ok then error(message, 0) end
end

local function choose(rows, cols, precision, count) return tuning.choose(rows, cols, precision, "cuda", count) end

--- f() on an emulated GPU where launches, blocks of threads and cuBLASLt's operations take so long.
local function with_clock(launch, block, product, f)
  devices.with_environment("LUMUON_EMULATED_LAUNCH", tostring(launch), function()
    devices.with_environment("LUMUON_EMULATED_BLOCK", tostring(block), function()
      devices.with_environment("LUMUON_EMULATED_PRODUCT", tostring(product), f)
    end)
  end)
end

list[#list + 1] = { "goes by the rule where nothing may be measured, and for small matrices", function()
  afresh(function()
    assert.is_nil(choose(64, 256, "bf16").ms)
    assert.equal("gram", choose(64, 256, "bf16").path)
    lm.set_deterministic(true)
    for path, shapes in pairs { written = { { 768, 768 }, { 768, 1536 }, { 32, 4096 } },
      gram = { { 768, 3072 }, { 3072, 768 }, { 64, 192 } } } do
      for _, s in ipairs(shapes) do
        local c = choose(s[1], s[2], "bf16", 12)
        assert.same({ path, path, nil, 8, 0 }, { c.path, c.rule, c.ms, c.count, c.threads })
      end
    end
  end)
end }

list[#list + 1] = { "measures a shape once, and takes what is clearly faster than the rule's", function()
  if not devices.emulated() then return end -- a GPU's own clock decides there
  for _, case in ipairs { { "written", "bf16", 10000, 10 }, { "halves", "bf16", 0.01, 1e4 },
    { "gram", "f32", 0.01, 1e4 } } do
    local path, precision = case[1], case[2]
    afresh(function()
      with_clock(2, case[3], case[4], function()
        local first = choose(128, 368, precision)
        assert.equal(path, first.path)
        assert.equal("written", first.rule)
        if path ~= "written" then assert.is_true(first.ms[path] < 0.87 * first.ms.written) end
        with_clock(1, 1, 1, function() assert.same(first, choose(128, 368, precision)) end) -- not again
        lm.set_deterministic(true)
        assert.equal("written", choose(128, 368, precision).path)
      end)
    end)
  end
end }

list[#list + 1] = { "keeps to the rule within the margin; has no halves in f32, and no Gram form of squares", function()
  if not devices.emulated() then return end
  afresh(function()
    with_clock(2, 0.01, 10, function()
      local c = choose(128, 256, "f32")
      assert.equal("written", c.path)
      assert.is_nil(c.ms.halves)
      assert.is_true(c.ms.gram > 0)
      assert.is_nil(choose(160, 160, "f32").ms.gram)
    end)
  end)
end }

list[#list + 1] = { "of several matrices measures several at once, and a step takes what was chosen", function()
  if not devices.emulated() then return end
  afresh(function()
    with_clock(2, 0.01, 1e4, function()
      local x = devices.random("f32", { 2, 128, 256 }).tensor:to("cuda")
      lm.optim.polar_express(x, { precision = "bf16", ns_steps = 1 })
      assert.same({ C.LM_MUON_HALVES, 2, "mma_bf16" }, { last().path, last().matrices, ffi.string(last().kernel) })
      with_clock(2, 1e4, 1, function() -- what is known is not measured again: another count is
        assert.equal("halves", choose(128, 256, "bf16", 2).path)
        assert.equal(2, choose(128, 256, "bf16", 2).count)
        assert.equal("written", choose(128, 256, "bf16", 1).path)
      end)
    end)
  end)
end }

list[#list + 1] = { "a measurement for which there is no memory leaves the rule", function()
  if not devices.emulated() then return end
  afresh(function()
    devices.with_environment("LUMUON_EMULATED_MEMORY", "1e5", function()
      local c = choose(160, 640, "bf16")
      assert.same({ "gram", nil }, { c.path, c.ms })
    end)
    assert.is_nil(choose(160, 640, "bf16").ms) -- and is not tried at every step
  end)
end }

list[#list + 1] = { "tells what a step did: operations, bytes, memory", function()
  afresh(function()
    local k, m, n = 2, 64, 256
    local x = devices.random("f32", { k, m, n }).tensor:to("cuda")
    local function did(path, precision)
      lib.call(C.lm_set_muon_path, path)
      lm.optim.polar_express(x, { precision = precision })
      assert.equal(path, last().path)
      assert.equal(k, last().matrices)
      return last()
    end
    local gram, square, apply = 2 * m * m * n, 2 * m ^ 3, 2 * m * m * n
    local written = did(C.LM_MUON_WRITTEN, "bf16")
    assert.equal("cublaslt", ffi.string(written.kernel))
    assert.equal(k * 5 * (gram + square + apply), written.operations)
    assert.equal(k * m * n * (12 + 2 * 2), written.bytes)
    assert.equal(k * m * n * (12 + 2 * 4), did(C.LM_MUON_WRITTEN, "f32").bytes)
    -- runs of 2, 1 and 2 steps: 5 polynomials, twice H, the next G, and Q, which has two addends
    local by_gram = did(C.LM_MUON_GRAM, "bf16")
    assert.equal(k * (3 * (gram + apply) + 5 * square + 2 * 3 * square), by_gram.operations)
    assert.equal(k * m * n * (12 + 2 * 2) + 2 * k * m * m * (4 + 3 * 2), by_gram.bytes)
    assert.is_true(by_gram.scratch >= 2 * 2 * k * m * n + 4 * 2 * k * m * m)
    lib.call(C.lm_set_gpu_muon_kernel, "mma_bf16") -- not the faster
    -- halves: tiles of 128, of which this matrix has one, half full; whole products where they are not symmetric
    local halves = did(C.LM_MUON_HALVES, "bf16")
    assert.equal("mma_bf16", ffi.string(halves.kernel))
    local tile = 2 * 128 * 128
    assert.equal(k * (3 * (tile * n + apply) + 5 * tile * m + 2 * (2 * square + tile * m)), halves.operations)
  end)
end }

list[#list + 1] = { "counts a step's bytes, and its memory beforehand", function()
  afresh(function()
    local args, out = ffi.new("lm_muon_args"), ffi.new("double[1]")
    args.polar.ns_steps, args.polar.norm_scale, args.momentum, args.beta2 = 1, 1.02, 0.9, 0.9
    args.polar.coefficients[0] = 1
    for _, shape in ipairs { { 3, 70, 300 }, { 2, 128, 40 } } do
      local k, rows, cols = unpack(shape)
      local function random(s) return devices.random("f32", s).tensor:to("cuda") end
      local second = random(rows >= cols and { k, rows, 1 } or { k, 1, cols })
      for size, precision in pairs { [4] = C.LM_PRECISION_F32, [2] = C.LM_PRECISION_BF16 } do
        args.polar.precision = precision
        local p, g, m = random(shape), random(shape), random(shape)
        lib.call(C.lm_muon_step, p.h, g.h, m.h, second.h, args)
        assert.equal(k * rows * cols * (28 + 3 * size), last().bytes)
        lib.call(C.lm_muon_scratch, out, C.LM_CUDA, k, rows, cols, precision)
        assert.equal(last().scratch, out[0])
      end
    end
  end)
end }

return list
