--- What scripts/gpu-check does, in the order that matters most if time runs out, and the JSON it writes:
-- bench/results/gpu-DEVICE-DATE.json with { gpu, driver, specs, sanitizer, determinism, first_step, cpu_start, bench,
-- peers, ratios, amx, seconds, skipped }. It is written anew after each part, and beside it, to the same name with
-- .log, all that the commands printed. The exit code is 0 if all that ran is as it should be.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local clock = require "lumuon.clock"
local report = require "lumuon.bench.report"
local ffi, C = lib.ffi, lib.C

local o = lm.options {
  lumuon = { default = "build/lumuon", help = "the executable" },
  nanochat = { default = "", help = "a checkout of nanochat to measure beside us" },
  python = { default = "python3", help = "a Python with torch and CUDA" },
  out = { default = "bench/results", help = "folder of the JSON" },
  minutes = { default = 8, min = 1, help = "what is not begun by then is left out, and said to be" },
  quick = { default = false, help = "tiny sizes, no sanitizer: to try the script itself" },
}

local begun = clock()
local result = { seconds = {}, skipped = {} }
local failures = {}
local folder = io.popen("mktemp -d"):read("*l")

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end
local lumuon = quoted(o.lumuon)

local function read(path)
  local file = io.open(path, "rb")
  if not file then return "" end
  local text = file:read("*a")
  file:close()
  return text
end

local function left() return 60 * o.minutes - (clock() - begun) end

local device = lib.C.lm_device_available(C.LM_CUDA) == 1 and ffi.string(C.lm_cuda_info())
if not device then
  io.stderr:write("gpu-check: ", ffi.string(C.lm_cuda_problem()), "\n")
  os.exit(1)
end
result.gpu, result.date = device, os.date("!%Y-%m-%d")
local base = ("%s/gpu-%s-%s"):format(o.out, device:match("^[^,]+"):lower():gsub("[^%w]+", "-"), result.date)
os.execute("mkdir -p " .. quoted(o.out))
local log = assert(io.open(base .. ".log", "w"))

local function save()
  result.seconds.all = clock() - begun
  result.failures = failures
  report.save(base .. ".json", result)
end

--- Run a command for at most `most` seconds: its exit code and all it printed.
local function shell(command, most)
  local path, at = folder .. "/said", clock()
  os.execute(("timeout -k 5 %d sh -c %s >%s 2>&1; echo $? >%s/code"):format(math.max(1, math.min(most, left())),
    quoted(command), path, folder))
  local code, text = tonumber(read(folder .. "/code")) or -1, read(path)
  log:write(("==== %s\n%s\n==== exit code %d after %.1f s\n\n"):format(command, text, code, clock() - at))
  log:flush()
  return code, text
end

--- What is not ours, with the libraries of the system in place of the bundle's.
local function foreign(command)
  local libraries = os.getenv("GPU_CHECK_LIBRARIES")
  if not libraries then return command end
  return ("env %s %s"):format(libraries == "" and "-u LD_LIBRARY_PATH" or "LD_LIBRARY_PATH=" .. quoted(libraries),
    command)
end

local function has(program) return (shell("command -v " .. quoted(program), 10)) == 0 end

local function last_lines(text, n)
  local lines = {}
  for line in text:gmatch("[^\n]+") do lines[#lines + 1] = line end
  return table.concat(lines, "\n", math.max(1, #lines - n + 1))
end

--- One part of the check: f() returns its figures; it is left out where less than `need` seconds are left.
local function part(name, need, f)
  if left() < need then
    result.skipped[name] = ("no time: %d s were left"):format(math.max(0, left()))
    print(("%-24s left out, %s"):format(name, result.skipped[name]))
    return
  end
  local at = clock()
  local ok, figures, text = pcall(f)
  result.seconds[name] = clock() - at
  if not ok then
    failures[#failures + 1] = (name .. ": " .. tostring(figures)):sub(1, 2000)
    figures, text = { error = tostring(figures):sub(1, 400) }, "FAILED"
  elseif figures == nil then
    result.skipped[name], text = text, "left out: " .. text
  end
  result[name] = figures
  print(("%-24s %6.1f s  %s"):format(name, result.seconds[name], text or ""))
  io.stdout:flush()
  save()
end

local function expect(condition, ...)
  if not condition then failures[#failures + 1] = (...):format(select(2, ...)):sub(1, 2000) end
  return condition
end

local TRAIN = "run recipes/fortune.lua --device=cuda --data=README.md --n_layer=2 --n_head=2 --n_embd=64"
  .. " --sequence_len=64 --batch_size=4 --eval_every=0 --seed=3 "

-- ---- parts ---------------------------------------------------------------------------------------------------

--- Each table of specs in a process of its own, told by the op: a kernel's fault ends the GPU for its process.
local function specs_one_by_one()
  local tables = {}
  for table_name in read("spec/gpu_spec.lua"):match("TABLES = (%b{})"):gmatch('"([%w_]+)"') do
    local code, text = shell(("LUMUON_CUDA_SYNC=1 %s test --tags=gpu --filter=%s spec/gpu_spec.lua"):format(lumuon,
      quoted("#gpu: " .. table_name .. " ")), 40)
    tables[table_name] = code == 0 and "passed" or text:match("a kernel faulted[^\n]*") or ("exit code %d"):format(code)
  end
  return tables
end

local function specs()
  local code, text = shell(("%s test --tags=gpu spec/gpu_spec.lua spec/gpu_machine_spec.lua"):format(lumuon), 150)
  local passed, failed = text:match("(%d+) passed, (%d+) failed")
  local figures = { passed = tonumber(passed), failed = tonumber(failed), exit_code = code }
  if not expect(code == 0 and passed, "specs: exit code %d\n%s", code, last_lines(text, 40))
    and (not passed or text:find("cannot be used any more", 1, true)) then
    figures.tables = specs_one_by_one()
  end
  return figures, ("%s passed, %s failed"):format(passed or "?", failed or "?")
end

local function losses(path)
  local list = {}
  for loss in read(path .. "/log.jsonl"):gmatch('"loss": ([^,]+)') do list[#list + 1] = loss end
  return list
end

--- Two runs give the same losses to the last digit that the log has.
local function determinism()
  local runs = {}
  for i = 1, 2 do
    local code, text = shell(("%s %s --steps=20 --dtype=bf16 --out=%s/run%d"):format(lumuon, TRAIN, folder, i), 60)
    if code ~= 0 then
      local _, named = shell(("LUMUON_CUDA_SYNC=1 %s %s --steps=1 --dtype=bf16"):format(lumuon, TRAIN), 60)
      error(("training: exit code %d\n%s\nwaiting after each op:\n%s"):format(code, last_lines(text, 12),
        last_lines(named, 6)), 0)
    end
    runs[i] = losses(folder .. "/run" .. i)
  end
  local same = #runs[1] == 20 and table.concat(runs[1], " ") == table.concat(runs[2], " ")
  expect(same, "determinism: two runs differ")
  return { same = same, steps = #runs[1], first_loss = tonumber(runs[1][1]), last_loss = tonumber(runs[1][20]) },
    same and "two runs are the same" or "TWO RUNS DIFFER"
end

--- From the start of the command to the end of the first training step, of a GPT as the benchmarks train it.
local function first_step()
  local path = folder .. "/first.lua"
  local file = assert(io.open(path, "w"))
  file:write(([[
    local run = require("lumuon.bench.session").open("d%d", { "--device=cuda", "--dtype=bf16", "--sequence_len=%d",
      "--batch_size=%d", "--vocab_size=%d" })
    print("loss", run.train_step())]]):format(unpack(o.quick and { 2, 64, 2, 256 } or { 12, 1024, 32, 32768 })))
  file:close()
  local at = clock()
  local code, text = shell(("%s run %s"):format(lumuon, quoted(path)), 60)
  local seconds = clock() - at
  if code ~= 0 then error(("the first step: exit code %d\n%s"):format(code, last_lines(text, 12)), 0) end
  return { seconds = seconds, loss = tonumber(text:match("loss%s+(%S+)")) }, ("after %.2f s"):format(seconds)
end

--- The binary trains on the CPU where there is no GPU to be seen.
local function cpu_start()
  local command = ("CUDA_VISIBLE_DEVICES= %s %s --steps=3"):format(lumuon, TRAIN:gsub("device=cuda", "device=cpu"))
  local code, text = shell(command, 60)
  expect(code == 0, "on the CPU: exit code %d\n%s", code, last_lines(text, 12))
  return { exit_code = code }, code == 0 and "trains without a GPU" or "FAILED"
end

local function sanitizer()
  if o.quick then return nil, "not in --quick" end
  local found, said = {}, {}
  local program = has("compute-sanitizer") and "compute-sanitizer" or "/usr/local/cuda/bin/compute-sanitizer"
  if not has(program) then return nil, "compute-sanitizer is not installed" end
  local training = TRAIN .. "--steps=1 --dtype=bf16"
  local symmetric = ("test --tags=gpu --filter=%s spec/gpu_spec.lua"):format(quoted("#gpu: symmetric "))
  for _, case in ipairs { { "memcheck", "memcheck", training, 90 }, { "racecheck", "racecheck", training, 120 },
    { "memcheck of symmetric products", "memcheck", symmetric, 60 },
    { "racecheck of symmetric products", "racecheck", symmetric, 60 } } do
    local what, tool, command, most = unpack(case)
    if left() < 15 then
      found[what] = { skipped = "no time" }
    else
      local options = tool == "memcheck" and "--report-api-errors no " or "" -- libraries try what is not there
      local code, text = shell(("%s --tool %s %s--error-exitcode 99 %s %s"):format(program, tool, options, lumuon,
        command), most)
      local summary = text:match("=+ (%u[%u ]+SUMMARY: [^\n]+)")
      if code == 124 and not summary then -- out of time: nothing is known
        found[what] = { skipped = ("not done after %d s"):format(most) }
      else
        found[what] = { exit_code = code, summary = summary or last_lines(text, 4) }
        expect(code == 0, "%s: exit code %d\n%s", what, code, last_lines(text, 30))
      end
    end
    said[#said + 1] = what .. ": " .. (found[what].summary or found[what].skipped)
  end
  return found, table.concat(said, "; ")
end

--- JSON as Lua, for files that our own programs wrote: lists, objects, numbers, strings, true, false, null.
local function decode(text)
  local at = 1
  local value
  local function skip() at = text:match("^%s*()", at) end
  local function list(close, item)
    local out = {}
    at = at + 1
    skip()
    if text:sub(at, at) == close then at = at + 1 return out end
    repeat
      item(out)
      skip()
      local c = text:sub(at, at)
      at = at + 1
    until c ~= ","
    return out
  end
  local function string_()
    local s, after = text:match('^"(.-[^\\])"()', at)
    if not s then s, after = "", text:match('^""()', at) end
    at = after
    return (s:gsub("\\(.)", { n = "\n", t = "\t", ['"'] = '"', ["\\"] = "\\" }))
  end
  function value()
    skip()
    local c = text:sub(at, at)
    if c == "{" then
      return list("}", function(out)
        skip()
        local key = string_()
        skip()
        at = at + 1
        out[key] = value()
      end)
    elseif c == "[" then
      return list("]", function(out) out[#out + 1] = value() end)
    elseif c == '"' then
      return string_()
    end
    local word
    word, at = text:match("^([%w%.%+%-]+)()", at)
    if word == "true" or word == "false" then return word == "true" end
    return tonumber(word)
  end
  return value()
end

local QUICK = " --depths=2 --train_depth=2 --sequence_lens=64 --batch_tokens=128 --vocab_size=256 --elements=4096"
  .. " --product=64 --scale=8 --runs=3"

local function bench()
  local code, text = shell(("%s bench gpu --json=%s/bench.json%s"):format(lumuon, folder, o.quick and QUICK or ""), 180)
  local figures = read(folder .. "/bench.json") -- written after each figure
  if figures == "" then error(("bench gpu: exit code %d\n%s"):format(code, last_lines(text, 12)), 0) end
  expect(code == 0, "bench gpu: exit code %d\n%s", code, last_lines(text, 12))
  print((text:gsub("[^\n]+", "    %0")))
  return decode(figures)
end

local function peers()
  if o.nanochat == "" then return nil, "no --nanochat=FOLDER was given" end
  local code, text = shell(foreign(("%s bench/peers/gpu.py --nanochat=%s --json=%s/peers.json"):format(quoted(o.python),
    quoted(o.nanochat), folder)), 240)
  local figures = read(folder .. "/peers.json") -- written after each figure
  if figures == "" then error(("bench/peers/gpu.py: exit code %d\n%s"):format(code, last_lines(text, 12)), 0) end
  figures = decode(figures)
  figures.exit_code = code
  expect(code == 0 or code == 124, "bench/peers/gpu.py: exit code %d\n%s", code, last_lines(text, 12))
  return figures, code == 0 and "" or code == 124 and "out of time, with some figures" or "failed, with some figures"
end

--- How many times faster than the peers.
local function ratios()
  local list, b, p = {}, result.bench or {}, result.peers or {}
  local function put(name, peer, own) if peer and own then list[name] = peer / own end end
  for _, row in ipairs(b.optimizer or {}) do
    put("optimizer_d" .. row.depth, (p["optimizer_d" .. row.depth] or {}).ms, row.ms)
  end
  for _, row in ipairs(b.training or {}) do
    local peer = p["training_" .. row.sequence_len] or {}
    put("training_" .. row.sequence_len, peer.ms, row.ms)
    put("first_step_" .. row.sequence_len, peer.first_step_s, row.first_step_s)
  end
  put("first_step_from_start", (p.training_1024 or {}).from_start_s, (result.first_step or {}).seconds)
  put("adamw", (p.adamw_fused or {}).ms, (b.adamw or {}).ms)
  local text = {}
  for name, x in pairs(list) do text[#text + 1] = ("%s %.2fx"):format(name, x) end
  table.sort(text)
  return list, table.concat(text, "  ")
end

--- Muon's products on the machine's CPU, where that has AMX: no machine without a GPU at hand has.
local function amx()
  if not ffi.string(C.lm_cpu_features()):find("amx_bf16", 1, true) then return nil, "the CPU has no AMX" end
  local code, text = shell(lumuon .. " test --filter=amx_bf16 spec/muon_paths_spec.lua", 60)
  expect(code == 0, "specs of AMX: exit code %d\n%s", code, last_lines(text, 30))
  local figures, said = { specs = last_lines(text, 1) }, {}
  for _, shape in ipairs { "48,768,768", "12,3072,768", "12,768,3072" } do
    for _, path in ipairs { "auto", "written" } do
      local json = folder .. "/amx.json"
      code, text = shell(("%s bench optim --shape=%s --precision=bf16 --path=%s --json=%s"):format(lumuon,
        o.quick and "1,64,64" or shape, path, json), 40)
      if code ~= 0 then error(("bench optim: exit code %d\n%s"):format(code, last_lines(text, 12)), 0) end
      local run = decode(read(json))
      figures[shape .. " " .. path] = { group = run.groups[1], limits = run.limits, threads = run.threads }
      said[#said + 1] = ("%s %.1f ms, %.0f%%"):format(run.groups[1].path, run.groups[1].ms,
        100 * run.groups[1].limit_share)
    end
  end
  return figures, table.concat(said, "; ")
end

-- ---- all of it -----------------------------------------------------------------------------------------------

result.machine = report.machine()
local _, driver = shell(foreign("nvidia-smi --query-gpu=driver_version,clocks.max.sm,power.limit "
  .. "--format=csv,noheader"), 20)
result.driver = driver:match("^[^\n]*")
print(result.gpu)

part("specs", 5, specs)
part("determinism", 10, determinism)
part("first_step", 5, first_step)
part("cpu_start", 5, cpu_start)
part("bench", 20, bench)
part("peers", 30, peers)
part("ratios", 0, ratios)
part("amx", 30, amx)
part("sanitizer", 20, sanitizer)

save()
log:close()
os.execute("rm -rf " .. quoted(folder))
print(("\n%s.json and .log  (%.0f s)"):format(base, result.seconds.all))
for _, failure in ipairs(failures) do print("NOT AS IT SHOULD BE: " .. failure) end
os.exit(#failures == 0 and 0 or 1)
