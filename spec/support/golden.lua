--- What the golden specs share: fixtures, their metadata, distances.
local lm = require "lumuon"

local golden = {}

--- Tensors and metadata of spec/fixtures/NAME.safetensors.
function golden.load(name)
  return lm.safetensors.load("spec/fixtures/" .. name .. ".safetensors")
end

--- The numbers in a list of the JSON text: numbers(meta.peer_error, "f32") for {"f32": [1, 2], ...}.
function golden.numbers(text, key)
  local list = {}
  for x in text:match('"' .. key .. '":%s*%[(.-)%]'):gmatch("[^,%s]+") do list[#list + 1] = tonumber(x) end
  return list
end

--- One number of the JSON text.
function golden.number(text, key) return tonumber(text:match('"' .. key .. '":%s*([%w%.%-]+)')) end

--- Frobenius distance of two lists of tensors.
function golden.distance(a, b)
  local sum = 0
  for i = 1, #a do sum = sum + (a[i]:detach() - b[i]):norm():item() ^ 2 end
  return math.sqrt(sum)
end

--- The slices of t along its first dim.
function golden.slices(t)
  local list = {}
  for i = 1, t:size(1) do list[i] = t:select(1, i) end
  return list
end

--- A list of zeros like the tensors.
function golden.zeros(list)
  local zeros = {}
  for i, t in ipairs(list) do zeros[i] = lm.zeros_like(t) end
  return zeros
end

return golden
