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

--- A peer's total: none where it failed in a group, as a sum of the others would be compared with all of ours.
local function peer_total(rows, groups) return #rows == #groups and total(rows) or 0 / 0 end

-- ---- times ---------------------------------------------------------------------------------------------------

--- Seconds of group i's step, of ours and of each peer's; the memory's limits are sampled before each of AdamW's.
-- @return these, and why there are none, by peer
local function time_group(ours, server, i, runs, limit)
  local seconds, why = { ours = {}, nanochat = {}, torch = {} }, {}
  for r = 1 - WARM, runs do
    if ours.groups[i].kind == "adamw" then limit:sample_memory() end
    seconds.ours[r] = ours:time(i)
    for _, peer in ipairs(server and PEERS or {}) do
      local ms, reason = server:number(peer.key, i - 1)
      if ms then seconds[peer.key][r] = ms / 1e3 end
      why[peer.key] = why[peer.key] or reason
      server.settle()
    end
  end
  if server then server:ask("forget", i - 1) end
  return seconds, why
end

--- Rows of all groups, by whose they are; a peer that failed in a group has none for it.
-- @return these, and of each peer a list of what failed and why
local function time_groups(ours, server, groups, runs, limit)
  local rows, failed = { ours = {}, nanochat = {}, torch = {} }, { nanochat = {}, torch = {} }
  for i, group in ipairs(groups) do
    local sampled = #limit.copies
    limit:sample()
    local seconds, why = time_group(ours, server, i, runs, limit)
    local cost = ours:cost(i)
    limit:sample()
    if group.kind == "adamw" then cost.memory = limit:memory(sampled) end
    rows.ours[i] = own_row(group, seconds.ours, cost)
    for _, peer in ipairs(PEERS) do
      local own = seconds[peer.key]
      if #own == runs and not why[peer.key] then table.insert(rows[peer.key], peer_row(group, own, cost)) end
      if why[peer.key] then table.insert(failed[peer.key], ("%s: %s"):format(group.name, why[peer.key])) end
    end
  end
  return rows, failed
end

--- Milliseconds of a step of everything, ours and nanochat's; nil and why where it has none.
local function time_whole(ours, server, runs)
  local own_seconds, peer_ms, why = {}, {}, nil
  for r = 1 - WARM, runs do
    own_seconds[r] = ours:whole()
    if server then
      local ms, reason = server:number("step")
      peer_ms[r], why = ms, why or reason
      server.settle()
    end
  end
  return report.median(own_seconds) * 1e3, #peer_ms == runs and not why and report.median(peer_ms) or nil, why
end

--- What is known of the peers: a list; or { absent = why }.
local function peer_figures(server, groups, rows, failed, step_ms)
  local list = {}
  for k, peer in ipairs(PEERS) do
    list[k] = { name = peer.name, version = server.version, groups = rows[peer.key],
      total_ms = peer_total(rows[peer.key], groups), failed = failed[peer.key][1] and failed[peer.key] or nil }
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
  local rows, failed = time_groups(ours, server, groups, o.runs, limit)
  local step_ms, peer_step_ms, why = time_whole(ours, server, o.runs)
  if why then table.insert(failed.nanochat, "step(): " .. why) end
  local figures = { groups = rows.ours, total_ms = total(rows.ours), step_ms = step_ms, memory = ours:memory() }
  ours:free()
  figures.peers = server and peer_figures(server, groups, rows, failed, peer_step_ms) or { absent = absent }
  if server then server:close() end
  return figures
end

return compare
