--- The emulated CUDA itself (docs/cuda.md says what it shows): spec/emulated/checks.cu, check by check.
local has_host, host = pcall(require, "lumuon.host")

describe("the emulated CUDA #gpu", function()
  local program = has_host and (host.executable() or ""):match("^(.*/)") .. "emulated_checks"
  local here = program and host.kind(program) == "file"

  for name, what in pairs {
    together = "runs warp instructions, barriers and reductions",
    product = "multiplies on tensor cores what was copied beside the arithmetic",
    pipeline = "brings a copy when it is waited for, and fills memory with NaNs",
    beyond = "finds a write behind a block of memory",
    freed = "finds a write to what was freed",
    host_pointer = "finds a host's pointer among a kernel's arguments",
    beside = "finds a write into the few bytes beside a block when it is freed",
    barrier = "finds threads that never come to a barrier",
    lane = "finds a lane that a shuffle waits for in vain",
    early_end = "lets threads that have ended miss a barrier",
    graph = "captures calls, replays them, and takes new arguments",
    misuse = "ends a capture for what a capture does not allow",
  } do
    it(what, function()
      if not here then pending("needs a build with -DLUMUON_CUDA=emulated") end
      assert.equal(0, os.execute(("'%s' %s >/dev/null"):format(program, name)))
    end)
  end
end)
