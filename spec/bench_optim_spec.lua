local bench = require "lumuon.bench.optim"
local report = require "lumuon.bench.report"
local command = require "spec.command"
local fake = require "spec.support.fake_peer"
local json = require "dkjson"
local lib = require "lumuon.lib"

--- Run with options; what it printed and the figures it wrote.
local function run(...)
  local path, lines, plain = os.tmpname(), {}, print
  _G.print = function(line) lines[#lines + 1] = line end -- luacheck: ignore
  local ok, code = pcall(bench.run, { "--json=" .. path, ... })
  _G.print = plain -- luacheck: ignore
  local text = command.read(path)
  os.remove(path)
  assert(ok, code)
  assert.equal(0, code)
  return json.decode(text), table.concat(lines, "\n")
end

--- Every field that a row of a group has.
local function check_row(row)
  for _, name in ipairs { "name", "kind", "path" } do assert.is_string(row[name], name) end
  for _, name in ipairs { "elements", "ms", "bytes", "operations", "limit_share", "bytes_per_parameter" } do
    assert.is_true(row[name] > 0, name)
  end
  local n = 1
  for _, size in ipairs(row.shape) do n = n * size end
  assert.equal(n, row.elements)
end

describe("lumuon bench optim", function()
  it("measures one bank: time, executed operations, bytes outside the products, share of the limit", function()
    for _, precision in ipairs { "f32", "bf16" } do
      local figures, printed = run("--shape=2,32,64", "--runs=5", "--precision=" .. precision, "--path=written")
      assert.equal("optim", figures.bench)
      assert.equal(1, #figures.groups)
      local row = figures.groups[1]
      check_row(row)
      assert.same({ 2, 32, 64 }, row.shape)
      assert.truthy(row.path:find("^written, "), row.path)
      -- 20 m^2 n + 10 m^3 for each of two matrices
      assert.equal(2 * (20 * 32 ^ 2 * 64 + 10 * 32 ^ 3), row.operations_as_written)
      assert.equal(row.operations_as_written, row.operations)
      assert.is_true(row.bytes_per_parameter >= 20 and row.bytes_per_parameter < 100)
      local rate = row.operations / row.ms / 1e6
      assert.is_true(math.abs(rate / figures.limits.products_gflop_per_s / row.limit_share - 1) < 1e-6)
      assert.equal(row.ms, figures.total_ms)
      assert.is_true(figures.step_ms > 0)
      assert.equal(precision, figures.precision)
      assert.truthy(printed:find("2 x 32 x 64", 1, true), printed)
      assert.truthy(figures.peers.absent:find("no --peers=FOLDER", 1, true))
    end
  end)

  it("measures a model's groups with a model's names, and what no total has beside them", function()
    local figures, printed = run("--model=d1", "--runs=5")
    local names, sum = {}, 0
    for i, row in ipairs(figures.groups) do
      check_row(row)
      names[i], sum = row.name, sum + row.ms
    end
    assert.same({ "attention", "mlp.c_fc", "mlp.c_proj", "ve_gate", "lm_head", "wte", "value_embeds", "resid_lambdas",
      "x0_lambdas" }, names)
    assert.is_true(math.abs(sum - figures.total_ms) < 1e-6 * sum)
    assert.equal(28 * 32768 * 128, figures.groups[5].bytes)
    local row = figures.groups[5]
    local rate, memory = row.bytes / row.ms / 1e6, row.memory
    local limit = math.max(memory.copy_gb_per_s, memory.in_place_gb_per_s)
    assert.is_true(math.abs(rate / limit / row.limit_share - 1) < 1e-6)
    assert.is_true(math.abs(rate / memory.copy_gb_per_s / row.copy_share - 1) < 1e-6)
    assert.is_true(figures.limits.samples >= 5 * 7) -- of memory: before each step of five groups, at the least
    for _, extra in ipairs(figures.extra.groups) do check_row(extra) end
    assert.equal(14, figures.extra.groups[1].bytes_per_parameter) -- the embedding in bf16
    assert.same({ 1000, 1000 }, figures.extra.groups[2].shape)
    memory = figures.memory -- 12 bytes a number of matrices and their second momenta, 16 of the others
    local muon = 128 * 128 * (4 + 4 + 4) + 32
    assert.equal(12 * muon + 4 * (4 * 128 + 512 + 512 + 32) + 16 * (3 * 32768 * 128 + 2), memory.live_bytes)
    assert.equal(memory.live_bytes + 1.5 * 2 * 4 * 128 * 128, memory.bound_bytes)
    assert.is_true(memory.peak_bytes == memory.live_bytes + memory.scratch_bytes)
    assert.truthy(printed:find("many small", 1, true), printed)
    assert.equal(figures.threads, lib.C.lm_threads())
    assert.is_string(figures.machine.cpu)
  end)

  describe("beside peers", function()
    local folder
    before_each(function() folder = command.folder() end)
    after_each(function() command.remove(folder) end)

    local function run_beside(answers)
      return run("--shape=2,8,16", "--runs=5", fake.make(folder, answers))
    end

    it("shows theirs and how many times ours they are", function()
      local figures, printed = run_beside(fake.answers())
      assert.equal(2, #figures.peers)
      for _, peer in ipairs(figures.peers) do
        assert.equal("fake 1.0", peer.version)
        assert.equal(3.5, peer.total_ms)
        local row = peer.groups[1]
        for _, name in ipairs { "name", "kind", "shape", "elements", "operations", "path", "limit_share" } do
          assert.is_truthy(row[name], name)
        end
        assert.equal(3.5, row.ms)
      end
      assert.equal(3.5, figures.peers[1].step_ms)
      assert.equal(7, figures.peers[1].memory.peak_bytes)
      assert.truthy(printed:find("nanochat MuonAdamW, torch.compile: 3.50 ms", 1, true), printed)
    end)

    it("goes on without a peer whose steps fail, and says why", function()
      local figures, printed = run_beside(fake.answers(
        [[if [ $command = torch ]; then printf 'failed\tno Muon\n'; continue; fi]]))
      assert.equal(1, #figures.peers[1].groups)
      assert.equal(3.5, figures.peers[1].total_ms)
      assert.is_nil(figures.peers[1].failed)
      assert.equal(0, #figures.peers[2].groups)
      assert.same({ "shape: no Muon" }, figures.peers[2].failed)
      assert.truthy(printed:find("no total\n    failed in shape: no Muon", 1, true), printed)
    end)

    it("adds up no total where a peer failed in one of its groups", function()
      local figures, printed = run("--model=d1", "--runs=5", fake.make(folder, fake.answers(
        [[if [ "$command $rest" = "nanochat 3" ]; then printf 'failed\tno compiler\n'; continue; fi]])))
      assert.equal(8, #figures.peers[1].groups)
      assert.is_nil(tonumber(figures.peers[1].total_ms)) -- null
      assert.same({ "ve_gate: no compiler" }, figures.peers[1].failed)
      assert.equal(9 * 3.5, figures.peers[2].total_ms)
      assert.truthy(printed:find("torch.compile: no total; its step() 3.50 ms", 1, true), printed)
    end)

    it("says why nanochat's whole step failed", function()
      local figures = run_beside(fake.answers(
        [[if [ $command = step ]; then printf 'failed\tno memory\n'; continue; fi]]))
      assert.equal(3.5, figures.peers[1].total_ms)
      assert.is_nil(figures.peers[1].step_ms)
      assert.same({ "step(): no memory" }, figures.peers[1].failed)
    end)

    it("goes on without a Python that ends at once, and quotes its last words", function()
      local figures, printed = run_beside("echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1\n")
      assert.truthy(figures.peers.absent:find("No module named 'torch'", 1, true), figures.peers.absent)
      assert.truthy(printed:find("no peers: ModuleNotFoundError", 1, true), printed)
      assert.equal(1, #figures.groups)
    end)

    it("goes on when the peer dies in the middle", function()
      local figures = run_beside(fake.answers("[ $command = nanochat ] && echo killed >&2 && exit 3"))
      assert.equal(0, #figures.peers[1].groups)
      assert.same({ "shape: killed", "step(): killed" }, figures.peers[1].failed)
      assert.equal(1, #figures.groups)
    end)

    it("says what is no checkout, and what is no Python", function()
      local figures = run("--shape=1,4,4", "--runs=5", "--peers=" .. folder .. "/nowhere")
      assert.truthy(figures.peers.absent:find("nowhere is no checkout of nanochat", 1, true), figures.peers.absent)
      local checkout = fake.make(folder, "")
      figures = run("--shape=1,4,4", "--runs=5", checkout, "--python=" .. folder .. "/no-python")
      assert.truthy(figures.peers.absent:find("no-python", 1, true), figures.peers.absent)
    end)
  end)

  it("takes the middle of odd and even lists, and quotes what JSON must have quoted", function()
    assert.equal(2, report.median { 3, 1, 2 })
    assert.equal(2.5, report.median { 4, 1, 2, 3 })
    assert.equal('"a\\"b\\\\c\\n\\u0001"', report.json("a\"b\\c\n\1"))
    assert.equal("[1, 2.5]", report.json { 1, 2.5 })
    assert.equal("null", report.json(0 / 0))
  end)

  for _, bad in ipairs { "--shape=3,4", "--shape=0,4,4", "--shape=1,x,4", "--shape=1,4,4,4", "--model=large",
    "--model=d0", "--model=d1001", "--runs=4", "--precision=f16", "--path=fast", "--shap=1,2,3" } do
    it("refuses " .. bad, function() assert.is_false(pcall(bench.run, { bad })) end)
  end

  it("says which depths there are, and that a model and a shape exclude each other", function()
    local function refuses(message, ...)
      local ok, found = pcall(bench.run, { ... })
      assert.is_false(ok)
      assert.truthy(tostring(found):find(message, 1, true), tostring(found))
    end
    refuses("--model=d999999999999: expected d and a depth from 1 to 1000", "--model=d999999999999")
    refuses("--model=d4 and --shape=1,4,4: one or the other", "--model=d4", "--shape=1,4,4")
  end)

  it("leaves the choice of Muon's path as it was", function()
    local before = lib.C.lm_muon_path()
    assert.is_false(pcall(bench.run, { "--shape=1,0,4", "--path=gram" }))
    run("--shape=1,4,4", "--runs=5", "--path=halves")
    assert.equal(before, lib.C.lm_muon_path())
  end)
end)
