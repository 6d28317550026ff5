--- Every op on the GPU against the CPU. The tables are in spec/gpu/: a module returns a list of
--
--     { "name of the spec", function() devices.compare(inputs, f, bound, what) ... end }
--
-- Where there is no GPU each table is pending. A build with -DLUMUON_CUDA=emulated has one.
local devices = require "spec.support.devices"

local TABLES = { "elementwise", "copy", "rows", "cross_entropy", "embedding", "attention", "reduce", "random", "mix",
  "products", "symmetric", "adamw", "muon", "forms", "steps", "graph", "model" }

local missing = devices.missing()
for _, name in ipairs(TABLES) do
  local cases = require("spec.gpu." .. name)
  describe("on the GPU #gpu: " .. name, function()
    if missing then
      it(("%d specs"):format(#cases), function() pending(missing) end)
      return
    end
    for _, case in ipairs(cases) do it(case[1], case[2]) end
  end)
end
