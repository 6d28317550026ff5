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
local state = require "lumuon.optim.state"
local raise = lib.raise

local checkpoint = {}

local function check(what, path, parts)
  if type(path) ~= "string" or path == "" then raise("%s: expected a path, got %s", what, tostring(path)) end
  if type(parts) ~= "table" or type(parts.model) ~= "table" or type(parts.opt) ~= "table" then
    raise("%s: expected { model = a model, opt = its optimizer }", what)
  end
end

--- The model's parameters by name: a list of { name, p }.
local function parameters_of(model)
  local list = {}
  for name, p in model:named_parameters() do list[#list + 1] = { name, p } end
  table.sort(list, function(a, b) return a[1] < b[1] end)
  return list
end

local AGREE_EVERY = 64e6 -- bytes: a collective's timeout is for what lies between two of them

--- f(name, p) on rank 0 for every parameter. Its error is every rank's.
local function on_rank_0(what, list, f)
  local problem, since = nil, 0
  for _, one in ipairs(list) do
    if dist.rank() == 0 then problem = dist.attempt(problem, f, one[1], one[2]) end
    since = since + 4 * one[2]:numel()
    if since >= AGREE_EVERY then
      dist.check_all(what, problem)
      since = 0
    end
  end
  dist.check_all(what, problem)
end

local function key_of(key, name) return ("optimizer.%s.%s"):format(key, name) end

--- Save; every rank calls it, rank 0 writes. The file's header is written first and then each tensor in its place, as
-- it comes: nothing is held that was written.
-- @param parts model (named_parameters()), opt, and optionally meta: names to strings kept with it
function checkpoint.save(path, parts)
  local what, list, writer = "checkpoint.save", nil, nil
  check(what, path, parts)
  local function create()
    local shapes, meta = {}, { step = ("%d"):format(parts.opt.steps) }
    for _, one in ipairs(list) do shapes["model." .. one[1]] = { dtype = one[2]:dtype(), sizes = one[2]:size() } end
    for key, own in pairs(state.shapes(parts.opt)) do
      for name, shape in pairs(own) do shapes[key_of(key, name)] = shape end
    end
    for name, value in pairs(parts.meta or {}) do
      if name == "step" then raise("checkpoint.save: meta.step is the optimizer's own") end
      meta[name] = value
    end
    writer = safetensors.create(path, shapes, meta)
  end
  local ok, message = pcall(function()
    list = parameters_of(parts.model)
    dist.check_all(what, dist.rank() == 0 and dist.attempt(nil, create) or nil)
    on_rank_0(what, list, function(name, p) writer:put("model." .. name, p) end)
    state.take(parts.opt, function(key, name, t) writer:put(key_of(key, name), t) end, what)
    dist.check_all(what, writer and dist.attempt(nil, writer.commit, writer))
  end)
  if ok then return end
  if writer then writer:abandon() end
  error(message, 0)
end

--- Raise unless the file is a checkpoint of this model and this optimizer. Returns its step.
local function check_file(file, path, parts, list)
  local step, given = tonumber(file.meta.step or ""), {}
  if not step then raise("checkpoint.load: '%s' is no checkpoint: it has no step", path) end
  for _, one in ipairs(list) do
    local found = file:describe("model." .. one[1])
    if not found then raise("checkpoint.load: '%s' has no parameter '%s'", path, one[1]) end
    if found ~= one[2]:describe() then
      raise("checkpoint.load: '%s': %s is %s, the model's is %s", path, one[1], found, one[2]:describe())
    end
  end
  for _, name in ipairs(file:names()) do
    local key, entry = name:match("^optimizer%.(.+)%.([^.]+)$")
    if key then
      given[key] = given[key] or {}
      given[key][entry] = file:describe(name)
    elseif not parts.model.by_name[name:match("^model%.(.+)$") or ""] then
      raise("checkpoint.load: '%s' has '%s', which the model has not", path, name)
    end
  end
  state.check(parts.opt, step, given)
  return step
end

local function read_all(what, file, parts, list)
  local begun = false
  on_rank_0(what, list, function(name, p)
    p = p:detach()
    local ok, message = pcall(function()
      if p:device() == "cpu" and p:is_contiguous() then return file:read("model." .. name, p) end
      lib.scope(function() p:copy(file:read("model." .. name)) end)
    end)
    if not ok then error(tostring(message) .. (begun and state.half_way or ""), 0) end
    begun = true
  end)
  for _, one in ipairs(dist.world_size() > 1 and list or {}) do
    dist.broadcast(one[2]:detach(), { label = "checkpoint's " .. one[1] })
  end
  state.put(parts.opt, function(key, name, into) file:read(key_of(key, name), into) end, what)
end

--- Go on from a checkpoint: checks all of it against the model and the optimizer, then writes both. Every rank calls
-- it; rank 0 reads the file, which the others need not have, and sends each what it keeps.
-- @return the file's metadata; step is the optimizer's again (opt.steps)
function checkpoint.load(path, parts)
  local what, list, file, step = "checkpoint.load", nil, nil, nil
  check(what, path, parts)
  local ok, meta = pcall(function()
    dist.check_all(what, dist.attempt(nil, function()
      list = parameters_of(parts.model)
      state.refresh(parts.opt)
      if dist.rank() > 0 then return end
      file = safetensors.open(path)
      step = check_file(file, path, parts, list)
    end))
    local meta = state.of_rank_0(file and file.meta, "the checkpoint's metadata")
    step = tonumber(meta.step)
    lib.uninterrupted(read_all, what, file, parts, list)
    parts.opt.steps = step
    return meta
  end)
  if file then file:close() end
  if not ok then error(meta, 0) end
  return meta
end

return checkpoint
