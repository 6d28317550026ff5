local bench = require "lumuon.bench.optim"
local report = require "lumuon.bench.report"

--- Run with options; what it printed and the JSON it wrote.
local function run(...)
  local path, lines, plain = os.tmpname(), {}, print
  _G.print = function(line) lines[#lines + 1] = line end -- luacheck: ignore
  local ok, code = pcall(bench.run, { "--json=" .. path, ... })
  _G.print = plain -- luacheck: ignore
  local file = io.open(path)
  local text = file:read("*a")
  file:close()
  os.remove(path)
  assert(ok, code)
  return code, table.concat(lines, "\n"), text
end

describe("lumuon bench optim", function()
  it("measures one bank in both precisions and writes the figures as JSON", function()
    local code, printed, json = run("--shape=2,8,16", "--runs=5")
    assert.equal(0, code)
    for _, part in ipairs { '"bench": "optim"', '"cpu": "', '"kernels": "', '"threads": ', '"onednn": "',
      '"precision": "f32"', '"precision": "bf16"', '"rows": 8', '"runs": 5' } do
      assert.truthy(json:find(part, 1, true), part .. " is not in " .. json)
    end
    -- 20 m^2 n + 10 m^3 for each of two matrices
    assert.equal(2 * (20 * 64 * 16 + 10 * 512) / 1e9, tonumber(json:match('"gflop": ([%d%.e%-]+)')))
    assert.is_true(tonumber(json:match('"ms": ([%d%.e%-]+)')) > 0)
    assert.truthy(printed:find("GFLOP/s", 1, true))
  end)

  it("measures AdamW beside a copy", function()
    local code, printed, json = run("--model=d1", "--runs=5", "--precision=f32")
    assert.equal(0, code)
    local rate, copy = json:match('"gb_per_s": ([%d%.]+)'), json:match('"copy_gb_per_s": ([%d%.]+)')
    local share = tonumber(json:match('"share_of_copy": ([%d%.]+)'))
    assert.is_true(math.abs(tonumber(rate) / tonumber(copy) - share) < 1e-3 * share)
    assert.equal(2 + 3 * 32768 * 128, tonumber(json:match('"elements": (%d+)')))
    assert.truthy(printed:find("AdamW  5 tensors", 1, true), printed)
  end)

  it("takes the middle of odd and even lists, and quotes what JSON must have quoted", function()
    assert.equal(2, report.median { 3, 1, 2 })
    assert.equal(2.5, report.median { 4, 1, 2, 3 })
    assert.equal('"a\\"b\\\\c\\n\\u0001"', report.json("a\"b\\c\n\1"))
    assert.equal("[1, 2.5]", report.json { 1, 2.5 })
    assert.equal("null", report.json(0 / 0))
  end)

  for _, bad in ipairs { "--shape=3,4", "--model=large", "--model=d0", "--runs=4", "--precision=f16",
    "--shap=1,2,3" } do
    it("refuses " .. bad, function() assert.is_false(pcall(bench.run, { bad })) end)
  end
end)
