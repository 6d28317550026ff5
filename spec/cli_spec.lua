local command = dofile("spec/command.lua")
local nearest = require "lumuon.nearest"
local run, write = command.run, command.write

describe("the nearest name", function()
  local names = { "steps", "seed", "eval_every", "matrix_lr" }
  it("is the one a typing mistake away", function()
    assert.equal("steps", nearest("stesp", names))
    assert.equal("eval_every", nearest("eval_evry", names))
    assert.equal("eval_every", nearest("eval", names))
    assert.equal("matrix_lr", nearest("MATRIX_LR", names))
  end)
  it("is none where nothing is near", function()
    assert.is_nil(nearest("xyzzy", names))
    assert.is_nil(nearest("x", {}))
  end)
end)

describe("lumuon", function()
  local folder
  setup(function() folder = command.folder() end)
  teardown(function() command.remove(folder) end)
  local function script(name, text) return write(folder .. "/" .. name, text) end

  it("lists its commands, and fails where none was given", function()
    local r = run { "help" }
    assert.equal(0, r.code)
    for _, name in ipairs { "run", "repl", "test", "bench", "info", "version", "help" } do
      assert.matches("\n  " .. name .. " ", r.out)
    end
    assert.equal(2, run({}).code)
    assert.matches("usage: lumuon run FILE", run({ "help", "run" }).out)
    assert.matches("usage: lumuon run FILE", run({ "run", "--help" }).out)
  end)

  it("suggests the nearest of its commands for an unknown one", function()
    local r = run { "tset" }
    assert.equal(2, r.code)
    assert.equal("lumuon: unknown command 'tset'; did you mean 'test'?\n", r.err)
    assert.matches("the commands are run, repl", run({ "frobnicate" }).err)
  end)

  it("shows how Muon's products are done, measured or by the rule", function()
    local r = run { "info", "--tuning", "--model=d4" }
    assert.equal(0, r.code)
    assert.matches("1024 +256 +bf16 +[%d.]+ +[%d.]+ +[%d.]+ +gram +%a+ ", r.out)
    r = run { "info", "--tuning", "--model=d4", "--deterministic" }
    assert.matches("1024 +256 +f32 +%- +%- +%- +gram +gram ", r.out)
    assert.matches("did you mean %-%-tuning", run({ "info", "--tunin" }).err)
    r = run { "info", "--tuning", "--model=x" }
    assert.same({ 2, "" }, { r.code, r.out })
  end)

  it("says its version and what it runs on", function()
    local lm = require "lumuon"
    assert.equal("lumuon " .. lm.version .. "\n", run({ "version" }).out)
    local r = run { "info" }
    assert.equal(0, r.code)
    for _, row in ipairs { "lumuon +" .. lm.version:gsub("%.", "%%."), "cpu +%S", "kernels +%a", "gpu +%S",
      "threads +%d", "memory limit +[%d.]+ GiB", "LuaJIT +LuaJIT 2.1", "oneDNN +%d", "Jansson +%d", "OpenMP +%d" } do
      assert.matches("\n" .. row, "\n" .. r.out)
    end
  end)

  describe("run", function()
    it("hands a script its arguments, lumuon, and the modules beside it", function()
      os.execute("mkdir -p " .. folder .. "/parts")
      script("parts/mine.lua", "return { answer = 42 }")
      local path = script("five.lua", [[
        local lm = require "lumuon"
        print(arg[0] == ...)
        print(arg[1], (...), select("#", ...), require("parts.mine").answer, lm.ones(2):sum():item(), lm.interactive)
      ]])
      local r = run { "run", path, "--a=1", "b c" }
      assert.equal("", r.err)
      assert.equal(0, r.code)
      assert.equal("false\n--a=1\t--a=1\t2\t42\t2\tnil\n", r.out)
    end)

    it("has a message for a file that is not there, a folder, and no file at all", function()
      local r = run { "run", folder .. "/none.lua" }
      assert.equal(1, r.code)
      assert.equal(("lumuon: cannot read %s/none.lua: No such file or directory\n"):format(folder), r.err)
      script("there.lua", "")
      assert.matches("did you mean " .. folder .. "/there.lua%?", run({ "run", folder .. "/there" }).err)
      r = run { "run", folder }
      assert.equal(1, r.code)
      assert.equal(("lumuon: %s is a directory, not a recipe\n"):format(folder), r.err)
      assert.equal(2, run({ "run" }).code)
    end)

    it("shows a syntax error with its own file and line", function()
      local r = run { "run", script("syntax.lua", "local x = 1\nx = = 2\n") }
      assert.equal(1, r.code)
      assert.equal(("lumuon: %s/syntax.lua:2: unexpected symbol near '='\n"):format(folder), r.err)
    end)

    it("shows a run-time error with the script's lines and none of ours", function()
      local r = run { "run", script("error.lua", "local function f()\n  error('boom')\nend\nf()\n") }
      assert.equal(1, r.code)
      assert.equal(("lumuon: @/error.lua:2: boom\ncalled from\n  @/error.lua:2: in function 'f'\n"
        .. "  @/error.lua:4: in main chunk\n"):gsub("@", folder), r.err)
      r = run { "run", script("engine.lua", "local lm = require 'lumuon'\n\nlm.ones(2, 3):add(lm.ones(4))\n") }
      assert.equal(1, r.code)
      assert.matches("^lumuon: [^\n]*/engine.lua:3: add: [^\n]*\n$", r.err)
      r = run { "run", script("nil.lua", "error()") }
      assert.equal(1, r.code)
      assert.matches("^lumuon: error value: nil\n", r.err)
    end)

    it("shows output before the error that ended it", function()
      local path = script("order.lua", "io.write('before ')\nerror('after', 0)")
      assert.equal("before lumuon: after\n", command.shell(command.lumuon .. " run " .. path .. " 2>&1").out)
    end)

    it("ends with the code given to os.exit, finalizers run", function()
      local r = run { "run", script("exit.lua", [[
        local p = newproxy(true)
        getmetatable(p).__gc = function() io.write("finalized") end
        io.write("x ")
        os.exit(7)
      ]]) }
      assert.equal(7, r.code)
      assert.equal("x finalized", r.out)
    end)

    it("reports a wrong option as a usage error", function()
      local path = script("options.lua", [[
        local o = require("lumuon").options{ steps = 3, flag = false }
        print(o.steps, o.flag)
      ]])
      assert.equal("3\tfalse\n", run({ "run", path }).out)
      assert.equal("12\ttrue\n", run({ "run", path, "--steps=12", "--flag" }).out)
      local r = run { "run", path, "--stepz=2" }
      assert.equal(2, r.code)
      assert.equal("lumuon: unknown option --stepz; did you mean --steps?\n", r.err)
      r = run { "run", path, "--help" }
      assert.equal(0, r.code)
      assert.matches("%-%-steps=3 +an integer", r.out)
    end)

    it("stops at Ctrl-C, in engine calls, in plain Lua and in compiled loops", function()
      local function interrupt(name, text, presses)
        local path = script(name, text)
        return command.shell(("%s run %s & p=$!; sleep 0.7; kill -INT $p; %s wait $p"):format(
          command.lumuon, path, presses == 2 and "sleep 0.3; kill -INT $p;" or ""))
      end
      -- sh starts background commands with SIGINT ignored; the host's own handler takes it all the same
      local r = interrupt("engine_loop.lua",
        "local lm = require 'lumuon'\nlocal x = lm.ones(64, 64)\nwhile true do x:matmul(x) end")
      assert.equal(130, r.code)
      assert.equal("lumuon: interrupted\n", r.err)
      r = interrupt("one_product.lua", -- some ten seconds, were it run to its end
        "local lm = require 'lumuon'\nlocal x = lm.ones(12000, 12000)\nx:matmul(x)\nprint 'done'")
      assert.equal(130, r.code)
      assert.equal("", r.out)
      assert.equal("lumuon: interrupted\n", r.err)
      r = interrupt("lua_loop.lua", "jit.off()\nwhile true do end")
      assert.equal(130, r.code)
      assert.equal("lumuon: interrupted\n", r.err)
      r = interrupt("compiled_loop.lua", "while true do end", 2)
      assert.equal(130, r.code)
      assert.matches("ended by Ctrl%-C", r.err)
    end)

    it("lets a script that asks for it finish its step", function()
      local path = script("defer.lua", [[
        local host = require "lumuon.host"
        host.defer_interrupt(true)
        local lm = require "lumuon"
        local steps = 0
        while not host.interrupt_asked() do
          lm.ones(8):sum():item()
          steps = steps + 1
        end
        print(steps > 0, lm.ones(8):sum():item())
      ]])
      for _, signal in ipairs { "INT", "TERM" } do -- the second is what mpirun and Slurm send
        local r = command.shell(("%s run %s & p=$!; sleep 0.7; kill -%s $p; wait $p"):format(command.lumuon, path,
          signal))
        assert.equal("true\t8\n", r.out)
        assert.equal(130, r.code)
      end
      local r = command.shell(("%s run %s & p=$!; sleep 0.7; kill -TERM $p; wait $p"):format(command.lumuon,
        script("no_defer.lua", "local lm = require 'lumuon' while true do lm.ones(8):sum() end")))
      assert.equal(143, r.code)
    end)

    -- oneDNN's kernels keep data far below the stack pointer, where a handler's frame would land
    it("takes signals on a stack of their own, and on no worker", function()
      local path = script("signals.lua", [[
        local ffi = require "ffi"
        local lm = require "lumuon"
        ffi.cdef [=[
          typedef struct { void *handler; unsigned long mask[16]; int flags; void *restorer; } spec_action;
          int sigaction(int number, const spec_action *new, spec_action *old);
          int setitimer(int which, const long *new, long *old);
        ]=]
        local SIGINT, SIGALRM = 2, 14
        local action = ffi.new("spec_action[1]")
        assert(ffi.C.sigaction(SIGINT, nil, action) == 0)
        ffi.cdef "int getpid(void);"
        action[0].handler = ffi.cast("void *", ffi.C.getpid) -- harmless; the stack and flags are Ctrl-C's
        action[0].flags = bit.bor(action[0].flags, 0x10000000) -- SA_RESTART: reads go on
        assert(ffi.C.sigaction(SIGALRM, action, nil) == 0)
        assert(ffi.C.setitimer(0, ffi.new("long[4]", 0, 500, 0, 500), nil) == 0)
        for task in io.popen("ls /proc/" .. io.open("/proc/self/stat"):read("*n") .. "/task"):lines() do
          local status = io.open("/proc/self/task/" .. task .. "/status"):read("*a")
          local blocked = tonumber(status:match("SigBlk:%s*%x*(%x)\n"), 16)
          print(task == status:match("Tgid:%s*(%d+)") and "main" or "worker", blocked % 4 >= 2)
        end
        arg = { "--steps=8", "--n_layer=1", "--batch_size=64", "--eval_every=0" }
        dofile "recipes/fortune.lua"
      ]])
      local r = command.shell(("LUA_PATH='recipes/?.lua;;' %s run %s"):format(command.lumuon, path))
      assert.equal("", r.err)
      assert.equal(0, r.code)
      assert.matches("^main\tfalse\n", r.out)
      assert.is_nil(r.out:match("worker\tfalse"))
      assert.matches("step +8/8 ", r.out)
    end)

    it("fails where its output cannot be written", function()
      local r = command.shell(command.lumuon .. " run " .. script("full.lua", "print('x')") .. " >/dev/full")
      assert.equal(1, r.code)
      assert.equal("lumuon: writing the output failed\n", r.err)
      assert.equal(1, command.shell(command.lumuon .. " run " .. script("exits.lua", "print('x') os.exit(0)")
        .. " >/dev/full").code)
    end)

    it("shows where an error without a place of its own came from", function()
      local r = run { "run", script("table.lua", "\nerror({})") }
      assert.equal(1, r.code)
      assert.matches("^lumuon: error value: table: 0x%x+\ncalled from\n  [^\n]*/table.lua:2: in main chunk\n$", r.err)
    end)
  end)

  describe("test", function()
    local function project(text)
      local root = command.folder()
      os.execute("mkdir " .. root .. "/spec")
      write(root .. "/spec/a_spec.lua", text)
      return root
    end

    it("counts what passed, failed and was skipped in its last line", function()
      local root = project([[
        describe("d", function()
          it("one", function() assert.equal(1, 1) end)
          it("two #slow", function() assert.equal(1, 2) end)
          pending("three")
        end)]])
      local function test(more)
        return command.shell(("cd %s && %s test %s"):format(root, command.lumuon, more or ""))
      end
      local r = test()
      assert.equal(1, r.code)
      assert.matches("1 success / 1 failure / 0 errors / 1 pending", r.out)
      assert.matches("\n1 passed, 1 failed, 1 skipped\n$", r.out)
      r = test("--filter=one")
      assert.equal(0, r.code)
      assert.matches("\n1 passed, 0 failed\n$", r.out)
      r = test("--tags=slow")
      assert.equal(1, r.code)
      assert.matches("\n0 passed, 1 failed\n$", r.out)
      assert.equal(0, test("--exclude-tags=slow spec/a_spec.lua").code)
      assert.not_equal(0, test("spec/none_spec.lua").code)
      command.remove(root)
    end)

    it("fails for a spec file that does not load", function()
      local root = project("this is not Lua")
      local r = command.shell(("cd %s && %s test"):format(root, command.lumuon))
      assert.not_equal(0, r.code)
      assert.matches("0 passed, 1 failed\n$", r.out)
      command.remove(root)
    end)
  end)

  it("runs where no Lua is installed: its modules are inside", function()
    local path = script("copy.lua", "print(require('lumuon').ones(3):sum():item())")
    local r = command.shell(("cp %s %s/moved && cd / && env -i %s/moved run %s"):format(
      command.lumuon, folder, folder, path))
    assert.equal("3\n", r.out)
    assert.equal("", r.err)
  end)
end)

describe("the module lumuon.host", function()
  local inside, host = pcall(require, "lumuon.host")
  if not inside then
    pending("is part of the executable: ./lumuon test")
    return
  end

  it("makes a folder with its parents, and says why it cannot", function()
    local folder = command.folder()
    assert.is_true(host.make_directory(folder .. "/a/b/c"))
    assert.is_true(host.make_directory(folder .. "/a/b/c"))
    assert.equal("directory", host.kind(folder .. "/a/b/c"))
    write(folder .. "/file", "")
    assert.equal("file", host.kind(folder .. "/file"))
    local ok, message = host.make_directory(folder .. "/file/x")
    assert.is_nil(ok)
    assert.matches("Not a directory", message)
    ok, message = host.kind(folder .. "/none")
    assert.is_nil(ok)
    assert.equal(folder .. "/none: No such file or directory", message)
    command.remove(folder)
  end)

  it("catches an error with its handler", function()
    local interrupted, ok, message = host.call(function(m) return "handled " .. m end, function() error("x", 0) end)
    assert.is_false(interrupted)
    assert.is_false(ok)
    assert.equal("handled x", message)
    assert.same({ false, true, 1, 2 }, { host.call(print, function(...) return ... end, 1, 2) })
  end)
end)

describe("the process", function()
  it("has one pool of threads, shared by the engine's loops and oneDNN", function()
    local folder = command.folder()
    local path = write(folder .. "/threads.lua", [[
      local lm = require "lumuon"
      local a = lm.ones(512, 512)
      for _ = 1, 5 do a:matmul(a):add(a):sum():item() end
      local me = io.open("/proc/self/stat"):read("*n")
      local count = 0
      for _ in io.popen("ls /proc/" .. me .. "/task"):lines() do count = count + 1 end
      print(count)
    ]])
    local r = command.shell(("OMP_NUM_THREADS=3 %s run %s"):format(command.lumuon, path))
    assert.equal("3\n", r.out)
    command.remove(folder)
  end)

  it("are as many where OpenMP binds them to cores", function()
    if command.read("/proc/self/maps"):find("/libomp%.so") then
      pending("clang's OpenMP runs beside oneDNN's, libgomp, which has bound the first thread before it")
    end
    local function threads(environment)
      local r = command.shell(("env -u OMP_NUM_THREADS -u GOMP_SPINCOUNT %s %s info"):format(environment,
        command.lumuon))
      return tonumber(r.out:match("threads +(%d+)"))
    end
    local unbound = threads("-u OMP_PROC_BIND")
    assert.equal(unbound, threads("OMP_PROC_BIND=true"))
    assert.equal(unbound, threads("OMP_PROC_BIND=spread OMP_PLACES=threads"))
  end)
end)
