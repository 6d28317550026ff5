-- A worker of spec/dist_spec.lua: overlap = "backward". Whole-number gradients that come out of a backward pass, of
-- parameters used once, several times, in some passes only, or on some ranks only. Prints, on rank 0, `hash <of all
-- parameters>`, and what else there is to say.
local lm = require "lumuon"
local recording = require("lumuon.autograd").is_grad_enabled
local o = lm.options { steps = 6, overlap = "backward", micro = 1, poison = -1, absent = -1, omit = -1, what = "" }
local rank, size = lm.dist.init { timeout = 20 }
if not os.getenv("OMP_NUM_THREADS") then lm.set_threads(1) end

local model, generator = {}, lm.Generator(7)
local function parameter(name, ...)
  local p = lm.parameter(lm.randn({ ... }, { generator = generator, std = 0.5 }), name)
  model[#model + 1] = p
  return p
end
local groups = {
  { kind = "muon", lr = 0.02, params = { parameter("a1", 24, 16), parameter("a2", 24, 16), parameter("a3", 24, 16) } },
  { kind = "adamw", lr = 0.01, params = { parameter("tied", 101, 13), parameter("long", 1500), parameter("s1", 7) } },
  { kind = "muon", lr = 0.02, weight_decay = 0.1, params = { parameter("wide", 6, 30) } },
  { kind = "adamw", lr = 0.01, params = { parameter("s2", 3, 5), parameter("idle", 2000) } },
  on_nonfinite = "skip", overlap = o.overlap,
}
local opt = lm.optim.MuonAdamW(groups)

--- Whole numbers whose mean over the ranks does not depend on how many there are: shares of +pair and -pair cancel.
local function coefficient(p, k, step, use)
  local base = lm.empty(p:size()):uniform_(-3, 4, lm.Generator(100 * step + use, k)):floor()
  local pair = lm.empty(p:size()):uniform_(-8, 9, lm.Generator(100 * step + use + 50, k)):floor()
  local sign = (size % 2 == 1 and rank == size - 1) and 0 or (rank % 2 == 0 and 1 or -1)
  return base + sign * pair
end

--- A loss whose gradient of p is the sum of its coefficients.
local function loss_of(step, micro)
  local loss
  for k, p in ipairs(model) do
    local uses = p.name == "tied" and 3 or p.name == "idle" and step % 2 or 1
    if o.absent == rank and p.name == "long" then uses = 0 end
    for use = 1, uses do
      local c = coefficient(p, k, step, use + 10 * micro)
      if o.poison == rank and step == 2 and p.name == "a2" and micro == 1 then
        c:view(-1):narrow(1, 5, 1):fill(0 / 0)
      end
      local term = (p * c):sum()
      loss = loss and loss + term or term
    end
  end
  return loss
end

local function refusal(f, ...)
  local ok, message = pcall(f, ...)
  print("refused " .. (ok and "nothing" or tostring(message)))
end

local launched, during = {}, 0 -- reductions launched, and how many of them before the walk's end
local reduce = lm.dist.reduce_scatter
lm.dist.reduce_scatter = function(t, how)
  launched[#launched + 1] = how.label
  if not recording() then during = during + 1 end
  return reduce(t, how)
end

for step = 1, o.steps do
  if step ~= o.omit then lm.scope(function()
    opt:zero_grad()
    for micro = 1, o.micro do
      local loss = loss_of(step, micro)
      if micro == o.micro then opt:backward(loss) else loss:backward() end
    end
    if o.what == "refusals" and step == 3 then
      refusal(function() loss_of(step, 1):backward() end)
      refusal(function() opt:backward(loss_of(step, 1)) end)
      local own = model[1].grad
      model[1].grad = lm.zeros(24, 16)
      refusal(opt.step, opt)
      model[1].grad = own
    end
    local ok, message = opt:step()
    if not ok then print("skipped " .. message) end
    if o.what == "refusals" and step == 3 then
      refusal(opt.step, opt)
      local breaking = lm.Function { name = "breaking", forward = function(_, x) return x * 1 end,
        backward = function() error("a mistake of its own") end }
      refusal(function() opt:backward((model[6] * 1):sum() + breaking(model[1]):sum()) end)
      refusal(opt.step, opt)
      opt:zero_grad()
      opt:backward(loss_of(step, 1))
      opt:zero_grad() -- given up: as if it had not been
      model[1].grad:fill(1)
      opt:zero_grad()
    end
  end) end
end

local same, where = opt:audit()
print("audit " .. (same and "same" or where))
local text = {}
for _, p in ipairs(model) do text[#text + 1] = lm.dist.hash(p) end
print("hash " .. table.concat(text, " "))
print("steps " .. opt.steps)
print(("launched %d, %d in backward"):format(#launched, during))
