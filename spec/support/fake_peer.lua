--- A checkout of nanochat and a Python with torch, as far as `lumuon bench` can tell: a shell script that
-- answers each command as told.
local command = require "spec.command"

local fake = {}

--- In folder: a checkout, and a python whose server answers with these shell lines ($command is the first
-- word of what it was asked). Returns the two options.
function fake.make(folder, answers)
  os.execute(("mkdir -p %s/nanochat/nanochat"):format(folder))
  command.write(folder .. "/nanochat/nanochat/optim.py", "")
  command.write(folder .. "/python", "#!/bin/sh\n" .. answers)
  os.execute("chmod +x " .. folder .. "/python")
  return "--peers=" .. folder .. "/nanochat", "--python=" .. folder .. "/python"
end

--- Answers that are all of three numbers; `also` comes first and may exit.
function fake.answers(also)
  return ([[
printf 'ready\tfake 1.0\n'
while read -r command rest; do
  %s
  printf 'ok\t3.5\t7\t8\n'
done
]]):format(also or "")
end

return fake
