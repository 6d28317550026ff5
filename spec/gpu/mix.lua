--- scaled_add, gated_add and their gradients.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local devices = require "spec.support.devices"
local C, ffi = lib.C, lib.ffi

local list = {}
local NEAR = { f32 = 2e-6, bf16 = 2 ^ -7 }

list[#list + 1] = { "scaled_add and its gradients", function()
  for _, dtype in ipairs { "f32", "bf16" } do
    for _, shape in ipairs { { 3 }, { 2, 50, 77 }, { 20001 } } do
      local what = ("%s (%s)"):format(dtype, table.concat(shape, ", "))
      local x, y, g = devices.random(dtype, shape), devices.random(dtype, shape), devices.random(dtype, shape)
      local a, b = devices.values { 1.25 }, devices.values { -0.5 }
      devices.compare({ a, x, b, y }, lm.nn.scaled_add, NEAR[dtype], "scaled_add of " .. what)
      devices.compare({ a, x, b, y, g, devices.random(dtype, shape) }, function(s, u, t, v, grad, into)
        local ds, dt = lm.ones({ 1 }, { device = s:device() }), lm.zeros({ 1 }, { device = s:device() })
        local box = ffi.new("lm_tensor *[1]")
        lib.call(C.lm_scaled_add_backward, ds.h, box, dt.h, into.h, grad.h, s.h, u.h, t.h, v.h)
        return ds, lib.wrap(box[0]), dt, into
      end, dtype == "bf16" and 0.02 or 1e-5, "its gradients of " .. what)
    end
  end
end }

list[#list + 1] = { "gated_add and its gradients", function()
  for _, dtype in ipairs { "f32", "bf16" } do
    for _, shape in ipairs { { 3, 2 }, { 2, 5, 3, 64 }, { 17, 130 } } do
      local rows = { unpack(shape, 1, #shape - 1) }
      local what = ("%s (%s)"):format(dtype, table.concat(shape, ", "))
      local x, gate, y = devices.random(dtype, shape), devices.random(dtype, rows, { low = -4, high = 4 }),
        devices.random(dtype, shape)
      devices.compare({ x, gate, y }, function(u, s, v) return lm.nn.gated_add(u, s, v, 2) end, NEAR[dtype],
        "gated_add of " .. what)
      devices.compare({ x, gate, y }, function(grad, s, v)
        local boxes = ffi.new("lm_tensor *[2]")
        lib.call(C.lm_gated_add_backward, boxes, boxes + 1, grad.h, s.h, v.h, 3)
        return lib.wrap(boxes[0]), lib.wrap(boxes[1])
      end, dtype == "bf16" and 2 ^ -6 or 1e-5, "its gradients of " .. what)
    end
  end
end }

return list
