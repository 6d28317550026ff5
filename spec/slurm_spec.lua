-- Two nodes of Slurm on this machine (scripts/slurm-two-nodes): the recipes' batch script, by MPI and by TCP, and
-- what srun and the ranks do when one fails.
local command = dofile("spec/command.lua")

local quote = command.quote
local missing = command.shell("scripts/slurm-two-nodes --check").code ~= 0
  and "no Slurm here: scripts/slurm-two-nodes --check says why"

--- A script of bash on the cluster's login node, in the project's folder.
local function on_cluster(script)
  -- what MPI leaves behind is not ours
  return command.shell(("LUMUON=%s OMP_NUM_THREADS= ASAN_OPTIONS=detect_leaks=0 timeout -s KILL 100 "
    .. "scripts/slurm-two-nodes bash -c %s"):format(quote(command.lumuon), quote("unset OMP_NUM_THREADS\n" .. script)))
end

local function test(name, f)
  it(name, function()
    if missing then pending(missing) end
    f()
  end)
end

describe("a Slurm cluster of two nodes", function()
  test("trains by the batch script with the losses of one process, by MPI and by TCP", function()
    local folder = command.folder()
    local options = ("recipes/fortune.lua --steps=10 --n_layer=2 --n_embd=64 --n_head=2 --sequence_len=32 "
      .. "--batch_size=8 --eval_every=0 --precision=f32 --seed=3 --out=%s"):format(folder)
    local r = on_cluster(([[
      submit="sbatch --quiet --cpus-per-task=1"
      MPI=none $submit --output=%s/tcp.log recipes/slurm.sh %s/tcp
      $submit --output=%s/mpi.log recipes/slurm.sh %s/mpi
      while [ -n "$(squeue -h)" ]; do sleep 0.2; done
      $LUMUON run %s/one >/dev/null
      scontrol show job -o | grep -o 'JobState=[^ ]*']]):format(folder, options, folder, options, options))
    local logs = command.read(folder .. "/tcp.log") .. command.read(folder .. "/mpi.log")
    assert.equal("JobState=COMPLETED\nJobState=COMPLETED\n", r.out, r.err .. logs)
    assert.matches("threads +1 in each of 2 processes", logs)
    local function losses(name)
      local list = {}
      for loss in command.read(("%s/%s/log.jsonl"):format(folder, name)):gmatch('"loss": ([%d.e+-]+)') do
        list[#list + 1] = tonumber(loss)
      end
      assert.equal(10, #list)
      return list
    end
    local one, tcp, mpi = losses "one", losses "tcp", losses "mpi"
    assert.same(tcp, mpi)
    for i = 1, 10 do assert.is_true(math.abs(one[i] - tcp[i]) < 1e-4, i) end
    command.remove(folder)
  end)

  test("gives each rank the threads that were asked for", function()
    local r = on_cluster("srun -N 2 -c $(nproc) $LUMUON run spec/dist/threads.lua; nproc")
    local cores = r.out:match("(%d+)\n$")
    assert.equal(("rank 0: 0 of 2 by tcp, local rank 0, threads %d\nrank 1: 1 of 2 by tcp, local rank 0, threads %d\n")
      :format(cores, cores), r.out:match("^(.*\n)%d+\n$"), r.err)
  end)

  test("ends a job one of whose ranks is killed or stands still", function()
    local r = on_cluster([[
      for mpi in none pmix; do for fault in kill-before stop-before; do
        begun=$(date +%s)
        srun --quiet -N 2 --mpi=$mpi --kill-on-bad-exit=1 $LUMUON run spec/dist/steps.lua --die=1 \
          --at=$fault --timeout=1
        echo "code $? $(($(date +%s) - begun))"
      done; done]])
    local count = 0
    for code, seconds in r.out:gmatch("code (%d+) (%d+)") do
      count = count + 1
      assert.not_equal("0", code)
      assert.is_true(tonumber(seconds) <= 10, seconds) -- the next job's wait for the nodes is in it
    end
    assert.equal(4, count, r.out .. r.err)
    assert.matches("missing: 1%. Rank 1 holds the others up: it does not answer%. The job ends", r.err)
  end)
end)
