--- unary, binary, binary_scalar, axpy.
local lm = require "lumuon"
local raw = require "lumuon.raw"
local devices = require "spec.support.devices"

local list = {}

local SHAPES = { {}, { 1 }, { 0 }, { 7 }, { 3, 5 }, { 2, 33, 40 }, { 4111 } }
-- both devices compute the same formulas; a GPU fuses multiply-adds differently, and has powers of its own: what is
-- stored in 16 bits may fall to the other side of a rounding
local NEAR = { f32 = 1e-6, bf16 = 2 ^ -7, f16 = 2 ^ -10, i32 = 0, u16 = 0, u8 = 0 }
local DOMAIN = { sqrt = { 0, 9 }, rsqrt = { 0.1, 9 }, reciprocal = { 0.1, 9 }, log = { 0.01, 9 }, exp = { -20, 20 },
  floor = { -9, 9 }, ceil = { -9, 9 }, round = { -9, 9 }, sin = { -2e3, 2e3 }, cos = { -2e3, 2e3 } }

for _, op in ipairs(raw.unary_ops) do
  list[#list + 1] = { op, function()
    local domain = DOMAIN[op] or { -4, 4 }
    for _, dtype in ipairs { "f32", "bf16", "f16", "i32" } do
      for _, shape in ipairs(SHAPES) do
        local options = { low = domain[1], high = domain[2] }
        if dtype == "i32" then options = { low = 1 } end
        for _, layout in ipairs(devices.layouts(dtype, shape, options)) do
          devices.compare({ layout[2] }, function(x) return raw[op](x) end, math.max(NEAR[dtype], 1e-6),
            ("%s of %s (%s) %s"):format(op, dtype, table.concat(shape, ", "), layout[1]))
        end
      end
    end
    devices.compare({ devices.values { 0, -0, 1 / 0, -1 / 0, 0 / 0, 1e-40, 3e38, -3e38, 2e6 } },
      function(x) return raw[op](x) end, 1e-6, op .. " of special values")
  end }
end

for _, op in ipairs(raw.binary_ops) do
  list[#list + 1] = { op, function()
    local options = op == "pow" and { low = 0.1, high = 3 } or { low = -3, high = 3 }
    for _, pair in ipairs { { "f32", "f32" }, { "bf16", "bf16" }, { "bf16", "f32" }, { "f16", "f16" },
      { "i32", "u8" } } do
      local integers = pair[1] == "i32"
      for _, shapes in ipairs { { { 7 }, { 7 } }, { { 3, 5 }, { 5 } }, { { 4, 1, 9 }, { 3, 1 } }, { { 4096 }, { 1 } },
        { { 5, 64 }, { 5, 64 } } } do
        local a = devices.random(pair[1], shapes[1], not integers and options or { low = 1 })
        local b = devices.random(pair[2], shapes[2], not integers and options or { low = 1 })
        devices.compare({ a, b }, function(x, y) return raw[op](x, y) end, math.max(NEAR[pair[1]], 2e-6),
          ("%s of %s (%s) and %s (%s)"):format(op, pair[1], table.concat(shapes[1], ", "), pair[2],
            table.concat(shapes[2], ", ")))
      end
    end
    local x = devices.random("f32", { 33 }, options)
    devices.compare({ x }, function(t) return raw[op](t, 1.5), raw[op](1.5, t) end, 2e-6, op .. " with a number")
    local turned = devices.random("f32", { 40, 33 }, { low = 0.1, high = 3, view = function(t) return t:t() end })
    local straight = devices.random("f32", { 33, 40 }, options)
    devices.compare({ turned, straight }, function(a, b) return raw[op](a, b) end, 2e-6, op .. " across rows")
  end }
end

list[#list + 1] = { "in place, with the result among the operands", function()
  local x, y = devices.random("f32", { 19, 23 }), devices.random("f32", { 23 })
  devices.compare({ x, y }, function(a, b) return a:mul_(b):add_(2):exp_() end, 2e-6)
  devices.compare({ x }, function(a) return a:narrow(1, 2, 18):copy(a:narrow(1, 1, 18)) end, 0, "shifted along itself")
end }

list[#list + 1] = { "axpy", function()
  for _, pair in ipairs { { "f32", "f32" }, { "f32", "bf16" }, { "bf16", "bf16" }, { "bf16", "f32" } } do
    for _, shapes in ipairs { { { 8 }, { 8 } }, { { 5, 31 }, { 31 } }, { { 4097 }, { 4097 } }, { { 16, 16 }, {} } } do
      devices.compare({ devices.random(pair[1], shapes[1]), devices.random(pair[2], shapes[2]) },
        function(y, x) return y:axpy_(-0.75, x) end, NEAR[pair[1]],
        ("axpy of %s (%s) and %s"):format(pair[1], table.concat(shapes[1], ", "), pair[2]))
    end
  end
end }

list[#list + 1] = { "refuses operands on two devices, naming the op", function()
  local a, b = lm.ones({ 3 }, { device = "cuda" }), lm.ones(3)
  for _, f in ipairs { function() return a + b end, function() return b:axpy_(1, a) end } do
    local ok, message = pcall(f)
    assert(not ok and message:find("different devices", 1, true), message)
  end
end }

return list
