--- Values as a person wants to see them at the prompt.
local lib = require "lumuon.lib"

local WIDTH, ENTRIES = 96, 24

-- Keys in an order a person expects: numbers, then names.
local function before(a, b)
  local ta, tb = type(a), type(b)
  if ta ~= tb then return ta == "number" or (tb ~= "number" and ta < tb) end
  if ta == "number" or ta == "string" then return a < b end
  return tostring(a) < tostring(b)
end

local function number(x)
  if x == math.floor(x) and math.abs(x) < 1e15 then return ("%d"):format(x) end
  return ("%.14g"):format(x)
end

-- A value inside a table: one line, whatever it is.
local function short(value)
  local kind = type(value)
  if kind == "string" then
    if #value > 60 then value = value:sub(1, 57) .. "..." end
    return (("%q"):format(value):gsub("\\\n", "\\n"):gsub("\r", "\\r"))
  end
  if kind == "number" then return number(value) end
  if lib.is_tensor(value) then
    return value.h == nil and "tensor (freed)" or "tensor " .. value:describe()
  end
  if kind == "table" then
    local meta = debug.getmetatable(value)
    if meta and rawget(meta, "__tostring") then return (tostring(value):match("[^\n]*")) end
    if next(value) == nil then return "{}" end
    local count = 0
    for _ in next, value do count = count + 1 end
    return ("{%d %s}"):format(count, count == 1 and "entry" or "entries")
  end
  if kind == "function" then return "function" end
  return tostring(value)
end

local function table_text(t)
  local keys = {}
  for key in next, t do keys[#keys + 1] = key end
  table.sort(keys, before)
  local parts, length = {}, 0
  for i, key in ipairs(keys) do
    if i > ENTRIES then
      parts[i] = ("... %d more"):format(#keys - ENTRIES)
      break
    end
    local value = short(t[key])
    if key == i then
      parts[i] = value
    elseif type(key) == "string" and key:match("^[%a_][%w_]*$") then
      parts[i] = ("%s = %s"):format(key, value)
    else
      parts[i] = ("[%s] = %s"):format(short(key), value)
    end
    length = length + #parts[i] + 2
  end
  if length <= WIDTH then return "{ " .. table.concat(parts, ", ") .. " }" end
  return "{\n  " .. table.concat(parts, ",\n  ") .. "\n}"
end

--- Text of a value: tables one level deep, tensors and objects as they print themselves.
local function pretty(value)
  if type(value) == "number" then return number(value) end
  if type(value) == "table" and not lib.is_tensor(value) then
    local meta = debug.getmetatable(value)
    if not (meta and rawget(meta, "__tostring")) then
      return next(value) == nil and "{}" or table_text(value)
    end
  end
  return tostring(value)
end

return pretty
