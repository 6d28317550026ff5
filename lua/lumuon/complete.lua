--- Completion of names at the prompt: globals, fields, methods, tensor methods.
local lib = require "lumuon.lib"

local M = {}

local KEYWORDS = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in",
  "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while" }

local HIDDEN = { h = true, node = true } -- a tensor's inner fields

-- Look a key up without running anybody's code.
local function field(object, key)
  if type(object) == "string" then return string[key] end
  if lib.is_tensor(object) then return rawget(object, key) or lib.methods[key] end
  for _ = 1, 20 do
    if type(object) ~= "table" then return nil end
    local value = rawget(object, key)
    if value ~= nil then return value end
    local meta = debug.getmetatable(object)
    object = meta and rawget(meta, "__index")
  end
  return nil
end

-- Every name reachable from object by . or :
local function names_of(object)
  local found = {}
  local function add(t, tensor)
    for key, value in pairs(t) do
      if type(key) == "string" and found[key] == nil and not (tensor and HIDDEN[key]) then found[key] = value end
    end
  end
  if type(object) == "string" then add(string) end
  if lib.is_tensor(object) then
    add(object, true)
    add(lib.methods)
    return found
  end
  for _ = 1, 20 do
    if type(object) ~= "table" then break end
    for key in next, object do
      if type(key) == "string" and found[key] == nil then found[key] = rawget(object, key) end
    end
    local meta = debug.getmetatable(object)
    object = meta and rawget(meta, "__index")
  end
  return found
end

-- "model.h[1].attn" -> the object it names, or nil
local function resolve(path)
  local object, rest = _G, path
  while rest ~= "" do
    local name, index, after
    name, after = rest:match("^[%.:]?([%a_][%w_]*)(.*)$")
    if name then
      object = field(object, name)
    else
      index, after = rest:match("^%[(%d+)%](.*)$")
      if index then
        object = type(object) == "table" and rawget(object, tonumber(index))
      else
        index, after = rest:match("^%[[\"']([^\"']*)[\"']%](.*)$")
        if not index then return nil end
        object = field(object, index)
      end
    end
    if object == nil or object == false then return nil end
    rest = after
  end
  return object
end

--- All completions of the name that ends the text.
-- @return sorted list of names, and the part of one already typed
function M.candidates(text)
  -- what a call returns is not known before it runs; here it is most often a tensor
  local of_call = text:match("%):([%w_]*)$")
  if of_call then
    local list = {}
    for name in pairs(lib.methods) do
      if name:sub(1, #of_call) == of_call then list[#list + 1] = name end
    end
    table.sort(list)
    return list, of_call
  end
  local path = text:match("([%a_][%w_%.:%[%]\"']*)$") or ""
  local owner, separator, typed = path:match("^(.*)([%.:])([%w_]*)$")
  local list = {}
  local names
  if owner then
    local object = resolve(owner)
    if object == nil then return {}, typed end
    names = names_of(object)
  else
    typed = path
    if not typed:match("^[%w_]+$") then return {}, "" end
    names = names_of(_G)
    for _, word in ipairs(KEYWORDS) do names[word] = true end
  end
  for name, value in pairs(names) do
    if name:sub(1, #typed) == typed and name:match("^[%a_][%w_]*$") and (typed ~= "" or name:sub(1, 1) ~= "_")
      and (separator ~= ":" or type(value) == "function") then
      list[#list + 1] = name
    end
  end
  table.sort(list)
  return list, typed
end

local function common_prefix(list)
  local prefix = list[1]
  for _, name in ipairs(list) do
    while name:sub(1, #prefix) ~= prefix do prefix = prefix:sub(1, -2) end
  end
  return prefix
end

local function columns(list, width)
  local widest = 0
  for _, name in ipairs(list) do widest = math.max(widest, #name + 2) end
  local across = math.max(1, math.floor(width / widest))
  local down = math.ceil(#list / across)
  local lines = {}
  for row = 1, down do
    local cells = {}
    for i = row, #list, down do cells[#cells + 1] = list[i] .. (" "):rep(widest - #list[i]) end
    lines[row] = table.concat(cells):gsub("%s+$", "")
  end
  return table.concat(lines, "\n")
end

--- What the Tab key does.
-- @return text to insert, and text to show or nil
function M.complete(text, width)
  if not text:match("%S") then return "  " end -- at the start of a line Tab indents
  local list, typed = M.candidates(text)
  if #list == 0 then return "" end
  local more = common_prefix(list):sub(#typed + 1)
  if more ~= "" or #list == 1 then return more end
  if #list > 400 then return "", ("%d possibilities"):format(#list) end
  return "", columns(list, width or 80)
end

return M
