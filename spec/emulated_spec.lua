--- The emulated CUDA itself (docs/cuda.md says what it shows): the programs of spec/emulated, check by check.
local has_host, host = pcall(require, "lumuon.host")

local CHECKS = {
  checks = {
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
    ordered = "lets threads read what others wrote before a barrier of theirs",
    race = "finds a race between warps that only a __syncthreads would order",
    warp_race = "finds a race in a warp that a shuffle does not order",
    late_write = "finds a write that may come before a read, two bytes by two",
    blocks = "finds blocks that write what others do, but by atomics",
    aligned = "finds 16 bytes taken at an address that is no multiple of 16",
    misuse = "ends a capture for what a capture does not allow",
  },
  warpgroups = {
    rows = "multiplies by wgmma what lies as its descriptors say",
    columns = "multiplies by wgmma what lies the other way round",
    read_early = "gives NaNs where accumulators are read before they are waited for",
    written_early = "finds accumulators that are written before they are waited for",
    not_waited = "finds an operand that arrives after the product was begun",
    overwritten = "finds an operand that is overwritten before the product is done",
    no_proxy_fence = "finds an operand without a fence between copy and product",
    no_fence = "finds accumulators without a fence",
    elsewhere = "finds a descriptor that points beside a block's memory",
    swizzle = "refuses a swizzle that it does not know",
    parted = "finds warps of a group whose descriptors differ",
    unfinished = "finds a thread that ends before its product",
  },
}

describe("the emulated CUDA #gpu", function()
  for program, checks in pairs(CHECKS) do
    local path = has_host and (host.executable() or ""):match("^(.*/)") .. "emulated_" .. program
    local here = path and host.kind(path) == "file"
    for name, what in pairs(checks) do
      it(what, function()
        if not here then pending("needs a build with -DLUMUON_CUDA=emulated") end
        assert.equal(0, os.execute(("'%s' %s >/dev/null"):format(path, name)))
      end)
    end
  end
end)
