-- A GPT that writes fortune cookies: byte-level, from nothing, in about a minute on two cores.
--
--   ./lumuon run recipes/fortune.lua                        as it stands
--   ./lumuon run recipes/fortune.lua --data=my.txt          on a text of your own
--   ./lumuon run recipes/fortune.lua --optimizer=adamw      AdamW alone, to compare
--   mpirun -n 2 ./lumuon run recipes/fortune.lua            two processes, the same losses
--   ./lumuon repl recipes/fortune.lua                       the same pieces at a prompt; step(10) trains
local lm = require "lumuon"
local nanochat = require "parts.nanochat"

local o = lm.options {
  steps = { default = 400, min = 1, help = "training steps" },
  seed = { default = 1, min = 0, help = "of the weights, the batches and the samples" },
  device = { default = "cpu", choices = { "cpu", "cuda" } },
  dtype = { default = "f32", choices = { "f32", "bf16" }, help = "of the activations" },
  threads = { default = 0, min = 0, help = "0: as many as there are cores" },
  data = { default = "", help = "a text file or a folder of them; empty: Debian's fortunes" },
  eval_every = { default = 100, min = 0, help = "steps between evaluations; 0: only at the end" },
  out = { default = "", help = "a folder for log.jsonl" },
  audit_every = { default = 0, min = 0, help = "steps between comparisons of the ranks' parameters; 0: never" },
  overlap = { default = "step", choices = { "step", "backward" }, help = "where gradients begin to be averaged" },
  timeout = { default = 600, min = 1, help = "seconds a rank waits for another" },
  verbose = { default = false, help = "print which rank updates what" },

  n_layer = { default = 4, min = 1, help = "layers" },
  n_embd = { default = 192, min = 32, help = "width" },
  n_head = { default = 4, min = 1, help = "attention heads" },
  sequence_len = { default = 128, min = 2, help = "bytes a row" },
  batch_size = { default = 24, min = 1, help = "rows a step" },

  optimizer = { default = "muon", choices = { "muon", "adamw" }, help = "muon: nanochat's Muon and AdamW" },
  matrix_lr = { default = 0.03, min = 0, help = "Muon's" },
  precision = { default = "f32", choices = { "f32", "bf16" }, help = "of Muon's products; losses in bf16 depend more on"
    .. " the number of processes" },
  embedding_lr = { default = 0.2, min = 0, help = "at a width of 768; AdamW's beside Muon" },
  adamw_lr = { default = 0.012, min = 0, help = "of --optimizer=adamw, every parameter" },
  weight_decay = { default = 0, type = "number", min = 0, help = "at the start; falls to 0" },
  warmdown_ratio = { default = 0.65, min = 0, max = 1, help = "share of the steps in which lr falls" },
}
local rank, ranks = lm.dist.init { timeout = o.timeout } -- 0 and 1, unless started as one of several
if o.threads > 0 then lm.set_threads(o.threads) end
local first_row, rows = lm.dist.share(o.batch_size) -- of each batch: all of it in a process of its own
if rows == 0 then error(("batch_size %d is less than one row for each of %d ranks"):format(o.batch_size, ranks)) end

-- Data: bytes are tokens; every entry ends with a zero byte.
local data = lm.data.text { path = o.data, seed = o.seed }

-- The model.
local model = lm.models.gpt.GPT {
  preset = "head", n_layer = o.n_layer, n_head = o.n_head, n_embd = o.n_embd, sequence_len = o.sequence_len,
  vocab_size = data.vocab_size, window_pattern = "L", dtype = o.dtype, device = o.device, seed = o.seed,
}

-- Parameter groups: nanochat's, or all parameters in one AdamW group.
local groups
if o.optimizer == "muon" then
  groups = nanochat.param_groups(model, {
    matrices = { lr = o.matrix_lr, weight_decay = o.weight_decay, precision = o.precision },
    embedding = { lr = o.embedding_lr },
    value_embeds = { lr = o.embedding_lr / 2 },
  })
else
  groups = { { kind = "adamw", params = model:parameters(), lr = o.adamw_lr, betas = { 0.9, 0.95 }, eps = 1e-8,
    weight_decay = o.weight_decay } }
end
groups.overlap = o.overlap
groups.model = model -- every parameter must be in exactly one group
local opt = lm.optim.MuonAdamW(groups)

-- Schedules.
local schedule = nanochat.schedule("head", { warmup = 0, warmdown_ratio = o.warmdown_ratio })
local function set_hyperparameters(step)
  local multiplier = nanochat.lr_multiplier(step, o.steps, schedule)
  for _, g in ipairs(opt.param_groups) do
    g.lr = g.initial_lr * multiplier
    if g.kind == "muon" then
      g.momentum = nanochat.muon_momentum(step, o.steps, schedule)
      g.weight_decay = nanochat.weight_decay(step, o.steps, o.weight_decay, "head")
    end
  end
  return multiplier
end

-- One step; everything made in it is freed at its end.
local function train_step(step)
  return lm.scope(function()
    local multiplier = set_hyperparameters(step)
    local idx, targets = data:batch("train", o.batch_size, o.sequence_len, step)
    opt:zero_grad()
    local loss = model:forward(idx:narrow(1, first_row, rows), targets:narrow(1, first_row, rows))
    loss = loss * (rows * ranks / o.batch_size) -- so that the mean over the ranks is the batch's loss
    opt:backward(loss)
    opt:step()
    return lm.dist.mean(loss:item()), multiplier
  end)
end

--- Mean loss over all of the held-out text, in nats a byte.
local function evaluate()
  return lm.train.mean_loss(model, data:batches("val", o.batch_size, o.sequence_len))
end

--- A fortune of at most `length` bytes.
local function sample(i, length)
  return data:decode(model:generate({ 0 }, length or 400, { -- a document begins, and ends, with byte 0
    temperature = 0.8, top_k = 60, stop = 0, generator = lm.Generator(o.seed, 1000 + i),
  }))
end

--- At the prompt: train n more steps. The optimizer counts them: Ctrl-C may come right after one.
local function step(n)
  for _ = 1, n or 1 do
    local loss = train_step(opt.steps)
    print(("step %d  loss %.4f"):format(opt.steps, loss))
  end
end

local session = { model = model, opt = opt, data = data, options = o, step = step, evaluate = evaluate,
  sample = sample, train_step = train_step, tokens_per_step = o.batch_size * o.sequence_len }
if lm.interactive then return session end

local all, matrices = model:num_parameters()
lm.train.print_table("fortune", {
  { "data", ("%s: %s of text in %d documents, %d of them held out"):format(data.path, lm.train.count(data.bytes) .. "B",
    data.documents.train + data.documents.val, data.documents.val) },
  { "model", ("%d layers, %d wide, %d heads: %s parameters, %s in matrices"):format(o.n_layer, o.n_embd, o.n_head,
    lm.train.count(all), lm.train.count(matrices)) },
  { "optimizer", o.optimizer },
  { "batch", ("%d rows of %d bytes"):format(o.batch_size, o.sequence_len) },
  { "steps", o.steps },
  { "activations", o.dtype .. " on " .. o.device },
  { "threads", lm.threads() .. (ranks > 1 and (" in each of %d processes"):format(ranks) or "") },
})
if o.verbose then print(opt:assignment()) end

local log = lm.train.log { steps = o.steps, tokens_per_step = session.tokens_per_step, every = 20,
  out = rank == 0 and o.out or "" }
for i = 1, o.steps do
  log:start()
  local loss, multiplier = train_step(i - 1)
  log:lap()
  local last = i == o.steps or lm.train.interrupted()
  if o.audit_every > 0 and i % o.audit_every == 0 then
    local same, problem = opt:audit()
    if not same then error(problem) end
  end
  local val = (last or (o.eval_every > 0 and i % o.eval_every == 0)) and not lm.train.interrupted() and evaluate()
  log:finish { step = i, loss = loss, lr = multiplier, val_loss = val or nil }
  if last then break end
end
log:close()

if rank > 0 then return session end -- one writes, as one prints
for i = 1, 3 do print(("\n--- fortune %d ---\n%s"):format(i, lm.train.printable(sample(i)))) end
return session
