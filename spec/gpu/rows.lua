--- rms_norm, softmax, rotary, both in one: ops on the rows of the last dim, and their gradients.
local lib = require "lumuon.lib"
local lm = require "lumuon"
local devices = require "spec.support.devices"
local C, result, into = lib.C, lib.result, lib.into

local list = {}
local NEAR = { f32 = 3e-6, bf16 = 2 ^ -7 }
-- one of each way a row is shared out, whole spans of 8 and not; the longest in chunks
local COLUMNS = { 1, 7, 64, 100, 128, 250, 256, 768, 1001, 1024, 2048, 3000, 8192, 9000 }

local function rows_for(columns) return columns > 2000 and 2 or 21 end

list[#list + 1] = { "rms_norm and its gradient", function()
  for _, columns in ipairs(COLUMNS) do
    for _, pair in ipairs { { "f32", "f32" }, { "bf16", "bf16" }, { "bf16", "f32" } } do
      local shape = { rows_for(columns), columns }
      local x = devices.random(pair[1], shape, { low = -2, high = 3 })
      local g = devices.random(pair[2], shape)
      devices.compare({ x, g }, function(a, b)
        return result(C.lm_rms_norm, a.h, -1, 1.25), result(C.lm_rms_norm_backward, b.h, a.h, 1e-5, 0.5)
      end, NEAR[pair[1]], ("rms_norm of %s with gradients of %s, %d columns"):format(pair[1], pair[2], columns))
    end
  end
end }

list[#list + 1] = { "rms_norm in place, from within a tensor, of zeros, of nothing", function()
  devices.compare({ devices.random("f32", { 9, 72 }) }, function(x)
    return into(x, C.lm_rms_norm, x.h, 1e-6, 1)
  end, 3e-6, "in place")
  devices.compare({ devices.random("bf16", { 9, 128 }), devices.random("bf16", { 9, 128 }) }, function(x, g)
    return into(g, C.lm_rms_norm_backward, g.h, x.h, 1e-6, 1)
  end, 2 ^ -7, "gradient in place")
  local part = devices.random("bf16", { 5, 64 },
    { view = function(t) return t:view(320):narrow(1, 4, 256):view(4, 64) end })
  devices.compare({ part }, function(x) return result(C.lm_rms_norm, x.h, -1, 1) end, 2 ^ -7, "not aligned")
  devices.compare({ devices.random("f32", { 3, 40 }, { low = 0, high = 0 }) },
    function(x) return result(C.lm_rms_norm, x.h, -1, 1) end, 0, "zeros")
  devices.compare({ devices.random("f32", { 0, 40 }), devices.random("f32", { 4, 0 }) }, function(x, y)
    return result(C.lm_rms_norm, x.h, -1, 1), result(C.lm_rms_norm, y.h, -1, 1), result(C.lm_softmax, y.h)
  end, 0, "nothing")
end }

list[#list + 1] = { "softmax", function()
  for _, columns in ipairs(COLUMNS) do
    for _, dtype in ipairs { "f32", "bf16" } do
      local x = devices.random(dtype, { rows_for(columns), columns }, { low = -9, high = 9 })
      devices.compare({ x }, function(t) return result(C.lm_softmax, t.h) end, NEAR[dtype],
        ("softmax of %s, %d columns"):format(dtype, columns))
    end
  end
  local inf = 1 / 0
  devices.compare({ devices.values { { -inf, 1, 2 }, { 1e4, -3e38, 1e4 }, { -inf, -inf, -inf }, { 1, 0 / 0, 2 },
    { inf, 1, 2 }, { -300, -301, -3e38 } } }, function(t) return result(C.lm_softmax, t.h) end, 1e-6, "special values")
  devices.compare({ devices.random("f32", { 3, 300 }) }, function(t) return into(t, C.lm_softmax, t.h) end, 1e-6,
    "in place")
end }

list[#list + 1] = { "rotary and back", function()
  for _, shape in ipairs { { 2, 5, 3, 64 }, { 1, 17, 2, 16 }, { 2, 3, 1, 6 }, { 1, 1, 4, 128 }, { 1, 4, 2, 2 },
    { 2, 0, 1, 8 } } do
    for _, dtype in ipairs { "f32", "bf16" } do
      local x = devices.random(dtype, shape)
      local cos, sin = devices.random("f32", { 20, shape[4] / 2 }), devices.random("f32", { 20, shape[4] / 2 })
      devices.compare({ x, cos, sin }, function(t, c, s)
        return result(C.lm_rotary, t.h, c.h, s.h, 0), into(t, C.lm_rotary, t.h, c.h, s.h, 1)
      end, NEAR[dtype], ("rotary of %s (%s)"):format(dtype, table.concat(shape, ", ")))
    end
  end
end }

list[#list + 1] = { "rotary_norm and its gradient", function()
  -- one of each way a head is shared out, whole spans of 8 and not; the longest in chunks
  for _, shape in ipairs { { 1, 1, 1, 2 }, { 2, 5, 3, 6 }, { 2, 3, 5, 64 }, { 1, 17, 2, 128 }, { 1, 3, 2, 130 },
    { 1, 2, 2, 256 }, { 1, 2, 1, 512 }, { 1, 2, 2, 518 }, { 1, 2, 1, 4096 }, { 1, 2, 1, 5008 }, { 2, 0, 1, 8 } } do
    for _, pair in ipairs { { "f32", "f32" }, { "bf16", "bf16" }, { "bf16", "f32" } } do
      local x, g = devices.random(pair[1], shape, { low = -2, high = 3 }), devices.random(pair[2], shape)
      local cos, sin = lm.nn.rotary_tables(20, shape[4], 100)
      devices.compare({ x, g, { tensor = cos }, { tensor = sin } }, function(a, b, c, s)
        return result(C.lm_rotary_norm, a.h, c.h, s.h, -1, 1.25),
          result(C.lm_rotary_norm_backward, b.h, a.h, c.h, s.h, 1e-5, 0.5)
      end, NEAR[pair[1]], ("rotary_norm of %s with gradients of %s, (%s)"):format(pair[1], pair[2],
        table.concat(shape, ", ")))
    end
  end
end }

list[#list + 1] = { "rotary_norm in place, from within a tensor, of zeros; is the two ops", function()
  local cos, sin = lm.nn.rotary_tables(6, 32, 100)
  local function tables(...) return { ..., { tensor = cos }, { tensor = sin } } end
  for _, dtype in ipairs { "f32", "bf16" } do
    devices.compare(tables(devices.random(dtype, { 2, 5, 3, 32 })), function(x, c, s)
      return into(x, C.lm_rotary_norm, x.h, c.h, s.h, 1e-6, 1)
    end, NEAR[dtype], "in place")
  end
  devices.compare({ devices.random("bf16", { 2, 5, 3, 32 }), devices.random("bf16", { 2, 5, 3, 32 }),
    { tensor = cos }, { tensor = sin } }, function(x, g, c, s)
    return into(g, C.lm_rotary_norm_backward, g.h, x.h, c.h, s.h, 1e-6, 1)
  end, 2 ^ -7, "gradient in place")
  local part = devices.random("bf16", { 640 }, { view = function(t) return t:narrow(1, 4, 576):view(2, 3, 3, 32) end })
  devices.compare(tables(part), function(x, c, s) return result(C.lm_rotary_norm, x.h, c.h, s.h, -1, 1) end, 2 ^ -7,
    "not aligned")
  devices.compare(tables(devices.random("f32", { 1, 2, 3, 32 }, { low = 0, high = 0 })), function(x, c, s)
    return result(C.lm_rotary_norm, x.h, c.h, s.h, -1, 1), result(C.lm_rotary_norm_backward, x.h, x.h, c.h, s.h, -1, 1)
  end, 0, "zeros")
  for _, dtype in ipairs { "f32", "bf16" } do
    local x = lm.randn(2, 4, 3, 64):to(dtype):to("cuda")
    local weight = lm.randn(2, 4, 3, 64):to(dtype):to("cuda")
    local c, s = lm.nn.rotary_tables(4, 64, 100)
    c, s = c:to("cuda"), s:to("cuda")
    local function run(f)
      local p = lm.parameter(x)
      local y = f(p)
      y:backward(weight)
      return y:detach():to("cpu"):to("f32"), p.grad:to("cpu"):to("f32")
    end
    local y, dx = run(function(p) return lm.nn.rotary_norm(p, c, s, nil, 1.2) end)
    local want, want_dx = run(function(p) return lm.nn.rms_norm(lm.nn.rotary(p, c, s), nil, 1.2) end)
    local bound = dtype == "bf16" and 1e-2 or 1e-6
    assert((y - want):norm():item() <= bound * want:norm():item(), dtype)
    assert((dx - want_dx):norm():item() <= bound * want_dx:norm():item(), dtype)
  end
end }

list[#list + 1] = { "what does not fit is refused as on the CPU, by name", function()
  local x = lm.ones({ 2, 3, 2, 8 }, { device = "cuda" })
  local short, on_cpu = lm.ones({ 2, 4 }, { device = "cuda" }), lm.ones(3, 4)
  local long = on_cpu:to("cuda")
  for _, case in ipairs {
    { function() return result(C.lm_rotary, x.h, short.h, short.h, 0) end, "x has 3 positions" },
    { function() return result(C.lm_rotary, x.h, on_cpu.h, on_cpu.h, 0) end, "different devices" },
    { function() return result(C.lm_rms_norm, x:t().h, -1, 1) end, "contiguous" },
    { function() return result(C.lm_rotary_norm, x.h, short.h, short.h, -1, 1) end, "x has 3 positions" },
    { function() return result(C.lm_rotary_norm, x.h, on_cpu.h, short.h, -1, 1) end, "different devices" },
    { function() return result(C.lm_rotary_norm, x.h, long.h, long.h, 0 / 0, 1) end, "eps must be finite" },
    { function() return result(C.lm_softmax, lm.ones(3, { dtype = "i32", device = "cuda" }).h) end, "softmax" },
  } do
    local ok, message = pcall(case[1])
    assert(not ok and message:find(case[2], 1, true), message)
  end
end }

return list
