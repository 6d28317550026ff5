--- `lumuon bench optim`: the optimizer step, group by group, against the machine's limits and against peers.
--
-- AdamW's limit is the better of a copy and a scaling in place, in bytes a second; Muon's is the rate of
-- multiply-adds on registers in the precision of its products, of which it is told how many operations its
-- products executed. Medians; ours and the peers' runs take turns.
local lib = require "lumuon.lib"
local options = require "lumuon.options"
local group_table = require "lumuon.bench.groups"
local limits = require "lumuon.bench.limits"
local peers = require "lumuon.bench.peers"
local report = require "lumuon.bench.report"
local steps = require "lumuon.bench.steps"
local ffi, C, call = lib.ffi, lib.C, lib.call

local M = { help = "the optimizer step per group: ms, share of the machine's limit, peers beside it" }

local WARM = 2 -- runs that do not count: memory, caches, the peers' compiling

local own = {
  model = { default = "d4", help = "groups of nanochat's GPT of this depth: d4, d12, ..." },
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

--- What identifies a group in the figures.
local function row_of(group)
  return { name = group.name, kind = group.kind, shape = { group.count, unpack(group.sizes) },
    elements = steps.elements(group), dtype = group.dtype or "f32" }
end

--- Share of the machine's limit that `row` reached.
local function share(row, limit)
  if row.kind == "muon" then return row.operations / (row.ms / 1e3) / (limit.products_gflop_per_s * 1e9) end
  return row.bytes / (row.ms / 1e3) / (math.max(limit.copy_gb_per_s, limit.in_place_gb_per_s) * 1e9)
end

-- ---- peers ------------------------------------------------------------------------------------------------

local PEERS = {
  { key = "nanochat", name = "nanochat MuonAdamW, torch.compile" },
  { key = "torch", name = "torch.optim: Muon, AdamW(fused)" },
}

--- Tell a server the groups; nil and the reason where that failed.
local function send_groups(server, groups)
  for _, g in ipairs(groups) do
    local ok, reason = server:ask("group", g.kind, g.dtype or "f32", g.count, unpack(g.sizes))
    if not ok then return nil, reason end
  end
  return server:ask("build")
end

--- A peer's row for a group: a step as written, by the same count as ours.
local function peer_row(group, seconds, cost, limit)
  local row = row_of(group)
  row.ms, row.path, row.runs = report.median(seconds) * 1e3, "as written", #seconds
  row.bytes = group.kind == "adamw" and cost.bytes or 0 / 0
  row.operations = cost.operations_as_written or cost.operations
  row.limit_share = share(row, limit)
  return row
end

-- ---- measuring ---------------------------------------------------------------------------------------------

--- Times of group i, of ours and each peer's, taking turns.
local function time_group(ours, server, i, runs)
  local seconds = { ours = {}, nanochat = {}, torch = {} }
  for r = 1 - WARM, runs do
    seconds.ours[r] = ours:time(i)
    for _, peer in ipairs(server and PEERS or {}) do
      local ms = server:number(peer.key, i - 1)
      if ms then seconds[peer.key][r] = ms / 1e3 end
      server.settle()
    end
  end
  if server then server:ask("forget", i - 1) end
  return seconds
end

--- Rows of all groups: ours, and each peer's by key.
local function time_groups(ours, server, groups, runs, limit)
  local rows = { ours = {}, nanochat = {}, torch = {} }
  for i, group in ipairs(groups) do
    local seconds = time_group(ours, server, i, runs)
    local cost = ours:cost(i)
    local row = row_of(group)
    for name, value in pairs(cost) do row[name] = value end
    row.ms, row.runs = report.median(seconds.ours) * 1e3, runs
    row.limit_share = share(row, limit)
    rows.ours[i] = row
    for _, peer in ipairs(PEERS) do
      local enough = #seconds[peer.key] == runs
      if enough then table.insert(rows[peer.key], peer_row(group, seconds[peer.key], cost, limit)) end
    end
  end
  return rows
end

--- Milliseconds of a step of everything, ours and nanochat's, taking turns.
local function time_whole(ours, server, runs)
  local own_seconds, peer_ms = {}, {}
  for r = 1 - WARM, runs do
    own_seconds[r] = ours:whole()
    if server then
      peer_ms[r] = server:number("step")
      server.settle()
    end
  end
  return report.median(own_seconds) * 1e3, #peer_ms == runs and report.median(peer_ms) or nil
end

local function total(rows)
  local ms = 0
  for _, row in ipairs(rows) do ms = ms + row.ms end
  return ms
end

--- Everything about a list of groups. The peers' part is nil without a server.
local function measure(groups, precision, server, runs, limit)
  local ours = steps.new(groups, precision)
  local rows = time_groups(ours, server, groups, runs, limit)
  local figures = { groups = rows.ours, total_ms = total(rows.ours) }
  local step, peer_step = time_whole(ours, server, runs)
  figures.step_ms, figures.memory = step, ours:memory()
  ours:free()
  local list = {}
  for k, peer in ipairs(server and PEERS or {}) do
    list[k] = { name = peer.name, version = server.version, groups = rows[peer.key], total_ms = total(rows[peer.key]) }
  end
  if server then
    list[1].step_ms = peer_step
    local memory = server:ask("memory")
    if memory then list[1].memory = { live_bytes = tonumber(memory[1]), peak_bytes = tonumber(memory[2]) } end
  end
  return figures, list
end

-- ---- showing -------------------------------------------------------------------------------------------------

local function show_rows(rows, list)
  local head = ("\n%-14s %-6s %-17s %9s %6s %7s"):format("group", "kind", "shape", "ms", "limit", "B/param")
  for _, peer in ipairs(list) do head = head .. ("  %9s %6s"):format(peer.name:match("^[%w%.]+"), "") end
  print(head .. "  path")
  local by_name = {}
  for k, peer in ipairs(list) do
    by_name[k] = {}
    for _, row in ipairs(peer.groups) do by_name[k][row.name] = row end
  end
  for _, row in ipairs(rows) do
    local line = ("%-14s %-6s %-17s %9.3f %5.0f%% %7.1f"):format(row.name, row.kind,
      table.concat(row.shape, " x "), row.ms, 100 * row.limit_share, row.bytes_per_parameter)
    for k in ipairs(list) do
      local peer = by_name[k][row.name]
      line = line .. (peer and ("  %9.3f %5.2fx"):format(peer.ms, peer.ms / row.ms) or ("  %9s %6s"):format("-", ""))
    end
    print(line .. "  " .. row.path)
  end
end

local function megabytes(bytes) return ("%.1f MB"):format(bytes / 1e6) end

local function show(figures, list, limit)
  print(("limits: copy %.1f GB/s, in place %.1f GB/s; products in %s %.0f GFLOP/s (%s)"):format(limit.copy_gb_per_s,
    limit.in_place_gb_per_s, limit.precision, limit.products_gflop_per_s, limit.kernel))
  show_rows(figures.groups, list)
  print(("\nall groups  %.2f ms; opt:step(), with its look for NaN, %.2f ms"):format(figures.total_ms, figures.step_ms))
  for _, peer in ipairs(list) do
    print(("  %s: %.2f ms, %.2f times ours%s"):format(peer.name, peer.total_ms, peer.total_ms / figures.total_ms,
      peer.step_ms and ("; its step() %.2f ms, %.2f times"):format(peer.step_ms, peer.step_ms / figures.step_ms) or ""))
  end
  local m = figures.memory
  print(("memory      %s of parameters, gradients and state; a step takes %s beside them (bound: %s)"):format(
    megabytes(m.live_bytes), megabytes(m.scratch_bytes), megabytes(m.bound_bytes - m.live_bytes)))
  for _, peer in ipairs(list) do
    if peer.memory then
      print(("  %s: %s, and a step's resident peak is %s beside them"):format(peer.name,
        megabytes(peer.memory.live_bytes), megabytes(peer.memory.peak_bytes - peer.memory.live_bytes)))
    end
  end
end

--- A server with these groups built; nil and why not.
local function start_peers(o, groups, precision)
  local server, reason = peers.start("optim", o, { threads = C.lm_threads(), precision = precision })
  if not server then return nil, reason end
  local ok
  ok, reason = send_groups(server, groups)
  if ok then return server end
  server:close()
  return nil, reason
end

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
local function run(o)
  local groups = o.shape ~= "" and { parse_shape(o.shape) } or group_table.list(o.model)
  local extra = o.shape == "" and group_table.extra(o.model) or {}
  if o.threads > 0 then call(C.lm_set_threads, o.threads) end
  local precision = o.precision
  if precision == "auto" then precision = C.lm_cpu_fast_bf16() == 1 and "bf16" or "f32" end
  local machine = report.machine()
  local copy, in_place = limits.memory(o.runs)
  local rate, kernel = limits.products(precision)
  local limit = { copy_gb_per_s = copy / 1e9, in_place_gb_per_s = in_place / 1e9, products_gflop_per_s = rate / 1e9,
    kernel = kernel, precision = precision }

  print(("%s, %s kernels, %d threads, oneDNN %s"):format(machine.cpu, machine.kernels, machine.threads, machine.onednn))
  local server, absent = start_peers(o, groups, precision)
  if o.peers ~= "" then print(server and "peers: " .. server.version or "no peers: " .. absent) end
  local figures, list = measure(groups, precision, server, o.runs, limit)
  if server then server:close() end
  figures.bench, figures.machine, figures.threads = "optim", machine, machine.threads
  figures.precision, figures.limits = precision, limit
  if o.shape == "" then figures.model = o.model end
  figures.peers = server and list or { absent = absent }
  show(figures, list, limit)

  if #extra > 0 then
    server = o.peers ~= "" and start_peers(o, extra, precision) or nil
    local more, beside = measure(extra, precision, server, o.runs, limit)
    if server then server:close() end
    figures.extra = { groups = more.groups, peers = beside }
    show_rows(more.groups, beside)
  end
  report.save(o.json, figures)
end

--- @param args of the command line; returns the exit code
function M.run(args)
  local o = options(own, args)
  on_path(o.path, function() run(o) end)
  return 0
end

return M
