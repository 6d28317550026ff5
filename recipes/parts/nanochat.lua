--- nanochat's parameter groups and schedules, every field spelled out, for you to edit.
--
-- Two versions: "seed" (early 2026) and "head" (mid 2026). `options` may change: version, n_embd (taken
-- from the model), matrix_lr, embedding_lr, unembedding_lr, scalar_lr, weight_decay (of the Muon
-- groups), precision ("f32" or "bf16" of the orthogonalisation).
local nanochat = {}

local function plain_learning_rates(version)
  return version == "head" and { unembedding = 0.004, embedding = 0.2, value_embeds = 0.1 }
    or { unembedding = 0.004, embedding = 0.2, value_embeds = 0.2 }
end

--- The parameter groups of a lm.models.gpt.GPT, for lm.optim.MuonAdamW.
function nanochat.param_groups(model, options)
  options = options or {}
  local head = (options.version or model.config.preset) == "head"
  local lr = plain_learning_rates(head and "head" or "seed")
  local scale = (model.config.n_embd / 768) ^ -0.5 -- AdamW's learning rates go with 1/sqrt(width)
  local unembedding, embedding, value_embeds, resid, x0, smear = {}, {}, {}, {}, {}, {}
  local matrices, shapes = {}, {} -- Muon takes one group a shape
  for name, p in model:named_parameters() do
    if name == "lm_head.weight" then unembedding[1] = p
    elseif name == "transformer.wte.weight" then embedding[1] = p
    elseif name:match("^value_embeds%.") then value_embeds[#value_embeds + 1] = p
    elseif name == "resid_lambdas" then resid[1] = p
    elseif name == "x0_lambdas" then x0[1] = p
    elseif name:match("^smear") or name:match("^backout") then smear[#smear + 1] = p
    else
      local shape = p:size(1) .. "x" .. p:size(2)
      if not matrices[shape] then
        matrices[shape] = {}
        shapes[#shapes + 1] = shape
      end
      table.insert(matrices[shape], p)
    end
  end

  local groups = {
    { name = "unembedding", kind = "adamw", params = unembedding, lr = (options.unembedding_lr or lr.unembedding) * scale,
      betas = head and { 0.8, 0.96 } or { 0.8, 0.95 }, eps = 1e-10, weight_decay = head and 0.01 or 0 },
    { name = "embedding", kind = "adamw", params = embedding, lr = (options.embedding_lr or lr.embedding) * scale,
      betas = head and { 0.8, 0.995 } or { 0.8, 0.95 }, eps = 1e-10, weight_decay = head and 0.001 or 0 },
    { name = "value_embeds", kind = "adamw", params = value_embeds,
      lr = (options.embedding_lr and options.embedding_lr * lr.value_embeds / lr.embedding or lr.value_embeds) * scale,
      betas = head and { 0.8, 0.995 } or { 0.8, 0.95 }, eps = 1e-10, weight_decay = head and 0.01 or 0 },
    { name = "resid_lambdas", kind = "adamw", params = resid, lr = (options.scalar_lr or 0.5) * 0.01,
      betas = { 0.8, 0.95 }, eps = 1e-10, weight_decay = head and 0.05 or 0 },
    { name = "x0_lambdas", kind = "adamw", params = x0, lr = options.scalar_lr or 0.5,
      betas = { 0.96, 0.95 }, eps = 1e-10, weight_decay = 0 },
  }
  if head then
    table.insert(groups, { name = "smear", kind = "adamw", params = smear, lr = 0.2,
      betas = { 0.8, 0.95 }, eps = 1e-10, weight_decay = 0 })
  end
  for _, shape in ipairs(shapes) do
    table.insert(groups, {
      name = "matrices " .. shape, kind = "muon", params = matrices[shape], lr = options.matrix_lr or 0.02,
      momentum = 0.95, nesterov = true, ns_steps = 5, beta2 = head and 0.9 or 0.95,
      weight_decay = options.weight_decay or 0,
      row_equilibrate = head, renormalize = head, norm_scale = head and 1.01 or 1.02,
      precision = options.precision,
    })
  end
  return groups
end

-- ---- schedules: step counts from 0 to total - 1 --------------------------------------------------------

--- What every initial learning rate is multiplied by: linear warm-up, 1, linear warm-down.
-- options: warmup (steps), warmdown_ratio (of all steps), final (fraction).
function nanochat.lr_multiplier(step, total, options)
  local warmup = options and options.warmup or 0 -- head: 40
  local warmdown = math.floor((options and options.warmdown_ratio or 0.5) * total + 0.5) -- head: 0.65
  local final = options and options.final or 0 -- head: 0.05
  if step < warmup then return (step + 1) / warmup end
  if step <= total - warmdown then return 1 end
  local left = (total - step) / warmdown -- from 1 to 0
  return left + (1 - left) * final
end

--- Muon's momentum: low at first, while the average of gradients is young.
-- options: first, last, over (steps); head: 0.85, 0.97, 400.
function nanochat.muon_momentum(step, options)
  local first = options and options.first or 0.85
  local last = options and options.last or 0.95
  local over = options and options.over or 300
  local share = math.min(step / over, 1)
  return (1 - share) * first + share * last
end

--- Muon's weight decay, linear to 0 over the run. `decay` at depth 12 is 0.2; it goes with 1/depth^2.
function nanochat.weight_decay(step, total, decay)
  return decay * (1 - step / total)
end

return nanochat
