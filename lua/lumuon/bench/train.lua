--- `lumuon bench train`: a training step in tokens a second, how much of it is Lua, and PyTorch's beside it.
--
-- The step of a recipe, --recipe=FILE, or of nanochat's GPT at a depth on random tokens, --model=d4.
local cli = require "lumuon.cli"
local lib = require "lumuon.lib"
local train = require "lumuon.train"
local options = require "lumuon.options"
local peers = require "lumuon.bench.peers"
local report = require "lumuon.bench.report"
local C, median = lib.C, report.median

local M = { help = "a training step: tokens a second, the share of Lua, PyTorch beside it" }

local own = {
  recipe = { default = "recipes/fortune.lua", help = "a recipe that returns a session with train_step" },
  model = { default = "", help = "nanochat's GPT of this depth, d4, d12, ..., instead of a recipe" },
  warmup = { default = 20, min = 1, help = "steps before measuring: LuaJIT compiles in them" },
  count = { default = 20, min = 5, help = "steps measured" },
  json = { default = "", help = "a file for the figures" },
  peers = peers.options.peers, python = peers.options.python,
}

--- The recipe's session, made with the options that are not ours.
local function open_recipe(path, rest)
  local lm = require "lumuon"
  lm.interactive = true
  local chunk, message = cli.load_script(path, rest)
  if not chunk then options.fail("bench train: " .. message) end
  local session = chunk()
  if type(session) ~= "table" or type(session.train_step) ~= "function" or not session.tokens_per_step then
    options.fail(("bench train: %s returns no session with train_step and tokens_per_step"):format(path))
  end
  return session
end

-- ---- PyTorch ------------------------------------------------------------------------------------------------

--- nanochat's GPT as the session has it, compiled; nil and why not.
local function start_peer(o, session)
  if o.peers == "" then return nil, "no --peers=FOLDER was given" end
  local config, given = session.model and session.model.config, session.options or {}
  if not config or not given.batch_size or not given.sequence_len then
    return nil, "the session has no model.config, options.batch_size and options.sequence_len"
  end
  if config.preset ~= "head" then return nil, "nanochat's checkout has preset head, the model " .. config.preset end
  local arguments = { threads = C.lm_threads(), precision = config.dtype, batch_size = given.batch_size,
    sequence_len = given.sequence_len, window_pattern = config.window_pattern }
  for _, name in ipairs { "n_layer", "n_embd", "n_head", "n_kv_head", "vocab_size" } do
    arguments[name] = config[name]
  end
  local server, reason = peers.start("train", o, arguments)
  if not server then return nil, reason end
  local seconds
  seconds, reason = server:number("model")
  if seconds then return server end
  server:close()
  return nil, reason
end

--- What the peer's steps came to; ms: its times.
local function peer_figures(server, ms, tokens)
  local memory = server:ask("memory") or {}
  local step = median(ms)
  return { name = "nanochat's GPT and MuonAdamW, torch.compile", version = server.version, steps = #ms, ms = step,
    tokens_per_second = tokens / step * 1e3, resident_peak_bytes = tonumber(memory[1]),
    resident_before_bytes = tonumber(memory[2]) }
end

-- ---- measuring -----------------------------------------------------------------------------------------------

--- o.count steps of the session, after o.warmup, the peer's between them.
local function measure(o, session, server)
  for i = 1, o.warmup do session.train_step(i - 1) end
  local allocs = C.lm_memory_system_allocs()
  local total, lua, share, peer, why = {}, {}, {}, {}, nil
  for i = 1, o.count do
    local seconds, in_engine = lib.measure(session.train_step, o.warmup + i - 1)
    total[i], lua[i] = seconds, seconds - in_engine
    share[i] = lua[i] / seconds
    if server then
      local ms, reason = server:number("step")
      peer[#peer + 1], why = ms, why or reason
      server.settle()
    end
  end
  allocs = C.lm_memory_system_allocs() - allocs
  local step = median(total)
  table.sort(total)
  local figures = { bench = "train", machine = report.machine(), threads = C.lm_threads(), steps = o.count,
    tokens_per_step = session.tokens_per_step, ms = step * 1e3, fastest_ms = total[1] * 1e3,
    slowest_ms = total[#total] * 1e3, tokens_per_second = session.tokens_per_step / step, lua_ms = median(lua) * 1e3,
    lua_share = median(share), peak_bytes = C.lm_memory_peak(), resident_peak_bytes = report.resident_peak(),
    system_allocs = allocs }
  if session.model and session.model.config then figures.dtype = session.model.config.dtype end
  if session.model and session.model.flops_per_token then
    figures.gflop_per_s = session.model:flops_per_token() * figures.tokens_per_second / 1e9
  end
  if #peer == o.count then figures.peers = { peer_figures(server, peer, session.tokens_per_step) } end
  if why then figures.peers = { absent = "its steps failed: " .. why } end
  return figures
end

local function show(name, figures)
  local machine, rows = figures.machine, {}
  rows[1] = { "step", ("%.1f ms (%.1f to %.1f)"):format(figures.ms, figures.fastest_ms, figures.slowest_ms) }
  rows[2] = { "tokens a second", train.count(figures.tokens_per_second) }
  rows[3] = { "arithmetic", figures.gflop_per_s
    and ("%.0f GFLOP/s (6 a weight and token, and attention)"):format(figures.gflop_per_s) or "-" }
  rows[4] = { "in Lua", ("%.2f ms, %.2f %% of the step"):format(figures.lua_ms, figures.lua_share * 100) }
  rows[5] = { "memory", ("%.0f MB live at most, %.0f MB resident; %d blocks asked of the system while measured"):format(
    figures.peak_bytes / 1e6, figures.resident_peak_bytes / 1e6, figures.system_allocs) }
  rows[6] = { "machine", ("%s, %s kernels, %d threads, oneDNN %s"):format(machine.cpu, machine.kernels, machine.threads,
    machine.onednn) }
  for _, peer in ipairs(figures.peers) do
    rows[#rows + 1] = { peer.version, ("%.1f ms, %s tokens a second: ours are %.2f times that"):format(peer.ms,
      train.count(peer.tokens_per_second), peer.ms / figures.ms) }
    if peer.resident_peak_bytes then
      rows[#rows + 1] = { "its memory", ("%.0f MB resident at most, %.0f MB of them before there was a model"):format(
        peer.resident_peak_bytes / 1e6, peer.resident_before_bytes / 1e6) }
    end
  end
  if figures.peers.absent then rows[#rows + 1] = { "peers", "none: " .. figures.peers.absent } end
  train.print_table(("training step of %s, median of %d"):format(name, figures.steps), rows)
end

--- @param args options of the measurement; all others go to the recipe or the model
-- @return exit code
function M.run(args)
  local ours, rest = {}, {}
  local list = rest
  for _, word in ipairs(args) do -- a word without dashes is the value of the one before it
    if word == "-h" or word:sub(1, 2) == "--" then list = own[word:match("^%-%-([%w_]+)")] and ours or rest end
    list[#list + 1] = word
  end
  for _, word in ipairs(rest) do
    if word == "--help" or word == "-h" then -- ours, and then what the recipe or the model prints of its own
      print(options.help(own, "bench train") .. "\n\nAll other options are the recipe's or the model's:\n")
      break
    end
  end
  local o = options(own, ours, "bench train")
  report.check(o.json)
  local name = o.model ~= "" and o.model or o.recipe
  local session = o.model ~= "" and require("lumuon.bench.session").open(o.model, rest) or open_recipe(o.recipe, rest)
  local server, absent = start_peer(o, session)
  local figures = measure(o, session, server)
  if server then server:close() end
  figures.peers = figures.peers or { absent = absent }
  figures[o.model ~= "" and "model" or "recipe"] = name
  show(name, figures)
  report.save(o.json, figures)
  return 0
end

return M
