local command = require "spec.command"
local fake = require "spec.support.fake_peer"
local json = require "dkjson"

describe("lumuon bench train", function()
  it("measures a recipe's step: tokens a second, the share of Lua, no memory from the system", function()
    local folder = command.folder()
    finally(function() command.remove(folder) end)
    local run = command.shell(command.lumuon .. " bench train --warmup=3 --count=5 --json=" .. folder
      .. "/figures.json --n_layer=2 --n_embd=64 --n_head=2 --batch_size=2")
    assert.equal(0, run.code, run.err)
    assert.truthy(run.out:find("median of 5", 1, true), run.out)
    local figures = json.decode(command.read(folder .. "/figures.json"))
    assert.equal(256, figures.tokens_per_step)
    assert.equal(0, figures.system_allocs)
    assert.is_true(math.abs(figures.tokens_per_second * figures.ms / 1e3 - 256) < 1e-3)
    assert.is_true(figures.lua_share > 0 and figures.lua_share < 1)
    assert.is_true(figures.lua_ms > 0 and figures.lua_ms < figures.ms)
    assert.is_string(figures.machine.cpu)
    assert.truthy(figures.peers.absent:find("no --peers=FOLDER", 1, true))
  end)

  local tiny = " --model=d1 --sequence_len=32 --batch_size=2 --vocab_size=512 --warmup=1 --count=5"

  it("measures nanochat's GPT at a depth, in either precision, PyTorch's steps beside its own", function()
    local folder = command.folder()
    finally(function() command.remove(folder) end)
    local checkout, python = fake.make(folder, "echo \"$@\" >" .. folder .. "/asked\n" .. fake.answers())
    for _, dtype in ipairs { "f32", "bf16" } do
      local run = command.shell(("%s bench train %s --dtype=%s --json=%s/figures.json %s %s"):format(
        command.lumuon, tiny, dtype, folder, checkout, python))
      assert.equal(0, run.code, run.err)
      local figures = json.decode(command.read(folder .. "/figures.json"))
      assert.equal("d1", figures.model)
      assert.equal(dtype, figures.dtype)
      assert.equal(64, figures.tokens_per_step)
      assert.is_true(figures.resident_peak_bytes > 1e6 and figures.peak_bytes > 1e5)
      assert.equal("fake 1.0", figures.peers[1].version)
      assert.equal(3.5, figures.peers[1].ms)
      assert.is_true(math.abs(figures.peers[1].tokens_per_second - 64 / 3.5e-3) < 1)
      assert.truthy(run.out:find("ours are", 1, true), run.out)
      local asked = command.read(folder .. "/asked") -- the same model, threads and precision
      for _, part in ipairs { "train.py", "--precision=" .. dtype, "--threads=" .. figures.threads, "--n_layer=1",
        "--n_embd=128", "--n_head=1", "--vocab_size=512", "--sequence_len=32", "--batch_size=2",
        "--window_pattern=L" } do
        assert.truthy(asked:find(part, 1, true), part .. " was not asked: " .. asked)
      end
    end
  end)

  it("goes on without peers, and says why", function()
    local function without(options, why)
      local run = command.shell(command.lumuon .. " bench train" .. tiny .. options)
      assert.equal(0, run.code, run.err)
      assert.truthy(run.out:find(why, 1, true), run.out)
    end
    without(" --peers=/nowhere", "none: /nowhere is no checkout of nanochat")
    local folder = command.folder()
    finally(function() command.remove(folder) end)
    local options = " " .. table.concat({ fake.make(folder, "echo no torch >&2; exit 1") }, " ")
    without(options, "none: no torch")
    without(" " .. table.concat({ fake.make(folder, fake.answers("exit 1")) }, " "), "none: it ended without a word")
    without(" " .. table.concat({ fake.make(folder, fake.answers(
      [[if [ $command = step ]; then n=$((n+1)); [ $n -gt 3 ] && printf 'failed\tno room\n' && continue; fi]])) }, " "),
      "none: its steps failed: no room")
  end)

  it("passes what is not its own to the recipe, and says what is wrong with it", function()
    local run = command.shell(command.lumuon .. " bench train --n_layers=2")
    assert.equal(2, run.code)
    assert.truthy(run.err:find("unknown option --n_layers; did you mean --n_layer?", 1, true), run.err)
    run = command.shell(command.lumuon .. " bench train --recipe=recipes/polar.lua")
    assert.equal(2, run.code)
    assert.truthy(run.err:find("returns no session with train_step", 1, true), run.err)
    run = command.shell(command.lumuon .. " bench train --recipe=nowhere.lua")
    assert.equal(2, run.code)
    assert.truthy(run.err:find("nowhere.lua", 1, true), run.err)
  end)

  it("says which model or option it cannot take", function()
    for words, message in pairs { ["--model=x4"] = "--model=x4: expected d and a depth",
      ["--model=d999999999999"] = "--model=d999999999999: expected d and a depth from 1 to 1000",
      ["--model=d4 --dtyp=f32"] = "unknown option --dtyp; did you mean --dtype?" } do
      local run = command.shell(command.lumuon .. " bench train " .. words)
      assert.equal(2, run.code)
      assert.truthy(run.err:find(message, 1, true), run.err)
    end
  end)
end)

describe("lumuon bench", function()
  it("lists a measurement's own options under its own name, and then what it passes on", function()
    local function help(words)
      local run = command.shell(command.lumuon .. " bench " .. words .. " --help")
      assert.equal(0, run.code, run.err)
      return run.out
    end
    for name, option in pairs { optim = "--shape=", dist = "--scale=", train = "--warmup=" } do
      local text = help(name)
      assert.equal("usage: lumuon bench " .. name .. " [--name=value ...]", text:match("^[^\n]*"))
      assert.truthy(text:find(option, 1, true), text)
    end
    local text = help("train")
    assert.truthy(text:find("\nusage: lumuon run recipes/fortune.lua [--name=value ...]\n", 1, true), text)
    assert.is_true(text:find("--warmup=", 1, true) < text:find("--n_layer=", 1, true))
    text = help("train --model=d4")
    assert.is_true(text:find("--warmup=", 1, true) < text:find("--sequence_len=", 1, true))
  end)

  it("refuses a file that it could not write, before it measures, and leaves no empty one", function()
    local folder = command.folder()
    finally(function() command.remove(folder) end)
    for _, name in ipairs { "optim", "train", "dist" } do
      local unwritten = command.shell(("%s bench %s --json=%s/none/x --model=d1"):format(command.lumuon, name, folder))
      assert.equal(1, unwritten.code)
      assert.truthy(unwritten.err:find("cannot write", 1, true), unwritten.err)
      assert.equal("", unwritten.out)
    end
    require("lumuon.bench.report").check(folder .. "/new")
    assert.is_nil(io.open(folder .. "/new"))
  end)

  it("keeps a value after a space with its option", function()
    local run = command.shell(command.lumuon .. " bench train --model d1 --sequence_len 32 --batch_size 2"
      .. " --vocab_size 512 --warmup 1 --count 5 --peers /nowhere")
    assert.equal(0, run.code, run.err)
    assert.truthy(run.out:find("/nowhere", 1, true), run.out)
  end)

  it("refuses groups that need more memory than there is, with the figures", function()
    local run = command.shell(command.lumuon .. " bench optim --model=d1000")
    assert.equal(1, run.code)
    assert.truthy(run.err:find("takes [%d.]+ GB; the limit is [%d.]+ GB"), run.err)
  end)

  it("says which option it does not know, or cannot take", function()
    for _, name in ipairs { "optim", "dist" } do
      local run = command.shell(command.lumuon .. " bench " .. name .. " --modle=d4")
      assert.equal(2, run.code)
      assert.truthy(run.err:find("unknown option --modle; did you mean --model?", 1, true), run.err)
      run = command.shell(command.lumuon .. " bench " .. name .. " --model=x")
      assert.equal(2, run.code)
      assert.truthy(run.err:find("--model=x: expected d and a depth", 1, true), run.err)
    end
  end)
end)
