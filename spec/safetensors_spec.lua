local lm = require "lumuon"
local lib = require "lumuon.lib"
local ffi, C = lib.ffi, lib.C

if not pcall(ffi.typeof, "struct spec_rlimit") then -- types stay when a spec is loaded again
  ffi.cdef [[
    struct spec_rlimit { unsigned long current, most; };
    int getrlimit(int resource, struct spec_rlimit *limit);
    int setrlimit(int resource, const struct spec_rlimit *limit);
    unsigned umask(unsigned mask);
    int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
    int umount(const char *target);
    int symlink(const char *target, const char *path);
    int chmod(const char *path, unsigned mode);
    unsigned geteuid(void);
    int seteuid(unsigned user);
  ]]
end

describe("safetensors", function()
  local folder

  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    assert(os.execute("mkdir " .. folder))
  end)
  teardown(function() os.execute("rm -rf " .. folder) end)

  local function path_of(name) return folder .. "/" .. name end

  local function write(name, text)
    local f = assert(io.open(path_of(name), "wb"))
    f:write(text)
    f:close()
    return path_of(name)
  end

  local function slurp(path)
    local f = assert(io.open(path, "rb"))
    local text = f:read("*a")
    f:close()
    return text
  end

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
    return write("made.safetensors", u64(#header) .. header .. (type(data) == "number" and ("\7"):rep(data) or data))
  end

  local function listing()
    local p = io.popen("ls -A " .. folder)
    local text = p:read("*a")
    p:close()
    return text
  end

  local function message_of(f, ...)
    local ok, message = pcall(f, ...)
    assert.is_false(ok)
    return message
  end

  local function contains(message, ...)
    for _, part in ipairs { ... } do
      assert.is_truthy(message:find(part, 1, true), ("%q does not contain %q"):format(message, part))
    end
  end

  --- Loading path must fail with a message that has the path and all these parts.
  local function refuses(path, ...)
    contains(message_of(lm.safetensors.load, path), "safetensors_spec.lua:", path, ...)
  end

  --- message_of, by a user who is not root: root may do everything.
  local function message_without_rights(f, ...)
    local root = C.geteuid() == 0
    if root then C.seteuid(65534) end
    local ok, message = pcall(f, ...)
    if root then C.seteuid(0) end
    assert.is_false(ok)
    return message
  end

  --- The tensor's elements as they lie in memory.
  local function bytes_of(t)
    t = t:contiguous()
    local size = C.lm_dtype_size(C.lm_tensor_dtype(t.h))
    return ffi.string(ffi.cast("char *", C.lm_tensor_data(t.h)), t:numel() * size)
  end

  --- A tensor whose memory is these bytes.
  local function from_bytes(dtype, sizes, bytes)
    local t = lm.empty(sizes, { dtype = dtype })
    assert.equal(#bytes, t:numel() * C.lm_dtype_size(C.lm_tensor_dtype(t.h)))
    ffi.copy(C.lm_tensor_data(t.h), bytes, #bytes)
    return t
  end

  local function entry(dtype, shape, from, to)
    return ('{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(dtype, shape, from, to)
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
    it("is missing", function() refuses(path_of("nowhere"), "cannot open", "No such file") end)
    it("is a folder", function() refuses(folder, "is a folder") end)
    it("is a device", function() refuses("/dev/zero", "is a device") end)
    it("is a pipe, which does not hang", function()
      os.execute("mkfifo " .. path_of("pipe"))
      refuses(path_of("pipe"), "is a pipe")
    end)
    it("is forbidden", function()
      local path = make("{}")
      C.chmod(path, 0)
      local message = message_without_rights(lm.safetensors.load, path)
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
      write("made.safetensors", "short")
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
    it("is empty", function() refuses(write("e", ""), "is empty") end)
    it("ends within the length", function() refuses(write("e", "\2\0\0"), "3 bytes") end)
    it("has a length past its end", function()
      refuses(write("e", u64(100) .. "{}"), "header of 100 bytes", "file of 10")
    end)
    it("has a length that leaves no room for the 8 bytes before it", function()
      for claim = 3, 10 do refuses(write("e", u64(claim) .. "{}"), "header of " .. claim .. " bytes", "file of 10") end
    end)
    it("has a length over the format's limit", function()
      refuses(write("e", u64(100000001) .. "{}"), "100000001", "at most 100000000")
    end)
    it("has the longest length there is", function()
      refuses(write("e", ("\255"):rep(8) .. "{}"), "18446744073709551615")
    end)
    it("has no header", function() refuses(write("e", u64(0)), "does not start with '{'") end)
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

  describe("saving and loading", function()
    local path
    before_each(function() path = path_of("saved.safetensors") end)

    it("keeps every bit of every dtype", function()
      local t = {
        nan = from_bytes("f32", { 2, 2 }, "\1\0\192\127" .. "\255\255\255\255" .. "\0\0\128\127" .. "\0\0\0\128"),
        signalling = from_bytes("f32", { 1 }, "\1\0\160\127"),
        half = from_bytes("f16", { 3 }, "\1\126\255\255\0\128"),
        brain = from_bytes("bf16", { 3 }, "\193\127\129\255\0\128"),
        whole = from_bytes("i32", { 2 }, "\0\0\0\128\255\255\255\127"),
        short = from_bytes("u16", { 2 }, "\255\255\1\0"),
        byte = from_bytes("u8", { 5 }, "\0\1\127\128\255"),
        scalar = from_bytes("f32", {}, "\219\15\73\64"),
        empty = lm.empty({ 3, 0, 2 }, { dtype = "bf16" }),
        eight = from_bytes("u8", { 1, 1, 2, 1, 1, 1, 1, 2 }, "abcd"),
      }
      lm.safetensors.save(path, t)
      local back, meta = lm.safetensors.load(path)
      assert.is_nil(next(meta))
      for name, want in pairs(t) do
        assert.equal(want:describe(), back[name]:describe())
        assert.equal(bytes_of(want), bytes_of(back[name]), name)
        back[name] = nil
      end
      assert.is_nil(next(back))
    end)

    it("keeps metadata of any letters", function()
      local meta = { a = "", ["\xc3\xa9"] = '"quoted"\n\t\\', json = '{"lr": 0.02}' }
      lm.safetensors.save(path, {}, meta)
      local t, back = lm.safetensors.load(path)
      assert.is_nil(next(t))
      assert.same(meta, back)
    end)

    it("gives the golden files again", function()
      local t, meta = lm.safetensors.load("spec/fixtures/seed_gpt_odd.safetensors")
      lm.safetensors.save(path, t, meta)
      local again, meta_again = lm.safetensors.load(path)
      assert.same(meta, meta_again)
      local count = 0
      for name, want in pairs(t) do
        assert.equal(bytes_of(want), bytes_of(again[name]), name)
        count = count + 1
      end
      assert.is_true(count > 30)
    end)

    it("writes wide dtypes first, then by name, aligned, the same bytes each time", function()
      local t = { a = lm.empty({ 3 }, { dtype = "u8" }), z = from_bytes("f32", { 1 }, "zzzz"),
        m = from_bytes("bf16", { 1 }, "mm"), b = from_bytes("i32", { 1 }, "bbbb") }
      ffi.copy(C.lm_tensor_data(t.a.h), "aaa", 3)
      lm.safetensors.save(path, t, { y = "2", x = "1" })
      local text = slurp(path)
      local length = text:byte(1) + 256 * text:byte(2)
      assert.equal(0, length % 8)
      assert.equal("bbbbzzzzmmaaa", text:sub(9 + length))
      contains(text:sub(9, 8 + length), '{"__metadata__":{"x":"1","y":"2"},"b":' .. entry("I32", "1", 0, 4) .. ',"z":')
      lm.safetensors.save(path, t, { x = "1", y = "2" })
      assert.equal(text, slurp(path))
    end)

    it("takes views as what they show", function()
      local base = from_bytes("u8", { 2, 3 }, "abcdef")
      lm.safetensors.save(path, { turned = base:t(), part = base:narrow(2, 2, 2), row = base:select(1, 2) })
      local back = lm.safetensors.load(path)
      assert.equal("u8 (3, 2)", back.turned:describe())
      assert.equal("adbecf", bytes_of(back.turned))
      assert.equal("bcef", bytes_of(back.part))
      assert.equal("def", bytes_of(back.row))
      assert.equal("abcdef", bytes_of(base))
    end)

    it("takes parameters, and leaves them as they are", function()
      local p = lm.parameter(from_bytes("f32", { 2 }, "abcdefgh"))
      lm.safetensors.save(path, { p = p, turned = lm.parameter(from_bytes("f32", { 1, 2 }, "abcdefgh")):t() })
      assert.equal("abcdefgh", bytes_of(lm.safetensors.load(path).p))
      assert.is_true(p.requires_grad)
    end)

    it("can save over the file it came from", function()
      lm.safetensors.save(path, { a = from_bytes("u8", { 3 }, "abc") })
      local t = lm.safetensors.load(path)
      t.b = from_bytes("u8", { 1 }, "d")
      lm.safetensors.save(path, t)
      assert.equal("abc", bytes_of(lm.safetensors.load(path).a))
    end)

    it("reads into a tensor that is there, of the same kind only", function()
      lm.safetensors.save(path, { a = from_bytes("u8", { 3 }, "abc") })
      local box = ffi.new("lm_safetensors *[1]")
      assert.equal(0, C.lm_safetensors_open(box, path))
      local there, other = lm.empty({ 3 }, { dtype = "u8" }), lm.empty({ 3 }, { dtype = "f32" })
      lib.into(there, C.lm_safetensors_read, box[0], 0)
      assert.equal("abc", bytes_of(there))
      contains(message_of(lib.into, other, C.lm_safetensors_read, box[0], 0), "must be u8")
      contains(message_of(lib.result, C.lm_safetensors_read, box[0], 1), "1 tensors", "no 1")
      C.lm_safetensors_close(box[0])
    end)
  end)

  describe("saving refuses", function()
    local path
    before_each(function() path = path_of("kept.safetensors") end)

    --- Saving over a file that is there fails, and leaves it and its folder as they were.
    local function keeps(tensors, meta, ...)
      write("kept.safetensors", "old")
      local before = listing()
      contains(message_of(lm.safetensors.save, path, tensors, meta), "safetensors_spec.lua:", ...)
      assert.equal("old", slurp(path))
      assert.equal(before, listing())
    end
    local function one() return from_bytes("u8", { 1 }, "x") end

    it("what is not a table of tensors", function()
      keeps(nil, nil, "expected a table of name -> tensor", "got nil")
      keeps(one(), nil, "expected a table", "got a tensor")
      keeps({ a = one(), b = 5 }, nil, "'b' is not a tensor but a number")
      keeps({ nested = { a = one() } }, nil, "'nested' is not a tensor but a table", "one flat table")
      keeps({ one() }, nil, "a tensor's name must be a string, got number")
    end)
    it("a freed tensor", function()
      local t = one()
      t:free()
      keeps({ gone = t }, nil, "'gone' was freed")
    end)
    it("names that a file cannot hold", function()
      keeps({ __metadata__ = one() }, nil, path, "'__metadata__'", "reserves")
      keeps({ ["a\0b"] = one() }, nil, "NUL byte")
      keeps({ ["a\255"] = one() }, nil, path, "tensor 'a\255' is not valid UTF-8")
    end)
    it("metadata that is not strings", function()
      keeps({}, "text", "metadata must be a table", "got string")
      keeps({}, { steps = 7 }, "metadata 'steps' must be a string, got number")
      keeps({}, { [1] = "a" }, "a key of the metadata must be a string, got number")
      keeps({}, { a = "x\0y" }, "metadata 'a' has a NUL byte")
      keeps({}, { a = "\255" }, path, "metadata 'a' is not valid UTF-8")
    end)
    it("names given twice, through the C interface", function()
      local t = one()
      local names = ffi.new("const char *[2]", { "same", "same" })
      local status = C.lm_safetensors_save(path_of("twice"), 2, names, ffi.new("const lm_tensor *[2]", { t.h, t.h }), 0,
        nil, nil)
      assert.equal(C.LM_EINVAL, status)
      contains(ffi.string(C.lm_last_error()), "tensor 'same' is given twice")
    end)
    it("a view, through the C interface", function()
      local v = from_bytes("u8", { 2, 2 }, "abcd"):t()
      assert.equal(C.LM_ESHAPE, C.lm_safetensors_save(path_of("view"), 1, ffi.new("const char *[1]", { "v" }),
        ffi.new("const lm_tensor *[1]", { v.h }), 0, nil, nil))
      contains(ffi.string(C.lm_last_error()), "'v' is not contiguous; use :contiguous()")
    end)
    it("an interrupted write", function()
      write("kept.safetensors", "old")
      local before = listing()
      C.lm_interrupt()
      local message = message_of(lm.safetensors.save, path, { a = one() })
      C.lm_interrupt_clear()
      contains(message, "interrupted")
      assert.equal("old", slurp(path))
      assert.equal(before, listing())
    end)
  end)

  describe("where it saves", function()
    local function refuses_to_save(path, ...)
      contains(message_of(lm.safetensors.save, path, { a = from_bytes("u8", { 1 }, "x") }), "safetensors_spec.lua:",
        "cannot write '" .. path .. "'", ...)
    end

    it("must not be a folder or a device", function()
      refuses_to_save(folder, "it is a folder")
      refuses_to_save("/dev/null", "not a regular file")
    end)
    it("must have a folder", function()
      refuses_to_save(path_of("none/x"), "no folder '" .. path_of("none/"))
      refuses_to_save("", "No such file")
      write("plain", "x")
      refuses_to_save(path_of("plain/x"), "Not a directory")
    end)
    it("must have a folder that can be written", function()
      local path = path_of("locked/x")
      assert(os.execute("mkdir -p " .. path_of("locked")))
      C.chmod(path_of("locked"), tonumber("555", 8))
      contains(message_without_rights(lm.safetensors.save, path, {}), "cannot write '" .. path .. "'",
        "no new file in '" .. path_of("locked/"), "Permission denied")
    end)
    it("must not be write-protected", function()
      local path = write("protected", "old")
      C.chmod(path, tonumber("444", 8))
      contains(message_without_rights(lm.safetensors.save, path, {}), "cannot write '" .. path .. "'",
        "Permission denied")
      assert.equal("old", slurp(path))
    end)
    it("may not be a link to nothing", function()
      C.symlink(path_of("not there"), path_of("dangling"))
      refuses_to_save(path_of("dangling"), "link to nothing")
    end)
    it("may be a link: what it links to is replaced", function()
      write("real", "old")
      C.symlink("real", path_of("link"))
      lm.safetensors.save(path_of("link"), { a = from_bytes("u8", { 1 }, "x") })
      assert.equal("x", bytes_of(lm.safetensors.load(path_of("real")).a))
      local p = io.popen("readlink " .. path_of("link"))
      assert.equal("real\n", p:read("*a"))
      p:close()
    end)
    it("may have a name of the full 255 letters", function()
      lm.safetensors.save(path_of(("n"):rep(255)), {})
      assert.is_nil(next((lm.safetensors.load(path_of(("n"):rep(255))))))
      contains(message_of(lm.safetensors.save, path_of(("n"):rep(256)), {}), folder, "nnn...nnn", "File name too long")
    end)
    it("may be relative", function()
      lm.safetensors.save("spec-relative.safetensors", {})
      assert.is_true(os.remove("spec-relative.safetensors"))
    end)
    it("gets the umask's mode, or that of the file it replaces", function()
      local function mode(path)
        local p = io.popen("stat -c %a " .. path)
        local text = p:read("*l")
        p:close()
        return text
      end
      local old = C.umask(tonumber("027", 8))
      lm.safetensors.save(path_of("mode"), {})
      C.umask(old)
      assert.equal("640", mode(path_of("mode")))
      C.chmod(path_of("mode"), tonumber("600", 8))
      lm.safetensors.save(path_of("mode"), {})
      assert.equal("600", mode(path_of("mode")))
    end)
    it("must not go over the process's limit for a file", function()
      local RLIMIT_FSIZE = 1
      local limit = ffi.new("struct spec_rlimit")
      assert.equal(0, C.getrlimit(RLIMIT_FSIZE, limit))
      local current = limit.current
      write("limited", "old")
      limit.current = 1000
      C.setrlimit(RLIMIT_FSIZE, limit)
      local message = message_of(lm.safetensors.save, path_of("limited"), { a = lm.empty({ 1000 }, { dtype = "u8" }) })
      limit.current = current
      C.setrlimit(RLIMIT_FSIZE, limit)
      contains(message, path_of("limited"), "limit of 1000", "ulimit -f")
      assert.equal("old", slurp(path_of("limited")))
    end)
    it("keeps the old file when the disk is full", function()
      local disk = path_of("disk")
      os.execute("mkdir -p " .. disk)
      if C.mount("tmpfs", disk, "tmpfs", 0, "size=64k") ~= 0 then
        pending("making a small disk needs the right to mount")
        return
      end
      finally(function() C.umount(disk) end)
      write("disk/full", "old")
      local message = message_of(lm.safetensors.save, disk .. "/full", { a = lm.empty({ 100000 }, { dtype = "u8" }) })
      contains(message, disk .. "/full", "No space left on device")
      assert.equal("old", slurp(disk .. "/full"))
      local p = io.popen("ls -A " .. disk)
      assert.equal("full\n", p:read("*a"))
      p:close()
    end)
  end)
end)
