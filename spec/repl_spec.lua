local command = dofile("spec/command.lua")
local run, shell, write = command.run, command.shell, command.write

local function repl(text) return run({ "repl" }, text) end
local inside, keep_locals = pcall(function() return require("lumuon.repl").keep_locals end)

describe("the prompt, fed from a pipe,", function()
  it("prints expressions and runs statements", function()
    local r = repl("1 + 1\nx = 3\nx\n= x * 2\n1, nil, 'a'\nprint('p')\n-- nothing\n\n_\n")
    assert.equal("", r.err)
    assert.equal(0, r.code)
    assert.equal("2\n3\n6\n1\tnil\ta\np\n1\n", r.out)
  end)

  it("waits for more lines only where a chunk is unfinished", function()
    local r = repl("for i = 1, 2 do\n  print(i)\nend\n"
      .. "local function f(n)\n  return n * 2\nend\nf(\n4)\n1 +\n1\n[[a\nb]]\n")
    assert.equal("", r.err)
    assert.equal("1\n2\n8\n2\na\nb\n", r.out)
  end)

  it("waits for none where more lines would not help", function()
    local r = repl("t = 3; t\n'abc\nx.y\n1 -- one\n")
    assert.equal("1\n", r.out)
    assert.equal("stdin:1: '=' expected near '<eof>'\nstdin:2: unfinished string near '<eof>'\n"
      .. "stdin:3: attempt to index global 'x' (a nil value)\n", r.err)
  end)

  it("goes on after an error, names its line, and fails at the end", function()
    local r = repl("\nerror('bad')\nx x\nlm.ones(2, 3):add(lm.ones(4))\n"
      .. "if true then\n  nosuch()\nend\n'still here'\n")
    assert.equal(1, r.code)
    assert.equal("still here\n", r.out)
    assert.matches("^stdin:2: bad\nstdin:3: '=' expected near 'x'\nstdin:4: add: [^\n]*\nstdin:6: attempt to call",
      r.err)
  end)

  it("fails for input that ends inside a chunk", function()
    local r = repl("1\nif true then\n")
    assert.equal(1, r.code)
    assert.equal("1\n", r.out)
    assert.equal("stdin:2: unfinished: if true then\n", r.err)
  end)

  it("keeps a top-level local for the lines to come", function()
    local r = repl("local x = 5\nx\nlocal a, b\na, b\n"
      .. "local c, d = 1, 2 print(c + d)\nlocal function g() return x end\ng()\n")
    assert.equal("", r.err)
    assert.equal("5\nnil\tnil\n3\n5\n", r.out)
  end)

  it("shows tables one level deep, and tensors as they are", function()
    local r = repl("{ 1, 2, a = 'x', t = { 1 }, e = {} }\n{}\nlm.ones(2)\n{ lm.ones(2, 3) }\n")
    assert.equal('{ 1, 2, a = "x", e = {}, t = {1 entry} }\n{}\ntensor f32 (2) cpu\n  [1, 1]\n{ tensor f32 (2, 3) }\n',
      r.out)
  end)

  it("has what a recipe returns", function()
    local folder = command.folder()
    local path = write(folder .. "/r.lua", [[
      local lm = require "lumuon"
      local o = lm.options{ start = 1 }
      local count = o.start
      local session = { data = lm.ones(6), options = o, step = function(n) count = count + n return count end }
      if lm.interactive then return session end
      error("trained")
    ]])
    local r = run({ "repl", path, "--start=5" }, "step(10)\nstep(1)\noptions.start\ndata:sum():item()\n")
    assert.equal("", r.err)
    assert.equal("15\n16\n5\n", r.out:match("^%d+\n%d+\n%d+\n"))
    assert.equal(1, run({ "run", path }).code)
    assert.equal(2, run({ "repl", path, "--strat=5" }, "").code)
    assert.equal(1, run({ "repl", folder .. "/none.lua" }, "").code)
    command.remove(folder)
  end)
end)

describe("top-level locals", function()
  if not inside then
    pending("the prompt is part of the executable: ./lumuon test")
    return
  end
  it("become globals outside blocks only", function()
    assert.equal("      x = 1", keep_locals("local x = 1"))
    assert.equal("      x = nil ", keep_locals("local x"))
    assert.equal("      x, y = nil  print(1)", keep_locals("local x, y print(1)"))
    assert.equal("      function f() local y = 1 end", keep_locals("local function f() local y = 1 end"))
    assert.equal("do local x = 1 end       y = 2", keep_locals("do local x = 1 end local y = 2"))
    assert.equal("for i = 1, 2 do local z end", keep_locals("for i = 1, 2 do local z end"))
    assert.equal("repeat local z until z", keep_locals("repeat local z until z"))
    assert.equal("s = 'local x' --[[ local y ]] -- local z", keep_locals("s = 'local x' --[[ local y ]] -- local z"))
    local strings = "s = [==[ end local x ]==] t = \"\\\"local\""
    assert.equal(strings, keep_locals(strings))
  end)
end)

describe("completion", function()
  local complete = require "lumuon.complete"
  local function candidates(text) return (complete.candidates(text)) end

  setup(function()
    rawset(_G, "spec_thing", { alpha = 1, album = { x = 1 }, list = { { deep = 1 } },
      call = function() end, t = require("lumuon").ones(2), s = "text" })
  end)
  teardown(function() rawset(_G, "spec_thing", nil) end)

  it("knows globals and keywords", function()
    assert.same({ "spec_thing" }, candidates("print(spec_th"))
    assert.same({ "function" }, candidates("fun"))
  end)
  it("knows fields, at any depth", function()
    assert.same({ "album", "alpha" }, candidates("spec_thing.al"))
    assert.same({ "x" }, candidates("y = spec_thing.album."))
    assert.same({ "deep" }, candidates("spec_thing.list[1]."))
    assert.same({ "x" }, candidates("spec_thing['album']."))
    assert.same({}, candidates("spec_thing.none."))
  end)
  it("offers methods after a colon: of tables, strings and tensors", function()
    assert.same({ "call" }, candidates("spec_thing:"))
    assert.same({ "svdvals" }, candidates("f(x):svd"))
    assert.same({ "gmatch", "gsub" }, candidates("spec_thing.s:g"))
    local of_tensor = candidates("spec_thing.t:")
    local has = {}
    for _, name in ipairs(of_tensor) do has[name] = true end
    for _, name in ipairs { "matmul", "narrow", "view", "item", "tolist", "sum" } do assert.is_true(has[name], name) end
  end)
  it("inserts what all candidates share, and shows them where they share no more", function()
    assert.equal("l", (complete.complete("spec_thing.a")))
    local insert, shown = complete.complete("spec_thing.al")
    assert.equal("", insert)
    assert.equal("album  alpha", shown)
    assert.equal("ha", (complete.complete("spec_thing.alp")))
    assert.equal("  ", (complete.complete("")))
    assert.equal("", (complete.complete("zzzzz")))
  end)
end)

describe("the prompt on a terminal", function()
  if not command.has("tmux") then
    pending("needs tmux")
    return
  end
  local folder, socket
  local function tmux(text) return shell(("tmux -L %s %s"):format(socket, text)) end
  local function screen() return tmux("capture-pane -p -J -t 0").out end
  -- wait until the screen shows the pattern: the text, or a failure that shows the screen
  local function see(pattern)
    local text
    for _ = 1, 100 do
      text = screen()
      if text:match(pattern) then return text end
      os.execute("sleep 0.1")
    end
    error(("no %q on the screen:\n%s"):format(pattern, text), 2)
  end
  local function keys(...)
    for _, key in ipairs { ... } do
      local literal = key:match("^[^<]") and "-l -- " or ""
      tmux(("send-keys -t 0 %s%s"):format(literal, command.quote((key:gsub("^<(.*)>$", "%1")))))
    end
  end
  local function start(more)
    local inner = ("XDG_STATE_HOME=%s/state %s repl %s; echo left $?; sleep 60"):format(
      folder, command.lumuon, more or "")
    tmux("new-session -d -x 100 -y 40 " .. command.quote(inner))
    see("lm> ")
  end

  before_each(function()
    folder = command.folder()
    socket = "lumuon-spec-" .. folder:match("[^/]*$")
  end)
  after_each(function()
    tmux("kill-server")
    command.remove(folder)
  end)

  it("completes, keeps everything alive through Ctrl-C, and leaves at Ctrl-D", function()
    start()
    keys("x = lm.on", "<Tab>", "(3, 4)", "<Enter>", "x:sum():it", "<Tab>", "()", "<Enter>")
    see("\n12\n")
    keys("while true do end", "<Enter>")
    os.execute("sleep 0.5")
    keys("<C-c>")
    see("interrupted\nlm> ")
    keys("y = lm.ones(64, 64)", "<Enter>", "while true do y:matmul(y) end", "<Enter>")
    os.execute("sleep 0.5")
    keys("<C-c>")
    see("interrupted\nlm> .*interrupted\nlm> ")
    keys("half a line", "<C-c>", "x:sum():item() + 1", "<Enter>")
    see("\n13\n")
    keys("<C-d>")
    see("left 0")
  end)

  it("keeps its history between sessions", function()
    start()
    keys("'from the ' .. 'first'", "<Enter>")
    see("\nfrom the first\n")
    keys("<C-d>")
    see("left 0")
    tmux("kill-server")
    socket = socket .. "-again" -- the first server may still be on its way out
    start()
    keys("<Up>", "<Enter>")
    see("\nfrom the first\n")
    assert.equal(("'from the ' .. 'first'\n"):rep(2), command.read(folder .. "/state/lumuon/history"))
  end)

  it("works where no history can be kept", function()
    write(folder .. "/state", "a file, not a folder")
    start()
    keys("6 * 7", "<Enter>")
    assert.matches("history is not kept: ", see("\n42\n"))
  end)

  it("has the recipe's things, and Ctrl-C in its training comes back to the prompt", function()
    local path = write(folder .. "/train.lua", [[
      local lm = require "lumuon"
      local x, done = lm.ones(64, 64), 0
      local function step(n) for _ = 1, n do x:matmul(x) done = done + 1 end return "at " .. done end
      return { step = step, model = { weight = x } }
    ]])
    start(path)
    see("from " .. path .. ": model, step")
    keys("step(10)", "<Enter>")
    see("\nat 10\n")
    keys("step(1e9)", "<Enter>")
    os.execute("sleep 0.5")
    keys("<C-c>")
    see("interrupted\nlm> ")
    keys("model.weight:sum():item()", "<Enter>")
    see("\n4096\n")
  end)
end)
