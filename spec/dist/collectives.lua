-- A worker of spec/dist_spec.lua: every collective on every dtype, sizes that nothing divides, handles used in
-- every order. Fails by an error; prints ok on every rank that got to the end.
local lm = require "lumuon"
local dist = lm.dist
local rank, size = dist.init { timeout = 20 }
assert(dist.rank() == rank and dist.world_size() == size and dist.local_rank() <= rank)

local function filled(n, value, dtype) return lm.full({ n }, value, { dtype = dtype }) end
local function sum(t) return t:to("f32"):sum():item() end
local function expect(got, wanted, what)
  assert(got == wanted, ("%s: got %s, expected %s"):format(what, tostring(got), tostring(wanted)))
end

for _, dtype in ipairs { "f32", "bf16", "i32" } do
  for _, n in ipairs { 0, 1, 12, 5000, 12 * 3000, 12 * 100000 + 7 } do
    local what = ("%s %d"):format(dtype, n)
    expect(sum(dist.all_reduce(filled(n, rank + 1, dtype))), n * size * (size + 1) / 2, "all_reduce " .. what)
    expect(sum(dist.all_reduce(filled(n, rank + 1, dtype), "max")), n * size, "max " .. what)
    expect(sum(dist.all_reduce(filled(n, rank + 1, dtype), "min")), n, "min " .. what)
    local t = dist.broadcast(filled(n, rank, dtype), { root = size - 1 })
    expect(sum(t), n * (size - 1), "broadcast " .. what)
    local whole = rank == 0 and filled(n * size, 0, dtype) or nil
    dist.gather(filled(n, rank, dtype), whole)
    if whole then expect(sum(whole), n * size * (size - 1) / 2, "gather " .. what) end
    local slice = math.ceil(n / size)
    t = filled(slice * size, rank + 1, dtype)
    dist.reduce_scatter(t)
    expect(sum(t:narrow(1, rank * slice + 1, slice)), slice * size * (size + 1) / 2, "reduce_scatter " .. what)
    t:narrow(1, rank * slice + 1, slice):fill(rank)
    dist.all_gather(t)
    for r = 0, size - 1 do expect(sum(t:narrow(1, r * slice + 1, slice)), r * slice, "all_gather " .. what) end
  end
end
expect(dist.all_reduce(filled(3, rank), "mean"):select(1, 1):item(), (size - 1) / 2, "mean")

-- added in f64 and rounded once: in f32 the threes would be lost beside 2^40
for _, n in ipairs { 5, 300000 } do
  local t = filled(n, rank == 0 and 2 ^ 40 or rank == size - 1 and -2 ^ 40 or 3)
  if size > 1 then expect(dist.all_reduce(t):select(1, n):item(), 3 * (size - 2), "cancelling") end
end
-- in the order of the ranks on every one of them: in another, f64 loses the ones beside 2^80
for _, n in ipairs { 5, 300000 } do
  if size > 2 then
    local t = dist.all_reduce(filled(n, rank == 0 and 2 ^ 80 or rank == 1 and -2 ^ 80 or 1))
    expect(sum(t), n * (size - 2), "in rank order")
  end
end
local nan = dist.all_reduce(filled(2, rank == 0 and 0 / 0 or 1), "max")
assert(nan:select(1, 1):item() ~= nan:select(1, 1):item(), "a NaN wins")

-- handles: in another order, twice, never; buffers dropped before the end
local handles = {}
for i = 1, 8 do handles[i] = dist.all_reduce(filled(50000, rank * i), { async = true, label = "handle " .. i }) end
for i = 8, 1, -1 do
  expect(handles[i]:wait():select(1, 9):item(), i * size * (size - 1) / 2, "handle " .. i)
  handles[i]:wait()
  assert(handles[i]:done() and handles[i]:seconds() >= 0)
end
for _ = 1, 20 do
  lm.scope(function() dist.all_reduce(filled(100000, 1), { async = true }) end)
  collectgarbage()
end
for _ = 1, size > 1 and 20 or 0 do -- memory that was freed meanwhile is nobody else's before the end
  local t, others = filled(300000, rank + 1), {}
  local handle = dist.all_reduce(t, { async = true })
  t:free()
  for k = 1, 4 do others[k] = filled(300000, -7) end
  handle:wait()
  for k = 1, 4 do expect(sum(others[k]), -2100000, "memory of a collective under way") end
end
dist.barrier()
expect(#dist.all_strings(("x"):rep(rank)), size, "strings")
expect(dist.all_strings(("x"):rep(rank))[size], ("x"):rep(size - 1), "the last string")
local covered, first, count = 0, dist.share(7)
for r, text in ipairs(dist.all_strings(first .. " " .. count)) do
  local f, c = text:match("(%d+) (%d+)")
  expect(tonumber(f), covered + 1, "first row of rank " .. r - 1)
  covered = covered + c
end
expect(covered, 7, "rows")

local function refused(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert(not ok and tostring(message):match(pattern), tostring(message))
end
refused("is none of sum, mean", dist.all_reduce, filled(2, 0), "product")
refused("unknown option 'ops'", dist.all_reduce, filled(2, 0), { ops = "sum" })
refused("gather: expected a tensor, got number", dist.gather, filled(2, 0), 5)
refused("scatter: expected a tensor, got number", dist.scatter, filled(2, 0), 5)
refused("expected a table of options, got number", dist.init, 5)
refused("not contiguous", dist.all_reduce, lm.zeros(4, 4):t())
refused("f32 or bf16", dist.all_reduce, filled(2, 0, "u8"))
refused("was freed", function()
  local t = filled(2, 0)
  t:free()
  dist.all_reduce(t)
end)
refused("is not in 0%.%.", dist.broadcast, filled(2, 0), { root = size })
if size > 1 then refused("cannot be divided among", dist.all_gather, filled(size + 1, 0)) end
io.stderr:write(("ok %d\n"):format(rank)) -- in one piece: other ranks write too
