-- Token shards: the format, what is refused, and which tokens a batch holds.
local lm = require "lumuon"
local files = require "spec.support.files"

describe("token shards", function()
  local folder
  before_each(function() folder = files.folder() end)
  after_each(function() folder:remove() end)

  --- A little-endian integer of n bytes.
  local function le(value, n)
    local bytes = {}
    for i = 1, n do
      bytes[i] = string.char(value % 256)
      value = math.floor(value / 256)
    end
    return table.concat(bytes)
  end

  --- The bytes of a shard, written without the engine.
  local function shard(tokens, header)
    header = header or {}
    local width = header.width or 2
    local body = {}
    for i, token in ipairs(tokens) do body[i] = le(token, width) end
    return le(header.magic or width == 2 and 20240520 or 20240801, 4) .. le(header.version or width == 2 and 1 or 7, 4)
      .. le(header.count or #tokens, 4) .. ("\0"):rep(1024 - 12) .. table.concat(body)
  end

  local function range(from, to)
    local list = {}
    for i = from, to do list[#list + 1] = i end
    return list
  end

  local function refuses(parts, f, ...)
    local ok, message = pcall(f, ...)
    assert.is_false(ok)
    for _, part in ipairs(parts) do
      assert.is_truthy(message:find(part, 1, true), ("%q does not contain %q"):format(message, part))
    end
  end

  it("are read in u16 and u32, with the tokens that follow as targets", function()
    for _, width in ipairs { 2, 4 } do
      local top = width == 2 and 65535 or 2 ^ 31 - 1
      local path = folder:write("a.bin", shard({ 7, 8, top, 10, 11 }, { width = width }))
      local data = lm.data.shards { path = path }
      local idx, targets = data:batch("train", 2, 2, 0)
      assert.equal("i32", idx:dtype())
      assert.equal(top, idx:pointer()[2])
      assert.same({ { 8, top }, { 10, 11 } }, { { targets:pointer()[0], targets:pointer()[1] },
        { targets:pointer()[2], targets:pointer()[3] } })
    end
  end)

  it("give each window once, in the order of files, and start over at the end", function()
    folder:write("b_train_1.bin", shard(range(0, 10))) -- 3 windows of 3 (and a token that follows)
    folder:write("b_train_2.bin", shard(range(100, 107))) -- 2
    folder:write("b_val_0.bin", shard(range(500, 520)))
    folder:write("notes.txt", "no shard")
    local data = lm.data.shards { path = folder.path }
    assert.same({ train = 19, val = 21 }, data.tokens)
    assert.equal(5, data:windows("train", 3))
    local firsts = {}
    for step = 0, 3 do
      local idx, targets = data:batch("train", 2, 3, step)
      for row, first in ipairs(idx:select(2, 1):tolist()) do
        firsts[#firsts + 1] = first
        assert.same({ first, first + 1, first + 2 }, idx:tolist()[row])
        assert.same({ first + 1, first + 2, first + 3 }, targets:tolist()[row])
      end
    end
    assert.same({ 0, 3, 6, 100, 103, 0, 3, 6 }, firsts)
    local idx = data:batch("train", 12, 3, 0) -- more rows than there are windows
    assert.same({ 0, 3, 6, 100, 103, 0, 3, 6, 100, 103, 0, 3 }, idx:select(2, 1):tolist())
    assert.equal(500, data:batch("val", 1, 5, 0):tolist()[1][1])
  end)

  it("give the held-out windows as a list of batches, the last one shorter", function()
    folder:write("t.bin", shard(range(0, 9)))
    folder:write("val.bin", shard(range(0, 40)))
    local data = lm.data.shards { path = folder.path }
    local counts = {}
    for i, batch in ipairs(data:batches("val", 3, 4, 1000)) do
      counts[i] = batch.count
      assert.equal(batch.count, batch.idx:numel())
      assert.equal((i - 1) * 12, batch.idx:tolist()[1][1])
      assert.equal((i - 1) * 12 + 1, batch.targets:tolist()[1][1])
    end
    assert.same({ 12, 12, 12, 4 }, counts)
    assert.equal(2, #data:batches("val", 3, 4, 13))
  end)

  it("are written as they are read", function()
    for _, dtype in ipairs { "u16", "i32" } do
      local tokens = lm.tensor(range(1, 20), { dtype = dtype })
      lm.data.save_shard(folder:path_of("w.bin"), tokens)
      assert.equal(shard(range(1, 20), { width = dtype == "u16" and 2 or 4 }), files.slurp(folder:path_of("w.bin")))
    end
    assert.equal("w.bin\n", folder:listing())
  end)

  it("are refused when anything about them is wrong, by name and value", function()
    local cases = {
      { "", "0 bytes", "1024 bytes of header" },
      { ("\0"):rep(2048), "magic number 0", "20240520" },
      { shard({ 1, 2 }, { version = 3 }), "version 3", "known is 1" },
      { shard({}, { count = 0 }), "a count of 0 tokens" },
      { shard({}, { count = 2 ^ 32 - 5 }), "a count of -5 tokens" },
      { shard({ 1, 2, 3 }, { count = 4 }), "1030 bytes", "4 tokens", "1032" },
      { shard({ 1, 2, 3 }, { count = 2 }), "1030 bytes", "1028" },
      { shard({ 1, 2, 3 }, { magic = 20240801, version = 7 }), "1030 bytes", "1036" },
      { shard({ 1, 2 ^ 31, 3 }, { width = 4 }), "token 1 is 2147483648" },
    }
    for _, case in ipairs(cases) do
      local path = folder:write("bad.bin", case[1])
      refuses({ "bad.bin", unpack(case, 2) }, function() lm.data.shards({ path = path }):batch("train", 1, 2, 0) end)
    end
    os.remove(folder:path_of("bad.bin"))
    refuses({ "No such file" }, lm.data.shards, { path = folder:path_of("none.bin") })
    refuses({ "no .bin files to train on" }, lm.data.shards, { path = folder.path .. "/" })
    refuses({ "expected { path" }, lm.data.shards, {})
    refuses({ "unknown option 'seed'" }, lm.data.shards, { path = "x", seed = 1 })
    local freed = lm.zeros(2)
    freed:free()
    refuses({ "freed" }, lm.data.save_shard, "x.bin", freed)
  end)

  it("refuse what they do not have", function()
    local data = lm.data.shards { path = folder:write("few.bin", shard(range(0, 5))) }
    refuses({ "no 7 tokens in one file of 'train' (6 tokens in 1 files)" }, data.batch, data, "train", 1, 6, 0)
    refuses({ "no 3 tokens", "'val' (0 tokens in 0 files)" }, data.batch, data, "val", 1, 2, 0)
    refuses({ "'train' and 'val', no 'test'" }, data.batch, data, "test", 1, 2, 0)
    refuses({ "batch size", "0" }, data.batch, data, "train", 0, 2, 0)
    refuses({ "step", "-1" }, data.batch, data, "train", 1, 2, -1)
    refuses({ "tokens must be u16 or i32, got f32" }, lm.data.save_shard, folder:path_of("x.bin"), lm.zeros(3))
    refuses({ "token 1 is -2" }, lm.data.save_shard, folder:path_of("x.bin"), lm.tensor({ 1, -2 }, { dtype = "i32" }))
    assert.equal("few.bin\n", folder:listing())
  end)

  it("are an error when the file is cut short while in use", function()
    local data = lm.data.shards { path = folder:write("cut.bin", shard(range(0, 3000))) }
    folder:write("cut.bin", shard(range(0, 99)))
    refuses({ "cut.bin", "cut short while in use" }, data.batch, data, "train", 1, 2000, 0)
  end)
end)
