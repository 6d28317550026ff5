local lm = require "lumuon"
local ffi = require "ffi"

describe("a text", function()
  local folder
  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    assert(os.execute("mkdir " .. folder))
  end)
  teardown(function() os.execute("rm -rf " .. folder) end)

  local function write(name, text)
    local f = assert(io.open(folder .. "/" .. name, "wb"))
    f:write(text)
    f:close()
    return folder .. "/" .. name
  end

  local function bytes_of(t) return ffi.string(t:pointer(), t:numel()) end

  local function refuses(parts, f, ...)
    local ok, message = pcall(f, ...)
    assert.is_false(ok)
    for _, part in ipairs(parts) do
      assert.is_truthy(message:find(part, 1, true), ("%q does not contain %q"):format(message, part))
    end
    return message
  end

  --- `n` documents "d1", "d2", ...
  local function fortunes(n)
    local list = {}
    for i = 1, n do list[i] = "d" .. i .. "\n" end
    return table.concat(list, "%\n")
  end

  describe("split into documents", function()
    it("puts a 0 before each and after the last, and holds out every n-th", function()
      local text = lm.data.text { path = write("f", "one\n%\ntwo\nlines\n%\nthree\n%\nfour\n"), held_out = 2 }
      assert.equal("\0one\0three\0", bytes_of(text.train))
      assert.equal("\0two\nlines\0four\0", bytes_of(text.val))
      assert.same({ train = 2, val = 2 }, text.documents)
      assert.equal(31, text.bytes)
      assert.equal("u8", text.train:dtype())
    end)

    it("takes only a % alone on its line for a mark", function()
      local path = write("f", "%\n100%\n%x\n %\n%%\n% \t\nb\r\n%\r\n\n%\n%\nc\n%\nd\n%")
      local text = lm.data.text { path = path, held_out = 4 }
      assert.same({ train = 3, val = 1 }, text.documents)
      assert.equal("\000100%\n%x\n %\n%%\0b\0c\0", bytes_of(text.train))
      assert.equal("\0d\0", bytes_of(text.val))
    end)

    it("keeps line breaks inside a document and bytes above 127", function()
      local text = lm.data.text { path = write("f", "a\n\n\xc3\xa9\xff\n%\nb"), held_out = 2 }
      assert.equal("\0a\n\n\xc3\xa9\xff\0", bytes_of(text.train))
    end)

    it("holds out the last part, from a line's start, where documents are few", function()
      local lines = {}
      for i = 1, 100 do lines[i] = ("line %03d\n"):format(i) end
      local text = lm.data.text { path = write("f", table.concat(lines)), held_out = 10 }
      assert.equal("\0" .. table.concat(lines, "", 1, 90):sub(1, -2) .. "\0", bytes_of(text.train))
      assert.equal("\0" .. table.concat(lines, "", 91):sub(1, -2) .. "\0", bytes_of(text.val))
    end)

    it("holds out part of the last of a few documents, none of it twice, none lost", function()
      local text = lm.data.text { path = write("f", "aaaa\n%\n" .. ("b"):rep(16)), held_out = 5 }
      assert.equal("\0aaaa\0" .. ("b"):rep(12) .. "\0", bytes_of(text.train))
      assert.equal("\0bbbb\0", bytes_of(text.val))
      text = lm.data.text { path = write("f", ("a"):rep(8) .. "\n%\nbb\ncc"), held_out = 3 }
      assert.equal("\0" .. ("a"):rep(8) .. "\0bb\0", bytes_of(text.train))
      assert.equal("\0cc\0", bytes_of(text.val))
    end)

    it("reads a folder's texts in the order of their names, but for .dat, .u8, hidden files and folders", function()
      assert(os.execute("mkdir -p " .. folder .. "/many/deeper"))
      write("many/b", "second\n%\nthird")
      write("many/a.txt", "first")
      write("many/c", "fourth")
      write("many/b.dat", "\0\1\2")
      write("many/b.u8", "never")
      write("many/.hidden", "never")
      write("many/deeper/x", "never")
      local text = lm.data.text { path = folder .. "/many", held_out = 4 }
      assert.equal("\0first\0second\0third\0", bytes_of(text.train))
      assert.equal("\0fourth\0", bytes_of(text.val))
    end)

    it("finds Debian's fortunes when no path is given", function()
      local there = io.open("/usr/share/games/fortunes/computers", "rb")
      if not there then
        refuses({ "data_spec.lua", "/usr/share/games/fortunes", "apt-get install fortunes", "--data=" }, lm.data.text)
        return
      end
      there:close()
      local text = lm.data.text { path = "" }
      assert.is_true(text.bytes > 2e6)
      assert.is_true(text.documents.train > 10000)
      assert.near(19, text.documents.train / text.documents.val, 0.1)
      local used = text.train:numel() + text.val:numel()
      assert.is_true(used < text.bytes and used > 0.97 * text.bytes)
    end)
  end)

  describe("in batches", function()
    local text, all
    setup(function()
      text = lm.data.text { path = write("long", fortunes(2000)), seed = 3, held_out = 20 }
      all = bytes_of(text.train)
    end)

    local function row(t, b) return text:decode(t:select(1, b)) end

    it("has windows of the text, and what follows each byte", function()
      local idx, targets = text:batch("train", 8, 33, 5)
      assert.equal("i32 (8, 33)", idx:describe())
      assert.equal("i32 (8, 33)", targets:describe())
      for b = 1, 8 do
        local x, y = row(idx, b), row(targets, b)
        assert.is_truthy(all:find(x .. y:sub(-1), 1, true))
        assert.equal(x:sub(2), y:sub(1, -2))
      end
    end)

    it("depends on seed, step and part only", function()
      local function first(t, name, step) return t:decode((t:batch(name, 4, 50, step))) end
      local again = lm.data.text { path = text.path, seed = 3 }
      local other = lm.data.text { path = text.path, seed = 4 }
      local at_7 = first(text, "train", 7)
      lm.randn(5)
      first(text, "train", 8)
      assert.equal(at_7, first(text, "train", 7))
      assert.equal(at_7, first(again, "train", 7))
      assert.are_not.equal(at_7, first(text, "train", 8))
      assert.are_not.equal(at_7, first(other, "train", 7))
      assert.are_not.equal(at_7, first(text, "val", 7))
    end)

    it("takes from everywhere in the text", function()
      local small = lm.data.text { path = write("f", "abcdefgh\n%\nz"), held_out = 2 }
      local seen = {}
      for step = 0, 99 do seen[small:decode((small:batch("train", 2, 4, step)))] = true end
      local starts = {}
      for pair in pairs(seen) do starts[pair:sub(1, 1)] = true end
      assert.same({ ["\0"] = true, a = true, b = true, c = true, d = true, e = true }, starts)
    end)

    it("covers a part once, and says how many targets count", function()
      for _, size in ipairs { { 4, 16 }, { 1, 7 }, { 3, 1000 }, { 64, 256 } } do
        local B, T = size[1], size[2]
        local val, joined, total = bytes_of(text.val), {}, 0
        for _, batch in ipairs(text:batches("val", B, T)) do
          assert.equal(("i32 (%d, %d)"):format(B, T), batch.idx:describe())
          local idx, targets, count = batch.idx:tolist(), batch.targets:tolist(), 0
          for b = 1, B do
            for t = 1, T do
              if targets[b][t] ~= -1 then
                count = count + 1
                joined[#joined + 1] = string.char(targets[b][t])
                assert.equal(val:byte(total + count), idx[b][t])
              else
                assert.equal(0, idx[b][t])
              end
            end
          end
          assert.equal(count, batch.count)
          total = total + count
        end
        assert.equal(#val - 1, total)
        assert.equal(val:sub(2), table.concat(joined))
      end
    end)

    it("writes and reads strings", function()
      assert.same({ { 0, 97, 255 } }, text:encode("\0a\255"):tolist())
      assert.equal("\0a\255", text:decode(text:encode("\0a\255")))
      assert.equal("hi", text:decode { 104, 105 })
      refuses({ "at least one byte" }, text.encode, text, "")
      refuses({ "256 is no byte" }, text.decode, text, { 256 })
    end)

    it("refuses sizes that make no sense, and a part that is not there", function()
      refuses({ "data_spec.lua", "batch size", "got 0" }, text.batch, text, "train", 0, 8, 1)
      refuses({ "sequence length", "got 1.5" }, text.batch, text, "train", 1, 1.5, 1)
      refuses({ "step", "got nil" }, text.batch, text, "train", 1, 8)
      refuses({ "step", "got -1" }, text.batch, text, "train", 1, 8, -1)
      refuses({ "no 'test'" }, text.batch, text, "test", 1, 8, 1)
      refuses({ "no 'documents'" }, text.batches, text, "documents", 1, 8)
      refuses({ "batch size" }, text.batches, text, "val", "x", 8)
    end)

    it("refuses a text shorter than a sequence, with what it needs", function()
      local short = lm.data.text { path = write("short", fortunes(40)) }
      refuses({ "data_spec.lua", folder .. "/short", "sequences of 256 need 257 bytes", "'train' has", "too short" },
        short.batch, short, "train", 1, 256, 1)
    end)
  end)

  describe("that is none", function()
    it("is missing", function()
      refuses({ "data_spec.lua", "cannot read", folder .. "/nowhere", "No such file" }, lm.data.text,
        { path = folder .. "/nowhere" })
    end)
    it("is empty", function()
      refuses({ folder .. "/e", "is empty (0 bytes" }, lm.data.text, { path = write("e", "") })
      refuses({ folder .. "/e", "is empty (8 bytes" }, lm.data.text, { path = write("e", "\n%\n\n%\n\r\n") })
    end)
    it("is too short to divide", function()
      refuses({ folder .. "/e", "too short: 2 bytes", "20th" }, lm.data.text, { path = write("e", "ab") })
    end)
    it("is too large", function()
      assert(os.execute("truncate -s 5G " .. folder .. "/huge"))
      refuses({ folder .. "/huge", "has 5368709120 bytes", "at most 2147483646" }, lm.data.text,
        { path = folder .. "/huge" })
    end)
    it("is not text", function()
      refuses({ folder .. "/e", "is not text: byte 3 of 4 is 0" }, lm.data.text, { path = write("e", "ab\0c") })
    end)
    it("is a folder without texts", function()
      assert(os.execute("mkdir -p " .. folder .. "/none"))
      write("none/x.dat", "x")
      refuses({ folder .. "/none", "no texts" }, lm.data.text, { path = folder .. "/none" })
    end)
    it("is asked for with options that are wrong", function()
      refuses({ "unknown option 'paht'", "path, seed and held_out" }, lm.data.text, { paht = "x" })
      refuses({ "seed", "got -1" }, lm.data.text, { seed = -1 })
      refuses({ "held_out", "got 1" }, lm.data.text, { held_out = 1 })
      refuses({ "path must be a string, got number" }, lm.data.text, { path = 7 })
      refuses({ "table of options, got string" }, lm.data.text, "file")
    end)
  end)
end)
