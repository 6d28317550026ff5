--- Memory: accounted, collected without the user's help, freed in bulk by scopes, reused.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local arrays = require "spec.support.arrays"
local command = dofile("spec/command.lua")

local C = lib.C
local MB = 2 ^ 20

--- Bytes live once garbage is gone.
local function live()
  collectgarbage()
  collectgarbage()
  return C.lm_memory_live()
end

--- Run a script in a process of its own; the figures it prints as "name value".
local function figures(text)
  local folder = command.folder()
  local path = command.write(folder .. "/script.lua", text .. [[
    for line in io.lines("/proc/self/status") do
      local kb = line:match("^VmHWM:%s*(%d+) kB")
      if kb then print("peak_mb " .. kb / 1024) end
    end]])
  local r = command.run { "run", path }
  command.remove(folder)
  assert.equal(0, r.code, r.err)
  local found = {}
  for name, value in r.out:gmatch("(%S+) (%S+)") do found[name] = tonumber(value) end
  return found
end

describe("memory", function()
  it("stays under 200 MB while a loop makes 10,000 tensors of 16 MB", function()
    local f = figures [[
      local lm = require "lumuon"
      local last
      for i = 1, 10000 do
        last = lm.empty(4 * 2 ^ 20)
        last:narrow(1, 1, 4096):fill(i) -- touches little, so that the loop is quick
        if i <= 100 then last:fill(i) end -- but some of them wholly
      end
      print("last " .. last:item(1))
    ]]
    assert.equal(10000, f.last)
    assert.is_true(f.peak_mb < 200, f.peak_mb .. " MB")
  end)

  it("stays under 200 MB while results of 16 MB are made from others", function()
    local f = figures [[
      local lm = require "lumuon"
      local x = lm.ones(4 * 2 ^ 20)
      for i = 1, 100 do
        local y = (x + i) * 2 - x
        if i == 100 then print("value " .. y:item(7)) end
      end
    ]]
    assert.equal(201, f.value)
    assert.is_true(f.peak_mb < 200, f.peak_mb .. " MB")
  end)

  it("counts live bytes and their peak", function()
    local before = live()
    C.lm_memory_reset_peak()
    local x = lm.zeros(MB)
    local view = x:narrow(1, 1, 10)
    assert.equal(before + 4 * MB, live())
    local y = lm.zeros(MB)
    y:free()
    assert.equal(before + 4 * MB, live())
    assert.equal(before + 8 * MB, C.lm_memory_peak())
    x:free()
    assert.equal(before + 4 * MB, live()) -- the view holds it
    view:free()
    assert.equal(before, live())
  end)

  it("is freed once however often free() is called", function()
    local before = live()
    local x = lm.zeros(MB)
    x:free()
    x:free()
    x = nil -- luacheck: ignore
    assert.equal(before, live())
  end)

  it("is given back by a scope, but for what it returns or keeps", function()
    local before = live()
    local kept
    local a, list = lm.scope(function()
      for _ = 1, 5 do lm.zeros(MB) end
      kept = lm.zeros(MB):keep()
      return lm.ones(MB), { lm.full({ MB }, 2) }
    end)
    assert.equal(before + 12 * MB, C.lm_memory_live()) -- no collection needed
    assert.equal(MB, a:sum():item())
    assert.equal(2, list[1]:item(5))
    assert.equal(0, kept:item(5))
    for _, t in ipairs { a, list[1], kept } do t:free() end
    assert.equal(before, live())
  end)

  it("is given back by nested scopes and by scopes that end in an error", function()
    local before = live()
    lm.scope(function()
      local inner = lm.scope(function() return lm.zeros(MB) end)
      lm.zeros(MB)
      assert.equal(before + 8 * MB, C.lm_memory_live())
      assert.equal(0, inner:item(1))
    end)
    assert.equal(before, C.lm_memory_live())
    local ok, message = pcall(lm.scope, function()
      lm.zeros(MB)
      lm.scope(function()
        lm.zeros(MB)
        error("inside")
      end)
    end)
    assert.is_false(ok)
    assert.matches("inside", message)
    assert.equal(before, C.lm_memory_live())
    local after = lm.zeros(3) -- and no scope is left open
    collectgarbage()
    assert.same({ 0, 0, 0 }, after:tolist())
  end)

  it("of a tensor from an ended scope is refused, not read", function()
    local escaped
    lm.scope(function() escaped = lm.zeros(3) end)
    arrays.refuses(function() escaped:sum() end, "sum", "freed", "scope", "keep")
  end)

  it("is asked of the system only in the first rounds of a repeated workload", function()
    local w = lm.parameter(lm.randn(256, 256))
    local x = lm.randn(64, 256)
    local function step()
      lm.scope(function()
        local loss = lm.linear(lm.linear(x, w):relu2(), w):square():mean()
        loss:backward()
        w.grad:zero()
      end)
    end
    step()
    step()
    local before = C.lm_memory_system_allocs()
    for _ = 1, 50 do step() end
    assert.equal(before, C.lm_memory_system_allocs())
  end)

  it("is given back to the system by trim", function()
    lm.zeros(MB):free()
    assert.is_true(C.lm_memory_cached() >= 4 * MB)
    C.lm_memory_trim()
    assert.equal(0, C.lm_memory_cached())
  end)
end)

describe("the memory limit", function()
  local own
  before_each(function()
    own = C.lm_memory_limit()
    live()
  end)
  after_each(function() C.lm_set_memory_limit(0) end)

  it("refuses what would pass it: asked, live and limit are in the message, nothing leaks", function()
    local before = live()
    C.lm_set_memory_limit(before + 64 * MB)
    local held = lm.zeros(8 * MB)
    for _ = 1, 20 do
      arrays.refuses(function() lm.zeros(16 * MB) end, "out of memory", "67.1 MB", "limit of")
      arrays.refuses(function() held:exp():exp():exp() end, "out of memory", "33.6 MB", "live")
    end
    assert.equal(before + 32 * MB, live())
    assert.equal(0, held:sum():item())
    held:free()
    assert.equal(before, live())
    lm.zeros(16 * MB):free() -- now it fits
  end)

  it("is not reached by garbage: it is collected first", function()
    C.lm_set_memory_limit(live() + 40 * MB)
    for i = 1, 100 do assert.equal(i, lm.full({ 4 * MB }, i):item(1)) end
  end)

  it("has a default, and refuses nonsense", function()
    assert.is_true(own > 2 ^ 28)
    assert.equal(C.LM_EINVAL, C.lm_set_memory_limit(-1))
    assert.equal(C.LM_EINVAL, C.lm_set_memory_limit(0 / 0))
    assert.equal(own, C.lm_memory_limit())
  end)

  it("leaves tensors as they were when an op in place has no memory", function()
    local x = lm.arange(1, 8 * MB)
    C.lm_set_memory_limit(live() + MB)
    -- overlapping parts need a copy, for which there is no room
    arrays.refuses(function() x:narrow(1, 2, 8 * MB - 1):add_(x:narrow(1, 1, 8 * MB - 1)) end, "out of memory")
    arrays.refuses(function() x:narrow(1, 2, 8 * MB - 1):copy(x:narrow(1, 1, 8 * MB - 1)) end, "out of memory")
    C.lm_set_memory_limit(0)
    for _, i in ipairs { 1, 2, 1000, 8 * MB } do assert.equal(i, x:item(i)) end
  end)

  it("is met by sizes that no machine has", function()
    arrays.refuses(function() lm.zeros(2 ^ 45) end, "out of memory", "limit")
    arrays.refuses(function() lm.zeros(2 ^ 60) end, "memory")
    arrays.refuses(function() lm.zeros(2 ^ 30, 2 ^ 30, 2 ^ 30) end, "bytes")
  end)
end)
