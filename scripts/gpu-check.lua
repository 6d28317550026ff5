--- What scripts/gpu-check does, in the order that matters most if time runs out, and the JSON it writes:
-- bench/results/gpu-DEVICE-DATE.json with { gpu, driver, specs, sanitizer, determinism, cpu_start, bench, peers,
-- ratios, seconds, skipped }. The exit code is 0 if all that ran is as it should be.
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

--- Run a command for at most `most` seconds: its exit code and all it printed.
local function shell(command, most)
  local path = folder .. "/said"
  os.execute(("timeout %d sh -c %s >%s 2>&1; echo $? >%s/code"):format(math.max(1, math.min(most, left())),
    quoted(command), path, folder))
  return tonumber(read(folder .. "/code")) or -1, read(path)
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
end

local function expect(condition, ...)
  if not condition then failures[#failures + 1] = (...):format(select(2, ...)):sub(1, 2000) end
  return condition
end

local TRAIN = "run recipes/fortune.lua --device=cuda --data=README.md --n_layer=2 --n_head=2 --n_embd=64"
  .. " --sequence_len=64 --batch_size=4 --eval_every=0 --seed=3 "

-- ---- parts ---------------------------------------------------------------------------------------------------

local function specs()
  local code, text = shell(("%s test --tags=gpu spec/gpu_spec.lua spec/gpu_machine_spec.lua"):format(lumuon), 150)
  local passed, failed = text:match("(%d+) passed, (%d+) failed")
  expect(code == 0 and passed, "specs: exit code %d\n%s", code, last_lines(text, 40))
  return { passed = tonumber(passed), failed = tonumber(failed), exit_code = code },
    ("%s passed, %s failed"):format(passed or "?", failed or "?")
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
    if code ~= 0 then error(("training: exit code %d\n%s"):format(code, last_lines(text, 12)), 0) end
    runs[i] = losses(folder .. "/run" .. i)
  end
  local same = #runs[1] == 20 and table.concat(runs[1], " ") == table.concat(runs[2], " ")
  expect(same, "determinism: two runs differ")
  return { same = same, steps = #runs[1], first_loss = tonumber(runs[1][1]), last_loss = tonumber(runs[1][20]) },
    same and "two runs are the same" or "TWO RUNS DIFFER"
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
  local found = {}
  local program = has("compute-sanitizer") and "compute-sanitizer" or "/usr/local/cuda/bin/compute-sanitizer"
  if not has(program) then return nil, "compute-sanitizer is not installed" end
  for _, tool in ipairs { "memcheck", "racecheck" } do
    local code, text = shell(("%s --tool %s --error-exitcode 99 %s %s --steps=1 --dtype=bf16"):format(program, tool,
      lumuon, TRAIN), tool == "memcheck" and 90 or 120)
    found[tool] = { exit_code = code, summary = text:match("=+ (%u[%u ]+SUMMARY: [^\n]+)") or last_lines(text, 4) }
    expect(code == 0, "%s: exit code %d\n%s", tool, code, last_lines(text, 30))
  end
  return found, ("memcheck: %s; racecheck: %s"):format(found.memcheck.summary, found.racecheck.summary)
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
  if code ~= 0 then error(("bench gpu: exit code %d\n%s"):format(code, last_lines(text, 12)), 0) end
  print((text:gsub("[^\n]+", "    %0")))
  return decode(read(folder .. "/bench.json"))
end

local function peers()
  if o.nanochat == "" then return nil, "no --nanochat=FOLDER was given" end
  local code, text = shell(("%s bench/peers/gpu.py --nanochat=%s --json=%s/peers.json"):format(quoted(o.python),
    quoted(o.nanochat), folder), 240)
  if code ~= 0 then error(("bench/peers/gpu.py: exit code %d\n%s"):format(code, last_lines(text, 12)), 0) end
  return decode(read(folder .. "/peers.json"))
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
  put("adamw", (p.adamw_fused or {}).ms, (b.adamw or {}).ms)
  local text = {}
  for name, x in pairs(list) do text[#text + 1] = ("%s %.2fx"):format(name, x) end
  table.sort(text)
  return list, table.concat(text, "  ")
end

-- ---- all of it -----------------------------------------------------------------------------------------------

if lib.C.lm_device_available(C.LM_CUDA) == 0 then
  io.stderr:write("gpu-check: ", ffi.string(C.lm_cuda_problem()), "\n")
  os.exit(1)
end
result.gpu = ffi.string(C.lm_cuda_info())
result.date = os.date("!%Y-%m-%d")
result.machine = report.machine()
local _, driver = shell("nvidia-smi --query-gpu=driver_version,clocks.max.sm,power.limit --format=csv,noheader", 20)
result.driver = driver:match("^[^\n]*")
print(result.gpu)

part("specs", 5, specs)
part("determinism", 10, determinism)
part("cpu_start", 5, cpu_start)
part("bench", 20, bench)
part("peers", 30, peers)
part("ratios", 0, ratios)
part("sanitizer", 20, sanitizer)

local name = ("%s/gpu-%s-%s.json"):format(o.out, result.gpu:match("^[^,]+"):lower():gsub("[^%w]+", "-"), result.date)
os.execute("mkdir -p " .. quoted(o.out))
result.seconds.all = clock() - begun
result.failures = failures
report.save(name, result)
os.execute("rm -rf " .. quoted(folder))
print(("\n%s  (%.0f s)"):format(name, result.seconds.all))
for _, failure in ipairs(failures) do print("NOT AS IT SHOULD BE: " .. failure) end
os.exit(#failures == 0 and 0 or 1)
