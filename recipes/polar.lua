-- Polar Express at work: orthogonalise a random matrix and look at its singular values step by step.
--   ./lumuon run recipes/polar.lua --rows=64 --cols=256
local lm = require "lumuon"

local o = lm.options {
  rows = { default = 48, min = 1 },
  cols = { default = 128, min = 1 },
  seed = { default = 1, min = 0 },
  steps = { default = 5, min = 1, max = 5, help = "iterations, each with coefficients of its own" },
  precision = { default = "f32", choices = { "f32", "bf16" } },
}

local x = lm.randn(o.rows, o.cols, { generator = lm.Generator(o.seed) })

local function show(label, t)
  local s = t:svdvals():tolist()
  print(("%-10s largest %9.5f   median %9.5f   smallest %9.5f"):format(label, s[1], s[math.ceil(#s / 2)], s[#s]))
end

show("as drawn", x)
show("scaled", x / (x:norm() * 1.02 + 1e-6)) -- so that the largest is below 1
for step = 1, o.steps do
  show("step " .. step, lm.optim.polar_express(x, { ns_steps = step, precision = o.precision }))
end

-- At the prompt (./lumuon repl recipes/polar.lua) x and show are there to play with.
return { x = x, show = show, options = o }
