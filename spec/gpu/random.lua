--- uniform_, normal_: the very numbers of the CPU.
local lm = require "lumuon"
local devices = require "spec.support.devices"

local list = {}

for _, kind in ipairs { "uniform_", "normal_" } do
  list[#list + 1] = { kind, function()
    for _, dtype in ipairs(kind == "normal_" and { "f32", "bf16", "f16" } or { "f32", "bf16", "f16", "i32", "u8" }) do
      for _, layout in ipairs(devices.layouts(dtype, { 3, 1003 })) do
        for _, skip in ipairs { 0, 3 } do
          devices.compare({ layout[2] }, function(t)
            local generator = lm.Generator(7, 2)
            generator.position = skip
            local low, high = -1.5, 2.25
            if dtype == "i32" or dtype == "u8" then low, high = 3, 250 end
            return t[kind](t, low, high, generator)
          end, 0, ("%s of %s %s from %d"):format(kind, dtype, layout[1], skip))
        end
      end
    end
  end }
end

return list
