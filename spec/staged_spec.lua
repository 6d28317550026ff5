--- Several processes with tensors on GPUs, emulated ones too: collectives by way of the host's memory, and between
-- GPUs by NCCL, where every rank has its own (emulated: a stand-in between processes).
local command = dofile("spec/command.lua")
local mpi = dofile("spec/dist/mpi.lua")
local processes = dofile("spec/dist/processes.lua")
local devices = require "spec.support.devices"

local SAID = "GPU tensors: staged through the host %(ranks 0 and 1 share a GPU%)"

describe("tensors on a GPU, of several processes, #gpu", function()
  local folder
  setup(function() folder = command.folder() end)
  teardown(function() command.remove(folder) end)

  local function on_gpu(name, by_mpi, f)
    it(name, function()
      local missing = devices.missing() or by_mpi and mpi.missing
      if missing then pending(missing) end
      f()
    end)
  end
  local function over_tcp(ranks, name, arguments)
    local words = { "run", "spec/dist/" .. name .. ".lua", unpack(arguments or {}) }
    local r = processes.run { ranks = ranks, words = words, env = ("LUMUON_RENDEZVOUS=file://%s/meet"):format(folder) }
    r.code = 0
    for _, code in pairs(r.codes) do r.code = math.max(r.code, code) end
    return r
  end
  local function ended_well(r)
    assert.equal(0, r.code, r.err)
    return r
  end
  local function count(text, what) return select(2, text:gsub(what, "")) end

  on_gpu("move and add what they should, over MPI; said once", true, function()
    local r = ended_well(mpi.script(2, "staged"))
    for rank = 0, 1 do assert.matches(("ok %d on cuda:"):format(rank), r.err) end
    assert.equal(1, count(r.err, SAID), r.err)
    ended_well(mpi.script(3, "staged"))
  end)

  on_gpu("move and add what they should, over TCP", false, function()
    local r = ended_well(over_tcp(2, "staged"))
    for rank = 0, 1 do assert.matches(("ok %d on cuda:"):format(rank), r.err) end
    assert.equal(1, count(r.err, SAID), r.err)
  end)

  local function with_gpus(n, f)
    if not devices.emulated() then pending("needs a build with -DLUMUON_CUDA=emulated") end
    devices.with_environment("LUMUON_EMULATED_DEVICES", tostring(n), f)
  end

  on_gpu("lie on the local rank's", false, function()
    with_gpus(2, function()
      local r = ended_well(over_tcp(3, "staged"))
      assert.matches("ok 0 on cuda:0", r.err)
      assert.matches("ok 1 on cuda:1", r.err)
      assert.matches("ok 2 on cuda:0", r.err)
      assert.matches("staged through the host %(ranks 0 and 2 share a GPU%)", r.err)
    end)
  end)

  on_gpu("travel by NCCL where each rank has a GPU of its own", true, function()
    with_gpus(3, function()
      for _, r in ipairs { mpi.script(2, "staged"), mpi.script(3, "staged"), over_tcp(2, "staged") } do
        ended_well(r)
        assert.matches("ok 1 on cuda:1", r.err)
        assert.equal(1, count(r.err, "GPU tensors: NCCL 2%.28%.0"), r.err)
      end
      local r = over_tcp(2, "staged", { "--what=mixed" })
      assert.not_equal(0, r.code)
      assert.matches("'eight' of 8 f32 on cuda", r.err)
    end)
  end)

  on_gpu("take the same way in a world of one that was launched as such, the sharded step too", true, function()
    local function one(launcher, name, ...)
      local words = mpi.command { "run", "spec/dist/" .. name .. ".lua", ... }
      return ended_well(launcher == "mpirun" and mpi.mpirun("-n 1 " .. words)
        or command.shell(launcher .. " OMP_NUM_THREADS=1 " .. words))
    end
    local steps = { "--steps=3", "--device=cuda", "--shard=true" }
    local plain = one("env", "steps", unpack(steps))
    assert.equal("", plain.err)
    for _, launcher in ipairs { "RANK=0 WORLD_SIZE=1", "mpirun" } do
      local r = one(launcher, "steps", unpack(steps))
      local through = r.err:find("GPU tensors: NCCL", 1, true)
      local said = through and "GPU tensors: NCCL" or "stay where they are %(rank 0 has no NCCL%)"
      assert.equal(1, count(r.err, said), r.err)
      assert.is_truthy(through or not devices.emulated(), r.err)
      assert.equal(plain.out:match("hash ([^\n]*)"), r.out:match("hash ([^\n]*)"))
      assert.matches("ok 0 on cuda:0", one(launcher, "staged").err)
    end
    local r = one("LUMUON_NCCL=none RANK=0 WORLD_SIZE=1", "steps", unpack(steps))
    assert.matches("stay where they are %(rank 0 has no NCCL%)", r.err)
    assert.equal(plain.out:match("hash ([^\n]*)"), r.out:match("hash ([^\n]*)"))
  end)

  on_gpu("travel through the host where a rank has no NCCL", false, function()
    with_gpus(2, function()
      devices.with_environment("LUMUON_NCCL", "none", function()
        assert.matches("staged through the host %(rank 0 has no NCCL%)", ended_well(over_tcp(2, "staged")).err)
      end)
    end)
  end)

  on_gpu("are refused where another rank's lie on the CPU", false, function()
    local r = over_tcp(2, "staged", { "--what=mixed" })
    assert.not_equal(0, r.code)
    assert.matches("'eight' of 8 f32 on cuda", r.err)
    assert.matches("'eight' of 8 f32[,;]", r.err)
  end)

  -- Muon's and AdamW's arithmetic on a GPU is the CPU's within rounding; the mean of whole numbers is exact.
  on_gpu("are optimized to the same bits by one process and by several", true, function()
    local function hash(r) return assert(ended_well(r).out:match("hash ([^\n]*)"), r.out .. r.err) end
    local steps = { "--steps=4", "--device=cuda" }
    local one = hash(command.shell(mpi.command { "run", "spec/dist/steps.lua", unpack(steps) }))
    local two = mpi.script(2, "steps", steps)
    assert.equal(one, hash(two))
    assert.matches("audit same", two.out)
    assert.equal(one, hash(over_tcp(2, "steps", steps)))
    assert.equal(one, hash(mpi.script(3, "steps", steps)))
    if devices.emulated() then
      with_gpus(2, function()
        two = mpi.script(2, "steps", steps)
        assert.equal(one, hash(two))
        assert.matches("GPU tensors: NCCL", two.err)
      end)
    end
  end)

  on_gpu("save a state that any number of processes, and the CPU, go on with", true, function()
    local function value(file, name)
      local t = require("lumuon").safetensors.load(file)
      return t[name]
    end
    local function file(name) return ("%s/%s.safetensors"):format(folder, name) end
    ended_well(mpi.script(2, "steps", { "--steps=4", "--device=cuda", "--out=" .. file("gpu") }))
    ended_well(mpi.script(2, "steps", { "--steps=4", "--out=" .. file("cpu") }))
    for _, name in ipairs { "a1|value", "embedding|value", "a2|momentum_buffer", "long|exp_avg_sq", "s1|exp_avg" } do
      local gpu, cpu = value(file("gpu"), name), value(file("cpu"), name)
      local far = (gpu:to("f32") - cpu:to("f32")):abs():max():item()
      assert.is_true(far < 1e-4, ("%s: %g apart"):format(name, far))
    end
    local words = { "--first=4", "--steps=2", "--load=" .. file("gpu"), "--device=cuda" }
    local whole = ended_well(mpi.script(2, "steps", { "--steps=6", "--device=cuda" })).out:match("hash ([^\n]*)")
    assert.equal(whole, ended_well(mpi.script(2, "steps", words)).out:match("hash ([^\n]*)"))
    ended_well(mpi.script(2, "steps", { "--first=4", "--steps=2", "--load=" .. file("gpu") }))
  end)
end)
