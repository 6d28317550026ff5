--- Options of a recipe: a table of defaults, any of which the command line overrides.
--
--     local o = lm.options{ steps = 800, lr = 0.02, data = "",
--       optimizer = { default = "muon", choices = { "muon", "adamw" }, help = "which update" },
--       depth = { default = 4, min = 1, max = 64, help = "layers" } }
--
-- `--steps=200`, `--steps 200`, `--flag`, `--flag=false`. The default's type is the option's: an
-- integer takes integers, a number numbers, a boolean true or false, a string anything. (A number
-- that may have a fraction but whose default has none: { default = 1, type = "number" }.)
-- Names that mean the same in every recipe: steps, seed, device, dtype, data, threads, eval_every,
-- out.
local nearest = require "lumuon.nearest"

local M = {}

--- Called with a message when the command line is wrong; the executable reports it as a usage
-- error, elsewhere it is an ordinary error.
function M.fail(message) error(message, 0) end

local function describe_type(spec)
  if spec.choices then
    local names = {}
    for i, c in ipairs(spec.choices) do names[i] = tostring(c) end
    return "one of " .. table.concat(names, ", ")
  end
  local text = ({ integer = "an integer", number = "a number", boolean = "true or false",
    string = "text" })[spec.type]
  if spec.min and spec.max then return ("%s from %g to %g"):format(text, spec.min, spec.max) end
  if spec.min then return ("%s, at least %g"):format(text, spec.min) end
  if spec.max then return ("%s, at most %g"):format(text, spec.max) end
  return text
end

local function type_of(default)
  local kind = type(default)
  if kind == "number" then
    return default == math.floor(default) and math.abs(default) < 2 ^ 53 and "integer" or "number"
  end
  return kind
end

local KEYS = { default = true, choices = true, help = true, min = true, max = true, type = true }
local TYPES = { integer = true, number = true, boolean = true, string = true }

-- The table the recipe wrote, in one form; mistakes in it are the recipe's own.
local function normalise(definitions, level)
  if type(definitions) ~= "table" then
    error(("options: a table of defaults expected, got %s"):format(type(definitions)), level)
  end
  local specs, names = {}, {}
  for name, value in pairs(definitions) do
    if type(name) ~= "string" or not name:match("^[%a_][%w_]*$") then
      error(("options: names are words, got %s"):format(tostring(name)), level)
    end
    local spec = {}
    if type(value) == "table" then
      for key, v in pairs(value) do
        if not KEYS[key] then
          error(("options: %s has a field '%s'; there are default, choices, help, min, max, type")
            :format(name, tostring(key)), level)
        end
        spec[key] = v
      end
    else
      spec.default = value
    end
    spec.type = spec.type or type_of(spec.default)
    if not TYPES[spec.type] then
      error(("options: %s needs a default that is a number, a boolean or a string, got %s")
        :format(name, tostring(spec.type)), level)
    end
    specs[name] = spec
    names[#names + 1] = name
  end
  table.sort(names)
  return specs, names
end

local function parse_number(text)
  if not text:match("^[+-]?%d+%.?%d*[eE]?[+-]?%d*$") and not text:match("^[+-]?%.%d+[eE]?[+-]?%d*$") then
    return nil
  end
  return tonumber(text)
end

-- text -> value, or nil
local function convert(spec, text)
  if spec.type == "boolean" then
    if text == "true" then return true end
    if text == "false" then return false end
    return nil
  end
  local value = text
  if spec.type ~= "string" then
    value = parse_number(text)
    if not value or value ~= value or math.abs(value) == math.huge then return nil end
    if spec.type == "integer" and (value ~= math.floor(value) or math.abs(value) > 2 ^ 53) then return nil end
    if spec.min and value < spec.min or spec.max and value > spec.max then return nil end
  end
  if spec.choices then
    for _, c in ipairs(spec.choices) do
      if c == value then return value end
    end
    return nil
  end
  return value
end

local function show(value)
  if type(value) == "string" then return value == "" and "''" or value end
  if type(value) == "number" and value == math.floor(value) and math.abs(value) < 1e15 then
    return ("%d"):format(value)
  end
  return type(value) == "number" and ("%.14g"):format(value) or tostring(value)
end

--- The text of `--help`; command: what `lumuon` is followed by, "run RECIPE.lua" if nil.
function M.help(definitions, command)
  local specs, names = normalise(definitions, 2)
  local lines = { ("usage: lumuon %s [--name=value ...]\n"):format(command or "run RECIPE.lua") }
  local width = 0
  for _, name in ipairs(names) do width = math.max(width, #name + #show(specs[name].default)) end
  for _, name in ipairs(names) do
    local spec = specs[name]
    local head = ("--%s=%s"):format(name, show(spec.default))
    lines[#lines + 1] = ("  %-" .. width + 5 .. "s%s%s"):format(head,
      spec.help and spec.help .. "; " or "", describe_type(spec))
  end
  return table.concat(lines, "\n")
end

--- Read a command line.
-- @return table of values; or nil and a message; or nil, nil and true where help was asked for
function M.parse(definitions, argv)
  local specs, names = normalise(definitions, 3)
  local values = {}
  for _, name in ipairs(names) do values[name] = specs[name].default end
  local i = 1
  while argv[i] do
    local word = tostring(argv[i])
    local name, text = word:match("^%-%-([%w_%-]+)=(.*)$")
    name = name or word:match("^%-%-([%w_%-]+)$")
    if word == "--help" or word == "-h" or name == "help" and not specs.help then return nil, nil, true end
    if not name then
      return nil, ("unexpected argument '%s': options are given as --name=value"):format(word)
    end
    local spec = specs[name]
    if not spec and specs[(name:gsub("%-", "_"))] then
      name = name:gsub("%-", "_")
      spec = specs[name]
    end
    if not spec then
      local near = nearest(name, names)
      return nil, ("unknown option --%s%s"):format(name, near and ("; did you mean --%s?"):format(near)
        or "; --help lists them")
    end
    if not text and spec.type == "boolean" then
      text = "true"
    elseif not text then
      i = i + 1
      if argv[i] == nil or tostring(argv[i]):sub(1, 2) == "--" then
        return nil, ("option --%s needs a value: %s"):format(name, describe_type(spec))
      end
      text = tostring(argv[i])
    end
    local value = convert(spec, text)
    if value == nil then
      return nil, ("option --%s=%s: %s expected"):format(name, text, describe_type(spec))
    end
    values[name] = value
    i = i + 1
  end
  return values
end

-- command: for `--help`, where it is not a recipe's
local function options(_, definitions, argv, command)
  local script = rawget(_G, "arg")
  argv = argv or script or {}
  normalise(definitions, 3)
  local values, problem, help = M.parse(definitions, argv)
  if help then
    print(M.help(definitions, command or script and script[0] and "run " .. script[0]))
    os.exit(0)
  end
  if not values then return M.fail(problem) end
  return values
end

return setmetatable(M, { __call = options })
