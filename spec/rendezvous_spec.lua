-- Several processes without MPI: how they meet, the same collectives over TCP, and what happens when a rank fails.
local launch = require "lumuon.launch"
local command = dofile("spec/command.lua")
local processes = dofile("spec/dist/processes.lua")

local folder
setup(function() folder = command.folder() end)
teardown(function() command.remove(folder) end)

local function by_file() return ("LUMUON_RENDEZVOUS=file://%s/meet"):format(folder) end
local function by_port(port) return ("MASTER_ADDR=127.0.0.1 MASTER_PORT=%d"):format(port or processes.port()) end

--- A script of spec/dist on several ranks.
local function script(ranks, name, arguments, more)
  local words = { "run", "spec/dist/" .. name .. ".lua" }
  for _, a in ipairs(arguments or {}) do words[#words + 1] = a end
  local options = { ranks = ranks, words = words, env = by_file() }
  for k, v in pairs(more or {}) do options[k] = v end
  return processes.run(options)
end

local function all_ended_well(r)
  for rank, code in pairs(r.codes) do assert.equal(0, code, ("rank %d: %s"):format(rank, r.err)) end
  return r
end

local function none_ended_well(r)
  for _, code in pairs(r.codes) do assert.not_equal(0, code, r.err) end
  return r
end

describe("the place where ranks meet", function()
  local function place(env, has_mpi)
    local function get(name) return env[name] end
    return launch.meeting_place(assert(launch.detect(get)), has_mpi, get)
  end
  local two = { RANK = "0", WORLD_SIZE = "2" }
  local function with(base, more)
    local env = {}
    for k, v in pairs(base) do env[k] = v end
    for k, v in pairs(more) do env[k] = v end
    return env
  end
  it("is MASTER_ADDR and MASTER_PORT, or what LUMUON_RENDEZVOUS says", function()
    assert.equal("tcp://node7:4000", (place(with(two, { MASTER_ADDR = "node7", MASTER_PORT = "4000" }), true)))
    assert.equal("tcp://node7:29500", (place(with(two, { MASTER_ADDR = "node7" }), true)))
    assert.equal("tcp://[fe80::1]:29500", (place(with(two, { MASTER_ADDR = "fe80::1" }), true)))
    assert.equal("file:///x", (place(with(two, { MASTER_ADDR = "node7", LUMUON_RENDEZVOUS = "file:///x" }), true)))
  end)
  it("is missed with words that say what to set", function()
    assert.matches("set MASTER_ADDR", select(2, place(two, true)))
    assert.matches("MASTER_PORT = many is no port", select(2, place(with(two, { MASTER_ADDR = "a",
      MASTER_PORT = "many" }))))
    assert.matches("this build has no MPI", select(2, place({ OMPI_COMM_WORLD_RANK = "0", OMPI_COMM_WORLD_SIZE = "2" },
      false)))
  end)
  it("is MPI's business under mpirun, and under srun where it speaks PMIx", function()
    assert.is_nil((place({ OMPI_COMM_WORLD_RANK = "0", OMPI_COMM_WORLD_SIZE = "2" }, true)))
    local srun = { SLURM_PROCID = "1", SLURM_STEP_NUM_TASKS = "2", SLURM_JOB_ID = "12", SLURM_STEP_ID = "1",
      SLURM_STEP_NODELIST = "gpu[07-09,12],big1" }
    assert.is_nil((place(with(srun, { PMIX_RANK = "1" }), true)))
    assert.same({ "tcp://gpu07:15097", "12.1" }, { place(with(srun, { PMIX_RANK = "1" }), false) })
    assert.same({ "tcp://gpu07:15097", "12.1" }, { place(srun, true) })
    assert.same({ "tcp://other:29500", "12.1" }, { place(with(srun, { MASTER_ADDR = "other" }), true) })
    assert.equal("tcp://big1:15097", (place(with(srun, { SLURM_STEP_NODELIST = "big1,big2" }), true)))
  end)
  it("is one port above torchrun's own, and torchrun's word counts, whoever started it", function()
    local env = with(two, { TORCHELASTIC_RUN_ID = "none", TORCHELASTIC_USE_AGENT_STORE = "True", MASTER_ADDR = "a",
      MASTER_PORT = "5000", SLURM_PROCID = "1", SLURM_STEP_NUM_TASKS = "9" })
    assert.same({ "tcp://a:5001", "none" }, { place(env, true) })
    assert.equal("torchrun", launch.detect(function(name) return env[name] end).launcher)
  end)
  it("is told from nonsense", function()
    local r = command.shell(("RANK=2 WORLD_SIZE=2 %s run spec/dist/steps.lua"):format(command.quote(command.lumuon)))
    assert.equal(1, r.code)
    assert.matches("RANK = 2 and WORLD_SIZE = 2: ranks are whole numbers from 0 to WORLD_SIZE %- 1", r.err)
    for _, wrong in ipairs { "tcp://host", "tcp://host:0", "tcp://:80", "file://relative", "udp://x:1", "29500" } do
      r = script(1, "steps", {}, { env = "WORLD_SIZE=2 LUMUON_RENDEZVOUS=" .. wrong })
      assert.equal(1, r.codes[0])
      assert.matches("rendezvous: '" .. wrong:gsub("%p", "%%%0") .. "'", r.err)
    end
  end)
end)

describe("threads a rank", function()
  local function threads(all, which, env)
    return { launch.threads(all, which, function(name) return (env or {})[name] end) }
  end
  it("are the cores it may use, shared by those who may use the same", function()
    assert.same({ 4, 1 }, threads({ "a 0-7", "a 0-7", "b 0-7" }, 2))
    assert.same({ 8, 0 }, threads({ "a 0-7", "a 0-7", "b 0-7" }, 3))
    assert.same({ 3, 1 }, threads({ "a 0-2", "a 3,5,8", "a 6,7" }, 2))
    assert.same({ 1, 2 }, threads({ "a 0-1", "a 0-1", "a 0-1" }, 3))
    assert.same({ [2] = 0 }, threads({ "a ", "a " }, 1))
  end)
  it("are no more than Slurm gave it, where it is not bound to that", function()
    local function slurm(env)
      env.SLURM_PROCID = "0"
      return threads({ "a 0-63", "a 0-63" }, 2, env)[1]
    end
    assert.equal(8, slurm { SLURM_CPUS_PER_TASK = "8", SLURM_CPUS_ON_NODE = "16" })
    assert.equal(6, slurm { SLURM_CPUS_ON_NODE = "12" })
    assert.equal(32, slurm { SLURM_CPUS_PER_TASK = "64" })
    assert.equal(32, slurm {})
    assert.equal(32, threads({ "a 0-63", "a 0-63" }, 2, { SLURM_CPUS_ON_NODE = "12" })[1])
  end)
end)

describe("ranks without MPI", function()
  for ranks = 2, 4 do
    it(("move and add what they should, on %d"):format(ranks), function()
      local r = all_ended_well(script(ranks, "collectives", {}, { env = ranks == 3 and by_port() or by_file() }))
      for rank = 0, ranks - 1 do assert.matches("ok " .. rank .. "\n", r.err) end
      assert.is_nil(io.open(folder .. "/meet"), "the file is left behind")
    end)
  end

  it("train to the same bits as one process, with whole-number gradients", function()
    local function hash(ranks)
      return assert(all_ended_well(script(ranks, "steps", { "--steps=5" })).out:match("hash ([^\n]*)"))
    end
    local one = hash(1)
    for ranks = 2, 3 do assert.equal(one, hash(ranks)) end
  end)

  it("have the losses of one process in recipes/fortune.lua", function()
    local function losses(ranks)
      local out = ("%s/%d"):format(folder, ranks)
      all_ended_well(processes.run { ranks = ranks, env = by_port(), words = { "run", "recipes/fortune.lua",
        "--steps=10", "--n_layer=2", "--n_embd=64", "--n_head=2", "--sequence_len=32", "--batch_size=8",
        "--eval_every=0",
        "--precision=f32", "--seed=3", "--out=" .. out } })
      local list = {}
      for loss in command.read(out .. "/log.jsonl"):gmatch('"loss": ([%d.e+-]+)') do
        list[#list + 1] = tonumber(loss)
      end
      return list
    end
    local one, two = losses(1), losses(2)
    assert.equal(10, #two)
    for i = 1, 10 do assert.is_true(math.abs(one[i] - two[i]) < 1e-4, i) end
  end)

  it("stop between the same two steps when Ctrl-C reaches one, and end in good order", function()
    local r = processes.run { ranks = 2, words = { "run", "recipes/fortune.lua", "--steps=100000", "--n_layer=1",
      "--n_embd=32", "--n_head=2", "--sequence_len=16", "--batch_size=4", "--eval_every=0", "--out=" },
      env = function(rank)
        return by_file() .. (rank == 1 and " sh -c '(sleep 0.7; kill -INT $$) & exec \"$0\" \"$@\"'" or "")
      end }
    assert.same({ [0] = 0, 130 }, r.codes, r.err)
    assert.matches("fortune 3", r.out)
    assert.equal("lumuon: rank 1: interrupted\n", r.err)
  end)

  it("go on from a checkpoint that only rank 0 has", function()
    assert.equal("21 a;{}\n21 a;{}\n", all_ended_well(script(2, "checkpoints", { "--folder=" .. folder })).out)
  end)

  it("are refused where they run something else", function()
    local r = none_ended_well(script(2, "steps", {}, { words = function(rank)
      return { "run", "spec/dist/steps.lua", rank == 1 and "--steps=3" or nil }
    end }))
    assert.matches("the ranks differ in what they run: rank 0 has 'arguments: ', rank 1 has 'arguments: %-%-steps=3'",
      r.err)
  end)

  it("are refused where they are in different collectives", function()
    local r = none_ended_well(script(2, "mismatch", { "--what=kind" }))
    assert.matches("rank [01] in all_%l+ .-'eight' of 8 f32, rank [01] in all_%l+ .-'eight' of 8 f32", r.err)
  end)

  it("all end with a rank's error or exit", function()
    local r = none_ended_well(script(3, "mismatch", { "--what=error" }))
    assert.equal(1, r.codes[1])
    assert.matches("lumuon: rank 1: spec/dist/mismatch.lua:%d+: a recipe's own mistake", r.err)
    assert.is_true(r.seconds < 5, r.seconds)
    assert.equal(7, none_ended_well(script(2, "mismatch", { "--what=exit" })).codes[1])
  end)

  for phase, victim in pairs { before = 1, reduce = 2, gather = 0 } do
    it(("end within 5 s when rank %d is killed, and name it, phase: %s"):format(victim, phase), function()
      local r = none_ended_well(script(3, "steps", { "--die=" .. victim, "--at=kill-" .. phase }))
      assert.is_true(r.seconds < 5, ("%.1f s"):format(r.seconds))
      assert.matches("rank " .. victim .. " has ended before the program's end", r.err
        .. r.err:gsub("the connection to (rank %d) is gone", "%1 has ended before the program's end"))
    end)
  end

  it("end when a rank is killed while the others do arithmetic, and name it", function()
    local r = none_ended_well(script(2, "idle"))
    assert.is_true(r.seconds < 5, ("%.1f s"):format(r.seconds))
    assert.matches("rank 0: rank 1 has ended before the program's end", r.err)
  end)

  it("end with a rank's name when it stands still", function()
    local r = none_ended_well(script(3, "steps", { "--die=2", "--at=stop-gather", "--timeout=1" }, { leave = 2 }))
    assert.matches("has not finished within 1 s. Ranks that arrived: [01, ]+; missing: [0, ]*2%.", r.err)
    assert.is_true(r.seconds < 8, ("%.1f s"):format(r.seconds))
  end)
end)

describe("ranks that wait in different collectives, without MPI,", function()
  it("all name the one that they wait for at last", function()
    for what, said in pairs { stop = "does not answer", elsewhere = "is in no collective, its program elsewhere" } do
      local r = none_ended_well(script(4, "stuck", { "--what=" .. what }, { leave = 2 }))
      for _, rank in ipairs { 0, 1, 3 } do
        assert.matches(("rank %d: [^\n]*Rank 2 holds the others up: it %s%%. The job ends"):format(rank, said), r.err)
      end
      assert.is_nil(r.err:match("ank [013] holds"), r.err)
      assert.is_true(r.seconds < 8, r.seconds)
    end
  end)
end)

describe("the rendezvous", function()
  it("names the ranks that do not come", function()
    for _, env in ipairs { by_file(), by_port() } do
      local r = script(3, "mismatch", { "--what=late", "--start=0.5" }, { env = env, leave = 1 })
      assert.not_equal(0, r.codes[0])
      assert.not_equal(0, r.codes[2])
      assert.matches("rank 0: .-rendezvous: of 3 ranks these have not come to .- within 0.5 s: 1\n", r.err)
      assert.is_true(r.seconds < 5, r.seconds)
    end
  end)

  it("says where rank 0 was looked for in vain", function()
    local port = processes.port()
    local r = script(1, "mismatch", { "--what=late", "--start=0.5" }, { env = "RANK=2 WORLD_SIZE=3 " .. by_port(port) })
    assert.matches("rank 2 of 3 has not met rank 0 at tcp://127.0.0.1:" .. port .. " within 0.5 s; at last: "
      .. "127.0.0.1 port " .. port .. ": Connection refused", r.err)
    r = script(1, "mismatch", { "--what=late", "--start=0.5" }, { env = "RANK=2 WORLD_SIZE=3 " .. by_file() })
    assert.matches("at last: " .. folder .. "/meet: No such file or directory", r.err)
  end)

  it("refuses another number of ranks, and two of one number, with both sides' values", function()
    local r = none_ended_well(script(2, "collectives", {}, { env = function(rank)
      return by_file() .. (rank == 1 and " WORLD_SIZE=3" or "")
    end }))
    local _, count = r.err:gsub("rank 1 at [^\n]- counts 3 ranks, rank 0 counts 2", "")
    assert.equal(2, count, r.err)
    r = none_ended_well(script(3, "collectives", {}, { env = function(rank)
      return by_file() .. (rank == 2 and " RANK=1" or "")
    end }))
    assert.matches("rank 1: [^\n]-%d: rendezvous: two processes say that they are rank 1 of 3", r.err)
  end)

  it("turns strangers away, and the job goes on", function()
    local port = processes.port()
    local function call(and_then) -- as soon as rank 0 listens
      return ("for i in 1 2 3 4 5 6 7 8 9; do (exec 3<>/dev/tcp/127.0.0.1/%d && %s) 2>/dev/null && break; sleep 0.1; "
        .. "done"):format(port, and_then)
    end
    local http = call "printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && sleep 1"
    local silent = call "sleep 3"
    local function run(start, rank_1)
      return script(2, "mismatch", { "--start=" .. start }, { env = function(rank)
        return by_port(port) .. (rank == 1 and " bash -c " .. command.quote(rank_1) or "")
      end })
    end
    all_ended_well(run(20, ("{ %s; } & { %s; } & sleep 0.4; exec \"$0\" \"$@\""):format(http, silent)))
    assert.matches("within 0.8 s: 1; turned away: someone at 127.0.0.1 who is no rank", run(0.8, http).err)
  end)

  it("turns away ranks of another job", function()
    local r = none_ended_well(script(2, "mismatch", { "--start=0.5" }, { env = function(rank)
      return ("%s RANK= SLURM_PROCID=%d SLURM_STEP_NUM_TASKS=2 SLURM_JOB_ID=%d SLURM_STEP_ID=0"):format(by_file(), rank,
        7 + rank)
    end }))
    assert.matches("rank 0: .-within 0.5 s: 1; turned away: rank 1 at .- is of job '8.0', this is job '7.0'", r.err)
    assert.matches("rank 1: .-is of job '8.0', this is job '7.0'", r.err)
  end)

  it("takes no notice of a file that an earlier job left, or of anything else there", function()
    local old = "lumuon2\nkey 00112233445566778899aabbccddeeff\nport %d\nname %s\naddress 127.0.0.1\nend\n"
    for _, text in ipairs { old:format(1, "x"), old:format(99999, "x"), ("x"):rep(9999), "lumuon2\nkey zz\nport -1\n\0",
      "" } do
      command.write(folder .. "/meet", text)
      all_ended_well(script(2, "mismatch", { "--start=20" }, { env = function(rank)
        return by_file() .. (rank == 0 and " sh -c " .. command.quote("sleep 0.3; exec \"$0\" \"$@\"") or "")
      end }))
    end
  end)

  it("leaves a silent stranger at an old file's port for the new file's", function()
    local port = processes.port()
    command.write(folder .. "/meet", ("lumuon2\nkey 00112233445566778899aabbccddeeff\nport %d\nname x\n"
      .. "address 127.0.0.1\nend\n"):format(port))
    local stranger = ("%s run spec/dist/idle.lua --listen=%d & p=$!; sleep 0.7; "):format(command.quote(command.lumuon),
      port)
    local r = script(2, "mismatch", { "--start=20" }, { env = function(rank)
      return by_file() .. " sh -c " .. command.quote(rank == 0 and stranger .. "\"$0\" \"$@\"; c=$?; kill $p; exit $c"
        or "sleep 0.3; exec \"$0\" \"$@\"")
    end })
    all_ended_well(r)
  end)

  it("sees at once that a rank has died before it called the others", function()
    local port = processes.port()
    local hello = "printf 'lumuon2\\0\\2\\0\\0\\0\\3\\0\\0\\0'; head -c 208 /dev/zero"
    local dies = ("for i in 1 2 3 4 5 6 7 8 9; do exec 3<>/dev/tcp/127.0.0.1/%d && { %s; } >&3 && head -c 672 <&3 && "
      .. "break; sleep 0.1; done >/dev/null 2>&1; exit 9"):format(port, hello)
    local r = none_ended_well(script(3, "mismatch", { "--start=20" }, { env = function(rank)
      return by_port(port) .. (rank == 2 and " bash -c " .. command.quote(dies) or "")
    end }))
    assert.matches("rank 0: [^\n]*the connection to rank 2 is gone", r.err)
    assert.is_true(r.seconds < 5, r.seconds)
  end)

  it("is at a port that the system also gives to those who call and to those who listen", function()
    local few = "ip link set lo up; sysctl -qw net.ipv4.ip_local_port_range='40000 40005'; "
    if command.shell("unshare -n sh -c " .. command.quote(few)).code ~= 0 then
      pending("needs the right to make a network of its own")
      return
    end
    for _, port in ipairs { 40001, 40002 } do -- who listens is given odd ones, who calls even ones
      local function rank(n)
        return ("RANK=%d WORLD_SIZE=2 OMP_NUM_THREADS=1 %s %s run spec/dist/mismatch.lua --start=6"):format(n,
          by_port(port), command.quote(command.lumuon))
      end
      local both = ("%s %s & p=$!; sleep 1; %s; c=$?; wait $p && exit $c"):format(few, rank(1), rank(0))
      local r = command.shell("unshare -n sh -c " .. command.quote(both))
      assert.equal(0, r.code, r.err)
    end
  end)

  it("says that a port is taken", function()
    local port = processes.port()
    local listener = ("%s run spec/dist/idle.lua --listen=%d"):format(command.quote(command.lumuon), port)
    local r = command.shell(("%s & sleep 0.3; RANK=0 WORLD_SIZE=2 %s %s run spec/dist/mismatch.lua --what=start; c=$?; "
      .. "kill $!; exit $c"):format(listener, by_port(port), command.quote(command.lumuon)))
    assert.equal(1, r.code)
    assert.matches("rendezvous: rank 0 cannot listen on port " .. port .. ": Address already in use", r.err)
  end)
end)
