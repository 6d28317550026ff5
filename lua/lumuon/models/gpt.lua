--- nanochat's GPT: rotary attention with grouped queries, sliding windows and value embeddings, relu^2
-- MLPs, residual mixing with the first activation. Two presets: "seed" (early 2026) and "head"
-- (mid 2026); every difference between them is a row of `presets` and can be given on its own.
local lib = require "lumuon.lib"
local tensor = require "lumuon.tensor"
local autograd = require "lumuon.autograd"
local ops = require "lumuon.ops"
local nn = require "lumuon.nn"
local raise = lib.raise

local gpt = {}

local GPT = {}
GPT.__index = GPT

local presets = {
  seed = {
    rotary_base = 10000, -- of the rotary embedding
    qk_scale = 1, -- q and k times this after their norm
    ve_gate_channels = 32, ve_gate_scale = 2, -- scale * sigmoid(ve_gate(first channels)) * value embedding
    short_window = function(sequence_len) return math.floor(sequence_len / 2) end,
    smear = false, -- mix a little of the previous token in at the bottom
    backout = false, -- take some of the middle layer out at the top
    wte_std = 1, c_fc_scale = 1, ve_gate_high = 0,
    resid_lambda = function() return 1 end,
    x0_lambda = function() return 0.1 end,
  },
  head = {
    rotary_base = 100000,
    qk_scale = 1.2,
    ve_gate_channels = 12, ve_gate_scale = 3,
    short_window = function(sequence_len) return math.ceil(sequence_len / 4 / 128) * 128 end,
    smear = true,
    backout = true,
    wte_std = 0.8, c_fc_scale = 0.4, ve_gate_high = 0.02,
    resid_lambda = function(i, n_layer) return 1.15 - 0.10 * i / math.max(1, n_layer - 1) end,
    x0_lambda = function(i, n_layer) return 0.20 - 0.15 * i / math.max(1, n_layer - 1) end,
  },
}
local SMEAR_CHANNELS = 24
local SOFTCAP = 15

local defaults = {
  preset = "seed", -- "seed" or "head"
  sequence_len = 1024, -- longest input; sets the windows
  vocab_size = 32768,
  n_layer = 12,
  n_head = 6,
  n_kv_head = false, -- n_head if not given; n_head must be a multiple of it
  n_embd = 768,
  window_pattern = "SSSL", -- a letter a layer, tiled: S short, L full; the last layer is always full
  dtype = "f32", -- of the activations: "f32" or "bf16"
  device = "cpu", -- where the parameters live
  embedding_dtype = "", -- of wte and value_embeds: "f32" or "bf16"; if not given, f32 on the CPU, bf16 on a GPU
  seed = 42, -- of the initial weights
}

--- config with defaults filled in and everything checked.
local function complete(config)
  local preset = presets[config.preset or defaults.preset]
  if not preset then raise("GPT: preset '%s' is not one of seed, head", tostring(config.preset)) end
  local c, known = {}, {}
  for name, value in pairs(defaults) do c[name], known[#known + 1] = value, name end
  for name, value in pairs(preset) do c[name], known[#known + 1] = value, name end
  for name, value in pairs(config) do
    if c[name] == nil then
      local near = lib.nearest(tostring(name), known)
      raise("GPT: unknown option '%s'%s", tostring(name), near and "; did you mean '" .. near .. "'?" or "")
    end
    if type(value) ~= type(c[name]) and name ~= "n_kv_head" then
      raise("GPT: %s must be a %s, got %s", name, type(c[name]), tostring(value))
    end
    c[name] = value
  end
  c.n_kv_head = c.n_kv_head or c.n_head
  local function integer(name, low)
    if not lib.is_whole(c[name]) or c[name] < low then
      raise("GPT: %s must be a whole number >= %d, got %s", name, low, tostring(c[name]))
    end
  end
  for _, name in ipairs { "sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd" } do
    integer(name, 1)
  end
  integer("seed", 0)
  integer("ve_gate_channels", 1)
  if c.n_embd % c.n_head ~= 0 or (c.n_embd / c.n_head) % 2 ~= 0 then
    raise("GPT: n_embd %d must be n_head %d times an even head size", c.n_embd, c.n_head)
  end
  if c.n_head % c.n_kv_head ~= 0 then
    raise("GPT: n_head %d must be a multiple of n_kv_head %d", c.n_head, c.n_kv_head)
  end
  local channels = math.max(c.ve_gate_channels, c.smear and SMEAR_CHANNELS or 0)
  if c.n_embd < channels then
    raise("GPT: n_embd %d is smaller than the %d channels that gates read", c.n_embd, channels)
  end
  if type(c.window_pattern) ~= "string" or not c.window_pattern:match("^[SL]+$") then
    raise("GPT: window_pattern must be letters S and L, got %s", tostring(c.window_pattern))
  end
  if c.dtype ~= "f32" and c.dtype ~= "bf16" then
    raise("GPT: dtype must be f32 or bf16, got %s", tostring(c.dtype))
  end
  if c.embedding_dtype == "" then c.embedding_dtype = c.device == "cpu" and "f32" or "bf16" end
  if c.embedding_dtype ~= "f32" and c.embedding_dtype ~= "bf16" then
    raise("GPT: embedding_dtype must be f32 or bf16, got %s", tostring(c.embedding_dtype))
  end
  c.head_dim = c.n_embd / c.n_head
  c.padded_vocab_size = math.ceil(c.vocab_size / 64) * 64
  return c
end

--- Tokens before itself that layer i (from 0) lets a token see.
local function window_of(c, i)
  local at = i % #c.window_pattern + 1
  if c.window_pattern:sub(at, at) == "L" or i == c.n_layer - 1 then return c.sequence_len end
  return c.short_window(c.sequence_len)
end

local function has_value_embedding(i, n_layer) return i % 2 == (n_layer - 1) % 2 end

--- A GPT with fresh weights: lm.models.gpt.GPT{ n_layer = 4, n_head = 4, n_embd = 128, ... }.
function gpt.GPT(config)
  if type(config) ~= "table" then raise("GPT: expected a table of options, got %s", type(config)) end
  local c = complete(config)
  local model = setmetatable({ config = c, names = {}, by_name = {} }, GPT)
  local stream = 0

  --- A new parameter; fill(t, generator) writes its first values.
  local function add(name, sizes, fill, dtype)
    stream = stream + 1
    local t = tensor.empty(sizes, { device = c.device })
    fill(t, tensor.Generator(c.seed, stream))
    local stored = t:to(dtype or "f32")
    local p = autograd.parameter(stored, name)
    t:free()
    stored:free()
    model.names[#model.names + 1] = name
    model.by_name[name] = p
    return p
  end
  local function normal(std) return function(t, g) t:normal_(0, std, g) end end
  local function uniform(low, high) return function(t, g) t:uniform_(low, high, g) end end
  local function constant(value) return function(t) t:fill(value) end end
  local function per_layer(value)
    return function(t)
      for i = 0, c.n_layer - 1 do t:select(1, i + 1):fill(value(i, c.n_layer)) end
    end
  end

  local C, kv = c.n_embd, c.n_kv_head * c.head_dim
  local bound = math.sqrt(3 / C)
  local linear = uniform(-bound, bound)
  model.wte = add("transformer.wte.weight", { c.padded_vocab_size, C }, normal(c.wte_std),
    c.embedding_dtype)
  model.blocks = {}
  for i = 0, c.n_layer - 1 do
    local at = "transformer.h." .. i .. "."
    local gated = has_value_embedding(i, c.n_layer)
    model.blocks[i + 1] = {
      c_q = add(at .. "attn.c_q.weight", { C, C }, linear),
      c_k = add(at .. "attn.c_k.weight", { kv, C }, linear),
      c_v = add(at .. "attn.c_v.weight", { kv, C }, linear),
      c_proj = add(at .. "attn.c_proj.weight", { C, C }, constant(0)),
      ve_gate = gated and add(at .. "attn.ve_gate.weight", { c.n_kv_head, c.ve_gate_channels },
        c.ve_gate_high > 0 and uniform(0, c.ve_gate_high) or constant(0)),
      value_embeds = gated and add("value_embeds." .. i .. ".weight", { c.padded_vocab_size, kv }, linear,
        c.embedding_dtype),
      c_fc = add(at .. "mlp.c_fc.weight", { 4 * C, C }, uniform(-bound * c.c_fc_scale, bound * c.c_fc_scale)),
      mlp_proj = add(at .. "mlp.c_proj.weight", { C, 4 * C }, constant(0)),
      window = window_of(c, i),
    }
  end
  model.lm_head = add("lm_head.weight", { c.padded_vocab_size, C }, normal(0.001))
  model.resid_lambdas = add("resid_lambdas", { c.n_layer }, per_layer(c.resid_lambda))
  model.x0_lambdas = add("x0_lambdas", { c.n_layer }, per_layer(c.x0_lambda))
  if c.smear then
    model.smear_gate = add("smear_gate.weight", { 1, SMEAR_CHANNELS }, uniform(0, 0.02))
    model.smear_lambda = add("smear_lambda", { 1 }, constant(0))
  end
  if c.backout then
    model.backout_lambda = add("backout_lambda", { 1 }, constant(0.2))
    model.one = tensor.ones(1, { device = c.device })
  end
  local cos, sin = nn.rotary_tables(c.sequence_len, c.head_dim, c.rotary_base)
  model.cos, model.sin = cos:to(c.device), sin:to(c.device)
  return model
end

--- for name, parameter in model:named_parameters() do ... end, in a fixed order, with nanochat's names.
function GPT:named_parameters()
  local i = 0
  return function()
    i = i + 1
    local name = self.names[i]
    return name, self.by_name[name]
  end
end

function GPT:parameters()
  local list = {}
  for _, p in self:named_parameters() do list[#list + 1] = p end
  return list
end

--- Number of parameters; and of those in matrices of the blocks and lm_head, what scaling laws count.
function GPT:num_parameters()
  local all, matrices = 0, 0
  for name, p in self:named_parameters() do
    all = all + p:numel()
    if name:match("^transformer%.h%.") or name == "lm_head.weight" then matrices = matrices + p:numel() end
  end
  return all, matrices
end

--- Floating point operations of forward and backward a token: six a weight of each product, and
-- attention's 12 n_embd times the tokens that one sees.
function GPT:flops_per_token()
  local c = self.config
  local _, matrices = self:num_parameters()
  local seen = 0
  for _, block in ipairs(self.blocks) do seen = seen + math.min(block.window, c.sequence_len) end
  return 6 * matrices + 12 * c.n_embd * seen
end

--- residual + attention of x.
local function attention(self, block, x, idx, residual)
  local c = self.config
  local B, T = idx:size(1), idx:size(2)
  local q = nn.linear(x, block.c_q):view(B, T, c.n_head, c.head_dim)
  local k = nn.linear(x, block.c_k):view(B, T, c.n_kv_head, c.head_dim)
  local v = nn.linear(x, block.c_v):view(B, T, c.n_kv_head, c.head_dim)
  if block.ve_gate then
    local gate = nn.linear(x:narrow(3, 1, c.ve_gate_channels), block.ve_gate)
    local ve = nn.embedding(block.value_embeds, idx, c.vocab_size):to(c.dtype):view(B, T, c.n_kv_head, c.head_dim)
    v = nn.gated_add(v, gate, ve, c.ve_gate_scale)
  end
  q = nn.rotary_norm(q, self.cos, self.sin, nil, c.qk_scale)
  k = nn.rotary_norm(k, self.cos, self.sin, nil, c.qk_scale)
  local y = nn.attention(q, k, v, block.window)
  return nn.linear(y:view(B, T, c.n_embd), block.c_proj, residual)
end

--- residual + MLP of x.
local function mlp(block, x, residual)
  return nn.linear(nn.linear(x, block.c_fc):relu2(), block.mlp_proj, residual)
end

--- x_t += smear_lambda * sigmoid(smear_gate(x_t's first channels)) * x_(t-1), for every t but the first.
local function smear(self, x)
  local T = x:size(2)
  if T == 1 then return x end
  local now, before = x:narrow(2, 2, T - 1), x:narrow(2, 1, T - 1)
  local gate = nn.linear(now:narrow(3, 1, SMEAR_CHANNELS), self.smear_gate):sigmoid() * self.smear_lambda
  local mixed = now + (gate * before):to(x:dtype())
  return ops.cat({ x:narrow(2, 1, 1), mixed }, 2)
end

--- The last activation, normed: (B, T, n_embd).
local function trunk(self, idx)
  local c = self.config
  local x = nn.rms_norm(nn.embedding(self.wte, idx, c.vocab_size):to(c.dtype))
  if c.smear then x = smear(self, x) end
  local x0, middle = x, nil
  for i, block in ipairs(self.blocks) do
    x = nn.scaled_add(self.resid_lambdas:select(1, i), x, self.x0_lambdas:select(1, i), x0)
    x = attention(self, block, nn.rms_norm(x), idx, x)
    x = mlp(block, nn.rms_norm(x), x)
    if i == math.floor(c.n_layer / 2) + 1 then middle = x end
  end
  if c.backout then x = nn.scaled_add(self.one, x, -self.backout_lambda, middle) end
  return nn.rms_norm(x)
end

local function check_tokens(self, name, t, like)
  local c = self.config
  if not lib.is_tensor(t) or t:dtype() ~= "i32" or t:dim() ~= 2 then
    raise("GPT: %s must be an i32 tensor (B, T), got %s", name, lib.is_tensor(t) and t:describe() or type(t))
  end
  if t:size(2) > c.sequence_len then
    raise("GPT: %s has %d tokens a row; sequence_len is %d", name, t:size(2), c.sequence_len)
  end
  if like and (t:size(1) ~= like:size(1) or t:size(2) ~= like:size(2)) then
    raise("GPT: targets are %s, idx is %s; they must have one shape", t:describe(), like:describe())
  end
end

--- idx, targets: i32 (B, T), tokens from 0, targets of -1 ignored. With targets the mean cross-entropy
-- (f32, no dims); without, the logits after the softcap (f32, (B, T, vocab_size)).
function GPT:forward(idx, targets)
  local c = self.config
  check_tokens(self, "idx", idx)
  if targets then check_tokens(self, "targets", targets, idx) end
  idx, targets = idx:to(c.device), targets and targets:to(c.device)
  local x = trunk(self, idx)
  if targets then return nn.linear_cross_entropy(x, self.lm_head, targets, c.vocab_size, SOFTCAP) end
  local logits = nn.linear(x, self.lm_head)
  local capped = (logits:narrow(3, 1, c.vocab_size):to("f32") / SOFTCAP):tanh()
  return capped * SOFTCAP
end

--- One token drawn from p, a table of weights, of which the top_k largest count.
local function draw(p, top_k, generator)
  if top_k and top_k < #p then
    local order = {}
    for i = 1, #p do order[i] = i end
    table.sort(order, function(a, b) return p[a] > p[b] or (p[a] == p[b] and a < b) end)
    for i = top_k + 1, #p do p[order[i]] = 0 end
  end
  local total, last = 0, 1
  for i = 1, #p do
    total = total + p[i]
    if p[i] > 0 then last = i end
  end
  local mark = tensor.rand(1, { generator = generator }):item() * total
  for i = 1, #p do
    mark = mark - p[i]
    if mark < 0 then return i - 1 end
  end
  return last - 1
end

local function check_generate(tokens, count, options)
  if type(tokens) ~= "table" or #tokens == 0 then
    raise("generate: needs a table of at least one token to start from, got %s",
      type(tokens) == "table" and "an empty one" or type(tokens))
  end
  if not lib.is_whole(count) or count < 0 then
    raise("generate: count must be a whole number >= 0, got %s", tostring(count))
  end
  if type(options) ~= "table" then raise("generate: expected a table of options, got %s", type(options)) end
  for name in pairs(options) do
    if name ~= "temperature" and name ~= "top_k" and name ~= "stop" and name ~= "generator" then
      raise("generate: unknown option '%s'; there are temperature, top_k, stop and generator", tostring(name))
    end
  end
  local temperature, top_k = options.temperature or 1, options.top_k or 1
  if type(temperature) ~= "number" or not (temperature >= 0 and temperature < math.huge) then
    raise("generate: temperature must be a finite number >= 0, got %s", tostring(temperature))
  end
  if not lib.is_whole(top_k) or top_k < 1 then
    raise("generate: top_k must be a whole number from 1, got %s", tostring(top_k))
  end
end

--- Tokens after `tokens` (a table of numbers): up to `count` of them, ending before a `stop` token.
-- options: temperature (1; 0 takes the likeliest), top_k (all), generator, stop.
function GPT:generate(tokens, count, options)
  options = options or {}
  check_generate(tokens, count, options)
  local c = self.config
  local temperature = options.temperature or 1
  local generator = options.generator or tensor.Generator(c.seed, 1000)
  local all, made = { unpack(tokens) }, {}
  for _ = 1, count do
    local context = { unpack(all, math.max(1, #all - c.sequence_len + 1)) }
    local token = autograd.no_grad(lib.scope, function()
      local idx = tensor.tensor({ context }, { dtype = "i32", device = c.device })
      local logits = self:forward(idx):select(2, #context):view(-1)
      if temperature == 0 then return logits:argmax():item() - 1 end
      return draw((logits / temperature):softmax():tolist(), options.top_k, generator)
    end)
    if token == options.stop then break end
    all[#all + 1] = token
    made[#made + 1] = token
  end
  return made
end

return gpt
