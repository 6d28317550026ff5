local options = require "lumuon.options"

local defaults = {
  steps = 800, lr = 0.02, optimizer = "muon", data = "", flag = false,
  depth = { default = 4, min = 1, max = 64, help = "layers" },
  dtype = { default = "f32", choices = { "f32", "bf16" } },
}

local function parse(...) return options.parse(defaults, { ... }) end
local function problem(...)
  local values, message = parse(...)
  assert.is_nil(values)
  return message
end

describe("options", function()
  it("are the defaults where nothing is given", function()
    assert.same({ steps = 800, lr = 0.02, optimizer = "muon", data = "", flag = false, depth = 4, dtype = "f32" },
      parse())
  end)

  it("take the type of their default", function()
    local o = parse("--steps=12", "--lr=1e-3", "--optimizer=adamw", "--flag", "--data=a=b c", "--dtype=bf16")
    assert.equal(12, o.steps)
    assert.equal(1e-3, o.lr)
    assert.equal("adamw", o.optimizer)
    assert.is_true(o.flag)
    assert.equal("a=b c", o.data)
    assert.equal("bf16", o.dtype)
    assert.is_false(parse("--flag=false").flag)
    assert.equal(3, parse("--steps", "3").steps)
    assert.equal(-1, parse("--steps=-1").steps)
    assert.equal(7, options.parse({ eval_every = 1 }, { "--eval-every=7" }).eval_every)
  end)

  it("refuse values of another type, naming option and value", function()
    assert.equal("option --steps=12.5: an integer expected", problem("--steps=12.5"))
    assert.equal("option --steps=ten: an integer expected", problem("--steps=ten"))
    assert.equal("option --lr=nan: a number expected", problem("--lr=nan"))
    assert.equal("option --lr=0x10: a number expected", problem("--lr=0x10"))
    assert.equal("option --lr=1e999: a number expected", problem("--lr=1e999"))
    assert.equal("option --lr=: a number expected", problem("--lr="))
    assert.equal("option --flag=1: true or false expected", problem("--flag=1"))
    assert.equal("option --depth=65: an integer from 1 to 64 expected", problem("--depth=65"))
    assert.equal("option --dtype=f64: one of f32, bf16 expected", problem("--dtype=f64"))
    assert.equal("option --steps needs a value: an integer", problem("--steps"))
    assert.equal("option --steps needs a value: an integer", problem("--steps", "--flag"))
  end)

  it("refuse a name that is not there, with the nearest", function()
    assert.equal("unknown option --stpes; did you mean --steps?", problem("--stpes=3"))
    assert.equal("unknown option --optimiser; did you mean --optimizer?", problem("--optimiser=muon"))
    assert.equal("unknown option --zzzzzz; --help lists them", problem("--zzzzzz=1"))
    assert.matches("unexpected argument 'fast'", problem("fast"))
  end)

  it("list themselves with their defaults", function()
    local text = options.help(defaults, "run x.lua")
    assert.matches("%-%-steps=800 +an integer", text)
    assert.matches("%-%-depth=4 +layers; an integer from 1 to 64", text)
    assert.matches("%-%-data='' +text", text)
    local values, message, help = parse("--help")
    assert.is_nil(values)
    assert.is_nil(message)
    assert.is_true(help)
  end)

  it("refuse a definition that makes no sense, at the recipe's line", function()
    local function mistake(definitions)
      local ok, message = pcall(function() options(definitions) end)
      assert.is_false(ok)
      return message
    end
    assert.matches("options_spec.lua:%d+: options: lr needs a default", mistake { lr = print })
    assert.matches("options_spec.lua:%d+: options: lr has a field 'defualt'", mistake { lr = { defualt = 1 } })
    assert.matches("options_spec.lua:%d+: options: a table of defaults expected", mistake "steps")
  end)
end)
