--- Muon's products in every way there is: as written by oneDNN, halves and Gram form with each kernel.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local tuning = require "lumuon.tuning"
local golden = dofile "spec/support/golden.lua"
local support = dofile "spec/support/muon.lua"
local engine = dofile "spec/support/engine.lua"
local ffi, C = lib.ffi, lib.C
local polar = lm.optim.polar_express

local PATHS = { written = C.LM_MUON_WRITTEN, halves = C.LM_MUON_HALVES, gram = C.LM_MUON_GRAM }

--- { path, precision, kernel, variant }: everything that can run on this machine. The portable kernel does in
-- plain C what the one for AMX does with instructions: the same tiles, packing and driver.
local function ways()
  local list = {}
  for _, path in ipairs { "written", "halves", "gram" } do
    for _, variant in ipairs(path == "written" and { "" } or { "base", "avx2", "avx512" }) do
      list[#list + 1] = { path = path, precision = "f32", kernel = "auto", variant = variant }
    end
    for _, kernel in ipairs(path == "written" and { "auto" } or { "portable_bf16", "avx512_bf16", "amx_bf16" }) do
      list[#list + 1] = { path = path, precision = "bf16", kernel = kernel, variant = "" }
    end
  end
  return list
end

local variant = ffi.string(C.lm_cpu_variant())

--- Force a way; false where this machine does not have it.
local function force(way)
  if way.variant ~= "" and C.lm_set_cpu_variant(way.variant) ~= 0 then return false end
  if C.lm_set_muon_kernel(way.kernel) ~= 0 then return false end
  lib.call(C.lm_set_muon_path, PATHS[way.path])
  return true
end

local function label(way)
  local which = way.variant ~= "" and way.variant or way.kernel
  return ("%s in %s%s"):format(way.path, way.precision, which ~= "auto" and (" (%s)"):format(which) or "")
end

local function last()
  local report = ffi.new("lm_muon_report")
  lib.call(C.lm_muon_last, report)
  return report
end

--- 1 where bf16 is held as bf16, so that the kernels of packed bf16 products run.
local fast = C.lm_cpu_fast_bf16() == 1

describe("Muon's paths", function()
  local threads, deterministic = C.lm_threads(), C.lm_deterministic()

  after_each(function()
    C.lm_set_muon_path(C.LM_MUON_AUTO)
    C.lm_set_muon_kernel("auto")
    C.lm_set_cpu_variant(variant)
    C.lm_set_threads(threads)
    C.lm_set_deterministic(deterministic)
  end)

  for _, way in ipairs(ways()) do
    it("follows nanochat's numbers, " .. label(way), function()
      if not force(way) then return pending("not on this machine") end
      for _, version in ipairs { "seed", "head" } do
        for _, shape in ipairs(support.shapes) do
          local steps, moments = support.follow(version, shape, way.precision)
          for step, reached in ipairs(steps) do
            assert.is_true(reached[1] <= reached[2], ("%s_%s, step %d: %.3g > %.3g"):format(version, shape, step,
              reached[1], reached[2]))
          end
          -- the Gram form's error in f32 may be twice that of the form as written, which the limit is for
          local slack = way.path == "gram" and way.precision == "f32" and 2 or 1
          for _, reached in ipairs(moments) do assert.is_true(reached[1] <= slack * reached[2]) end
          assert.equal(way.path, ffi.string(C.lm_muon_path_name(last().path)))
        end
      end
    end)

    it("takes odd shapes, " .. label(way), function()
      for i, s in ipairs { { 1, 1, 1 }, { 2, 1, 9 }, { 2, 9, 1 }, { 3, 5, 7 }, { 2, 65, 33 }, { 1, 33, 65 },
        { 1, 129, 257 }, { 1, 257, 129 }, { 2, 64, 200 }, { 1, 96, 96 }, { 1, 300, 600 } } do
        local x = lm.randn(s, { generator = lm.Generator(i) })
        C.lm_set_muon_path(C.LM_MUON_WRITTEN)
        local reference = polar(x, { precision = "f32" })
        if not force(way) then return pending("not on this machine") end
        local y = polar(x, { precision = way.precision })
        local far = golden.distance({ y }, { reference }) / reference:norm():item()
        assert.is_true(far < (way.precision == "f32" and 3e-5 or 8e-2), ("%s: %g"):format(table.concat(s, " x "), far))
      end
      assert.same({ 0, 3, 4 }, polar(lm.zeros(0, 3, 4)):size())
      assert.same({ 2, 0, 4 }, polar(lm.zeros(2, 0, 4)):size())
    end)

    it("gives the same bits twice and from an unaligned view, " .. label(way), function()
      if not force(way) then return pending("not on this machine") end
      local memory = lm.randn({ 3 * 70 * 100 + 1 }, { generator = lm.Generator(5) })
      local view = memory:narrow(1, 2, 3 * 70 * 100):view(3, 70, 100)
      local first = polar(view, { precision = way.precision })
      assert.equal(0, polar(view, { precision = way.precision }):ne(first):sum():item())
      assert.equal(0, polar(view:clone(), { precision = way.precision }):ne(first):sum():item())
    end)
  end

  it("gives packed products the same bits whatever the threads", function()
    local function check(x, path, precision, kernel)
      local results = {}
      for n = 1, 4 do
        C.lm_set_threads(n)
        if not force { path = path, variant = "", kernel = kernel } then return end
        results[n] = polar(x, { precision = precision })
        assert.equal(0, results[n]:ne(results[1]):sum():item())
        -- one matrix is split over the threads, three small ones are dealt out
        local one = polar(x:narrow(1, 2, 1), { precision = precision })
        assert.equal(0, one:ne(results[1]:narrow(1, 2, 1)):sum():item())
      end
    end
    for i, shape in ipairs { { 3, 110, 320 }, { 3, 320, 110 }, { 2, 40, 3000 } } do -- the last: strips for two
      local x = lm.randn(shape, { generator = lm.Generator(5 + i) })
      for _, path in ipairs { "halves", "gram" } do
        check(x, path, "f32", "auto")
        check(x, path, "bf16", "auto")
        check(x, path, "bf16", "portable_bf16")
      end
    end
  end)

  for _, kernel in ipairs { "avx512_bf16", "amx_bf16" } do
    it("agrees with tiles in plain C, " .. kernel, function()
      if not fast or C.lm_set_muon_kernel(kernel) ~= 0 then return pending("not on this machine") end
      for _, shape in ipairs { { 1, 96, 224 }, { 2, 161, 70 }, { 1, 300, 600 } } do -- the last: ten tiles and more
        local x = lm.randn(shape, { generator = lm.Generator(7) })
        for _, path in ipairs { "halves", "gram" } do
          local results = {}
          for i, which in ipairs { kernel, "portable_bf16" } do
            assert.is_true(force { path = path, variant = "", kernel = which })
            results[i] = polar(x, { precision = "bf16", ns_steps = 2 }) -- before roundings to bf16 part
            assert.equal(which, ffi.string(last().kernel))
          end
          assert.is_true(golden.distance({ results[1] }, { results[2] }) < 5e-4 * results[1]:norm():item())
        end
      end
    end)
  end

  it("counts what it executes", function()
    local k, m, n = 2, 96, 256
    local x = lm.randn({ k, m, n })
    local function operations(path)
      assert.is_true(force { path = path, variant = "", kernel = "auto" })
      polar(x, { precision = "f32" })
      assert.equal(k, last().matrices)
      return last().operations / k
    end
    local half = 3 * (3 + 1) / 2 * 32 * 32 / (m * m) -- blocks of 32 on and above the diagonal
    local gram, square, apply = 2 * m * m * n * half, 2 * m ^ 3 * half, 2 * m * m * n
    assert.equal(5 * (4 * m * m * n + 2 * m ^ 3), operations("written"))
    assert.equal(5 * (gram + square + apply), operations("halves"))
    -- runs of 2, 1 and 2 steps: 5 polynomials, twice a next G (one product of it in full) and a Q
    assert.equal(3 * (gram + apply) + 5 * square + 2 * (2 * square + 2 * m ^ 3), operations("gram"))
  end)

  it("takes at most 1.5 times the bf16 copy of a group beside it, where there are matrices enough", function()
    if not fast then return pending("bf16 is held as f32 here") end
    lm.set_deterministic(true)
    local out = ffi.new("double[1]")
    local function copies(n, kernel, k, rows, cols)
      C.lm_set_threads(n)
      if C.lm_set_muon_kernel(kernel) ~= 0 then return 0 end
      lib.call(C.lm_muon_scratch, out, C.LM_CPU, k, rows, cols, C.LM_PRECISION_BF16)
      return out[0] / (2 * k * rows * cols)
    end
    local many = { { 48, 768, 768 }, { 12, 3072, 768 }, { 12, 768, 3072 } }
    local few = { { 16, 256, 256 }, { 4, 256, 1024 }, { 4, 1024, 1024 } }
    local function holds(kernel, shapes)
      for _, n in ipairs { 1, 2, 4, 8, 24 } do
        for _, s in ipairs(shapes) do
          local taken = copies(n, kernel, unpack(s))
          assert.is_true(taken < 1.505, ("%s, %d threads: %g of %d x %d x %d"):format(kernel, n, taken, unpack(s)))
        end
      end
    end
    holds("avx512_bf16", many)
    holds("avx512_bf16", few)
    holds("portable_bf16", many) -- with X and the small matrices by rows, too
    if C.lm_set_muon_kernel("avx512_bf16") ~= 0 then return end
    -- X in the bank, three small matrices a thread
    assert.is_true(copies(2, "avx512_bf16", 12, 3072, 768) < 1.14)
    -- what cannot be less: X and two as large
    assert.is_true(copies(2, "avx512_bf16", 1, 1024, 1024) < 3.01)
  end)

  it("counts a step's scratch beforehand", function()
    lm.set_deterministic(true)
    local args, out = ffi.new("lm_muon_args"), ffi.new("double[1]")
    args.polar.ns_steps, args.polar.norm_scale, args.momentum, args.beta2 = 1, 1.02, 0.9, 0.9
    args.polar.coefficients[0] = 1
    for _, shape in ipairs { { 1, 512, 512 }, { 4, 256, 256 }, { 3, 70, 300 }, { 16, 64, 256 }, { 5, 128, 32 },
      { 1, 64, 2048, 5 } } do
      local k, rows, cols, n = unpack(shape)
      C.lm_set_threads(n or threads)
      local x, g, m = lm.randn(k, rows, cols), lm.randn(k, rows, cols), lm.zeros(k, rows, cols)
      local second = rows >= cols and lm.zeros(k, rows, 1) or lm.zeros(k, 1, cols)
      for _, precision in ipairs { C.LM_PRECISION_F32, C.LM_PRECISION_BF16 } do
        args.polar.precision = precision
        lib.call(C.lm_muon_step, x.h, g.h, m.h, second.h, args)
        lib.call(C.lm_muon_scratch, out, C.LM_CPU, k, rows, cols, precision)
        assert.equal(last().scratch, out[0])
      end
    end
    engine.refuses(C.LM_EINVAL, { "muon_scratch", "out is NULL" }, C.lm_muon_scratch, nil, C.LM_CPU, 1, 4, 4, 0)
    engine.refuses(C.LM_EINVAL, { "muon_scratch", "0 x 4 x 4" }, C.lm_muon_scratch, out, C.LM_CPU, 0, 4, 4, 0)
    engine.refuses(C.LM_EINVAL, { "muon_scratch", "precision = 7" }, C.lm_muon_scratch, out, C.LM_CPU, 1, 4, 4, 7)
  end)

  it("chooses by shape and precision alone when deterministic", function()
    lm.set_deterministic(true)
    assert.is_true(lm.deterministic())
    for path, shapes in pairs { written = { { 6, 32 }, { 70, 70 }, { 65, 300 }, { 1, 1 } },
      halves = { { 64, 64 }, { 768, 768 }, { 512, 768 } }, gram = { { 64, 128 }, { 3072, 768 }, { 768, 3072 } } } do
      for _, s in ipairs(shapes) do
        for _, precision in ipairs { "f32", "bf16" } do
          local c = tuning.choose(s[1], s[2], precision)
          assert.equal(path, c.path)
          assert.equal(path, c.rule)
          assert.is_nil(c.ms)
        end
      end
    end
    lm.set_deterministic(false)
    assert.is_false(lm.deterministic())
    local ok, message = pcall(lm.set_deterministic, 1)
    assert.is_false(ok)
    assert.truthy(message:find("true or false expected, got 1", 1, true))
  end)

  it("measures a shape once and keeps to it", function()
    lm.set_deterministic(false)
    C.lm_set_muon_kernel("auto") -- forgets what was measured
    local first = tuning.choose(160, 480, "f32")
    assert.is_true(first.ms.written > 0 and first.ms.halves > 0 and first.ms.gram > 0)
    if first.path ~= first.rule then assert.is_true(first.ms[first.path] < 0.87 * first.ms[first.rule]) end
    assert.same(first, tuning.choose(160, 480, "f32"))
    assert.is_nil(tuning.choose(160, 160, "f32").ms.gram)
    assert.is_nil(tuning.choose(16, 48, "f32").ms) -- small ones take the rule
    polar(lm.randn(1, 160, 480), { precision = "f32" })
    assert.equal(first.path, ffi.string(C.lm_muon_path_name(last().path)))
    lm.set_deterministic(true)
    assert.equal(first.rule, tuning.choose(160, 480, "f32").path)
  end)

  it("measures within the memory of a step, whatever the threads", function()
    lm.set_deterministic(false)
    local args, out = ffi.new("lm_muon_args"), ffi.new("double[1]")
    args.polar.ns_steps, args.polar.norm_scale, args.momentum, args.beta2 = 5, 1.02, 0.9, 0.9
    for i = 0, 14 do args.polar.coefficients[i] = ({ 1.875, -1.25, 0.375 })[i % 3 + 1] end
    for _, case in ipairs { { 16, 4, 256, 1024 }, { 16, 16, 256, 256 }, { 3, 12, 480, 160 }, { 16, 1, 160, 480 } } do
      local n, k, rows, cols = unpack(case)
      C.lm_set_threads(n)
      local x, g, m = lm.randn(k, rows, cols), lm.randn(k, rows, cols), lm.zeros(k, rows, cols)
      local second = rows >= cols and lm.zeros(k, rows, 1) or lm.zeros(k, 1, cols)
      for _, precision in ipairs { "f32", "bf16" } do
        args.polar.precision = precision == "f32" and C.LM_PRECISION_F32 or C.LM_PRECISION_BF16
        local most = 0
        for _, path in pairs(PATHS) do
          lib.call(C.lm_set_muon_path, path)
          lib.call(C.lm_muon_scratch, out, C.LM_CPU, k, rows, cols, args.polar.precision)
          most = math.max(most, out[0])
        end
        C.lm_set_muon_path(C.LM_MUON_AUTO)
        C.lm_set_muon_kernel("auto") -- forgets what was measured
        lib.collect()
        C.lm_memory_trim()
        C.lm_memory_reset_peak()
        local live = C.lm_memory_live()
        lib.call(C.lm_muon_step, x.h, g.h, m.h, second.h, args)
        local taken = C.lm_memory_peak() - live
        assert.is_table(tuning.choose(rows, cols, precision).ms) -- by that step
        local what = ("%d threads, %d of %d x %d in %s: %g MB"):format(n, k, rows, cols, precision, taken / 1e6)
        assert.is_true(taken <= most * 9 / 8, ("%s of %g"):format(what, most / 1e6)) -- blocks come in sizes
      end
    end
  end)

  it("tries a measurement that failed for want of memory once, and measures nothing when its table is full", function()
    finally(function()
      lib.call(C.lm_set_memory_limit, 0)
      C.lm_interrupt_clear()
    end)
    lm.set_deterministic(false)
    C.lm_set_muon_kernel("auto")
    C.lm_interrupt()
    assert.is_nil(tuning.choose(160, 320, "f32").ms)
    C.lm_interrupt_clear()
    assert.is_table(tuning.choose(160, 320, "f32").ms) -- an interruption is not remembered

    lib.collect()
    C.lm_memory_trim()
    lib.call(C.lm_set_memory_limit, C.lm_memory_live() + 1000)
    local failed = tuning.choose(160, 352, "f32")
    assert.is_nil(failed.ms)
    assert.equal(failed.rule, failed.path)
    for i = 1, 254 do assert.is_nil(tuning.choose(160, 352 + i, "f32").ms) end -- 256 with the two above
    lib.call(C.lm_set_memory_limit, 0)
    assert.same(failed, tuning.choose(160, 352, "f32"))
    assert.is_nil(tuning.choose(160, 320, "bf16").ms) -- the table is full
    C.lm_set_muon_kernel("auto")
    assert.is_table(tuning.choose(160, 352, "f32").ms)
  end)

  it("refuses what it does not have", function()
    for message, call in pairs {
      ["set_muon_path: 9 is not in 0..3"] = function() lib.call(C.lm_set_muon_path, 9) end,
      ["set_muon_kernel: no kernel 'sse' on this CPU (auto"] = function() lib.call(C.lm_set_muon_kernel, "sse") end,
      ["muon_choose: 1 x 0 x 4 is no shape"] = function() tuning.choose(0, 4, "f32") end,
    } do
      local ok, found = pcall(call)
      assert.is_false(ok)
      assert.truthy(found:find(message, 1, true), found)
    end
    assert.is_true(C.lm_muon_path_name(C.LM_MUON_PATHS) == nil)
  end)

  it("refuses NULL where a name or a place to write belongs", function()
    local rate, kernel = ffi.new("double[1]"), ffi.new("const char *[1]")
    engine.refuses(C.LM_EINVAL, { "set_muon_kernel", "NULL" }, C.lm_set_muon_kernel, nil)
    engine.refuses(C.LM_EINVAL, { "set_cpu_variant", "NULL" }, C.lm_set_cpu_variant, nil)
    engine.refuses(C.LM_EINVAL, { "muon_choose", "out is NULL" }, C.lm_muon_choose, nil, C.LM_CPU, 1, 4, 4, 0)
    engine.refuses(C.LM_EINVAL, { "muon_last", "out is NULL" }, C.lm_muon_last, nil)
    engine.refuses(C.LM_EINVAL, { "peak_rate", "out is NULL" }, C.lm_peak_rate, nil, kernel, 0)
    engine.refuses(C.LM_EINVAL, { "peak_rate", "kernel is NULL" }, C.lm_peak_rate, rate, nil, 0)
  end)
end)
