-- A worker: where each rank is and how many threads it has.
local lm = require "lumuon"
local rank, size = lm.dist.init { timeout = 20 }
for r, text in ipairs(lm.dist.all_strings(("%d of %d by %s, local rank %d, threads %d"):format(rank, size,
  lm.dist.transport(), lm.dist.local_rank(), lm.threads()), "a report")) do
  print(("rank %d: %s"):format(r - 1, text))
end
