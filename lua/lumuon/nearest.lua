--- The name a person probably meant.
-- `local nearest = require "lumuon.nearest"`

--- Edit distance (Damerau, adjacent swaps count once).
local function distance(a, b)
  local before, last = {}, {}
  for j = 0, #b do last[j] = j end
  for i = 1, #a do
    local row = { [0] = i }
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      local d = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + cost)
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        d = math.min(d, before[j - 2] + 1)
      end
      row[j] = d
    end
    before, last = last, row
  end
  return last[#b]
end

--- The nearest of a list of names, or nil where none is near.
-- @param name what was given
-- @param names list of what there is
local function nearest(name, names)
  local best, best_distance
  for _, candidate in ipairs(names) do
    local d = distance(name:lower(), candidate:lower())
    if #name >= 3 and candidate:sub(1, #name) == name then d = math.min(d, 1) end
    if not best or d < best_distance then best, best_distance = candidate, d end
  end
  if best and best_distance <= math.max(1, math.floor(#name * 0.4)) then return best end
  return nil
end

return nearest
