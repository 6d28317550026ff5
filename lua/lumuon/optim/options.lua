--- The options of a parameter group: names, defaults, ranges. Read by lumuon.optim when a group is made
-- and again at every step, so a schedule that writes a bad number is told at once.
local lib = require "lumuon.lib"
local C, raise = lib.C, lib.raise

local options = {}

--- Polar Express: (a, b, c) of each step (Amsel et al. 2025), for singular values from 1e-3 and |X| / 1.02.
options.polar_express = {
  { 8.156554524902461, -22.48329292557795, 15.878769915207462 },
  { 4.042929935166739, -2.808917465908714, 0.5000178451051316 },
  { 3.8916678022926607, -2.772484153217685, 0.5060648178503393 },
  { 3.285753657755655, -2.3681294933425376, 0.46449024233003106 },
  { 2.3465413258596377, -1.7097828382687081, 0.42323551169305323 },
}

-- ---- checks: each returns nil, or what is wrong with a value, as the end of "lr = 7 ..." ----------------

-- The arithmetic is in f32: what overflows there is no finite number, and an eps that vanishes there is 0.
local LARGEST, SMALLEST = 3.4028234663852886e38, 1.1754943508222875e-38
local function is_number(x) return type(x) == "number" and x >= -LARGEST and x <= LARGEST end

local function not_negative(x)
  if not (is_number(x) and x >= 0) then return "must be a finite number >= 0" end
end

local function positive(x)
  if not (is_number(x) and x >= SMALLEST) then return "must be a finite number > 0 (in f32: from 1.2e-38)" end
end

local function fraction(x)
  if not (is_number(x) and x >= 0 and x < 1) then return "is not in [0, 1)" end
end

local function boolean(x)
  if type(x) ~= "boolean" then return "must be true or false" end
end

local function text(x)
  if type(x) ~= "string" then return "must be a string" end
end

local function betas(x)
  if type(x) ~= "table" or #x ~= 2 then return "must be a pair {beta1, beta2}" end
  if fraction(x[1]) or fraction(x[2]) then return "must be two numbers in [0, 1)" end
end

local function steps(x)
  if not (lib.is_whole(x) and x >= 1 and x <= C.LM_MAX_NS_STEPS) then
    return ("must be a whole number from 1 to %d"):format(C.LM_MAX_NS_STEPS)
  end
end

local function coefficients(x)
  if type(x) ~= "table" or #x < 1 or #x > C.LM_MAX_NS_STEPS then
    return ("must be a list of 1 to %d triples {a, b, c}"):format(C.LM_MAX_NS_STEPS)
  end
  for i = 1, #x do
    local row = x[i]
    if type(row) ~= "table" or #row ~= 3 or not (is_number(row[1]) and is_number(row[2]) and is_number(row[3])) then
      return ("must hold triples of finite numbers {a, b, c}; row %d does not"):format(i)
    end
  end
end

local function precision(x)
  if x ~= "f32" and x ~= "bf16" then return "must be 'f32' or 'bf16'" end
end

local function blocks(x)
  if lib.is_whole(x) and x >= 1 then return end
  if type(x) ~= "table" or #x < 1 then return "must be a whole number >= 1, or a list of row counts" end
  for i = 1, #x do
    if not (lib.is_whole(x[i]) and x[i] >= 1) then
      return ("must hold whole numbers >= 1; entry %d does not"):format(i)
    end
  end
end

-- ---- the options of each kind ------------------------------------------------------------------------

local REQUIRED = {} -- a default that is none

local function fast_precision(device)
  return (device ~= "cpu" or C.lm_cpu_fast_bf16() ~= 0) and "bf16" or "f32"
end

--- kind -> name -> { check, default }. A function as a default is called for its value.
options.kinds = {
  adamw = {
    name = { text }, -- of the group, for messages
    lr = { not_negative, REQUIRED },
    initial_lr = { not_negative }, -- lr as it was when the group was made
    betas = { betas, function() return { 0.8, 0.95 } end },
    eps = { positive, 1e-10 },
    weight_decay = { not_negative, 0 },
  },
  muon = {
    name = { text },
    lr = { not_negative, REQUIRED },
    initial_lr = { not_negative },
    momentum = { fraction, 0.95 },
    nesterov = { boolean, true },
    ns_steps = { steps, 5 },
    coefficients = { coefficients, function() return options.polar_express end },
    norm_scale = { positive, 1.02 }, -- s of X = U / (|U| s + 1e-6)
    row_equilibrate = { boolean, false },
    renormalize = { boolean, false },
    beta2 = { fraction, 0.95 },
    weight_decay = { not_negative, 0 },
    precision = { precision, fast_precision },
    blocks = { blocks, 1 },
  },
}

--- What a group is called in messages.
function options.group_label(i, group)
  local kind = type(group.kind) == "string" and group.kind or "?"
  return ("group %d (%s)"):format(i, type(group.name) == "string" and group.name .. ", " .. kind or kind)
end

local function shown(x)
  if type(x) == "string" then return "'" .. x .. "'" end
  if type(x) ~= "table" then return tostring(x) end
  local parts = {}
  for i = 1, math.min(#x, 4) do parts[i] = type(x[i]) == "table" and "{...}" or tostring(x[i]) end
  if #x > 4 then parts[5] = "..." end
  return "{" .. table.concat(parts, ", ") .. "}"
end

local function unknown(label, known, key)
  local names = { "kind", "params" }
  for name in pairs(known) do names[#names + 1] = name end
  table.sort(names)
  local near = lib.nearest(tostring(key), names)
  raise("%s: unknown option '%s'%s", label, tostring(key),
    near and ("; did you mean '%s'?"):format(near) or (" (it has %s)"):format(table.concat(names, ", ")))
end

--- Raise for the first thing wrong with the hyperparameters of group i.
function options.check(i, group)
  local label = options.group_label(i, group)
  local known = options.kinds[group.kind]
  for key in pairs(group) do
    if key ~= "kind" and key ~= "params" and not known[key] then unknown(label, known, key) end
  end
  for name, option in pairs(known) do
    local value = group[name]
    if value == nil then
      if option[2] ~= nil then raise("%s: option '%s' is missing", label, name) end
    else
      local wrong = option[1](value)
      if wrong then raise("%s: %s = %s %s", label, name, shown(value), wrong) end
    end
  end
  if group.kind == "muon" and group.ns_steps > #group.coefficients then
    raise("%s: ns_steps = %d, but its coefficients are for %d", label, group.ns_steps, #group.coefficients)
  end
end

local function device_of(params)
  local first = type(params) == "table" and params[1]
  return lib.is_tensor(first) and first.h ~= nil and first:device() or "cpu"
end

--- A checked copy of a user's group with every option filled in; params is the list as given. device: where
-- the work is done, if not where the parameters are.
function options.complete(i, given, device)
  if type(given) ~= "table" or lib.is_tensor(given) then
    raise("group %d must be a table { kind = ..., params = {...}, lr = ... }, got %s", i,
      lib.is_tensor(given) and "a tensor" or type(given))
  end
  local known = options.kinds[given.kind]
  if not known then
    local near = type(given.kind) == "string" and lib.nearest(given.kind, { "adamw", "muon" })
    raise("group %d: kind = %s is neither 'adamw' nor 'muon'%s", i, shown(given.kind),
      near and ("; did you mean '%s'?"):format(near) or "")
  end
  local group = {}
  for key, value in pairs(given) do group[key] = value end
  for name, option in pairs(known) do
    local default = option[2]
    if group[name] == nil and default ~= nil and default ~= REQUIRED then
      if type(default) == "function" then default = default(device or device_of(group.params)) end
      group[name] = default
    end
  end
  if group.initial_lr == nil then group.initial_lr = group.lr end
  options.check(i, group)
  return group
end

--- The options of optim.polar_express: those of a Muon group that concern it.
function options.complete_polar(given, device)
  local group = { kind = "muon", lr = 0 }
  if type(given) ~= "table" then raise("polar_express: options must be a table, got %s", type(given)) end
  for key, value in pairs(given) do
    if key ~= "ns_steps" and key ~= "precision" and key ~= "norm_scale" and key ~= "coefficients" then
      raise("polar_express: unknown option '%s' (ns_steps, precision, norm_scale, coefficients)", tostring(key))
    end
    group[key] = value
  end
  return options.complete(1, group, device)
end

return options
