--- What the Muon specs share: optimizers over copies of matrices, and nanochat's numbers to follow.
local lm = require "lumuon"
local golden = dofile "spec/support/golden.lua"

local support = { shapes = { "wide", "tall", "square", "gate", "odd" } }

--- The options of nanochat's mid-2026 version.
support.head = { row_equilibrate = true, renormalize = true, norm_scale = 1.01 }

--- An optimizer over copies of the matrices, and these.
function support.muon(matrices, given)
  local params, group = {}, { kind = "muon", lr = 0.02, weight_decay = 0.1, precision = "f32" }
  for k, m in ipairs(matrices) do params[k] = lm.parameter(m, "matrix " .. k) end
  for name, value in pairs(given or {}) do group[name] = value end
  group.params = params
  return lm.optim.MuonAdamW { group }, params
end

function support.set_grads(params, grads)
  for k, p in ipairs(params) do p.grad:copy(grads[k]) end
end

function support.random_matrices(count, rows, cols, seed)
  return golden.slices(lm.randn({ count, rows, cols }, { generator = lm.Generator(seed) }))
end

function support.moments(opt, params, name)
  local list = {}
  for k, p in ipairs(params) do list[k] = opt:state(p)[name] end
  return list
end

--- Make the steps of a golden file: "seed" or "head", a shape, a precision.
-- @return of each step the distance to the f64 parameters and the limit, and for each moment the same
function support.follow(version, shape, precision)
  local t, meta = golden.load(version .. "_" .. shape)
  local peer = golden.numbers(meta.peer_error, precision)
  local options, steps = { precision = precision }, {}
  for _, name in ipairs { "lr", "momentum", "ns_steps", "beta2", "weight_decay" } do
    options[name] = golden.number(meta.hyper, name)
  end
  for name, value in pairs(version == "head" and support.head or {}) do options[name] = value end
  local init = golden.slices(t.init)
  local opt, params = support.muon(init, options)
  for step = 1, t.grads:size(1) do
    support.set_grads(params, golden.slices(t.grads:select(1, step)))
    opt:step()
    local truth = golden.slices(t["params.f64"]:select(1, step))
    steps[step] = { golden.distance(params, truth),
      (precision == "f32" and 2 or 1) * peer[step] * golden.distance(init, truth) }
  end
  local momentum = golden.slices(t["momentum_buffer.f64"])
  local second = golden.slices(t["second_momentum_buffer.f64"])
  local size = golden.distance(second, golden.zeros(second))
  return steps, {
    { golden.distance(support.moments(opt, params, "momentum_buffer"), momentum),
      2e-7 * golden.distance(momentum, golden.zeros(momentum)) },
    { golden.distance(support.moments(opt, params, "second_momentum_buffer"), second),
      precision == "f32" and 5e-6 * size
        or golden.distance(golden.slices(t["second_momentum_buffer.bf16"]), second) },
  }
end

return support
