--- What this build and this machine are: `lumuon info`.
local lib = require "lumuon.lib"
local ffi = lib.ffi
local C = lib.C

local M = {}

--- Version of the engine.
function M.version() return ffi.string(C.lm_version()) end

local function cpu_model()
  local file = io.open("/proc/cpuinfo")
  if not file then return "unknown" end
  local text = file:read("*a")
  file:close()
  local name = text:match("model name%s*:%s*([^\n]+)") or text:match("Model%s*:%s*([^\n]+)") or "unknown"
  local _, count = text:gsub("processor%s*:", "")
  return ("%s, %d logical CPUs"):format(name, count)
end

local function gigabytes(bytes) return ("%.1f GiB"):format(bytes / 2 ^ 30) end

--- The GPU in use, or why there is none.
local function gpu()
  if C.lm_device_available(C.LM_CUDA) == 0 then return "none: " .. ffi.string(C.lm_cuda_problem()) end
  local count = C.lm_cuda_count()
  return ("cuda:%d%s: %s"):format(C.lm_cuda_selected(), count > 1 and (" of %d"):format(count) or "",
    ffi.string(C.lm_cuda_info()))
end

--- The kernel of symmetric products on the GPU, and why not the other.
local function gpu_products()
  local kernel = ffi.string(C.lm_gpu_muon_kernel()) -- this compares them, and then there is a note
  local note = ffi.string(C.lm_gpu_muon_kernel_note())
  return kernel .. (note ~= "" and " (" .. note .. ")" or "")
end

--- Pairs of name and text, in the order they are shown.
function M.collect()
  local rows = {
    { "lumuon", M.version() },
    { "cpu", cpu_model() },
    { "cpu features", (ffi.string(C.lm_cpu_features()):gsub(",", " ")) },
    { "kernels", ffi.string(C.lm_cpu_variant()) },
    { "products in bf16", C.lm_cpu_fast_bf16() == 1 and "fast" or "slow: f32 is the default" },
    { "gpu", gpu() },
    { "threads", tostring(C.lm_threads()) },
    { "processes", C.lm_dist_available(C.LM_DIST_MPI) == 1 and "several, by MPI or TCP"
      or "several, by TCP (for MPI: apt-get install libopenmpi-dev openmpi-bin, then build again)" },
    { "memory limit", gigabytes(C.lm_memory_limit()) },
    { "LuaJIT", jit.version },
  }
  if C.lm_device_available(C.LM_CUDA) == 1 then rows[#rows + 1] = { "symmetric on gpu", gpu_products() } end
  for line in ffi.string(C.lm_libraries()):gmatch("[^\n]+") do
    local name, version = line:match("^(%S+)%s+(.*)$")
    rows[#rows + 1] = { name or line, version or "" }
  end
  return rows
end

--- @param args of the command line: none, or --tuning and its options
function M.run(args)
  if args and #args > 0 then return require("lumuon.tuning").run(args) end
  for _, row in ipairs(M.collect()) do print(("%-17s %s"):format(row[1], row[2])) end
  return 0
end

return M
