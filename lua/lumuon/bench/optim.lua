--- `lumuon bench optim`: the optimizer step, group by group, against the machine's limits and against peers.
--
-- AdamW's limit is the better of a copy and a scaling in place beside it, in bytes a second; Muon's is the rate of
-- multiply-adds on registers in the precision of its products, in operations that its products executed.
local lib = require "lumuon.lib"
local options = require "lumuon.options"
local compare = require "lumuon.bench.compare"
local group_table = require "lumuon.bench.groups"
local limits = require "lumuon.bench.limits"
local peers = require "lumuon.bench.peers"
local report = require "lumuon.bench.report"
local steps = require "lumuon.bench.steps"
local ffi, C, call = lib.ffi, lib.C, lib.call

local M = { help = "the optimizer step per group: ms, share of the machine's limit, peers beside it" }

local own = {
  model = { default = "", help = "groups of nanochat's GPT of this depth, d12, ...; d4 without --shape" },
  shape = { default = "", help = "one Muon bank K,rows,cols instead of a model's groups" },
  precision = { default = "auto", choices = { "auto", "f32", "bf16" }, help = "of Muon's products; auto: the faster" },
  path = { default = "auto", choices = { "auto", "written", "halves", "gram" }, help = "of Muon's products" },
  runs = { default = 7, min = 5, max = 1000, help = "timed runs of each" },
  threads = { default = 0, min = 0, max = 1024, help = "0: as many as there are" },
  json = { default = "", help = "write the figures to this file" },
  peers = peers.options.peers, python = peers.options.python,
}

local function parse_shape(text)
  local count, rows, cols = text:match("^(%d+),(%d+),(%d+)$")
  if not count then options.fail(("--shape=%s: expected three sizes, K,rows,cols"):format(text)) end
  count, rows, cols = tonumber(count), tonumber(rows), tonumber(cols)
  if math.min(count, rows, cols) < 1 then options.fail(("--shape=%s: sizes are counted from 1"):format(text)) end
  return { name = "shape", kind = "muon", count = count, sizes = { rows, cols } }
end

--- Fill in which share of the machine's limit each row reached.
local function add_shares(rows, limit)
  for _, row in ipairs(rows) do
    if row.kind == "muon" then
      row.limit_share = row.operations / row.ms / 1e6 / limit.products_gflop_per_s
    else
      local rate = row.bytes / row.ms / 1e6
      row.copy_share = rate / row.memory.copy_gb_per_s
      row.limit_share = math.min(row.copy_share, rate / row.memory.in_place_gb_per_s)
    end
  end
end

-- ---- showing -------------------------------------------------------------------------------------------------

local function show_rows(rows, list)
  local by_name = {}
  local head = ("\n%-14s %-6s %-17s %9s %6s %7s"):format("group", "kind", "shape", "ms", "limit", "B/param")
  for k, peer in ipairs(list) do
    head = head .. ("  %9s %7s"):format(peer.name:match("^[%w%.]+"), "")
    by_name[k] = {}
    for _, row in ipairs(peer.groups) do by_name[k][row.name] = row end
  end
  print(head .. "  path")
  for _, row in ipairs(rows) do
    local line = ("%-14s %-6s %-17s %9.3f %5.0f%% %7.1f"):format(row.name, row.kind,
      table.concat(row.shape, " x "), row.ms, 100 * row.limit_share, row.bytes_per_parameter)
    for k in ipairs(list) do
      local peer = by_name[k][row.name]
      line = line .. (peer and ("  %9.3f %6.2fx"):format(peer.ms, peer.ms / row.ms) or ("  %9s %7s"):format("-", ""))
    end
    print(line .. "  " .. row.path)
  end
end

local function megabytes(bytes) return ("%.1f MB"):format(bytes / 1e6) end

local function show_totals(figures)
  print(("\nall groups  %.2f ms; opt:step(), with its look for NaN, %.2f ms"):format(figures.total_ms, figures.step_ms))
  for _, peer in ipairs(figures.peers) do
    local whole = peer.total_ms == peer.total_ms -- no total where it failed in a group
    print(("  %s: %s%s"):format(peer.name,
      whole and ("%.2f ms, %.2f times ours"):format(peer.total_ms, peer.total_ms / figures.total_ms) or "no total",
      peer.step_ms and ("; its step() %.2f ms, %.2f times"):format(peer.step_ms, peer.step_ms / figures.step_ms) or ""))
    for _, what in ipairs(peer.failed or {}) do print("    failed in " .. what) end
  end
  local m = figures.memory
  print(("memory      %s of parameters, gradients and state; a step takes %s beside them"):format(
    megabytes(m.live_bytes), megabytes(m.scratch_bytes)))
  if m.bound_bytes > m.live_bytes then
    print(("  1.5 times the largest Muon group in bf16 would be %s"):format(megabytes(m.bound_bytes - m.live_bytes)))
  end
  for _, peer in ipairs(figures.peers) do
    if peer.memory then
      print(("  %s: %s, and a step's resident peak is %s beside them"):format(peer.name,
        megabytes(peer.memory.live_bytes), megabytes(peer.memory.peak_bytes - peer.memory.live_bytes)))
    end
  end
end

local function show(figures, extra)
  local limit = figures.limits
  print(figures.peers.absent and "no peers: " .. figures.peers.absent or "peers under " .. figures.peers[1].version)
  print(("limits: copy %.1f GB/s, in place %.1f GB/s; products in %s %.0f GFLOP/s (%s)"):format(limit.copy_gb_per_s,
    limit.in_place_gb_per_s, limit.precision, limit.products_gflop_per_s, limit.kernel))
  show_rows(figures.groups, figures.peers)
  show_totals(figures)
  if extra then show_rows(extra.groups, extra.peers) end
end

-- ---- running -------------------------------------------------------------------------------------------------

--- f() with Muon's products on this path.
local function on_path(name, f)
  local before = C.lm_muon_path()
  for i = 0, C.LM_MUON_PATHS - 1 do
    if ffi.string(C.lm_muon_path_name(i)) == name then call(C.lm_set_muon_path, i) end
  end
  local ok, problem = pcall(f)
  call(C.lm_set_muon_path, before)
  if not ok then error(problem, 0) end
end

--- Measure, show and save.
local function run(o, groups, extra)
  local precision = o.precision
  if precision == "auto" then precision = C.lm_cpu_fast_bf16() == 1 and "bf16" or "f32" end
  local machine = report.machine()
  print(("%s, %s kernels, %d threads, oneDNN %s"):format(machine.cpu, machine.kernels, machine.threads, machine.onednn))
  local limit = limits.new(precision)
  local figures = compare.run(o, groups, precision, limit)
  local more = extra and compare.run(o, extra, precision, limit)
  figures.limits = limit:figures()
  limit:free()
  for _, part in ipairs { figures, more } do
    add_shares(part.groups, figures.limits)
    for _, peer in ipairs(part.peers) do add_shares(peer.groups, figures.limits) end
  end
  figures.bench, figures.machine, figures.threads, figures.precision = "optim", machine, machine.threads, precision
  if extra then figures.model, figures.extra = o.model, { groups = more.groups, peers = more.peers } end
  show(figures, more)
  report.save(o.json, figures)
end

--- @param args of the command line; returns the exit code
function M.run(args)
  local o = options(own, args, "bench optim")
  if o.model ~= "" and o.shape ~= "" then
    options.fail(("--model=%s and --shape=%s: one or the other"):format(o.model, o.shape))
  end
  report.check(o.json)
  if o.model == "" then o.model = "d4" end
  local single = o.shape ~= "" and { parse_shape(o.shape) }
  local groups, extra = single or group_table.list(o.model), not single and group_table.extra(o.model) or nil
  local bytes, limit = steps.bytes(groups), C.lm_memory_limit()
  if bytes > limit then
    lib.raise("bench optim: holding these groups' parameters, gradients and state takes %.1f GB; the limit is %.1f GB",
      bytes / 1e9, limit / 1e9)
  end
  if o.threads > 0 then call(C.lm_set_threads, o.threads) end
  on_path(o.path, function() run(o, groups, extra) end)
  return 0
end

return M
