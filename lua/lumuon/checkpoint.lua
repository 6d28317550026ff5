--- Checkpoints: a model's parameters, the optimizer's state and the step count in one safetensors file.
--
--     lm.checkpoint.save("run/step-100.safetensors", { model = model, opt = opt })
--     local meta = lm.checkpoint.load("run/step-100.safetensors", { model = model, opt = opt })
--
-- The file is the same whatever the number of processes: one that 2 wrote, 1 or 8 can go on from. It is
-- replaced as a whole: the path always holds a complete checkpoint, the old one or the new one.
-- Hyperparameters are not in it; the recipe sets them at each step.
local lib = require "lumuon.lib"
local dist = require "lumuon.dist"
local safetensors = require "lumuon.safetensors"
local raise = lib.raise

local checkpoint = {}

local function check(what, path, parts)
  if type(path) ~= "string" or path == "" then raise("%s: expected a path, got %s", what, tostring(path)) end
  if type(parts) ~= "table" or type(parts.model) ~= "table" or type(parts.opt) ~= "table" then
    raise("%s: expected { model = a model, opt = its optimizer }", what)
  end
end

--- Rank 0's path may be wrong, or its disk full: then every rank has the error.
local function on_rank_0(what, f)
  local ok, message = true, ""
  if dist.rank() == 0 then ok, message = pcall(f) end
  for rank, text in ipairs(dist.all_strings(ok and "" or tostring(message), what)) do
    if text ~= "" then
      if dist.rank() == rank - 1 then error(message, 0) end
      raise("%s: rank %d: %s", what, rank - 1, text)
    end
  end
end

--- Save; every rank calls it, rank 0 writes.
-- @param parts model (named_parameters()), opt, and optionally meta: names to strings kept with it
function checkpoint.save(path, parts)
  check("checkpoint.save", path, parts)
  local state = parts.opt:state_dict { views = true } -- gathers: on rank 0 alone with several processes
  on_rank_0("checkpoint.save", function()
    local tensors = {}
    for name, p in parts.model:named_parameters() do tensors["model." .. name] = p end
    for key, entries in pairs(state.state) do
      for name, t in pairs(entries) do tensors[("optimizer.%s.%s"):format(key, name)] = t end
    end
    local meta = { step = ("%d"):format(state.step) }
    for name, value in pairs(parts.meta or {}) do
      if name == "step" then raise("checkpoint.save: meta.step is the optimizer's own") end
      meta[name] = value
    end
    safetensors.save(path, tensors, meta)
  end)
end

--- Raise unless every rank has read the same file: without a shared disk they may be two runs'.
local function agree(tensors, step)
  if dist.world_size() == 1 then return end
  local lines = { ("step %d"):format(step) }
  for name, t in pairs(tensors) do lines[#lines + 1] = ("%s %s"):format(name, dist.hash(t)) end
  table.sort(lines)
  dist.agree("the checkpoint", table.concat(lines, "\n"))
end

--- Go on from a checkpoint: checks all of it against the model and the optimizer, then writes both. Every
-- rank calls it and reads the file, which must be the same on all.
-- @return the file's metadata; step is the optimizer's again (opt.steps)
function checkpoint.load(path, parts)
  check("checkpoint.load", path, parts)
  local tensors, meta = safetensors.load(path)
  local step = tonumber(meta.step or "")
  if not step then raise("checkpoint.load: '%s' is no checkpoint: it has no step", path) end
  agree(tensors, step)
  local state, weights = {}, {}
  for name, p in parts.model:named_parameters() do
    local t = tensors["model." .. name]
    if not t then raise("checkpoint.load: '%s' has no parameter '%s'", path, name) end
    if t:describe() ~= p:describe() then
      raise("checkpoint.load: '%s': %s is %s, the model's is %s", path, name, t:describe(), p:describe())
    end
    weights[p] = t
  end
  for name, t in pairs(tensors) do
    local key, entry = name:match("^optimizer%.(.+)%.([^.]+)$")
    if key then
      state[key] = state[key] or {}
      state[key][entry] = t
    elseif not parts.model.by_name[name:match("^model%.(.+)$") or ""] then
      raise("checkpoint.load: '%s' has '%s', which the model has not", path, name)
    end
  end
  parts.opt:load_state_dict { step = step, state = state }
  for p, t in pairs(weights) do p:detach():copy(t) end
  return meta
end

return checkpoint
