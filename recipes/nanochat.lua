-- nanochat's pretraining by one dial, depth: width, batch, learning rates, decay and length follow from it.
--
--   ./lumuon run recipes/nanochat.lua --depth=4 --data=fineweb10B     a folder of token shards (.bin, GPT-2's)
--   ./lumuon run recipes/nanochat.lua --depth=2 --steps=100           without any: bytes of Debian's fortunes
--   ./lumuon run recipes/nanochat.lua ... --out=run --save_every=500  checkpoints; --resume=run/step-500.safetensors
--   mpirun -n 8 ./lumuon run recipes/nanochat.lua --depth=12 --data=fineweb10B
local lm = require "lumuon"
local nanochat = require "parts.nanochat"

local o = lm.options {
  depth = { default = 4, min = 1, max = 128, help = "layers; the width is 64 a layer" },
  steps = { default = 0, min = 0, help = "0: until 12 tokens a scaling parameter are seen" },
  batch_tokens = { default = 0, min = 0, help = "tokens a step over all ranks; 0: by the depth" },
  device_batch_size = { default = 16, min = 1, help = "rows a rank takes at once; the rest of its batch follows" },
  sequence_len = { default = 1024, min = 2, help = "tokens a row" },
  vocab_size = { default = 50257, min = 2, help = "tokens that the shards count to; GPT-2's" },
  seed = { default = 1, min = 0, help = "of the weights, and the batches of a text" },
  device = { default = "cpu", choices = { "cpu", "cuda" } },
  dtype = { default = "bf16", choices = { "f32", "bf16" }, help = "of the activations" },
  threads = { default = 0, min = 0, help = "0: as many as there are cores" },
  data = { default = "", help = "a folder of token shards, or text; empty: Debian's fortunes" },
  eval_every = { default = 250, min = 0, help = "steps between evaluations; 0: only at the end" },
  eval_tokens = { default = 2 ^ 20, min = 1, help = "held-out tokens of an evaluation" },
  matrix_lr = { default = 0.02, min = 0, help = "Muon's, before the batch's scale" },
  embedding_lr = { default = 0.3, min = 0, help = "AdamW's, at a width of 768" },
  unembedding_lr = { default = 0.008, min = 0, help = "the same, of lm_head" },
  out = { default = "", help = "a folder for log.jsonl and checkpoints" },
  save_every = { default = 0, min = 0, help = "steps between checkpoints in --out; 0: none" },
  resume = { default = "", help = "a checkpoint to go on from" },
  audit_every = { default = 0, min = 0, help = "steps between comparisons of the ranks' parameters; 0: never" },
  overlap = { default = "step", choices = { "step", "backward" }, help = "where gradients begin to be averaged" },
  graph = { default = false, help = "the optimizer's step as one launch: on one GPU" },
  timeout = { default = 600, min = 1, help = "seconds a rank waits for another" },
}
if o.save_every > 0 and o.out == "" then error("--save_every needs a folder, --out=DIR", 0) end
local rank, ranks = lm.dist.init { timeout = o.timeout }
if o.threads > 0 then lm.set_threads(o.threads) end

-- Data: token shards where there are .bin files, else text, whose bytes are tokens.
local data = lm.data.has_shards(o.data) and lm.data.shards { path = o.data }
  or lm.data.text { path = o.data, seed = o.seed }
local vocab_size = data.vocab_size or o.vocab_size

-- The model.
local size = nanochat.dimensions(o.depth)
local model = lm.models.gpt.GPT {
  preset = "head", n_layer = size.n_layer, n_head = size.n_head, n_kv_head = size.n_kv_head, n_embd = size.n_embd,
  sequence_len = o.sequence_len, vocab_size = vocab_size, window_pattern = "SSSL", dtype = o.dtype,
  device = o.device, seed = o.seed,
}

-- What depth decides: tokens in all and a step, the learning rates' scale, weight decay.
local all, matrices = model:num_parameters()
local scaling = nanochat.head_scaling(matrices, nanochat.scaling_parameters(12, vocab_size), o.batch_tokens)
local rows = math.max(ranks, math.floor(scaling.batch / o.sequence_len)) -- a step, over all ranks
local tokens_per_step = rows * o.sequence_len
local steps = o.steps > 0 and o.steps or math.ceil(scaling.tokens / tokens_per_step)

-- Parameter groups.
local scale = scaling.lr_scale
local groups = nanochat.param_groups(model, {
  matrices = { lr = o.matrix_lr * scale, weight_decay = scaling.weight_decay },
  embedding = { lr = o.embedding_lr * scale },
  unembedding = { lr = o.unembedding_lr * scale },
  value_embeds = { lr = o.embedding_lr / 2 * scale },
})
groups.model = model
groups.on_nonfinite = "skip"
groups.overlap = o.overlap
groups.graph = o.graph
local opt = lm.optim.MuonAdamW(groups)
if o.resume ~= "" then lm.checkpoint.load(o.resume, { model = model, opt = opt }) end

-- Schedules.
local schedule = nanochat.schedule("head")
local function set_hyperparameters(step)
  local multiplier = nanochat.lr_multiplier(step, steps, schedule)
  for _, g in ipairs(opt.param_groups) do
    g.lr = g.initial_lr * multiplier
    if g.kind == "muon" then
      g.momentum = nanochat.muon_momentum(step, steps, schedule)
      g.weight_decay = nanochat.weight_decay(step, steps, scaling.weight_decay, "head")
    end
  end
  return multiplier
end

-- One step: this rank's rows, device_batch_size at a time; gradients add up over them.
local first_row, my_rows = lm.dist.share(rows)
local function train_step(step)
  return lm.scope(function()
    local multiplier = set_hyperparameters(step)
    local idx, targets = data:batch("train", rows, o.sequence_len, step)
    opt:zero_grad()
    local sum = lm.zeros(1, { device = o.device }) -- stays there: a number asked for is a wait for the device
    for row = 0, my_rows - 1, o.device_batch_size do
      local n = math.min(o.device_batch_size, my_rows - row)
      lm.scope(function()
        local loss = model:forward(idx:narrow(1, first_row + row, n), targets:narrow(1, first_row + row, n))
        loss = loss * (n * ranks / rows) -- so that the mean over the ranks is the batch's loss
        if row + n < my_rows then loss:backward() else opt:backward(loss) end
        sum:add_(loss:detach())
      end)
    end
    opt:step()
    return lm.dist.mean(sum:item()), multiplier
  end)
end

--- Mean loss over the first eval_tokens held-out tokens, in nats a token.
local function evaluate()
  return lm.train.mean_loss(model, data:batches("val", o.device_batch_size, o.sequence_len, o.eval_tokens))
end

local function save()
  lm.checkpoint.save(("%s/step-%d.safetensors"):format(o.out, opt.steps), { model = model, opt = opt })
end

local session = { model = model, opt = opt, data = data, options = o, train_step = train_step, evaluate = evaluate,
  save = save, tokens_per_step = tokens_per_step }
if lm.interactive then return session end

lm.train.print_table("nanochat, depth " .. o.depth, {
  { "data", data:describe() },
  { "model", ("%d layers, %d wide, %d heads: %s parameters, %s in matrices"):format(size.n_layer, size.n_embd,
    size.n_head, lm.train.count(all), lm.train.count(matrices)) },
  { "batch", ("%d rows of %d tokens on %d ranks, %d at once"):format(rows, o.sequence_len, ranks,
    math.min(o.device_batch_size, my_rows)) },
  { "steps", ("%d, %s tokens; starting after %d"):format(steps, lm.train.count(steps * tokens_per_step), opt.steps) },
  { "learning rates", ("x%.3f for the batch"):format(scale) },
  { "activations", o.dtype .. " on " .. o.device },
  { "threads", lm.threads() },
})
local log = lm.train.log { steps = steps, tokens_per_step = tokens_per_step, every = 10,
  out = rank == 0 and o.out or "" }
for i = opt.steps + 1, steps do
  log:start()
  local loss, multiplier = train_step(i - 1)
  log:lap()
  local last = i == steps or lm.train.interrupted()
  local val = (last or (o.eval_every > 0 and i % o.eval_every == 0)) and not lm.train.interrupted() and evaluate()
  log:finish { step = i, loss = loss, lr = multiplier, val_loss = val or nil }
  if o.audit_every > 0 and i % o.audit_every == 0 then
    local same, problem = opt:audit()
    if not same then error(problem) end
  end
  if o.save_every > 0 and (last or i % o.save_every == 0) then save() end
  if last then break end
end
log:close()
local skipped, why = opt:skipped()
if skipped > 0 and rank == 0 then
  print(("skipped %d step%s for gradients that were not finite; the last: %s"):format(skipped,
    skipped > 1 and "s" or "", why))
end
return session
