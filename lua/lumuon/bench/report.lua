--- What measurements share: the machine they ran on, medians, JSON, tables.
local lib = require "lumuon.lib"
local info = require "lumuon.info"
local ffi, C = lib.ffi, lib.C

local report = {}

--- CPU, kernels, threads, versions: what a figure is worth nothing without.
function report.machine()
  local machine = { kernels = ffi.string(C.lm_cpu_variant()), threads = C.lm_threads() }
  for _, row in ipairs(info.collect()) do
    if row[1] == "lumuon" then machine.lumuon = row[2] end
    if row[1] == "cpu" then machine.cpu = row[2] end
    if row[1] == "oneDNN" then machine.onednn = row[2] end
  end
  return machine
end

--- The most memory this process has had resident, in bytes; 0 where the system does not say.
function report.resident_peak()
  local file = io.open("/proc/self/status")
  if not file then return 0 end
  local kilobytes = file:read("*a"):match("VmHWM:%s*(%d+) kB")
  file:close()
  return 1024 * (tonumber(kilobytes) or 0)
end

--- The middle one.
function report.median(list)
  local sorted = {}
  for i, x in ipairs(list) do sorted[i] = x end
  table.sort(sorted)
  local n = #sorted
  return n % 2 == 1 and sorted[(n + 1) / 2] or (sorted[n / 2] + sorted[n / 2 + 1]) / 2
end

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\t"] = "\\t", ["\r"] = "\\r" }

--- JSON text of numbers, strings, booleans, lists and tables with string keys (in order of name).
function report.json(value, indent)
  indent = indent or ""
  if type(value) == "string" then return '"' .. value:gsub('[%c"\\]', function(c)
    return escapes[c] or ("\\u%04x"):format(c:byte())
  end) .. '"' end
  if type(value) == "number" then
    return (value ~= value or value == math.huge or value == -math.huge) and "null" or ("%.10g"):format(value)
  end
  if type(value) ~= "table" then return tostring(value) end
  local parts, inner = {}, indent .. "  "
  if #value > 0 or next(value) == nil then
    for i, v in ipairs(value) do parts[i] = report.json(v, inner) end
    if type(value[1]) ~= "table" then return "[" .. table.concat(parts, ", ") .. "]" end
    return "[\n" .. inner .. table.concat(parts, ",\n" .. inner) .. "\n" .. indent .. "]"
  end
  local names = {}
  for name in pairs(value) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do parts[i] = ('"%s": %s'):format(name, report.json(value[name], inner)) end
  return "{\n" .. inner .. table.concat(parts, ",\n" .. inner) .. "\n" .. indent .. "}"
end

local function open(path, mode)
  local file, message = io.open(path, mode)
  if not file then lib.raise("bench: cannot write '%s': %s", path, message) end
  return file
end

--- Refuse, before anything is measured, a path that report.save could not write. What is there stays as it is.
function report.check(path)
  if path == "" then return end
  local there = io.open(path)
  if there then there:close() end
  open(path, "a"):close()
  if not there then os.remove(path) end
end

--- Write the JSON of value to path, if one is given.
function report.save(path, value)
  if path == "" then return end
  local file = open(path, "w")
  local ok = file:write(report.json(value), "\n")
  if not (file:close() and ok) then lib.raise("bench: writing '%s' failed; is the disk full?", path) end
end

return report
