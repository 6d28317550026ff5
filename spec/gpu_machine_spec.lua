--- GPUs that are not there, too old, full or lost, and tensors where they may not be: each in a process of its
-- own, on the emulated CUDA, which plays such machines.
local command = dofile("spec/command.lua")
local devices = require "spec.support.devices"

describe("on a machine #gpu", function()
  local folder
  setup(function() folder = command.folder() end)
  teardown(function() command.remove(folder) end)

  --- Run a script with variables of the environment ("A=1 B=2").
  local function run(environment, script)
    if not devices.emulated() then pending("needs a build with -DLUMUON_CUDA=emulated") end
    local path = command.write(folder .. "/script.lua", 'local lm = require "lumuon"\n' .. script)
    return command.shell(("%s timeout 60 %s run %s"):format(environment, command.quote(command.lumuon),
      command.quote(path)))
  end
  local function fails(r, ...)
    assert.equal(1, r.code, r.out .. r.err)
    for _, text in ipairs { ... } do
      assert(r.err:find(text, 1, true), ("'%s' does not say '%s'"):format(r.err, text))
    end
  end

  it("without a driver CUDA is refused in words, and the CPU works", function()
    local script = "print((lm.ones(3) * 2):sum():item())\nlm.ones({ 3 }, { device = 'cuda' })"
    local r = run("LUMUON_EMULATED_DRIVER=none", script)
    fails(r, "script.lua:3: ", "device 'cuda'", "no NVIDIA driver")
    assert.equal("6\n", r.out)
  end)

  it("with a driver that is too old, both versions are named", function()
    fails(run("LUMUON_EMULATED_DRIVER=old", "lm.ones(3):to('cuda')"), "too old", "CUDA 11.4", "13.0")
  end)

  it("without a GPU, lumuon info says so", function()
    if not devices.emulated() then pending("needs a build with -DLUMUON_CUDA=emulated") end
    local r = command.shell("LUMUON_EMULATED_DEVICES=0 " .. command.quote(command.lumuon) .. " info")
    assert.equal(0, r.code)
    assert.matches("gpu +none: no NVIDIA GPU", r.out)
    assert.matches("gpu +cuda:0: emulated GPU, 4.0 GiB, capability 9.0", command.run({ "info" }).out)
  end)

  it("wgmma is taken on compute capability 9.0 alone, and not where its results are others", function()
    local script = "local C = require('lumuon.lib').C\n"
      .. "require('lumuon.lib').call(C.lm_set_gpu_muon_kernel, 'wgmma_bf16')\n"
    assert.equal(0, run("", script).code)
    fails(run("LUMUON_EMULATED_CAPABILITY=80", script), "needs compute capability 9.0")
    fails(run("LUMUON_EMULATED_CAPABILITY=100", script), "needs compute capability 9.0")
    fails(run("LUMUON_EMULATED_WGMMA=wrong", script), "wgmma_bf16 differs from mma_bf16", "not used")
    local r = run("LUMUON_EMULATED_WGMMA=wrong", [[
      local C = require("lumuon.lib").C
      C.lm_set_gpu_muon_kernel("wgmma_bf16")
      for _, row in ipairs(require("lumuon.info").collect()) do print(unpack(row)) end]])
    assert.matches("symmetric on gpu%s+mma_bf16 %(wgmma_bf16 differs from mma_bf16", r.out)
  end)

  it("with two GPUs, a process uses the one it names first, and no other", function()
    local r = run("LUMUON_EMULATED_DEVICES=2", [[
      print(lm.ones({ 2 }, { device = "cuda:1" }):device())
      lm.zeros({ 2 }, { device = "cuda" })
      lm.ones(2):to("cuda:0")]])
    fails(r, "cuda:0", "already uses cuda:1", "before the first tensor")
    assert.equal("cuda\n", r.out)
  end)

  it("an index that no GPU has is refused with how many there are", function()
    fails(run("LUMUON_EMULATED_DEVICES=2", "lm.ones(2):to('cuda:2')"), "cuda:2: there are 2 GPUs")
    fails(run("", "lm.ones(2):to('cuda:7')"), "cuda:7: there is 1 GPU, cuda:0")
    fails(run("LUMUON_EMULATED_DEVICES=0", "lm.ones(2):to('cuda:1')"), "cuda:1: no NVIDIA GPU")
    fails(run("", "lm.ones(2):to('cuda:')"), "neither a dtype", "nor a device")
  end)

  it("whose memory is full, the message has what was asked, is free, is live, and would fit", function()
    local r = run("LUMUON_EMULATED_MEMORY=10e6", [[
      local a = lm.zeros({ 1000, 1000 }, { device = "cuda" })
      local ok, message = pcall(lm.zeros, { 2000, 1000 }, { device = "cuda" })
      print(message)
      lm.zeros({ 1000, 1000 }, { device = "cuda" })
      print(a:item(1, 1))]])
    assert.equal(0, r.code, r.err)
    for _, text in ipairs { "out of memory on cuda:0 (emulated GPU)", "asked for 8.0 MB", "with 4.0 MB live",
      "of 10.0 MB free", "at most 6.0 MB more would fit", "make the batch, the sequence or the model smaller" } do
      assert(r.out:find(text, 1, true), ("'%s' does not say '%s'"):format(r.out, text))
    end
    assert.matches("\n0\n$", r.out) -- and it goes on
  end)

  it("memory that nothing points at any more is collected before a full GPU is an error", function()
    local r = run("LUMUON_EMULATED_MEMORY=20e6", [[
      for _ = 1, 30 do lm.zeros({ 1000, 1000 }, { device = "cuda" }) end
      local m = lm.memory("cuda")
      print(m.live <= 20e6, m.peak <= 20e6, m.total, m.reserved >= m.live)]])
    assert.equal("true\ttrue\t20000000\ttrue\n", r.out, r.err)
  end)

  it("a kernel's fault is told with its op, by every later call, and the CPU goes on", function()
    local r = run("", [[
      local ffi = require "ffi"
      local x = lm.ones({ 4 }, { device = "cuda" })
      ffi.cast("int64_t *", ffi.cast("char *", x.h) + 16)[0] = 100000 -- a shape that is not its storage's
      print(pcall(lm.exp, x))
      print(pcall(lm.ones, { 2 }, { device = "cuda" }))
      print(lm.ones(3):sum():item())]])
    assert.equal(0, r.code, r.err)
    local first, second, third = r.out:match("([^\n]*)\n([^\n]*)\n([^\n]*)\n")
    assert.matches("^false.*a kernel faulted on cuda:0 in unary: an illegal memory access", first)
    assert.matches("^false.*the GPU cannot be used any more in this process: a kernel faulted", second)
    assert.equal("3", third)
  end)

  it("device memory is out of the host's reach", function()
    local r = run("", [[
      local ffi = require "ffi"
      local x = lm.ones({ 4 }, { device = "cuda" })
      assert(require("lumuon.lib").C.lm_tensor_data(x.h) == nil)
      local storage = ffi.cast("char **", ffi.cast("char *", x.h) + 16 + 2 * 64 + 8)[0]
      print(ffi.cast("float **", storage)[0][0])]])
    assert.equal("", r.out)
    assert.equal(128 + 11, r.code, r.err) -- a segmentation fault
  end)

  it("a gradient that is not finite stops a step on the device, and the next number says whose it was", function()
    local r = run("", [[
      local lib = require "lumuon.lib"
      local C, ffi = lib.C, lib.ffi
      local function guard(...)
        local n, grads = select("#", ...), { ... }
        local handles, names = ffi.new("const lm_tensor *[?]", n), { "wte", "lm_head", "third" }
        for i = 1, n do handles[i - 1] = grads[i].h end
        lib.call(C.lm_guard_gradients, C.LM_CUDA, n, handles, ffi.new("const char *[3]", names), nil, 0)
      end
      local a = lm.ones({ 5003 }, { device = "cuda" })
      local b = lm.ones({ 3, 64 }, { device = "cuda" }):to("bf16")
      guard(a, b)
      print(a:item(1))
      b[2][5] = -1 / 0
      b[3][64] = 0 / 0
      guard(a, b, b:narrow(1, 1, 1):narrow(2, 3, 5))
      print(pcall(a.item, a, 1))
      print(a:item(1))]])
    assert.equal(0, r.code, r.err)
    assert.matches("^1\nfalse\t[^\n]*step: the gradient of lm_head has 2 NaN or Inf; nothing was changed[^\n]*\n1\n$",
      r.out)
  end)
end)

describe("between devices #gpu", function()
  local lm = require "lumuon"
  local function refuses(f, ...)
    if devices.missing() then pending(devices.missing()) end
    local ok, message = pcall(f)
    assert.is_false(ok)
    for _, text in ipairs { ... } do
      assert(message:find(text, 1, true), ("'%s' does not say '%s'"):format(message, text))
    end
  end
  local function both() return lm.ones({ 3, 3 }, { device = "cuda" }), lm.ones(3, 3) end

  it("an op refuses tensors of both, naming itself", function()
    for _, name in ipairs { "add", "matmul", "pow" } do
      refuses(function()
        local a, b = both()
        return a[name](a, b)
      end, name .. ": tensors on different devices, cuda and cpu; use :to()")
    end
  end)

  it("a group of an optimizer lies on one", function()
    refuses(function()
      local a, b = both()
      lm.optim.MuonAdamW { { kind = "adamw", lr = 1, params = { lm.parameter(a, "a"), lm.parameter(b, "b") } } }
    end, "a lies on cuda, b on cpu")
  end)

  it("what only the CPU has is refused by name", function()
    refuses(function() return (both()):pointer() end, "pointer", "on the CPU")
  end)
end)
