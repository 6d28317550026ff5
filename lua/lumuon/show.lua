--- How a tensor prints: shape, dtype, device, and its values, long dims cut short.
local lib = require "lumuon.lib"
require "lumuon.tensor"
local Tensor, T = lib.Tensor, lib.methods

local EDGE = 3 -- rows and columns shown at each end of a long dim

local function shown(n)
  local list = {}
  for i = 1, n do
    if n <= 2 * EDGE + 2 or i <= EDGE or i > n - EDGE then
      list[#list + 1] = i
    elseif i == EDGE + 1 then
      list[#list + 1] = 0 -- the gap
    end
  end
  return list
end

--- A format for all the numbers shown: integers plain, else 4 decimals, or exponents for wide ranges.
local function number_format(values)
  local whole, largest, smallest = true, 0, math.huge
  for _, v in ipairs(values) do
    local a = math.abs(v)
    if v == v and a < math.huge then
      whole = whole and v == math.floor(v)
      largest = math.max(largest, a)
      if a > 0 then smallest = math.min(smallest, a) end
    end
  end
  if whole and largest < 1e9 then return "%.0f" end
  if largest >= 1e5 or (smallest < 1e-4 and largest < 1) or largest / smallest > 1e6 then return "%.4e" end
  return "%.4f"
end

function Tensor.__tostring(t)
  if t.h == nil then return "tensor (freed)" end
  local head = ("tensor %s %s%s"):format(t:describe(), t:device(), t.requires_grad and " requires_grad" or "")
  if t:numel() == 0 then return head .. " []" end
  local plain = t:detach()
  local sizes = t:size()
  local values, lines = {}, {}
  local function gather(x, depth)
    if depth > #sizes then
      values[#values + 1] = x:item()
      return
    end
    for _, i in ipairs(shown(sizes[depth])) do
      if i > 0 then gather(T.select(x, 1, i), depth + 1) end
    end
  end
  gather(plain, 1)
  local format, width = number_format(values), 0
  for i = 1, #values do
    values[i] = format:format(values[i])
    width = math.max(width, #values[i])
  end
  if #sizes == 0 then return head .. " " .. values[1] end
  local at = 0
  local function render(depth, indent)
    if depth == #sizes then
      local cells = {}
      for _, i in ipairs(shown(sizes[depth])) do
        if i > 0 then at = at + 1 end
        cells[#cells + 1] = i > 0 and (" "):rep(width - #values[at]) .. values[at] or "..."
      end
      lines[#lines + 1] = indent .. "[" .. table.concat(cells, ", ") .. "]"
      return
    end
    for _, i in ipairs(shown(sizes[depth])) do
      if i > 0 then
        if depth < #sizes - 1 and #lines > 0 then lines[#lines + 1] = "" end
        render(depth + 1, indent)
      else
        lines[#lines + 1] = indent .. " ..."
      end
    end
  end
  render(1, "  ")
  return head .. "\n" .. table.concat(lines, "\n")
end
