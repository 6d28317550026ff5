local lm = require "lumuon"
local lib = require "lumuon.lib"
local files = require "spec.support.files"
local ffi, C = lib.ffi, lib.C
local message_of, contains, bytes_of, entry = files.message_of, files.contains, files.bytes_of, files.entry

describe("reading safetensors", function()
  local folder
  setup(function() folder = files.folder() end)
  teardown(function() folder:remove() end)

  local function u64(n)
    local bytes = {}
    for i = 1, 8 do
      bytes[i] = string.char(n % 256)
      n = math.floor(n / 256)
    end
    return table.concat(bytes)
  end

  --- Write a file with this header and this many bytes of data (or these bytes).
  local function make(header, data)
    data = data or 0
    if type(data) == "number" then data = ("\7"):rep(data) end
    return folder:write("made.safetensors", u64(#header) .. header .. data)
  end

  --- Loading path must fail with a message that has the path and all these parts.
  local function refuses(path, ...)
    local function load() return (lm.safetensors.load(path)) end -- no tail call: this line is in the message
    contains(message_of(load), "safetensors_spec.lua:", path, ...)
  end

  describe("a file that is right", function()
    it("gives its tensors and its metadata", function()
      local path = make('{"__metadata__":{"k":"v","empty":""},"a.b":' .. entry("F32", "2,3", 0, 24) .. ',"s":'
        .. entry("U8", "", 24, 25) .. "}   ", 25)
      local t, meta = lm.safetensors.load(path)
      assert.same({ k = "v", empty = "" }, meta)
      assert.equal("f32 (2, 3)", t["a.b"]:describe())
      assert.equal("u8 ()", t.s:describe())
      assert.equal(("\7"):rep(24), bytes_of(t["a.b"]))
    end)

    it("may hold nothing", function()
      local t, meta = lm.safetensors.load(make("{}"))
      assert.is_nil(next(t))
      assert.is_nil(next(meta))
    end)

    it("may have names that look like the header's own marks", function()
      local name = ("{["):rep(500) .. '\\"'
      local t = lm.safetensors.load(make('{"' .. ("{["):rep(500) .. '\\\\\\"":' .. entry("U8", "1", 0, 1) .. "}", "x"))
      assert.equal("x", bytes_of(t[name]))
    end)

    it("may list its tensors in any order, with names of any letters", function()
      local t = lm.safetensors.load(make('{"z":' .. entry("U8", "2", 3, 5) .. ',"\\u00e9 \xc3\xbc":'
        .. entry("U8", "3", 0, 3) .. "}", "abcde"))
      assert.equal("de", bytes_of(t.z))
      assert.equal("abc", bytes_of(t["\xc3\xa9 \xc3\xbc"]))
    end)

    it("may hold empty tensors between the others", function()
      local t = lm.safetensors.load(make('{"a":' .. entry("F32", "0,7", 0, 0) .. ',"b":' .. entry("U8", "2", 0, 2)
        .. ',"c":' .. entry("I32", "3,0", 2, 2) .. "}", 2))
      assert.equal("f32 (0, 7)", t.a:describe())
      assert.equal("i32 (3, 0)", t.c:describe())
    end)

    it("can be read in part", function()
      local path = make('{"a":' .. entry("U8", "1", 0, 1) .. ',"b":' .. entry("I64", "1", 1, 9) .. "}", 9)
      local t = lm.safetensors.load(path, { "a" })
      assert.equal("\7", bytes_of(t.a))
      assert.is_nil(t.b)
      contains(message_of(lm.safetensors.load, path, { "a", "zz" }), path, "no tensor 'zz'")
      contains(message_of(lm.safetensors.load, path, "a"), "names must be a list")
    end)

    it("has every golden value in it", function()
      local t, meta = lm.safetensors.load("spec/fixtures/seed_tall.safetensors")
      assert.equal("f32 (3, 56, 24)", t.init:describe())
      assert.equal("f32 (5, 3, 56, 24)", t["params.f64"]:describe())
      assert.equal("muon", meta.kind)
    end)
  end)

  describe("a dtype or shape that only the format has", function()
    for _, case in ipairs { { "F64", 8 }, { "I64", 8 }, { "U64", 8 }, { "U32", 4 }, { "I16", 2 }, { "I8", 1 },
      { "BOOL", 1 }, { "F8_E4M3", 1 }, { "F8_E5M2", 1 } } do
      it("is refused by name when it is read: " .. case[1], function()
        local path = make('{"ok":' .. entry("U8", "1", 0, 1) .. ',"odd one":' .. entry(case[1], "2", 1, 1 + 2 * case[2])
          .. "}", 1 + 2 * case[2])
        refuses(path, "'odd one'", case[1] .. ", not supported")
        assert.equal("\7", bytes_of(lm.safetensors.load(path, { "ok" }).ok))
      end)
    end

    it("is refused with the limit where it has nine dims", function()
      refuses(make('{"deep":' .. entry("U8", "1,1,1,1,1,1,1,1,1", 0, 1) .. "}", 1), "'deep'", "9 dims", "up to 8")
    end)
  end)

  describe("a file that cannot be read", function()
    it("is missing", function() refuses(folder:path_of("nowhere"), "cannot open", "No such file") end)
    it("is a folder", function() refuses(folder.path, "is a folder") end)
    it("is a device", function() refuses("/dev/zero", "is a device") end)
    it("is a pipe, which does not hang", function()
      os.execute("mkfifo " .. folder:path_of("pipe"))
      refuses(folder:path_of("pipe"), "is a pipe")
    end)
    it("is forbidden", function()
      local path = make("{}")
      C.chmod(path, 0)
      local message = files.message_without_rights(lm.safetensors.load, path)
      os.remove(path)
      contains(message, path, "cannot open", "Permission denied")
    end)
    it("has a path that is no path", function()
      contains(message_of(lm.safetensors.load, 7), "path", "must be a string, got number")
      contains(message_of(lm.safetensors.load, "a\0b"), "NUL byte")
    end)
    it("is cut short while it is open", function()
      local path = make('{"a":' .. entry("U8", "9000", 0, 9000) .. "}", 9000)
      local box = ffi.new("lm_safetensors *[1]")
      assert.equal(0, C.lm_safetensors_open(box, path))
      folder:write("made.safetensors", "short")
      local out = ffi.new("lm_tensor *[1]")
      assert.equal(C.LM_EIO, C.lm_safetensors_read(out, box[0], 0))
      assert.is_true(out[0] == nil)
      contains(ffi.string(C.lm_last_error()), path, "cut short", "to 5 bytes")
      C.lm_safetensors_close(box[0])
    end)
    it("is interrupted", function()
      local path = make("{}")
      C.lm_interrupt()
      local message = message_of(lm.safetensors.load, path)
      C.lm_interrupt_clear()
      contains(message, "interrupted")
    end)
  end)

  describe("a file that lies about its header", function()
    it("is empty", function() refuses(folder:write("e", ""), "is empty") end)
    it("ends within the length", function() refuses(folder:write("e", "\2\0\0"), "3 bytes") end)
    it("has a length past its end", function()
      refuses(folder:write("e", u64(100) .. "{}"), "header of 100 bytes", "file of 10")
    end)
    it("has a length that leaves no room for the 8 bytes before it", function()
      for claim = 3, 10 do
        refuses(folder:write("e", u64(claim) .. "{}"), "header of " .. claim .. " bytes", "file of 10")
      end
    end)
    it("has a length over the format's limit", function()
      refuses(folder:write("e", u64(100000001) .. "{}"), "100000001", "at most 100000000")
    end)
    it("has the longest length there is", function()
      refuses(folder:write("e", ("\255"):rep(8) .. "{}"), "18446744073709551615")
    end)
    it("has no header", function() refuses(folder:write("e", u64(0)), "does not start with '{'") end)
    it("starts with something else", function()
      for _, text in ipairs { "[]", " {}", "null", '"a"', "\xef\xbb\xbf{}" } do
        refuses(make(text), "does not start with '{'")
      end
    end)
    it("is not JSON", function()
      for _, text in ipairs { "{", '{"a"}', "{}x", "{,}", "{'a':1}", '{"a":01}', "{}\0" } do
        refuses(make(text), "not valid JSON")
      end
    end)
    it("is not UTF-8", function()
      for _, bad in ipairs { "\255", "\192\128", "\237\160\128", "\244\144\128\128", "\195" } do
        refuses(make('{"__metadata__":{"a":"' .. bad .. '"}}'), "not valid JSON")
        refuses(make("{" .. bad .. "}"), "not valid JSON")
      end
    end)
    it("has a NUL in a name or a lone surrogate", function()
      refuses(make('{"a\\u0000b":1}'), "not valid JSON")
      refuses(make('{"__metadata__":{"a":"x\\u0000"}}'), "not valid JSON")
      refuses(make('{"__metadata__":{"a":"\\ud800"}}'), "not valid JSON")
    end)
    it("nests without end", function()
      refuses(make('{"a":' .. ("["):rep(1e6)), "1000001 objects and lists", "header of 1000005 bytes")
      refuses(make(('{"a":'):rep(1e5)), "100000 objects and lists")
      refuses(make('{"a":' .. ("["):rep(1e5) .. (" "):rep(16e5)), "not valid JSON", "depth")
      refuses(make(('{"a":            '):rep(1e5)), "not valid JSON", "depth")
    end)
    it("has a key twice", function()
      local a = entry("U8", "1", 0, 1)
      refuses(make('{"a":' .. a .. ',"a":' .. a .. "}", 1), "duplicate", "a")
      refuses(make('{"a":' .. a .. ',"\\u0061":' .. a .. "}", 1), "duplicate")
      refuses(make('{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1), "duplicate", "dtype")
      refuses(make('{"__metadata__":{"a":"1","a":"2"}}'), "duplicate")
    end)
    it("has control letters in a name, which are not printed", function()
      local message = message_of(lm.safetensors.load, make('{"a\\u001b[2J\\n":7}'))
      contains(message, "tensor 'a?[2J?'")
    end)
    it("has a name of a megabyte, which is cut in the message", function()
      local message = message_of(lm.safetensors.load, make('{"' .. ("n"):rep(1e6) .. '":7}'))
      contains(message, "nnn...nnn", "not an object")
      assert.is_true(#message < 700)
    end)
  end)

  describe("metadata", function()
    it("must be an object of strings", function()
      for _, value in ipairs { "7", "[]", "null", '"s"' } do
        refuses(make('{"__metadata__":' .. value .. "}"), "__metadata__", "not an object")
      end
      for _, value in ipairs { "7", "[]", "null", "{}", "true" } do
        refuses(make('{"__metadata__":{"fine":"x","key one":' .. value .. "}}"), "'key one'", "not a string")
      end
    end)
  end)

  describe("an entry", function()
    local function bad(text, ...) refuses(make('{"w":' .. text .. "}", 4), "'w'", ...) end

    it("must be an object", function()
      for _, text in ipairs { "7", "[]", "null", '"F32"' } do bad(text, "not an object") end
    end)
    it("must have all three keys", function()
      bad('{"shape":[4],"data_offsets":[0,4]}', "no dtype")
      bad('{"dtype":"U8","data_offsets":[0,4]}', "no shape")
      bad('{"dtype":"U8","shape":[4]}', "no data_offsets")
    end)
    it("must have no other key", function()
      bad('{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":0}', "4 keys")
    end)
    it("must have a dtype that exists", function()
      bad(entry("F128", "4", 0, 4), "unknown dtype 'F128'")
      bad(entry("u8", "4", 0, 4), "unknown dtype 'u8'")
      bad('{"dtype":5,"shape":[4],"data_offsets":[0,4]}', "dtype is not a string")
    end)
    it("must have a shape of integers >= 0", function()
      bad('{"dtype":"U8","shape":4,"data_offsets":[0,4]}', "shape is not a list")
      for _, size in ipairs { "-4", "4.0", '"4"', "null", "[4]", "4e0", "true" } do
        bad(entry("U8", "1," .. size, 0, 4), "size 2 of its shape", "not an integer >= 0")
      end
      refuses(make('{"w":' .. entry("U8", "99999999999999999999", 0, 4) .. "}", 4), "too big integer near '9999")
      refuses(make('{"w":' .. entry("U8", "1e999", 0, 4) .. "}", 4), "number overflow near '1e999'")
    end)
    it("must have a shape that can be counted", function()
      for _, shape in ipairs { "4294967296,4294967296", "9223372036854775807", "4611686018427387904,4",
        "0,4611686018427387904,4611686018427387904" } do
        bad(entry("F32", shape, 0, 4), "more bytes than can be counted")
      end
    end)
    it("must have two offsets >= 0, in order", function()
      for _, offsets in ipairs { "0", "0,4,4", "-1,4", "0,4.0", '0,"4"', "null,4", "[0,4]" } do
        bad('{"dtype":"U8","shape":[4],"data_offsets":[' .. offsets .. "]}", "data_offsets is not two integers")
      end
      bad('{"dtype":"U8","shape":[4],"data_offsets":{"a":0,"b":4}}', "data_offsets is not two integers")
      bad(entry("U8", "4", 4, 0), "ends at byte 0", "begin at 4")
    end)
    it("must have offsets that fit its shape and dtype", function()
      bad(entry("F32", "2", 0, 4), "dtype F32 come to 8 bytes", "data_offsets to 4")
      bad(entry("U8", "3", 0, 4), "3 bytes", "to 4")
      bad(entry("U8", "0", 0, 4), "0 bytes")
      bad(entry("F4", "3", 0, 1), "do not fill whole bytes")
    end)
  end)

  describe("the data", function()
    local function two(b_from, b_to, size)
      return make('{"a":' .. entry("U8", "4", 0, 4) .. ',"b":' .. entry("U8", tostring(b_to - b_from), b_from, b_to)
        .. "}", size)
    end
    it("must not be cut short", function() refuses(two(4, 8, 7), "'b'", "byte 8", "has 7", "truncated") end)
    it("must not go on behind the last tensor", function() refuses(two(4, 8, 9), "1 bytes after the last") end)
    it("must not overlap", function()
      refuses(two(3, 8, 8), "'b'", "begins at byte 3", "inside 'a'", "ends at 4")
      refuses(two(0, 4, 4), "inside")
      refuses(two(1, 3, 4), "'b'", "inside 'a'")
    end)
    it("must not have a hole", function() refuses(two(6, 8, 8), "'b'", "2 bytes before it belong to no tensor") end)
    it("must not begin with a hole", function()
      refuses(make('{"a":' .. entry("U8", "4", 1, 5) .. "}", 5), "1 bytes before it")
    end)
    it("must not have an empty tensor inside another", function()
      refuses(two(2, 2, 4), "'b'", "inside 'a'")
    end)
    it("must belong to a tensor at all", function() refuses(make("{}", 3), "3 bytes after") end)
  end)
end)
