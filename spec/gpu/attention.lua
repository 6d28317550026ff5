--- attention and its gradients: tensor cores (bf16) and the plain kernels (f32 and mixtures).
local lib = require "lumuon.lib"
local lm = require "lumuon"
local nn = require "lumuon.nn"
local devices = require "spec.support.devices"
local C, ffi = lib.C, lib.ffi

local list = {}

local function results(n, f, ...)
  local boxes = {}
  for i = 1, 3 do boxes[i] = ffi.new("lm_tensor *[1]") end
  if n == 2 then lib.call(f, boxes[1], boxes[2], ...) else lib.call(f, boxes[1], boxes[2], boxes[3], ...) end
  for i = 1, n do boxes[i] = lib.wrap(boxes[i][0]) end
  return unpack(boxes, 1, n)
end

local function forward(q, k, v, window, scale)
  return results(2, C.lm_attention, q.h, k.h, v.h, scale, window)
end

-- out, lse and the three gradients; these from the CPU's own out and lse, sent along, so that what is
-- compared is each op for itself
local function compare(s, bound)
  local dtype = s.dtype or "f32"
  local function input(heads, options, kind)
    return devices.random(kind or dtype, { s.B or 1, s.T, heads, s.D }, options)
  end
  local sharp = { low = -2, high = 2 }
  local H, Hkv, window = s.H or 1, s.Hkv or s.H or 1, s.window or -1
  local scale = s.scale or 1 / math.sqrt(s.D)
  local q, k, v, g = input(H, sharp), input(Hkv, sharp, s.keys), input(Hkv, nil, s.keys), input(H)
  local out, lse = forward(q.tensor, k.tensor, v.tensor, window, scale)
  local what = ("B=%d T=%d H=%d Hkv=%d D=%d window=%d %s"):format(s.B or 1, s.T, H, Hkv, s.D, window, dtype)
  devices.compare({ q, k, v }, function(a, b, c) return forward(a, b, c, window, scale) end, bound, what)
  devices.compare({ q, k, v, g, { tensor = out }, { tensor = lse } }, function(a, b, c, d, o, l)
    return results(3, C.lm_attention_backward, d.h, a.h, b.h, c.h, o.h, l.h, scale, window)
  end, 2 * bound, "gradients, " .. what)
end

list[#list + 1] = { "f32, as near as the CPU's own bound", function()
  for _, s in ipairs { { T = 1, D = 1 }, { T = 17, D = 6, H = 2, B = 2 }, { T = 65, D = 7, H = 4, Hkv = 2 },
    { T = 129, D = 32, H = 2, Hkv = 1 }, { T = 40, D = 72 }, { T = 70, D = 130 }, { T = 9, D = 300 },
    { T = 130, D = 16, window = 5 }, { T = 150, D = 8, window = 70, H = 2, Hkv = 1 }, { T = 20, D = 8, window = 0 },
    { T = 20, D = 8, scale = -0.5 }, { T = 20, D = 8, scale = 0 } } do
    compare(s, 5e-6)
  end
end }

-- every tile size, head sizes between them, T around the tiles, windows that leave tiles out
list[#list + 1] = { "bf16, by tensor cores", function()
  for _, s in ipairs { { T = 1, D = 64 }, { T = 17, D = 16, H = 2, B = 2 }, { T = 129, D = 32, H = 2, Hkv = 1 },
    { T = 130, D = 64 }, { T = 200, D = 64, H = 4, Hkv = 2, window = 65 },
    { T = 200, D = 40, window = 9 }, { T = 70, D = 96, H = 3, Hkv = 1 }, { T = 129, D = 80 },
    { T = 129, D = 128, H = 2, Hkv = 1 }, { T = 150, D = 128, window = 20, B = 2 }, { T = 17, D = 128, window = 0 },
    { T = 33, D = 256 }, { T = 66, D = 200, window = 3 } } do
    s.dtype = "bf16"
    compare(s, 2 ^ -7)
  end
end }

list[#list + 1] = { "bf16 that tensor cores do not take, and mixtures", function()
  for _, s in ipairs { { T = 17, D = 12, dtype = "bf16" }, { T = 5, D = 264, dtype = "bf16" },
    { T = 17, D = 8, dtype = "bf16", scale = -1 }, { T = 33, D = 16, dtype = "bf16", keys = "f32" },
    { T = 33, D = 16, dtype = "f32", keys = "bf16" } } do
    compare(s, 2 ^ -7)
  end
end }

list[#list + 1] = { "large scores: one key takes all", function()
  local sharp = { low = -40, high = 40 }
  for _, dtype in ipairs { "f32", "bf16" } do
    devices.compare({ devices.random(dtype, { 1, 40, 1, 16 }, sharp), devices.random(dtype, { 1, 40, 1, 16 }, sharp),
      devices.random(dtype, { 1, 40, 1, 16 }) }, function(q, k, v) return forward(q, k, v, -1, 1) end,
      dtype == "f32" and 2e-4 or 2 ^ -6, dtype)
  end
end }

list[#list + 1] = { "nothing to do, and what does not fit", function()
  for _, shape in ipairs { { 0, 3, 2, 8 }, { 2, 0, 2, 8 } } do
    devices.compare({ devices.random("bf16", shape) }, function(t) return forward(t, t, t, -1, 1) end, 0)
  end
  local q, on_cpu = lm.ones({ 1, 3, 2, 8 }, { device = "cuda" }), lm.ones({ 1, 3, 2, 8 })
  local ok, message = pcall(forward, q, on_cpu, q, -1, 1)
  assert(not ok and message:find("attention", 1, true) and message:find("different devices", 1, true), message)
  local three = lm.ones({ 1, 3, 3, 8 }, { device = "cuda" })
  ok, message = pcall(forward, three, q, q, -1, 1)
  assert(not ok and message:find("multiple", 1, true), message)
end }

list[#list + 1] = { "from indices to a loss through Lua, with the gradient of the table", function()
  local idx = devices.values({ { 1, 5, 7, 39, 5, 0, 2, 3 } }, "i32")
  local goal = devices.values({ { 5, 7, 39, 5, 0, 2, 3, -1 } }, "i32")
  devices.compare({ devices.random("f32", { 40, 64 }), idx, goal }, function(w, i, t)
    w.requires_grad = true
    local x = nn.rms_norm(nn.embedding(w, i))
    local cos, sin = nn.rotary_tables(8, 16, 1e4)
    local q = nn.rotary(x:view(1, 8, 4, 16), cos:to(w:device()), sin:to(w:device()))
    local y = nn.attention(q, q, x:view(1, 8, 4, 16), 3):view(1, 8, 64)
    local loss = nn.cross_entropy(y:softmax():mul(10), t, 40, 15)
    loss:backward()
    return loss, w.grad
  end, 1e-6)
end }

return list
