--- sum, mean, max, min, prod, norm; argmax, argmin.
local raw = require "lumuon.raw"
local devices = require "spec.support.devices"

local list = {}

-- shape, dims (nil: all)
local CASES = {
  { { 7 } }, { {} }, { { 3, 5 }, 1 }, { { 3, 5 }, 2 }, { { 40, 65 }, 1 }, { { 40, 65 }, 2 }, { { 3, 2500 }, 2 },
  { { 2500, 70 }, 1 }, { { 3, 4, 5 }, { 1, 3 } }, { { 4, 40, 9 }, 2 }, { { 70001 } }, { { 2, 33000 }, 2 },
  { { 5, 0, 3 }, 1 }, { { 300, 33 }, 1 },
}

for _, op in ipairs { "sum", "mean", "max", "min", "prod", "norm" } do
  list[#list + 1] = { op, function()
    for _, dtype in ipairs { "f32", "bf16", "i32" } do
      for _, case in ipairs(CASES) do
        local shape, dims = case[1], case[2]
        local options = op == "prod" and { low = 0.99, high = 1.01 } or { low = -2, high = 3 }
        if dtype == "i32" then options = { low = 1, high = op == "prod" and 2 or 9 } end
        for _, layout in ipairs(devices.layouts(dtype, shape, options)) do
          devices.compare({ layout[2] }, function(x) return raw[op](x, dims), raw[op](x, dims, true) end,
            dtype == "bf16" and 2 ^ -8 or 1e-6,
            ("%s of %s (%s) %s"):format(op, dtype, table.concat(shape, ", "), layout[1]))
        end
      end
    end
    devices.compare({ devices.values { { 1, 0 / 0, 3 }, { 4, 1 / 0, -1 / 0 } } },
      function(x) return raw[op](x, 1), raw[op](x, 2) end, 0, op .. " of NaN and Inf")
    if op == "sum" or op == "prod" then
      devices.compare({ devices.random("f32", { 0, 3 }) }, function(x) return raw[op](x, 1), raw[op](x) end, 0)
    end
  end }
end

for _, op in ipairs { "argmax", "argmin" } do
  list[#list + 1] = { op, function()
    for _, dtype in ipairs { "f32", "bf16", "i32" } do
      for _, case in ipairs { { { 9 }, 1 }, { { 5, 70 }, 1 }, { { 5, 70 }, 2 }, { { 3, 1200 }, 2 },
        { { 2, 6, 5 }, 2 } } do
        for _, layout in ipairs(devices.layouts(dtype, case[1])) do
          devices.compare({ layout[2] }, function(x) return x[op](x, case[2]) end, 0,
            ("%s of %s (%s) %s"):format(op, dtype, table.concat(case[1], ", "), layout[1]))
        end
      end
    end
    devices.compare({ devices.values { { 1, 0 / 0, 3, 0 / 0 }, { 4, 4, -1 / 0, 1 } } },
      function(x) return x[op](x, 2), x[op](x) end, 0, op .. " of NaNs and equals")
  end }
end

return list
