-- A worker of spec/staged_spec.lua: collectives of tensors on the GPU, which go through the host's memory. Fails by
-- an error; prints ok and the GPU on every rank that got to the end.
local lm = require "lumuon"
local C = require("lumuon.lib").C
local o = lm.options { what = "all" }
local dist = lm.dist
local rank, size = dist.init { timeout = 20 }

local function filled(n, value, dtype) return lm.full({ n }, value, { dtype = dtype, device = "cuda" }) end
local function expect(got, wanted, what)
  assert(got == wanted, ("%s: got %s, expected %s"):format(what, tostring(got), tostring(wanted)))
end
local function expect_all(t, wanted, what)
  local list = t:to("cpu"):to("f32"):tolist()
  for i = 1, #list do expect(list[i], wanted, ("%s, element %d of %d"):format(what, i, #list)) end
end

if o.what == "mixed" then
  local t = lm.full({ 8 }, 1, { device = rank == 0 and "cuda" or "cpu" })
  dist.all_reduce(t, { label = "eight" })
end

for _, dtype in ipairs { "f32", "bf16", "i32" } do
  for _, slice in ipairs { 0, 1, 7, 6000 } do
    local n, what = slice * size, ("%s %d"):format(dtype, slice)
    local function own(t) return t:narrow(1, rank * slice + 1, slice) end
    expect_all(dist.all_reduce(filled(n + 3, rank + 1, dtype)), size * (size + 1) / 2, "all_reduce " .. what)
    expect_all(dist.all_reduce(filled(n, rank, dtype), "max"), size - 1, "max " .. what)
    local t = dist.reduce_scatter(filled(n, rank + 1, dtype))
    expect_all(own(t), size * (size + 1) / 2, "reduce_scatter " .. what)
    own(t):fill(rank)
    dist.all_gather(t)
    for r = 0, size - 1 do expect_all(t:narrow(1, r * slice + 1, slice), r, "all_gather " .. what) end
    expect_all(dist.broadcast(filled(n, rank, dtype), { root = size - 1 }), size - 1, "broadcast " .. what)
    local whole = rank == 0 and filled(n, 9, dtype) or nil
    dist.gather(filled(slice, rank, dtype), whole)
    for r = 0, whole and size - 1 or -1 do
      expect_all(whole:narrow(1, r * slice + 1, slice), r, "gather " .. what)
    end
  end
end

-- bytes on the wire: what is least, whichever way they take, and a few headers
for _, name in ipairs { "all_reduce", "reduce_scatter", "all_gather" } do
  local times = name == "all_reduce" and 2 or 1
  local bytes, before = 4 * 12000 * size, dist.wire_bytes()
  dist[name](filled(12000 * size, 1))
  local more = dist.wire_bytes() - before - times * bytes * (size - 1) / size
  assert(more >= 0 and more < 4096 * size, ("%s: %d bytes more than the least"):format(name, more))
end

-- a part of a tensor; its neighbours stay as they are
local t = filled(30, rank)
dist.all_reduce(t:narrow(1, 11, 10))
expect_all(t:narrow(1, 11, 10), size * (size - 1) / 2, "the middle")
expect_all(t:narrow(1, 1, 10), rank, "before it")
expect_all(t:narrow(1, 21, 10), rank, "behind it")

-- handles: arithmetic before, meanwhile and after; in another order, twice, never
local handles = {}
for i = 1, 6 do
  handles[i] = dist.all_reduce(filled(5000, rank) * i, { async = true, label = "handle " .. i })
  expect_all(filled(100, 2) * 3, 6, "meanwhile")
end
for i = 6, 1, -1 do
  expect_all(handles[i]:wait() + 1, i * size * (size - 1) / 2 + 1, "handle " .. i)
  handles[i]:wait()
  assert(handles[i]:done())
end
for _ = 1, 10 do
  lm.scope(function() dist.all_reduce(filled(20000, 1), { async = true }) end)
  collectgarbage()
end
dist.barrier()

if rank == 0 then -- refused before anybody else is asked
  local ok, message = pcall(dist.gather, filled(4, 1), lm.zeros(4 * size))
  assert(not ok and tostring(message):match("gather: the part lies on cuda, the whole on cpu"), message)
end
io.stderr:write(("ok %d on cuda:%d\n"):format(rank, C.lm_cuda_selected()))
