local lm = require "lumuon"
local lib = require "lumuon.lib"
local files = require "spec.support.files"
local ffi, C = lib.ffi, lib.C
local message_of, contains, slurp = files.message_of, files.contains, files.slurp
local bytes_of, from_bytes, entry = files.bytes_of, files.from_bytes, files.entry

describe("safetensors", function()
  local folder
  setup(function() folder = files.folder() end)
  teardown(function() folder:remove() end)

  describe("saving and loading", function()
    local path
    before_each(function() path = folder:path_of("saved.safetensors") end)

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

  describe("tensor by tensor", function()
    local path, shapes
    before_each(function()
      path = folder:path_of("streamed.safetensors")
      folder:write("streamed.safetensors", "old")
      shapes = { a = { dtype = "u8", sizes = { 2, 3 } }, b = { dtype = "f32", sizes = {} }, c = { dtype = "f32",
        sizes = { 2 } } }
    end)
    local a, b, c = from_bytes("u8", { 2, 3 }, "abcdef"), lm.full({}, 3), lm.full({ 2 }, 4)

    it("the same bytes are written, in whatever order they come", function()
      local whole = folder:path_of("whole.safetensors")
      lm.safetensors.save(whole, { a = a, b = b, c = c }, { x = "1" })
      local new = lm.safetensors.create(path, shapes, { x = "1" })
      new:put("c", lm.full({ 2, 2 }, 4):select(2, 1))
      new:put("a", a)
      assert.equal("old", slurp(path))
      new:put("b", b)
      new:commit()
      assert.equal(slurp(whole), slurp(path))
      contains(message_of(new.put, new, "a", a), "was committed or abandoned")
    end)

    it("a file that is not complete, or given up, leaves the old one", function()
      local new = lm.safetensors.create(path, shapes)
      new:put("a", a)
      contains(message_of(new.put, new, "a", a), "'a' was written before")
      contains(message_of(new.put, new, "c", lm.zeros(3)), "'c' was said to be another", "f32 (3)")
      contains(message_of(new.put, new, "d", a), "'d'")
      contains(message_of(new.commit, new), "tensor 'b' was not given")
      new:abandon()
      lm.safetensors.create(path, shapes):abandon()
      contains(message_of(lm.safetensors.create, path, { a = { dtype = "u8", sizes = { -1 } } }),
        "negative or too large")
      contains(message_of(lm.safetensors.create, path, { a = { dtype = "f32", sizes = { 2 ^ 40, 2 ^ 40 } } }),
        "negative or too large")
      contains(message_of(lm.safetensors.create, path, { __metadata__ = shapes.a }), "a name the format reserves")
      assert.equal("old", slurp(path))
      local p = io.popen("ls -A " .. folder.path .. " | grep tmp")
      assert.equal("", p:read("*a"))
      p:close()
    end)

    it("a file is read, and described without being read", function()
      lm.safetensors.save(path, { a = a, b = b, c = c }, { x = "1" })
      local file = lm.safetensors.open(path)
      assert.same({ "a", "b", "c" }, file:names())
      assert.same({ "u8 (2, 3)", "f32 ()", x = "1" }, { file:describe("a"), file:describe("b"), x = file.meta.x })
      assert.is_nil(file:describe("d"))
      local into = lm.zeros(3, 2)
      file:read("c", into:select(1, 2))
      assert.same({ { 0, 0 }, { 4, 4 }, { 0, 0 } }, into:tolist())
      assert.equal("abcdef", bytes_of(file:read("a")))
      contains(message_of(file.read, file, "d"), "has no tensor 'd'")
      file:close()
      file:close()
      contains(message_of(file.read, file, "a"), "was closed")
    end)
  end)

  describe("saving refuses", function()
    local path
    before_each(function() path = folder:path_of("kept.safetensors") end)

    --- Saving over a file that is there fails, and leaves it and its folder as they were.
    local function keeps(tensors, meta, ...)
      folder:write("kept.safetensors", "old")
      local before = folder:listing()
      local function save() lm.safetensors.save(path, tensors, meta) end
      contains(message_of(save), "safetensors_save_spec.lua:", ...)
      assert.equal("old", slurp(path))
      assert.equal(before, folder:listing())
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
      local handles = ffi.new("const lm_tensor *[2]", { t.h, t.h })
      local status = C.lm_safetensors_save(folder:path_of("twice"), 2, names, handles, 0, nil, nil)
      assert.equal(C.LM_EINVAL, status)
      contains(ffi.string(C.lm_last_error()), "tensor 'same' is given twice")
    end)
    it("a view, through the C interface", function()
      local v = from_bytes("u8", { 2, 2 }, "abcd"):t()
      assert.equal(C.LM_ESHAPE, C.lm_safetensors_save(folder:path_of("view"), 1, ffi.new("const char *[1]", { "v" }),
        ffi.new("const lm_tensor *[1]", { v.h }), 0, nil, nil))
      contains(ffi.string(C.lm_last_error()), "'v' is not contiguous; use :contiguous()")
    end)
    it("an interrupted write", function()
      folder:write("kept.safetensors", "old")
      local before = folder:listing()
      C.lm_interrupt()
      local message = message_of(lm.safetensors.save, path, { a = one() })
      C.lm_interrupt_clear()
      contains(message, "interrupted")
      assert.equal("old", slurp(path))
      assert.equal(before, folder:listing())
    end)
  end)

  describe("where it saves", function()
    local function refuses_to_save(path, ...)
      local function save() lm.safetensors.save(path, { a = from_bytes("u8", { 1 }, "x") }) end
      contains(message_of(save), "safetensors_save_spec.lua:", "cannot write '" .. path .. "'", ...)
    end

    it("must not be a folder or a device", function()
      refuses_to_save(folder.path, "it is a folder")
      refuses_to_save("/dev/null", "not a regular file")
    end)
    it("must have a folder", function()
      refuses_to_save(folder:path_of("none/x"), "no folder '" .. folder:path_of("none/"))
      refuses_to_save("", "No such file")
      folder:write("plain", "x")
      refuses_to_save(folder:path_of("plain/x"), "Not a directory")
    end)
    it("must have a folder that can be written", function()
      local path = folder:path_of("locked/x")
      assert(os.execute("mkdir -p " .. folder:path_of("locked")))
      C.chmod(folder:path_of("locked"), tonumber("555", 8))
      contains(files.message_without_rights(lm.safetensors.save, path, {}), "cannot write '" .. path .. "'",
        "no new file in '" .. folder:path_of("locked/"), "Permission denied")
    end)
    it("must not be write-protected", function()
      local path = folder:write("protected", "old")
      C.chmod(path, tonumber("444", 8))
      contains(files.message_without_rights(lm.safetensors.save, path, {}), "cannot write '" .. path .. "'",
        "Permission denied")
      assert.equal("old", slurp(path))
    end)
    it("may not be a link to nothing", function()
      C.symlink(folder:path_of("not there"), folder:path_of("dangling"))
      refuses_to_save(folder:path_of("dangling"), "link to nothing")
    end)
    it("may be a link: what it links to is replaced", function()
      folder:write("real", "old")
      C.symlink("real", folder:path_of("link"))
      lm.safetensors.save(folder:path_of("link"), { a = from_bytes("u8", { 1 }, "x") })
      assert.equal("x", bytes_of(lm.safetensors.load(folder:path_of("real")).a))
      local p = io.popen("readlink " .. folder:path_of("link"))
      assert.equal("real\n", p:read("*a"))
      p:close()
    end)
    it("may have a name of the full 255 letters", function()
      lm.safetensors.save(folder:path_of(("n"):rep(255)), {})
      assert.is_nil(next((lm.safetensors.load(folder:path_of(("n"):rep(255))))))
      local message = message_of(lm.safetensors.save, folder:path_of(("n"):rep(256)), {})
      contains(message, folder.path, "nnn...nnn", "File name too long")
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
      lm.safetensors.save(folder:path_of("mode"), {})
      C.umask(old)
      assert.equal("640", mode(folder:path_of("mode")))
      C.chmod(folder:path_of("mode"), tonumber("600", 8))
      lm.safetensors.save(folder:path_of("mode"), {})
      assert.equal("600", mode(folder:path_of("mode")))
    end)
    it("must not go over the process's limit for a file", function()
      local RLIMIT_FSIZE = 1
      local limit = ffi.new("struct spec_rlimit")
      assert.equal(0, C.getrlimit(RLIMIT_FSIZE, limit))
      local current = limit.current
      folder:write("limited", "old")
      limit.current = 1000
      C.setrlimit(RLIMIT_FSIZE, limit)
      local t = { a = lm.empty({ 1000 }, { dtype = "u8" }) }
      local message = message_of(lm.safetensors.save, folder:path_of("limited"), t)
      limit.current = current
      C.setrlimit(RLIMIT_FSIZE, limit)
      contains(message, folder:path_of("limited"), "limit of 1000", "ulimit -f")
      assert.equal("old", slurp(folder:path_of("limited")))
    end)
    it("keeps the old file when the disk is full", function()
      local disk = folder:path_of("disk")
      os.execute("mkdir -p " .. disk)
      if C.mount("tmpfs", disk, "tmpfs", 0, "size=64k") ~= 0 then
        pending("making a small disk needs the right to mount")
        return
      end
      finally(function() C.umount(disk) end)
      folder:write("disk/full", "old")
      local message = message_of(lm.safetensors.save, disk .. "/full", { a = lm.empty({ 100000 }, { dtype = "u8" }) })
      contains(message, disk .. "/full", "No space left on device")
      assert.equal("old", slurp(disk .. "/full"))
      local p = io.popen("ls -A " .. disk)
      assert.equal("full\n", p:read("*a"))
      p:close()
    end)
  end)
end)
