--- nanochat's parameter groups and schedules, every field spelled out, for you to edit.
--
-- Two versions: "seed" (early 2026) and "head" (mid 2026); functions that differ between them take the
-- version, or find it in model.config.preset.
local nanochat = {}

-- ---- parameter groups ---------------------------------------------------------------------------------

-- lr of the AdamW groups is for n_embd 768 and goes with 1/sqrt(n_embd), but for the scalars'.
local groups = {
  seed = {
    unembedding  = { lr = 0.004, betas = { 0.8, 0.95 }, eps = 1e-10, weight_decay = 0 },
    embedding    = { lr = 0.2, betas = { 0.8, 0.95 }, eps = 1e-10, weight_decay = 0 },
    value_embeds = { lr = 0.2, betas = { 0.8, 0.95 }, eps = 1e-10, weight_decay = 0 },
    resid        = { lr = 0.005, betas = { 0.8, 0.95 }, eps = 1e-10, weight_decay = 0 },
    x0           = { lr = 0.5, betas = { 0.96, 0.95 }, eps = 1e-10, weight_decay = 0 },
    matrices     = { lr = 0.02, momentum = 0.95, nesterov = true, ns_steps = 5, beta2 = 0.95, weight_decay = 0.2,
                     norm_scale = 1.02, row_equilibrate = false, renormalize = false },
  },
  head = {
    unembedding  = { lr = 0.004, betas = { 0.8, 0.96 }, eps = 1e-10, weight_decay = 0.01 },
    embedding    = { lr = 0.2, betas = { 0.8, 0.995 }, eps = 1e-10, weight_decay = 0.001 },
    value_embeds = { lr = 0.1, betas = { 0.8, 0.995 }, eps = 1e-10, weight_decay = 0.01 },
    resid        = { lr = 0.005, betas = { 0.8, 0.95 }, eps = 1e-10, weight_decay = 0.05 },
    x0           = { lr = 0.5, betas = { 0.96, 0.95 }, eps = 1e-10, weight_decay = 0 },
    smear        = { lr = 0.2, betas = { 0.8, 0.95 }, eps = 1e-10, weight_decay = 0 },
    matrices     = { lr = 0.02, momentum = 0.95, nesterov = true, ns_steps = 5, beta2 = 0.9, weight_decay = 0.28,
                     norm_scale = 1.01, row_equilibrate = true, renormalize = true },
  },
}
local width_scaled = { unembedding = true, embedding = true, value_embeds = true }
local order = { "unembedding", "embedding", "value_embeds", "resid", "x0", "smear" }

--- Which group a parameter belongs to, by its name.
local function role(name)
  if name == "lm_head.weight" then return "unembedding" end
  if name == "transformer.wte.weight" then return "embedding" end
  if name:match("^value_embeds%.") then return "value_embeds" end
  if name == "resid_lambdas" then return "resid" end
  if name == "x0_lambdas" then return "x0" end
  if name:match("^smear_") or name == "backout_lambda" then return "smear" end
  return "matrices"
end

--- The parameter groups of a lm.models.gpt.GPT for lm.optim.MuonAdamW. `changes` overrides fields by
-- role: { matrices = { lr = 0.03, precision = "bf16" }, embedding = { lr = 0.3 } }.
function nanochat.param_groups(model, changes)
  local members, shapes = {}, {} -- by role; Muon has one group a shape
  for name, p in model:named_parameters() do
    local key = role(name)
    if key == "matrices" then
      key = ("matrices %dx%d"):format(p:size(1), p:size(2))
      if not members[key] then shapes[#shapes + 1] = key end
    end
    members[key] = members[key] or {}
    table.insert(members[key], p)
  end

  local list = {}
  local function add(key, kind, role_name)
    local group = { name = key, kind = kind, params = members[key] }
    for field, value in pairs(groups[model.config.preset][role_name]) do group[field] = value end
    for field, value in pairs(changes and changes[role_name] or {}) do group[field] = value end
    if width_scaled[role_name] then group.lr = group.lr * (model.config.n_embd / 768) ^ -0.5 end
    list[#list + 1] = group
  end
  for _, key in ipairs(order) do
    if members[key] then add(key, "adamw", key) end
  end
  for _, key in ipairs(shapes) do add(key, "muon", "matrices") end
  return list
end

-- ---- schedules: step counts from 0 to total - 1 ----------------------------------------------------------

local schedules = {
  seed = { warmup = 0, warmdown_ratio = 0.5, final = 0,
           momentum = { first = 0.85, last = 0.95, over = 300 } },
  head = { warmup = 40, warmdown_ratio = 0.65, final = 0.05,
           momentum = { first = 0.85, last = 0.97, over = 400, at_the_end = 0.90 } },
}

--- The schedule numbers of a version, changed where `changes` says so.
function nanochat.schedule(version, changes)
  local schedule = {}
  for name, value in pairs(schedules[version]) do schedule[name] = value end
  for name, value in pairs(changes or {}) do schedule[name] = value end
  return schedule
end

--- Where in the warm-down a step is: 0 before it, 1 after the last step and from there on.
local function warmdown_progress(step, total, schedule)
  local warmdown = math.floor(schedule.warmdown_ratio * total + 0.5)
  if warmdown == 0 then return 0 end
  return math.min(1, math.max(0, 1 - (total - step) / warmdown))
end

--- What every initial learning rate is multiplied by: linear warm-up, 1, linear warm-down to final.
function nanochat.lr_multiplier(step, total, schedule)
  if step < schedule.warmup then return (step + 1) / schedule.warmup end
  local progress = warmdown_progress(step, total, schedule)
  return 1 - progress + progress * schedule.final
end

--- Muon's momentum: low at first, while the average of gradients is young; in head lower again at the end.
function nanochat.muon_momentum(step, total, schedule)
  local m = schedule.momentum
  local share = math.min(step / m.over, 1)
  local momentum = (1 - share) * m.first + share * m.last
  local progress = warmdown_progress(step, total, schedule)
  if m.at_the_end and progress > 0 then momentum = m.last + (m.at_the_end - m.last) * progress end
  return momentum
end

--- Muon's weight decay: from `initial` to 0, linearly (seed) or along a cosine (head).
function nanochat.weight_decay(step, total, initial, version)
  local share = math.min(step / total, 1)
  if version == "head" then return initial * 0.5 * (1 + math.cos(math.pi * share)) end
  return initial * (1 - share)
end

-- ---- one dial ----------------------------------------------------------------------------------------------

--- Width and heads of a depth: 64 a layer, rounded up to whole heads of 128.
function nanochat.dimensions(depth)
  local n_embd = math.ceil(depth * 64 / 128) * 128
  return { n_layer = depth, n_embd = n_embd, n_head = n_embd / 128, n_kv_head = n_embd / 128 }
end

--- seed: Muon's initial weight decay at a depth; 0.2 at 12.
function nanochat.seed_weight_decay(depth) return 0.2 * (12 / depth) ^ 2 end

--- seed: every learning rate times this for a batch of B tokens.
function nanochat.seed_batch_scale(B) return math.sqrt(B / 2 ^ 19) end

--- Scaling parameters of a depth, as GPT:num_parameters counts them in the head version: the blocks'
-- matrices (with the value embeddings' gates, 12 channels a head in every second layer) and lm_head.
function nanochat.scaling_parameters(depth, vocab_size)
  local d = nanochat.dimensions(depth)
  local gates = math.ceil(depth / 2) * d.n_kv_head * 12
  return 12 * depth * d.n_embd ^ 2 + gates + math.ceil(vocab_size / 64) * 64 * d.n_embd
end

--- head: tokens to train on (12 a scaling parameter), tokens a batch (or batch_tokens, where that is not
-- 0), the learning rates' scale and Muon's initial weight decay, for a model with n scaling parameters;
-- n_ref is the depth-12 model's.
function nanochat.head_scaling(n, n_ref, batch_tokens)
  local D, D_ref, B_ref = 12 * n, 12 * n_ref, 2 ^ 19
  local B = batch_tokens and batch_tokens > 0 and batch_tokens
    or 2 ^ math.floor(math.log(B_ref * (D / D_ref) ^ 0.383) / math.log(2) + 0.5)
  return { tokens = D, batch = B, lr_scale = math.sqrt(B / B_ref),
    weight_decay = 0.28 * math.sqrt(B / B_ref) * (D_ref / D) }
end

return nanochat
