--- Muon and Polar Express: nanochat's golden values, and the CPU's results.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local devices = require "spec.support.devices"
local golden = dofile "spec/support/golden.lua"
local assert = require "luassert"
local ffi, C = lib.ffi, lib.C

local list = {}
local head = { row_equilibrate = true, renormalize = true, norm_scale = 1.01 }
local SHAPES = { { 1, 1, 9 }, { 2, 9, 1 }, { 1, 1, 1 }, { 3, 5, 7 }, { 2, 65, 33 }, { 2, 33, 65 }, { 1, 8, 40 },
  { 2, 40, 8 }, { 1, 64, 200 }, { 2, 200, 64 } }

local function on_path(path, f)
  lib.call(C.lm_set_muon_path, path)
  local ok, message = pcall(f)
  C.lm_set_muon_path(C.LM_MUON_AUTO)
  if not ok then error(message, 0) end
end

local PATHS = { written = C.LM_MUON_WRITTEN, gram = C.LM_MUON_GRAM, halves = C.LM_MUON_HALVES }

for _, version in ipairs { "seed", "head" } do
  for _, shape in ipairs { "wide", "tall", "square", "gate", "odd" } do
    for path_name, path in pairs(PATHS) do
      list[#list + 1] = { ("follows nanochat's %s_%s, %s"):format(version, shape, path_name), function()
        local t, meta = golden.load(version .. "_" .. shape)
        local init = golden.slices(t.init)
        for _, precision in ipairs { "f32", "bf16" } do
          local peer = golden.numbers(meta.peer_error, precision)
          local group = { kind = "muon", precision = precision, params = {} }
          for _, name in ipairs { "lr", "momentum", "ns_steps", "beta2", "weight_decay" } do
            group[name] = golden.number(meta.hyper, name)
          end
          for name, value in pairs(version == "head" and head or {}) do group[name] = value end
          for k, m in ipairs(init) do group.params[k] = lm.parameter(m:to("cuda"), "matrix " .. k) end
          local opt = lm.optim.MuonAdamW { group }
          local function values(of)
            local copies = {}
            for k, p in ipairs(group.params) do copies[k] = of(p):detach():to("cpu") end
            return copies
          end
          local function params() return values(function(p) return p end) end
          local function moments(name) return values(function(p) return opt:state(p)[name] end) end
          on_path(path, function()
            for step = 1, t.grads:size(1) do
              for k, g in ipairs(golden.slices(t.grads:select(1, step))) do group.params[k].grad:copy(g) end
              opt:step()
              local truth = golden.slices(t["params.f64"]:select(1, step))
              local limit = (precision == "f32" and 2 or 1) * peer[step] * golden.distance(init, truth)
              local distance = golden.distance(params(), truth)
              assert.is_true(distance <= limit, ("%s, step %d: %g > %g"):format(precision, step, distance, limit))
            end
          end)
          local momentum = golden.slices(t["momentum_buffer.f64"])
          assert.is_true(golden.distance(moments("momentum_buffer"), momentum)
            <= 2e-7 * golden.distance(momentum, golden.zeros(momentum)))
          local second = golden.slices(t["second_momentum_buffer.f64"])
          local size = golden.distance(second, golden.zeros(second))
          local peer_error = golden.distance(golden.slices(t["second_momentum_buffer.bf16"]), second)
          local off = golden.distance(moments("second_momentum_buffer"), second)
          assert.is_true(off
            <= (precision == "f32" and 5e-6 * size or peer_error), ("%s: %g"):format(precision, off))
        end
      end }
    end
  end
end

local function muon(given, path)
  return function(param, grad, momentum, second)
    -- little decay: where X is nearly 0, its sign, and so whether p decays, is a matter of rounding
    local args = ffi.new("lm_muon_args", { lr = 0.02, momentum = 0.9, beta2 = 0.95, weight_decay = 1e-3, nesterov = 1 })
    local group = { ns_steps = 5, precision = "f32", norm_scale = 1.02,
      coefficients = lm.optim.polar_express_coefficients }
    for name, value in pairs(given) do
      if group[name] then group[name] = value else args[name] = value end
    end
    require("lumuon.optim.banks").polar_args(args.polar, group)
    on_path(path or C.LM_MUON_AUTO, function()
      for _ = 1, 2 do lib.call(C.lm_muon_step, param.h, grad.h, momentum.h, second.h, args) end
    end)
    return param, momentum, second
  end
end

local function inputs(shape)
  local k, rows, cols = unpack(shape)
  return { devices.random("f32", shape), devices.random("f32", shape), devices.random("f32", shape),
    devices.random("f32", rows >= cols and { k, rows, 1 } or { k, 1, cols }, { low = 0, high = 0.1 }) }
end

for name, options in pairs {
  ["the seed's options"] = {}, ["the head's options"] = { row_equilibrate = 1, renormalize = 1, norm_scale = 1.01 },
  ["no look-ahead"] = { nesterov = 0 }, ["no decay, no momentum"] = { weight_decay = 0, momentum = 0, beta2 = 0 },
  ["three steps"] = { ns_steps = 3 }, ["no step"] = { ns_steps = 0 },
} do
  list[#list + 1] = { "steps matrices of all shapes as the CPU does, with " .. name, function()
    for _, shape in ipairs(SHAPES) do
      devices.compare(inputs(shape), muon(options), 2e-5, table.concat(shape, " x "))
    end
  end }
end

list[#list + 1] = { "steps in bf16 near the CPU's", function()
  for _, shape in ipairs(SHAPES) do
    devices.compare(inputs(shape), muon({ precision = "bf16" }), 4e-3, table.concat(shape, " x "))
  end
end }

list[#list + 1] = { "does not care where a bank begins", function()
  local all = inputs { 3, 16, 24 }
  for _, input in ipairs(all) do input.view = function(t) return t:narrow(1, 2, 2) end end
  devices.compare(all, muon {}, 2e-5)
  local odd = {}
  for i, shape in ipairs { { 1 + 2 * 16 * 8 }, { 1 + 2 * 16 * 8 }, { 1 + 2 * 16 * 8 }, { 1 + 2 * 16 } } do
    local last = i == 4 and 1 or 8
    odd[i] = devices.random("f32", shape, { low = i == 4 and 0 or -1, high = i == 4 and 0.1 or 1,
      view = function(t) return t:narrow(1, 2, t:size(1) - 1):view(2, 16, last) end })
  end
  devices.compare(odd, muon {}, 2e-5, "not aligned")
end }

list[#list + 1] = { "keeps a zero gradient's decay; survives gradients of 1e25 and 1e-30", function()
  for _, scale in ipairs { 0, 1e25, 1e-30 } do
    local all = inputs { 2, 6, 9 }
    all[2].view = function(t) return t * scale end
    all[3].view = function(t) return t * 0 end
    all[4].view = all[3].view
    devices.compare(all, function(...)
      local p, m, v = muon { weight_decay = scale == 0 and 0.1 or 1e-3 }(...)
      return p, m / math.max(scale, 1), v
    end, 2e-5, ("%g"):format(scale))
  end
end }

list[#list + 1] = { "half products of bf16 matrices: edges, tiles, both ways round", function()
  for _, shape in ipairs { { 2, 8, 40 }, { 2, 40, 8 }, { 1, 136, 72 }, { 1, 136, 264 } } do
    devices.compare({ devices.random("f32", shape) }, function(t)
      local out
      on_path(t:device() == "cpu" and C.LM_MUON_WRITTEN or C.LM_MUON_HALVES, function()
        out = lm.optim.polar_express(t, { precision = "bf16", ns_steps = 1 })
      end)
      return out
    end, 3e-2, table.concat(shape, " x "))
  end
end }

list[#list + 1] = { "Polar Express of banks, in all forms", function()
  for _, shape in ipairs(SHAPES) do
    for _, path in pairs(PATHS) do
      for precision, bound in pairs { f32 = 2e-5, bf16 = 3e-2 } do
        -- in bf16 Gram form moves the few singular values of a small matrix about within their band
        if path ~= C.LM_MUON_WRITTEN and precision == "bf16" and shape[2] * shape[3] < 2000 then bound = 0.2 end
        devices.compare({ devices.random("f32", shape) }, function(t)
          local out
          on_path(t:device() == "cpu" and C.LM_MUON_AUTO or path, function()
            out = lm.optim.polar_express(t, { precision = precision })
          end)
          return out
        end, bound, table.concat(shape, " x ") .. " in " .. precision)
      end
    end
  end
end }

list[#list + 1] = { "Polar Express goes through nanochat's iterates, in all forms", function()
  for _, name in ipairs { "wide", "tall", "square" } do
    local t = golden.load("polar_express")
    local input, iterates = t[name .. ".input"], t[name .. ".iterates"]
    for steps = 1, iterates:size(1) do
      local truth = iterates:select(1, steps)
      for path_name, path in pairs(PATHS) do
        for precision, limit in pairs { f32 = 5e-6, bf16 = path == C.LM_MUON_WRITTEN and 4e-2 or 5e-2 } do
          on_path(path, function()
            local x = lm.optim.polar_express(input:to("cuda"), { ns_steps = steps, precision = precision }):to("cpu")
            local off = golden.distance({ x }, { truth }) / truth:norm():item()
            assert.is_true(off < limit, ("%s, %s, %s, %d steps: %g"):format(name, path_name, precision, steps, off))
          end)
        end
      end
    end
  end
end }

return list
