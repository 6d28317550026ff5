--- Where libraries that are loaded late are looked for: spec/library/checks.c, on folders made for it and, where
-- CUDA's own libraries are, on those. They load without a driver.
local command = dofile("spec/command.lua")
local has_host, host = pcall(require, "lumuon.host")

describe("a library that is loaded late", function()
  local folder, build, ours
  setup(function()
    folder = command.folder()
    build = has_host and (host.executable() or ""):match("^(.*/)") or ""
    ours = build .. "liblumuon.so" -- a library that is surely there
  end)
  teardown(function() command.remove(folder) end)

  local NOWHERE = "env -u CUDA_HOME -u CUDA_PATH -u VIRTUAL_ENV -u CONDA_PREFIX HOME=/nonexistent "

  --- Where the program finds `file`; environment: "A=1 B=2".
  local function find(environment, file, packages, functions)
    if host.kind(build .. "library_checks") ~= "file" then pending("needs library_checks beside the executable") end
    local r = command.shell(("%s%s %slibrary_checks %s FAKE_LIBRARY %s %s"):format(NOWHERE, environment,
      command.quote(build), file, command.quote(packages), functions))
    return (r.out:gsub("\n$", "")), r.code
  end

  --- A link to our library below the folder.
  local function put(where)
    local path = folder .. "/" .. where
    assert.equal(0, os.execute(("mkdir -p %s && ln -sf %s %s"):format(command.quote(path:match("^(.*)/")),
      command.quote(ours), command.quote(path))))
    return path
  end

  it("is found in toolkits and in Python's packages, those of the environment first", function()
    local site = "/lib/python3.12/site-packages/nvidia/"
    local one = put("home/lib64/libfake.so.7")
    put("path/targets/x86_64-linux/lib/libfake.so.7")
    local venv = put("venv" .. site .. "cu13/lib/libfake.so.7")
    local conda = put("conda/lib/python3.9/dist-packages/nvidia/fake/lib/libfake.so.7")
    local user = put("user/.local" .. site .. "fake/lib/libfake.so.7")
    local function at(name) return name .. "=" .. command.quote(folder .. "/" .. name:lower():match("%a+$")) .. " " end
    local all = at "CUDA_HOME" .. at "CUDA_PATH" .. "VIRTUAL_ENV=" .. command.quote(folder .. "/venv")
      .. " CONDA_PREFIX=" .. command.quote(folder .. "/conda") .. " HOME=" .. command.quote(folder .. "/user")
    for _, case in ipairs { { all, one }, { all:gsub("CUDA_HOME=%S+", ""), "path/targets" },
      { all:gsub("CUDA_%a+=%S+", ""), venv }, { all:gsub("CUDA_%a+=%S+", ""):gsub("VIRTUAL_ENV=%S+", ""), conda },
      { all:match("HOME=%S+$"), user } } do
      local found, code = find(case[1], "libfake.so.7", "cu*,fake", "lm_version lm_abi_version")
      assert.equal(0, code, found)
      assert.is_truthy(found:find(case[2], 1, true), found .. " is not in " .. case[2])
    end
    assert.equal("none", (find("HOME=" .. command.quote(folder .. "/user"), "libfake.so.7", "cu*", "lm_version")))
  end)

  it("is found in the environment that PATH's python3 leads to, though it is not activated", function()
    local there = put("deep/venv/lib/python3.12/site-packages/nvidia/cu13/lib/libdeep.so.1")
    assert.equal(0, os.execute(("cd %s && mkdir -p bin deep/venv/bin other && ln -s ../deep/python3 bin/python3 && "
      .. "ln -s $PWD/deep/venv/bin/python3 deep/python3 && ln -s /bin/sh deep/venv/bin/python3"):format(
      command.quote(folder))))
    for path, want in pairs { ["other:" .. folder .. "/bin"] = there, ["/nonexistent:"] = "none" } do
      assert.equal(want, (find(("PATH=%s:/usr/bin:/bin "):format(command.quote(path)), "libdeep.so.1", "cu*",
        "lm_version")))
    end
  end)

  it("is not taken without its functions: another one is looked for", function()
    local venv = put("venv/lib/python3.12/site-packages/nvidia/fake/lib/libother.so.1")
    local home = folder .. "/broken/lib64"
    assert.equal(0, os.execute(("mkdir -p %s && ln -sf libc.so %s/libother.so.1 && : > %s/libc.so"):format(home, home,
      home))) -- no library at all
    local environment = ("CUDA_HOME=%s VIRTUAL_ENV=%s "):format(command.quote(folder .. "/broken"),
      command.quote(folder .. "/venv"))
    assert.equal(venv, (find(environment, "libother.so.1", "fake", "lm_version")))
    assert.equal("none", (find(environment, "libother.so.1", "fake", "lm_version lm_no_such_function")))
  end)

  it("is the named file, and no other, where the variable names one", function()
    local path = put("own/anything.so")
    assert.equal(path, (find("FAKE_LIBRARY=" .. command.quote(path), "libc.so.6", "fake", "lm_version")))
    assert.equal("none", (find("FAKE_LIBRARY=/nonexistent.so", "libc.so.6", "fake", "strlen")))
  end)

  for _, case in ipairs {
    { "engine/backend/cublaslt.c", "libcublasLt.so.13", "cu*,cublas" },
    { "engine/comm/nccl.c", "libnccl.so.2", "nccl" },
  } do
    it(case[2] .. " has what " .. case[1] .. " asks of it", function()
      local functions = {}
      for name in io.open(case[1]):read("*a"):gmatch("\n  F%((%w+)%)") do functions[#functions + 1] = name end
      assert.is_true(#functions > 10)
      if find("", case[2], case[3], functions[1]) == "none" then pending("there is no " .. case[2]) end
      local found = find("", case[2], case[3], table.concat(functions, " "))
      assert.is_truthy(found:find(case[2]:match("^%a+"), 1, true), found)
    end)
  end
end)
