--- The kernels of symmetric products on a GPU, by name: the same results, edges, refusals.
local lm = require "lumuon"
local lib = require "lumuon.lib"
local devices = require "spec.support.devices"
local assert = require "luassert"
local ffi, C = lib.ffi, lib.C

local list = {}

--- f() with the halves and one of their kernels.
local function with_kernel(name, f)
  lib.call(C.lm_set_gpu_muon_kernel, name)
  lib.call(C.lm_set_muon_path, C.LM_MUON_HALVES)
  local ok, message = pcall(f)
  C.lm_set_muon_path(C.LM_MUON_AUTO)
  C.lm_set_gpu_muon_kernel("auto")
  if not ok then error(message, 0) end
end

-- tiles of 128 rows and 256 columns beside and beyond the diagonal, their edges; slabs of 64, more and
-- fewer than are copied ahead; both ways round; several matrices
local SHAPES = { { 2, 8, 40 }, { 2, 40, 8 }, { 1, 64, 64 }, { 1, 264, 136 }, { 2, 264, 296 }, { 1, 280, 264 } }

--- Where it should be, it is: a kernel that was dropped because its results differ fails here.
local function has_wgmma()
  if not ffi.string(C.lm_cuda_info()):find("capability 9.0", 1, true) then return false end
  lib.call(C.lm_set_gpu_muon_kernel, "wgmma_bf16")
  C.lm_set_gpu_muon_kernel("auto")
  return true
end

list[#list + 1] = { "wgmma_bf16 has mma_bf16's results within a rounding, and is bitwise repeatable", function()
  if not has_wgmma() then return end
  for _, shape in ipairs(SHAPES) do
    for _, steps in ipairs(shape[2] < 100 and { 1, 3 } or { 1 }) do
      local x = devices.random("f32", shape)
      local function express(t)
        local out
        with_kernel("wgmma_bf16", function()
          out = lm.optim.polar_express(t, { precision = "bf16", ns_steps = steps })
          local did = ffi.new("lm_muon_report")
          lib.call(C.lm_muon_last, did)
          assert.equal("wgmma_bf16", ffi.string(did.kernel))
        end)
        return out
      end
      local t, want = x.tensor:to("cuda")
      with_kernel("mma_bf16", function() want = lm.optim.polar_express(t, { precision = "bf16", ns_steps = steps }) end)
      local got = express(t)
      local off = (got:to("cpu") - want:to("cpu")):norm():item() / want:to("cpu"):norm():item()
      assert(off < 2 ^ -8, ("%s, %d steps: %g"):format(table.concat(shape, " x "), steps, off))
      devices.compare({ x }, function(a)
        if a:device() ~= "cpu" then return express(a) end
        C.lm_set_muon_path(C.LM_MUON_WRITTEN)
        local out = lm.optim.polar_express(a, { precision = "bf16", ns_steps = steps })
        C.lm_set_muon_path(C.LM_MUON_AUTO)
        return out
      end, 5e-2, table.concat(shape, " x "))
    end
  end
end }

list[#list + 1] = { "the kernel is had by name, and by no other", function()
  local before = ffi.string(C.lm_gpu_muon_kernel())
  assert(before == "mma_bf16" or before == "wgmma_bf16", before)
  for _, case in ipairs { { "fast", "no kernel 'fast'" }, { false, "NULL" } } do
    local ok, message = pcall(lib.call, C.lm_set_gpu_muon_kernel, case[1] or nil)
    assert(not ok and message:find(case[2], 1, true), message)
  end
  assert.equal(before, ffi.string(C.lm_gpu_muon_kernel()))
  with_kernel("mma_bf16", function() assert.equal("mma_bf16", ffi.string(C.lm_gpu_muon_kernel())) end)
  if has_wgmma() then
    with_kernel("wgmma_bf16", function() assert.equal("wgmma_bf16", ffi.string(C.lm_gpu_muon_kernel())) end)
  end
end }

return list
