--- cross_entropy with softcap and padding, alone and with the projection before it, and their gradients.
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
      end, dtype == "f32" and 3e-6 or 2 ^ -7, ("%d rows of %s, %d of %d columns, softcap %g"):format(rows, dtype,
        vocabulary, columns, cap))
    end
  end
end }

list[#list + 1] = { "writes the gradient over the logits", function()
  for _, columns in ipairs { 72, 71 } do
    local logits = devices.random("bf16", { 33, columns }, { low = -30, high = 30 })
    devices.compare({ logits, targets_for(33, 70), devices.values { 2 } }, function(x, t, g)
      return both(x, t, g, 70, 15, true)
    end, 2 ^ -7)
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

---- ---- the projection and the cross-entropy in one op ----

-- loss, d loss / dx and d loss / dw, as wanted
local function fused(x, w, targets, vocabulary, cap, wants_x, wants_w)
  local boxes = {}
  for i = 1, 3 do boxes[i] = ffi.new("lm_tensor *[1]") end
  lib.call(C.lm_linear_cross_entropy, boxes[1], wants_x ~= false and boxes[2] or nil,
    wants_w ~= false and boxes[3] or nil, x.h, w.h, targets.h, vocabulary, cap)
  local results = {}
  for i = 1, 3 do results[i] = boxes[i][0] ~= nil and lib.wrap(boxes[i][0]) or 0 end
  return unpack(results)
end

list[#list + 1] = { "linear_cross_entropy is the CPU's: rows, vocabularies in and beyond registers, paddings, softcaps",
  function()
    -- rows, channels, rows of w, vocabulary, softcap, size of w
    for _, case in ipairs { { 1, 1, 1, 1, 0, 1 }, { 1, 16, 64, 64, 15, 1 }, { 7, 3, 5, 5, 0, 1 },
      { 33, 24, 72, 70, 15, 2 }, { 6, 8, 2056, 2049, 15, 9 }, { 3, 8, 9000, 8999, 0, 3 }, { 2, 8, 32768, 32768, 15, 3 },
      { 2, 8, 33000, 32999, 15, 30 }, { 300, 8, 40, 33, 2, 3 } } do
      local rows, channels, columns, vocabulary, cap, size = unpack(case)
      local range = { low = -size, high = size }
      for _, dtype in ipairs { "f32", "bf16" } do
        local x, w = devices.random(dtype, { rows, channels }), devices.random(dtype, { columns, channels }, range)
        -- the GPU's logits are bf16 where x is, the CPU's f32
        devices.compare({ x, w, targets_for(rows, vocabulary) }, function(a, b, t)
          return fused(a, b, t, vocabulary, cap)
        end, dtype == "f32" and 1e-5 or 2 ^ -6, ("%d rows of %d, %d of %d columns, softcap %g, %s"):format(rows,
          channels, vocabulary, columns, cap, dtype))
      end
    end
  end }

list[#list + 1] = { "linear_cross_entropy gives only what is asked for; leading dims, no rows, no target",
  function()
    local x, w = devices.random("bf16", { 9, 16 }), devices.random("bf16", { 40, 16 }, { low = -3, high = 3 })
    for _, wants in ipairs { { true, false }, { false, true }, { false, false } } do
      devices.compare({ x, w, targets_for(9, 37) }, function(a, b, t)
        return fused(a, b, t, 37, 15, wants[1], wants[2])
      end, 2 ^ -7, "some results")
    end
    devices.compare({ devices.random("f32", { 3, 0 }), devices.random("f32", { 6, 0 }), targets_for(3, 5) },
      function(a, b, t) return fused(a, b, t, 5, 15) end, 1e-6, "no channels")
    devices.compare({ devices.random("f32", { 0, 4 }), devices.random("f32", { 6, 4 }),
      { tensor = lm.zeros({ 0 }, { dtype = "i32" }) } }, function(a, b, t) return fused(a, b, t, 5, 15) end, 1e-6,
      "no rows")
    devices.compare({ devices.random("f32", { 2, 3, 4 }), devices.random("f32", { 6, 4 }),
      devices.values({ { -1, 1, 2 }, { 3, -1, 0 } }, "i32") }, function(a, b, t) return fused(a, b, t, 6, 0) end, 1e-6,
      "leading dims")
    devices.compare({ devices.random("f32", { 2, 4 }), devices.random("f32", { 6, 4 }),
      devices.values({ -1, -1 }, "i32") }, function(a, b, t) return fused(a, b, t, 6, 15) end, 0, "no target")
    local inf = 1 / 0
    for _, cap in ipairs { 0, 15 } do
      devices.compare({ devices.values { { 1, 0 }, { 0, 1e30 }, { 0, 0 / 0 } },
        devices.values { { -inf, 1 }, { 3, -1 } }, devices.values({ 1, 0, 1 }, "i32") }, function(a, b, t)
        return fused(a, b, t, 2, cap, false, false)
      end, 1e-6, "huge logits")
    end
  end }

list[#list + 1] = { "linear_cross_entropy never stores all logits, and adds chunks of rows up", function()
  local rows, channels, vocabulary = 9000, 4, 96 -- three chunks of 3072 rows
  local x = devices.random("bf16", { rows, channels })
  local w, targets = devices.random("bf16", { 96, channels }, { low = -3, high = 3 }), targets_for(rows, vocabulary)
  devices.compare({ x, w, targets }, function(a, b, t)
    local loss, dx, dw = fused(a, b, t, vocabulary, 15)
    return loss, dx:mul(1000), dw
  end, 2 ^ -6, "chunks")
  local a, b, t = x.tensor:to("cuda"), w.tensor:to("cuda"), targets.tensor:to("cuda")
  local before = C.lm_device_memory(C.LM_CUDA, C.LM_MEMORY_RESET_PEAK)
  local loss, dx, dw = fused(a, b, t, vocabulary, 15)
  local most = lm.memory("cuda").peak - before - (dx:numel() * 2 + dw:numel() * 4 + 4)
  assert(loss:item() > 0 and most >= 3072 * 128 * 2 and most < rows * vocabulary * 2 * 0.6, ("%g bytes"):format(most))
end }

list[#list + 1] = { "linear_cross_entropy in a graph: the CPU's gradients, gathered, by a factor only the device knows",
  function()
    for _, dtype in ipairs { "f32", "bf16" } do
      devices.compare({ devices.random(dtype, { 5, 8 }), devices.random("f32", { 24, 8 }), targets_for(5, 20),
        devices.values { 0.25 } }, function(a, b, t, g)
        local x, w = lm.parameter(a, "x"), lm.parameter(b, "w")
        for _ = 1, 2 do
          (lm.nn.linear_cross_entropy(x * 1, w, t, 20, 15) * g:view()):backward()
        end
        local doubled = lm.parameter(b, "doubled")
        lm.nn.linear_cross_entropy(x, doubled * 2, t, 20, 15):backward(g:view())
        return x.grad, w.grad, doubled.grad
      end, dtype == "f32" and 1e-5 or 2 ^ -6, dtype)
    end
  end }

list[#list + 1] = { "linear_cross_entropy reports a target outside the vocabulary by its row among all", function()
  local x, w = lm.zeros({ 5000, 2 }, { device = "cuda" }), lm.zeros({ 8, 2 }, { device = "cuda" })
  local targets = lm.zeros({ 5000 }, { dtype = "i32" })
  targets[4801] = 6
  local loss = fused(x, w, targets:to("cuda"), 6, 0)
  local ok, message = pcall(loss.item, loss)
  assert(not ok and message:find("linear_cross_entropy: target 6 at element 4801", 1, true), message)
  local fine = fused(x, w, lm.zeros({ 5000 }, { dtype = "i32", device = "cuda" }), 6, 0)
  assert(math.abs(fine:item() - math.log(6)) < 1e-6)
end }

return list
