-- The wrapper ./lumuon on a little project of its own, where cmake, apt and the rest are stand-ins
-- that write down how they were called.
local command = dofile("spec/command.lua")
local shell, write, read = command.shell, command.write, command.read

describe("the wrapper", function()
  local root, project

  local function tool(name, text)
    write(root .. "/bin/" .. name, "#!/bin/sh\n" .. text)
    os.execute("chmod +x " .. root .. "/bin/" .. name)
  end

  local function calls() -- what was called since the last time, sorted out of the log
    local path = root .. "/calls"
    local text = read(path)
    write(path, "")
    return text
  end

  local function lumuon(args, before)
    return shell(("%s cd / && PATH=%s/bin:$PATH %s/lumuon %s"):format(before or "", root, project, args or ""))
  end

  before_each(function()
    root = command.folder()
    project = root .. "/a project"
    os.execute(("mkdir -p %s/bin '%s/engine' '%s/kernels' '%s/lua' '%s/cmake'"):format(root, project, project,
      project, project))
    os.execute(("cp -r lumuon scripts CMakeLists.txt '%s'"):format(project))
    project = "'" .. project .. "'"
    write(root .. "/calls", "")
    write(root .. "/installed", "all")
    tool("cmake", ([[
      echo "cmake $*" >>%s/calls
      case $1 in
        -S) mkdir -p "$4"; echo "CMAKE_HOME_DIRECTORY:INTERNAL=$2" >"$4/CMakeCache.txt"; : >"$4/build.ninja" ;;
        --build)
          echo "compiling things"
          [ ! -e %s/broken ] || { echo "things.c:1: error"; exit 1; }
          sleep "$(cat %s/slow 2>/dev/null || echo 0)"
          printf '#!/bin/sh\necho "built: $*"\nexit 7\n' >"$2/lumuon"; chmod +x "$2/lumuon" ;;
      esac
    ]]):format(root, root, root))
    -- packages named in `installed` are there; all: every one
    tool("dpkg-query", ([[
      for name; do :; done
      if grep -qx -e all -e "$name" %s/installed; then printf installed; else exit 1; fi
    ]]):format(root))
    tool("apt-cache", [[printf '%s:\n  Candidate: 1.0\n' "$2"]])
    tool("apt-get", ([[echo "apt-get $*" >>%s/calls; case "$*" in *install*) echo all >%s/installed ;; esac]])
      :format(root, root))
    tool("id", "echo 0")
  end)
  after_each(function() command.remove(root) end)

  it("builds at its first use, then hands over the arguments and the exit code", function()
    local r = lumuon("run 'a b' --c=1")
    assert.equal("built: run a b --c=1\n", r.out)
    assert.equal(7, r.code)
    assert.equal("lumuon: configuring\nlumuon: building (under a minute on two cores)\n",
      (r.err:gsub("lumuon: built in %d+ s\n$", "")))
    assert.matches("^cmake %-S .*\ncmake %-%-build [^\n]*\n$", calls())
    assert.matches("compiling things", read(project:sub(2, -2) .. "/build/setup.log"))
  end)

  it("adds under 0.2 s, and says nothing, where nothing changed", function()
    lumuon()
    calls()
    local pipe = io.popen("date +%s%N")
    local begun = pipe:read("*n")
    pipe:close()
    local r = lumuon("x", ("for i in 1 2 3 4 5 6 7 8 9; do %s/lumuon >/dev/null; done;"):format(project))
    pipe = io.popen("date +%s%N")
    local seconds = (pipe:read("*n") - begun) / 1e9
    pipe:close()
    assert.equal("built: x\n", r.out)
    assert.equal("", r.err)
    assert.equal("", calls())
    assert.is_true(seconds / 10 < 0.2, ("%.3f s a call"):format(seconds / 10))
  end)

  it("rebuilds after a change, an added file and a deleted one", function()
    write(project:sub(2, -2) .. "/lua/a.lua", "")
    lumuon()
    for _, change in ipairs { "echo >> %s/lua/a.lua", "echo > %s/engine/new.c", "rm %s/engine/new.c",
      "touch %s/CMakeLists.txt" } do
      calls()
      os.execute("sleep 0.02;" .. change:format(project))
      local r = lumuon()
      assert.equal("lumuon: rebuilding what changed\n", (r.err:gsub("lumuon: built in %d+ s\n$", "")))
      assert.matches("^cmake %-%-build [^\n]*\n$", calls())
    end
    assert.equal("", lumuon().err)
  end)

  it("shows the end of the log where the build fails, and tries again next time", function()
    write(root .. "/broken", "")
    for _ = 1, 2 do
      local r = lumuon()
      assert.equal(1, r.code)
      assert.equal("", r.out)
      assert.matches("lumuon: the build failed; the end of the log:\ncompiling things\nthings.c:1: error\n"
        .. "lumuon: all of it: /[^\n]*/build/setup.log\n$", r.err)
    end
    os.remove(root .. "/broken")
    assert.equal("built: \n", lumuon().out)
  end)

  it("is found through symbolic links", function()
    os.execute(("ln -s %s/lumuon %s/one && ln -s one %s/two"):format(project, root, root))
    assert.equal("built: z\n", shell(("PATH=%s/bin:$PATH; cd /tmp && %s/two z"):format(root, root)).out)
  end)

  it("builds once where two first uses come at once", function()
    write(root .. "/slow", "0.5")
    local r = shell(("PATH=%s/bin:$PATH; %s/lumuon a & %s/lumuon b & wait"):format(root, project, project))
    assert.matches("lumuon: waiting for another lumuon that is setting up\n", r.err)
    assert.matches("built: a\n", r.out)
    assert.matches("built: b\n", r.out)
    local _, builds = calls():gsub("cmake %-%-build", "")
    assert.equal(1, builds)
  end)

  it("says so where it has to build and may not write", function()
    os.execute(("mkdir %s/build && chmod 555 %s %s/build"):format(project, project, project))
    local as_nobody = "chmod 755 " .. root .. "; setpriv --reuid=65534 --regid=65534 --clear-groups"
    if shell("[ $(id -u) = 0 ]").code ~= 0 then as_nobody = "" end
    local r = shell(("%s %s/lumuon x"):format(as_nobody, project))
    os.execute(("chmod 755 %s %s/build"):format(project, project))
    assert.equal(1, r.code)
    assert.matches("^lumuon: /[^\n]*/build has to be built %(again%), and you %([^\n]*%) may not write there;\n", r.err)
  end)

  it("installs what is missing, as root", function()
    write(root .. "/installed", "gcc\ncmake\n")
    local r = lumuon()
    assert.matches("^lumuon: installing with apt: ", r.err)
    local text = calls()
    local line = text:match("apt%-get [^\n]*install[^\n]*")
    for _, name in ipairs { "ninja-build", "libdnnl-dev", "libluajit-5.1-dev", "lua-busted", "fortunes" } do
      assert.is_truthy((line .. " "):find(" " .. name .. " ", 1, true), name)
    end
    assert.is_nil(line:match(" gcc "))
    assert.is_nil(line:match("clang"))
    assert.equal("built: \n", r.out)
  end)

  it("takes the name a system offers where names differ", function()
    write(root .. "/installed", "")
    tool("apt-cache", [[
      case $2 in libdnnl-dev) c='(none)' ;; *) c=1.0 ;; esac
      printf '%s:\n  Candidate: %s\n' "$2" "$c"
    ]])
    lumuon()
    local line = calls():match("apt%-get [^\n]*install[^\n]*")
    assert.matches(" libonednn%-dev", line)
    assert.is_nil(line:match("libdnnl"))
  end)

  it("prints the exact command and stops where it may not install", function()
    local names = {}
    for entry in shell("scripts/packages wanted run").out:gmatch("[^\n]+") do names[#names + 1] = entry end
    for i, entry in ipairs(names) do
      if entry == "lua-busted" or entry == "cmake" then names[i] = "absent" end
    end
    write(root .. "/installed", (table.concat(names, "\n"):gsub("|", "\n")) .. "\n")
    tool("id", "echo 1000")
    tool("sudo", "exit 1")
    local r = lumuon()
    assert.equal(1, r.code)
    assert.equal("", r.out)
    assert.matches("\n  apt%-get update && apt%-get install %-y %-%-no%-install%-recommends cmake lua%-busted\n$",
      r.err)
    assert.equal("", calls())
  end)

  it("uses sudo where it may", function()
    write(root .. "/installed", "")
    tool("id", "echo 1000")
    tool("sudo", ([[[ "$1" = -n ] && exit 0; echo "sudo $*" >>%s/calls; exec "$@"]]):format(root))
    assert.equal("built: \n", lumuon().out)
    assert.matches("sudo env DEBIAN_FRONTEND=noninteractive apt%-get [^\n]*install", calls())
  end)
end)

describe("the installed tree", function()
  local build = command.lumuon:match("^(.*)/")

  it("works from anywhere, with its executable and with plain luajit", function()
    local folder = command.folder()
    local r = shell(("cmake --install '%s' --prefix '%s/first' && mv '%s/first' '%s/moved here'"):format(build, folder,
      folder, folder))
    assert.equal(0, r.code, r.err)
    local prefix = folder .. "/moved here"
    write(folder .. "/x.lua", [[
      local lm = require "lumuon"
      print(lm.version, lm.ones(2, 2):matmul(lm.ones(2, 2)):sum():item())
    ]])
    local expected = require("lumuon").version .. "\t8\n"
    r = shell(("cd / && env -i PATH=$PATH '%s/bin/lumuon' run %s/x.lua"):format(prefix, folder))
    assert.equal("", r.err)
    assert.equal(expected, r.out)
    r = shell(("cd / && env -i '%s/bin/lumuon' run recipes/polar.lua"):format(prefix))
    assert.equal("", r.err)
    assert.matches("step 5 ", r.out)
    for _, file in ipairs { "include/lumuon.h", "lib/liblumuon.so", "share/lumuon/recipes/parts/nanochat.lua" } do
      assert.is_true(#read(prefix .. "/" .. file) > 0, file)
    end
    -- a sanitizer build's library needs its run-time loaded first
    local sanitized = shell(("ldd '%s/bin/lumuon'"):format(prefix)).out:match("(/%S*libasan%S*)")
    local modules = ("%s/share/lua/5.1/?.lua;%s/share/lua/5.1/?/init.lua"):format(prefix, prefix)
    r = shell(("cd / && env -i PATH=$PATH %s LUA_PATH='%s' luajit %s/x.lua"):format(
      sanitized and "ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD=" .. sanitized or "", modules, folder))
    assert.equal("", r.err)
    assert.equal(expected, r.out)
    command.remove(folder)
  end)
end)
