--- Steps of the optimizer's groups, ours and the peers', run by run in turns.
local lib = require "lumuon.lib"
local peers = require "lumuon.bench.peers"
local report = require "lumuon.bench.report"
local steps = require "lumuon.bench.steps"
local C = lib.C

local compare = {}

local WARM = 2 -- runs that do not count: memory, caches, the peers' compiling

local PEERS = {
  { key = "nanochat", name = "nanochat MuonAdamW, torch.compile" },
  { key = "torch", name = "torch.optim: Muon, AdamW(fused)" },
}

--- A server with these groups built; nil and why not.
local function start_peers(o, groups, precision)
  local server, reason = peers.start("optim", o, { threads = C.lm_threads(), precision = precision })
  if not server then return nil, reason end
  local ok
  for _, g in ipairs(groups) do
    ok, reason = server:ask("group", g.kind, g.dtype or "f32", g.count, unpack(g.sizes))
    if not ok then break end
  end
  if ok then ok, reason = server:ask("build") end
  if ok then return server end
  server:close()
  return nil, reason
end

-- ---- rows of figures -----------------------------------------------------------------------------------------

--- What identifies a group, and the median of its seconds.
local function row_of(group, seconds)
  return { name = group.name, kind = group.kind, shape = { group.count, unpack(group.sizes) },
    elements = steps.elements(group), dtype = group.dtype or "f32", ms = report.median(seconds) * 1e3, runs = #seconds }
end

local function own_row(group, seconds, cost)
  local row = row_of(group, seconds)
  for name, value in pairs(cost) do row[name] = value end
  return row
end

--- A peer's: a step as written, its operations by the same count as ours.
local function peer_row(group, seconds, cost)
  local row = row_of(group, seconds)
  row.path = "as written"
  row.bytes = group.kind == "adamw" and cost.bytes or 0 / 0 -- what Muon's stages move there is not known
  row.operations = cost.operations_as_written or cost.operations
  row.memory = cost.memory
  return row
end

--- Milliseconds of all rows.
local function total(rows)
  local ms = 0
  for _, row in ipairs(rows) do ms = ms + row.ms end
  return ms
end

-- ---- times ---------------------------------------------------------------------------------------------------

--- Seconds of group i's step, of ours and of each peer's; the memory's limits are sampled before each of AdamW's.
local function time_group(ours, server, i, runs, limit)
  local seconds = { ours = {}, nanochat = {}, torch = {} }
  for r = 1 - WARM, runs do
    if ours.groups[i].kind == "adamw" then limit:sample_memory() end
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

--- Rows of all groups, by whose they are; a peer that failed in a group has none for it.
local function time_groups(ours, server, groups, runs, limit)
  local rows = { ours = {}, nanochat = {}, torch = {} }
  for i, group in ipairs(groups) do
    local sampled = #limit.copies
    limit:sample()
    local seconds = time_group(ours, server, i, runs, limit)
    local cost = ours:cost(i)
    limit:sample()
    if group.kind == "adamw" then cost.memory = limit:memory(sampled) end
    rows.ours[i] = own_row(group, seconds.ours, cost)
    for _, peer in ipairs(PEERS) do
      local own = seconds[peer.key]
      if #own == runs then table.insert(rows[peer.key], peer_row(group, own, cost)) end
    end
  end
  return rows
end

--- Milliseconds of a step of everything, ours and nanochat's.
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

--- What is known of the peers: a list; or { absent = why }.
local function peer_figures(server, rows, step_ms)
  local list = {}
  for k, peer in ipairs(PEERS) do
    list[k] = { name = peer.name, version = server.version, groups = rows[peer.key], total_ms = total(rows[peer.key]) }
  end
  list[1].step_ms = step_ms
  local memory = server:ask("memory")
  if memory then list[1].memory = { live_bytes = tonumber(memory[1]), peak_bytes = tonumber(memory[2]) } end
  return list
end

--- Figures of a list of groups: groups, total_ms, step_ms, memory and peers, as docs/bench.md tells.
-- o: the options runs, peers and python; limit: sampled between the groups
function compare.run(o, groups, precision, limit)
  local server, absent = start_peers(o, groups, precision)
  local ours = steps.new(groups, precision)
  local rows = time_groups(ours, server, groups, o.runs, limit)
  local step_ms, peer_step_ms = time_whole(ours, server, o.runs)
  local figures = { groups = rows.ours, total_ms = total(rows.ours), step_ms = step_ms, memory = ours:memory() }
  ours:free()
  figures.peers = server and peer_figures(server, rows, peer_step_ms) or { absent = absent }
  if server then server:close() end
  return figures
end

return compare
