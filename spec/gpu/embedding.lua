--- embedding and its gradient, which is summed in the order of the positions.
local lib = require "lumuon.lib"
local lm = require "lumuon"
local devices = require "spec.support.devices"
local C, result = lib.C, lib.result

local list = {}

local function gradient(table_, grad, idx)
  lib.call(C.lm_embedding_backward, table_.h, grad.h, idx.h)
  return table_
end

list[#list + 1] = { "rows of the table, dtypes and widths", function()
  for _, dtype in ipairs { "f32", "bf16" } do
    for _, channels in ipairs { 1, 8, 13, 64 } do
      devices.compare({ devices.random(dtype, { 30, channels }), devices.random("i32", { 3, 17 }, { high = 30 }) },
        function(t, i) return result(C.lm_embedding, t.h, i.h) end, 0, ("%s, %d channels"):format(dtype, channels))
    end
  end
  devices.compare({ devices.random("f32", { 5, 16 }), devices.random("i32", { 9 }, { high = 5 }) }, function(t, i)
    return lib.into(lm.empty({ 9, 16 }, { dtype = "bf16", device = t:device() }), C.lm_embedding, t.h, i.h)
  end, 0, "into another dtype")
  devices.compare({ devices.random("f32", { 5, 16 }), devices.random("i32", { 0 }) },
    function(t, i)
      local out = result(C.lm_embedding, t.h, i.h)
      return out, gradient(t, out, i)
    end, 0, "none")
end }

-- few rows for many positions, so that rows go over several windows; a vocabulary of one, two and three digits
list[#list + 1] = { "the gradient: rows that occur often, once and never", function()
  for _, case in ipairs { { 1, 8, 300 }, { 3, 24, 700 }, { 50, 13, 400 }, { 300, 8, 333 }, { 70000, 2, 129 },
    { 7, 64, 64 }, { 7, 1100, 65 } } do
    local rows, channels, n = unpack(case)
    for _, pair in ipairs { { "f32", "f32" }, { "f32", "bf16" }, { "bf16", "bf16" } } do
      devices.compare({ devices.random(pair[1], { rows, channels }), devices.random(pair[2], { n, channels }),
        devices.random("i32", { n }, { high = rows }) }, gradient, pair[1] == "f32" and 2e-5 or 2 ^ -7,
        ("%d rows of %s, %d channels, %d positions of %s"):format(rows, pair[1], channels, n, pair[2]))
    end
  end
end }

list[#list + 1] = { "more positions than one tile of the sort, skewed as text is", function()
  local values, x = {}, 1
  for i = 1, 3000 do
    x = (x * 16807) % 2147483647
    values[i] = i % 3 == 0 and 5 or math.floor(1000 * (x / 2147483647) ^ 4)
  end
  devices.compare({ devices.random("f32", { 1000, 8 }, { low = 0, high = 0 }), devices.random("f32", { 3000, 8 }),
    devices.values(values, "i32") }, gradient, 2e-5)
end }

list[#list + 1] = { "reports an index outside the table at the next number that is read, and goes on", function()
  local table_ = lm.ones({ 4, 8 }, { device = "cuda" })
  local idx = lm.tensor({ 0, 3, 4, -1 }, { dtype = "i32", device = "cuda" })
  for name, f in pairs {
    embedding = function() return result(C.lm_embedding, table_.h, idx.h) end,
    embedding_backward = function() return gradient(table_:clone(), lm.ones({ 4, 8 }, { device = "cuda" }), idx) end,
  } do
    local out = f()
    local ok, message = pcall(out.item, out, 1, 1)
    assert(not ok and message:find(name .. ": index", 1, true) and message:find("vocabulary of 4", 1, true), message)
    assert(out:item(1, 1) >= 1)
  end
  local none = lm.ones({ 0, 8 }, { device = "cuda" })
  local ok, message = pcall(function() return result(C.lm_embedding, none.h, idx.h) end)
  assert(not ok and message:find("no rows", 1, true), message)
end }

return list
