--- `lumuon bench train`: the training step of a recipe, in tokens a second, and how much of it is Lua.
local lib = require "lumuon.lib"
local train = require "lumuon.train"
local options = require "lumuon.options"
local C, ffi = lib.C, lib.ffi

local M = { help = "a recipe's training step: tokens a second, and the share of Lua" }

local own = {
  recipe = { default = "recipes/fortune.lua", help = "a recipe that returns a session with train_step" },
  warmup = { default = 20, min = 1, help = "steps before measuring: LuaJIT compiles in them" },
  count = { default = 20, min = 5, help = "steps measured" },
  json = { default = "", help = "a file for the figures" },
}

local function median(values)
  table.sort(values)
  local n = #values
  return n % 2 == 1 and values[(n + 1) / 2] or (values[n / 2] + values[n / 2 + 1]) / 2
end

--- The recipe's session, made with the options that are not ours.
local function open_session(path, rest)
  local lm = require "lumuon"
  lm.interactive = true
  rawset(_G, "arg", rest)
  rest[0] = path
  package.path = (path:match("^(.*)/[^/]*$") or ".") .. "/?.lua;" .. package.path
  local chunk, message = loadfile(path)
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
  local ms, lua_ms, lua_share = median(total) * 1e3, median(lua) * 1e3, median(share)
  local speed = session.tokens_per_step / ms * 1e3
  local flops = session.model and session.model.flops_per_token and session.model:flops_per_token() * speed
  train.print_table(("training step of %s, median of %d"):format(o.recipe, o.count), {
    { "step", ("%.1f ms (%.1f to %.1f)"):format(ms, total[1] * 1e3, total[#total] * 1e3) },
    { "tokens a second", train.count(speed) },
    { "arithmetic", flops and ("%.0f GFLOP/s (6 a weight and token, and attention)"):format(flops / 1e9) or "-" },
    { "in Lua", ("%.2f ms, %.2f %% of the step"):format(lua_ms, lua_share * 100) },
    { "memory", ("%.0f MB live at most; %d blocks asked of the system while measured"):format(
      C.lm_memory_peak() / 1e6, allocs) },
    { "threads", C.lm_threads() },
    { "kernels", ffi.string(C.lm_cpu_variant()) },
  })
  if o.json ~= "" then
    local file, message = io.open(o.json, "w")
    if not file then options.fail("bench train: cannot write " .. message) end
    file:write(('{"recipe": "%s", "tokens_per_step": %d, "ms": %.4g, "tokens_per_second": %.6g, "flops_per_second": '
      .. '%.6g, "lua_ms": %.4g, "lua_share": %.4g, "peak_bytes": %.0f, "system_allocs": %d, "threads": %d, '
      .. '"kernels": "%s"}\n'):format(o.recipe, session.tokens_per_step, ms, speed, flops or 0, lua_ms, lua_share,
      C.lm_memory_peak(), allocs, C.lm_threads(), ffi.string(C.lm_cpu_variant())))
    file:close()
  end
  return 0
end

return M
