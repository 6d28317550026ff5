--- cross_entropy with softcap and padding, and its gradient.
local lib = require "lumuon.lib"
local lm = require "lumuon"
local devices = require "spec.support.devices"
local C, result, into = lib.C, lib.result, lib.into
local ffi = lib.ffi

local list = {}

-- loss, lse and the gradient, which may lie where the logits are
local function both(logits, targets, grad_loss, vocabulary, cap, in_place)
  local boxes = { ffi.new("lm_tensor *[1]"), ffi.new("lm_tensor *[1]") }
  lib.call(C.lm_cross_entropy, boxes[1], boxes[2], logits.h, targets.h, vocabulary, cap)
  local loss, lse = lib.wrap(boxes[1][0]), lib.wrap(boxes[2][0])
  local f = C.lm_cross_entropy_backward
  if in_place then
    return loss, lse, into(logits, f, grad_loss.h, logits.h, targets.h, lse.h, vocabulary, cap)
  end
  return loss, lse, result(f, grad_loss.h, logits.h, targets.h, lse.h, vocabulary, cap)
end

local function targets_for(rows, vocabulary)
  local values = {}
  for i = 1, rows do values[i] = i % 5 == 3 and -1 or (i * 7919) % vocabulary end
  return devices.values(values, "i32")
end

list[#list + 1] = { "is the CPU's: vocabularies, paddings, softcaps, dtypes", function()
  for _, case in ipairs { { 1, 1, 1, 0 }, { 4, 9, 9, 0 }, { 7, 64, 50, 15 }, { 3, 2048, 2048, 15 },
    { 2, 2104, 2100, 0 }, { 2, 5001, 4999, 15 }, { 2, 32768, 32768, 15 }, { 1, 50304, 50257, 15 } } do
    local rows, columns, vocabulary, cap = unpack(case)
    for _, dtype in ipairs { "f32", "bf16" } do
      local logits = devices.random(dtype, { rows, columns }, { low = -8, high = 8 })
      devices.compare({ logits, targets_for(rows, vocabulary), devices.values { 0.5 } }, function(x, t, g)
        return both(x, t, g, vocabulary, cap, false)
      end, dtype == "f32" and 3e-6 or 2 ^ -8, ("%d rows of %s, %d of %d columns, softcap %g"):format(rows, dtype,
        vocabulary, columns, cap))
    end
  end
end }

list[#list + 1] = { "writes the gradient over the logits", function()
  for _, columns in ipairs { 72, 71 } do
    local logits = devices.random("bf16", { 33, columns }, { low = -30, high = 30 })
    devices.compare({ logits, targets_for(33, 70), devices.values { 2 } }, function(x, t, g)
      return both(x, t, g, 70, 15, true)
    end, 2 ^ -8)
  end
end }

list[#list + 1] = { "logits of any size, NaNs and infinities", function()
  local inf = 1 / 0
  local logits = devices.values { { 1e30, -1e30, 0 }, { -inf, 2, 1 }, { 3e38, 3e38, -3e38 }, { 1, 2, 3 } }
  for _, cap in ipairs { 0, 15 } do
    devices.compare({ logits, devices.values({ 0, 1, 1, 2 }, "i32"), devices.values { 1 } }, function(x, t, g)
      return both(x, t, g, 3, cap)
    end, 1e-6, "cap " .. cap)
  end
  devices.compare({ devices.values { { 1, 0 / 0, 2 }, { 1, 2, 3 } }, devices.values({ 0, 1 }, "i32"),
    devices.values { 1 } }, function(x, t, g) return both(x, t, g, 3, 15) end, 1e-6, "a NaN")
end }

list[#list + 1] = { "without a single target the loss is NaN and the gradient 0; many rows", function()
  devices.compare({ devices.random("f32", { 3, 8 }), devices.values({ -1, -1, -1 }, "i32"), devices.values { 1 } },
    function(x, t, g) return both(x, t, g, 8, 0) end, 1e-6, "no target")
  devices.compare({ devices.random("f32", { 1030, 16 }, { low = -3, high = 3 }), targets_for(1030, 16),
    devices.values { 1 } }, function(x, t, g) return both(x, t, g, 16, 15) end, 3e-6, "many rows")
end }

list[#list + 1] = { "reports a target outside the vocabulary at the next number that is read, and goes on", function()
  local logits = lm.zeros({ 4, 8 }, { device = "cuda" })
  local one = lm.ones({ 1 }, { device = "cuda" })
  for _, bad in ipairs { 6, -2 } do
    local targets = lm.tensor({ 1, 2, bad, 0 }, { dtype = "i32", device = "cuda" })
    local loss = both(logits, targets, one, 6, 0)
    local ok, message = pcall(loss.item, loss)
    assert(not ok and message:find(("target %d at element 3"):format(bad), 1, true), message)
    assert(message:find("cross_entropy", 1, true) and message:find("vocabulary of 6", 1, true), message)
  end
  local fine = both(logits, lm.tensor({ 1, 2, 5, 0 }, { dtype = "i32", device = "cuda" }), one, 6, 0)
  assert(math.abs(fine:item() - math.log(6)) < 1e-6)
end }

return list
