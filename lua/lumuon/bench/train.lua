--- `lumuon bench train`: the training step of a recipe, in tokens a second, and how much of it is Lua.
local cli = require "lumuon.cli"
local lib = require "lumuon.lib"
local train = require "lumuon.train"
local options = require "lumuon.options"
local report = require "lumuon.bench.report"
local C, median = lib.C, report.median

local M = { help = "a recipe's training step: tokens a second, and the share of Lua" }

local own = {
  recipe = { default = "recipes/fortune.lua", help = "a recipe that returns a session with train_step" },
  warmup = { default = 20, min = 1, help = "steps before measuring: LuaJIT compiles in them" },
  count = { default = 20, min = 5, help = "steps measured" },
  json = { default = "", help = "a file for the figures" },
}

--- The recipe's session, made with the options that are not ours.
local function open_session(path, rest)
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

--- @param args options of the measurement; all others go to the recipe
-- @return exit code
function M.run(args)
  local ours, rest = {}, {}
  for _, word in ipairs(args) do
    local list = own[word:match("^%-%-(%w+)")] and ours or rest
    list[#list + 1] = word
  end
  local o = options(own, ours)
  local session = open_session(o.recipe, rest)
  for i = 1, o.warmup do session.train_step(i - 1) end
  local allocs = C.lm_memory_system_allocs()
  local total, lua, share = {}, {}, {}
  for i = 1, o.count do
    local seconds, in_engine = lib.measure(session.train_step, o.warmup + i - 1)
    total[i], lua[i] = seconds, seconds - in_engine
    share[i] = lua[i] / seconds
  end
  allocs = C.lm_memory_system_allocs() - allocs
  local step, machine = median(total), report.machine()
  local figures = {
    bench = "train", recipe = o.recipe, machine = machine, steps = o.count,
    tokens_per_step = session.tokens_per_step, ms = step * 1e3, tokens_per_second = session.tokens_per_step / step,
    lua_ms = median(lua) * 1e3, lua_share = median(share), peak_bytes = C.lm_memory_peak(), system_allocs = allocs,
  }
  if session.model and session.model.flops_per_token then
    figures.gflop_per_s = session.model:flops_per_token() * figures.tokens_per_second / 1e9
  end
  table.sort(total)
  train.print_table(("training step of %s, median of %d"):format(o.recipe, o.count), {
    { "step", ("%.1f ms (%.1f to %.1f)"):format(figures.ms, total[1] * 1e3, total[#total] * 1e3) },
    { "tokens a second", train.count(figures.tokens_per_second) },
    { "arithmetic", figures.gflop_per_s
      and ("%.0f GFLOP/s (6 a weight and token, and attention)"):format(figures.gflop_per_s) or "-" },
    { "in Lua", ("%.2f ms, %.2f %% of the step"):format(figures.lua_ms, figures.lua_share * 100) },
    { "memory", ("%.0f MB live at most; %d blocks asked of the system while measured"):format(
      figures.peak_bytes / 1e6, allocs) },
    { "machine", ("%s, %s kernels, %d threads, oneDNN %s"):format(machine.cpu, machine.kernels, machine.threads,
      machine.onednn) },
  })
  report.save(o.json, figures)
  return 0
end

return M
