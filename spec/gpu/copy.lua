--- fill, arange, copy: between layouts, dtypes and devices.
local lm = require "lumuon"
local devices = require "spec.support.devices"
local assert = require "luassert"

local list = {}
local DTYPES = { "f32", "bf16", "f16", "i32", "u16", "u8" }

list[#list + 1] = { "fill", function()
  for _, dtype in ipairs(DTYPES) do
    for _, value in ipairs { 0, 7 } do
      for _, layout in ipairs(devices.layouts(dtype, { 5, 37 })) do
        devices.compare({ layout[2] }, function(t) return t:fill(value) end, 0,
          ("fill of %s %s"):format(dtype, layout[1]))
      end
    end
  end
  devices.compare({ devices.random("i32", { 3 }) }, function(t) return t:fill(16777217) end, 0, "a large whole number")
end }

list[#list + 1] = { "arange", function()
  for _, dtype in ipairs(DTYPES) do
    for _, n in ipairs { 0, 1, 100 } do
      devices.compare({ devices.random("f32", {}) },
        function(t) return lm.arange(0, n, 1, { dtype = dtype, device = t:device() }) end, 0, dtype)
    end
  end
end }

list[#list + 1] = { "copy between layouts", function()
  for _, dtype in ipairs { "f32", "bf16", "u8" } do
    for _, shape in ipairs { { 6 }, { 3, 5 }, { 70, 33 }, { 4, 40, 65 } } do
      for _, layout in ipairs(devices.layouts(dtype, shape)) do
        local what = ("%s (%s) %s"):format(dtype, table.concat(shape, ", "), layout[1])
        devices.compare({ layout[2] }, function(t) return t:clone() end, 0, "clone of " .. what)
        for _, into in ipairs(devices.layouts(dtype, shape)) do
          devices.compare({ into[2], layout[2] }, function(d, s) return d:copy(s) end, 0,
            ("copy of %s into %s"):format(what, into[1]))
        end
      end
    end
  end
end }

list[#list + 1] = { "copy of broadcast elements", function()
  devices.compare({ devices.random("f32", { 4, 1, 9 }) },
    function(t) return lm.zeros({ 4, 5, 9 }, { device = t:device() }):copy(t) end, 0)
end }

list[#list + 1] = { "casts between floats", function()
  for _, from in ipairs { "f32", "bf16", "f16" } do
    for _, to in ipairs { "f32", "bf16", "f16" } do
      local x = devices.random(from, { 3, 1365 }, { low = -300, high = 300 })
      devices.compare({ x }, function(t) return t:to(to) end, 0, from .. " to " .. to)
    end
  end
  devices.compare({ devices.values { 1e-8, 6e-8, 1e-40, 65519, 65520, -1e39, 1 / 0, 0 / 0, 1 + 2 ^ -9 } },
    function(t) return t:to("bf16"), t:to("f16") end, 0, "ties and ends")
end }

list[#list + 1] = { "small integers to others", function()
  for _, to in ipairs { "f32", "bf16", "i32" } do
    local x = devices.random("u8", { 130 }, { high = 256 })
    devices.compare({ x }, function(t) return t:to(to) end, 0, "u8 to " .. to)
  end
  devices.compare({ devices.random("u16", { 130 }, { high = 65536 }) }, function(t) return t:to("i32") end, 0)
end }

list[#list + 1] = { "there and back, in every dtype and layout, larger than what is pinned", function()
  for _, dtype in ipairs(DTYPES) do
    for _, layout in ipairs(devices.layouts(dtype, { 3, 7 })) do
      local t = layout[2].tensor
      if layout[2].view then t = layout[2].view(t) end
      local back = t:to("cuda"):to("cpu")
      assert(back:ne(t):sum():item() == 0, dtype .. " " .. layout[1])
    end
  end
  local long = lm.arange(1, 900000, 1, { dtype = "i32" })
  assert(long:to("cuda"):to("cpu"):ne(long):sum():item() == 0)
  local strided = lm.zeros({ 4, 3 }, { device = "cuda" })
  strided:t():copy(lm.arange(1, 12):view(3, 4))
  assert.same(lm.arange(1, 12):view(3, 4):t():tolist(), strided:tolist())
end }

list[#list + 1] = { "item, set and printing", function()
  local t = lm.tensor({ { 1.5, 2 }, { -3, 4 } }, { device = "cuda" })
  assert(t:item(2, 1) == -3 and t[1][2]:item() == 2)
  t[2] = 9
  assert.same({ { 1.5, 2 }, { 9, 9 } }, t:tolist())
  assert(tostring(t):find("tensor f32 (2, 2) cuda", 1, true))
  assert(tostring(t):find("1.5000", 1, true))
end }

return list
