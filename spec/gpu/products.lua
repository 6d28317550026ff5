--- matmul, linear and its gradients; count_nonfinite.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local devices = require "spec.support.devices"
local assert = require "luassert"

local list = {}
-- the devices add in different orders; a bf16 result may fall to the other side of a rounding
local NEAR = { f32 = 2e-5, bf16 = 2 ^ -7 }

local function matmul_into(out, a, b, alpha, beta) return lib.into(out, lib.C.lm_matmul, a.h, b.h, alpha, beta) end

for _, dtype in ipairs { "f32", "bf16" } do
  list[#list + 1] = { "products of " .. dtype .. " matrices, however they lie", function()
    for _, s in ipairs { { 1, 1, 1 }, { 5, 7, 3 }, { 1, 9, 4 }, { 9, 1, 4 }, { 4, 9, 1 }, { 33, 17, 65 } } do
      for _, a in ipairs(devices.layouts(dtype, { s[1], s[2] })) do
        for _, b in ipairs(devices.layouts(dtype, { s[2], s[3] })) do
          devices.compare({ a[2], b[2] }, lm.matmul, NEAR[dtype],
            ("%s %s times %s"):format(table.concat(s, ", "), a[1], b[1]))
        end
      end
    end
  end }

  list[#list + 1] = { dtype .. " results wherever they lie, with alpha and beta", function()
    local a, b = devices.random(dtype, { 6, 8 }), devices.random(dtype, { 8, 5 })
    for _, out in ipairs(devices.layouts(dtype, { 6, 5 })) do
      for _, scale in ipairs { { 0.5, -2 }, { 1, 0 }, { 0, 1 } } do
        devices.compare({ out[2], a, b }, function(o, x, y) return matmul_into(o, x, y, scale[1], scale[2]) end,
          NEAR[dtype], ("%s, alpha %g, beta %g"):format(out[1], scale[1], scale[2]))
      end
    end
  end }
end

list[#list + 1] = { "mixed dtypes, and f32 results of bf16 matrices", function()
  for _, pair in ipairs { { "bf16", "f32" }, { "f32", "bf16" } } do
    devices.compare({ devices.random(pair[1], { 9, 12 }), devices.random(pair[2], { 12, 5 }) }, lm.matmul, 2e-5)
  end
  local out, a, b = devices.random("f32", { 20, 10 }), devices.random("bf16", { 20, 30 }),
    devices.random("bf16", { 30, 10 })
  devices.compare({ out, a, b }, function(o, x, y) return matmul_into(o, x, y, 1, 1) end, 2e-5)
  local half = devices.random("bf16", { 20, 10 })
  devices.compare({ half, devices.random("f32", { 20, 30 }), b },
    function(o, x, y) return matmul_into(o, x, y, 1, 1) end, 2 ^ -7, "bf16 result of a mixed product")
end }

list[#list + 1] = { "batches, with a matrix each or one for all", function()
  local a, b, w = devices.random("f32", { 2, 3, 4, 5 }), devices.random("f32", { 2, 3, 5, 6 }),
    devices.random("f32", { 5, 6 })
  devices.compare({ a, b }, lm.matmul, 2e-5, "a matrix each")
  devices.compare({ a, w }, lm.matmul, 2e-5, "one for all")
  devices.compare({ a, b }, function(x, y) return lm.matmul(x:permute(2, 1, 3, 4), y:permute(2, 1, 3, 4)) end, 2e-5,
    "batch dims permuted")
  devices.compare({ a, w }, function(x, y) return lm.matmul(x:transpose(2, 3), y:narrow(1, 1, 5)) end, 2e-5,
    "rows that do not join")
  devices.compare({ a, b }, function(x, y) return lm.matmul(x:narrow(2, 1, 2), y:narrow(2, 2, 2)) end, 2e-5,
    "a batch with gaps")
  devices.compare({ devices.random("bf16", { 3, 7, 65 }), devices.random("bf16", { 3, 65, 9 }) }, lm.matmul, 2 ^ -7,
    "bf16")
end }

list[#list + 1] = { "a product into one of its own operands", function()
  devices.compare({ devices.random("f32", { 6, 6 }), devices.random("f32", { 6, 6 }) },
    function(a, b) return matmul_into(a, a, b, 1, 0.5) end, 2e-5)
end }

list[#list + 1] = { "products without rows, columns or terms", function()
  for _, s in ipairs { { 0, 3, 4 }, { 3, 0, 4 }, { 3, 4, 0 } } do
    devices.compare({ devices.random("f32", { s[1], s[2] }), devices.random("f32", { s[2], s[3] }) }, lm.matmul, 0)
  end
  devices.compare({ devices.random("f32", { 3, 4 }), devices.random("f32", { 3, 0 }), devices.random("f32", { 0, 4 }) },
    function(o, a, b) return matmul_into(o, a, b, 1, 0.25) end, 1e-6, "beta alone")
end }

list[#list + 1] = { "a linear layer and its gradients", function()
  for _, dtype in ipairs { "f32", "bf16" } do
    local x, w, dy = devices.random(dtype, { 2, 5, 12 }), devices.random(dtype, { 7, 12 }),
      devices.random(dtype, { 2, 5, 7 })
    devices.compare({ x, w, dy }, function(a, b, c)
      local C, result = lib.C, lib.result
      return result(C.lm_linear, a.h, b.h, nil), result(C.lm_linear, a.h, b.h, c.h),
        result(C.lm_linear_grad_x, c.h, b.h, 0), result(C.lm_linear_grad_w, c.h, a.h, 0)
    end, NEAR[dtype], dtype)
  end
end }

list[#list + 1] = { "count_nonfinite", function()
  for _, dtype in ipairs { "f32", "bf16", "f16" } do
    for _, shape in ipairs { { 1 }, { 7 }, { 3, 9000 }, { 0 } } do
      for _, layout in ipairs(devices.layouts(dtype, shape)) do
        devices.compare({ layout[2] }, function(t)
          if t:numel() > 2 then
            t:select(1, t:size(1)):fill(0 / 0)
            t:select(1, 1):fill(-1 / 0)
          end
          return t:count_nonfinite()
        end, 0, dtype .. " " .. layout[1])
      end
    end
  end
  devices.compare({ devices.random("i32", { 4 }) }, function(t) return t:count_nonfinite() end, 0)
end }

list[#list + 1] = { "singular values, by the CPU", function()
  devices.compare({ devices.random("f32", { 2, 5, 9 }) }, function(t) return t:svdvals() end, 0)
end }

list[#list + 1] = { "what cuBLASLt has no algorithm for is done all the same", function()
  if not devices.emulated() then return end
  local command, r = require "spec.command", nil
  local folder = command.folder()
  local script = command.write(folder .. "/products.lua", [[
    local lm, devices = require "lumuon", require "spec.support.devices"
    local into, C = require("lumuon.lib").into, require("lumuon.lib").C
    for dtype, bound in pairs { f32 = 2e-5, bf16 = 2 ^ -7 } do
      for _, s in ipairs { { 1, 1, 1 }, { 33, 17, 50 }, { 16, 48, 16 } } do
        for _, a in ipairs(devices.layouts(dtype, { s[1], s[2] })) do
          for _, b in ipairs(devices.layouts(dtype, { s[2], s[3] })) do
            for _, out in ipairs { dtype, "f32" } do
              devices.compare({ devices.random(out, { s[1], s[3] }), a[2], b[2] }, function(o, x, y)
                return into(o, C.lm_matmul, x.h, y.h, 0.5, -2)
              end, bound, a[1] .. " times " .. b[1])
            end
          end
        end
      end
      local a, b = devices.random(dtype, { 2, 3, 20, 5 }), devices.random(dtype, { 2, 3, 5, 18 })
      devices.compare({ a, b }, lm.matmul, bound)
    end
    devices.compare({ devices.random("f32", { 2, 20, 36 }) }, function(x)
      return lm.optim.polar_express(x, { precision = "f32" })
    end, 2e-5)
    print("done")]])
  devices.with_environment("LUMUON_EMULATED_CUBLASLT", "nothing", function() r = command.run({ "run", script }) end)
  command.remove(folder)
  assert.equal("done\n", r.out, r.err)
end }

list[#list + 1] = { "without cuBLASLt the message says what to install", function()
  if not devices.emulated() then return end
  local command, text = require "spec.command", nil
  local folder = command.folder()
  local script = command.write(folder .. "/products.lua", [[
    local lm = require "lumuon"
    local a = lm.ones({ 2, 2 }, { device = "cuda" })
    print(select(2, pcall(lm.matmul, a, a)))]])
  devices.with_environment("LUMUON_EMULATED_CUBLASLT", "none", function()
    text = command.run({ "run", script }).out
    assert.truthy(command.run({ "info" }).out:find("cuBLASLt%s+missing"))
  end)
  command.remove(folder)
  assert.truthy(text:find("libcublasLt.so", 1, true), text)
end }

return list
