"""Optimizer steps under PyTorch, for `lumuon bench optim --peers=FOLDER`.

Peers: nanochat's MuonAdamW from its own optim.py, unchanged (its fused functions compile themselves
with torch.compile), torch.optim.Muon as it is, torch.optim.AdamW(fused=True). What this script sets: the
number of threads, NANOCHAT_DTYPE, CUDA_VISIBLE_DEVICES to nothing, and room for as many compiled shapes
as there are groups. Hyperparameters do not change the time; gradients stay the same ones.

Commands
  group KIND DTYPE COUNT SIZES...  one more group: COUNT tensors of these sizes; KIND muon or adamw
  build                            make parameters, gradients and nanochat's optimizer
  nanochat I                       milliseconds of nanochat's step of group I (from 0)
  torch I                          those of torch.optim's Muon or AdamW
  forget I                         drop what `torch I` made
  step                             milliseconds of nanochat's step of all groups
  memory                           bytes of parameters, gradients and state, and of the peak in a step
"""

import argparse

import common

DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nanochat", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", choices=list(DTYPES), required=True)
    o = parser.parse_args()
    common.set_environment(o.threads, o.precision)
    common.add_checkout(o.nanochat)
    torch = common.import_torch(o.threads)
    from nanochat.optim import MuonAdamW

    torch._dynamo.config.recompile_limit = 256
    groups, optimizers, peers = [], {}, {}

    def group(kind, dtype, count, *sizes):
        groups.append((kind, getattr(torch, DTYPES[dtype]), int(count), [int(s) for s in sizes]))
        return []

    def parameter(sizes, dtype):
        p = torch.nn.Parameter(torch.randn(sizes).mul_(0.02).to(dtype))
        p.grad = torch.randn(sizes).to(dtype)
        return p

    def build():
        tables = []
        for kind, dtype, count, sizes in groups:
            table = dict(kind=kind, params=[parameter(sizes, dtype) for _ in range(count)], lr=1e-3)
            if kind == "muon":
                table.update(momentum=0.95, ns_steps=5, beta2=0.9, weight_decay=0.1)
            else:
                table.update(betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
            tables.append(table)
        optimizers["all"] = MuonAdamW([dict(t) for t in tables])
        for i, table in enumerate(tables):  # one optimizer a group, on the same parameters and state
            optimizers[i] = MuonAdamW([dict(table)])
            optimizers[i].state = optimizers["all"].state
        return []

    def nanochat(i):
        return [common.milliseconds(optimizers[int(i)].step)]

    def torch_optim(i):
        i = int(i)
        if i not in peers:
            params = optimizers[i].param_groups[0]["params"]
            if groups[i][0] == "muon":
                peers[i] = torch.optim.Muon(params, lr=1e-3, weight_decay=0.1, momentum=0.95, ns_steps=5)
            else:
                peers[i] = torch.optim.AdamW(params, lr=1e-3, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1, fused=True)
        return [common.milliseconds(peers[i].step)]

    def forget(i):
        peers.pop(int(i), None)
        return []

    def step():
        return [common.milliseconds(optimizers["all"].step)]

    def memory():
        peers.clear()
        optimizers["all"].step()
        live = 0
        for table in optimizers["all"].param_groups:
            for p in table["params"]:
                tensors = [p, p.grad] + [t for t in optimizers["all"].state[p].values() if torch.is_tensor(t)]
                live += sum(t.numel() * t.element_size() for t in tensors)
        before = common.settle_memory()
        optimizers["all"].step()
        return [live, live + common.resident("VmHWM") - before]

    common.serve(
        {
            "group": group, "build": build, "nanochat": nanochat, "torch": torch_optim, "forget": forget,
            "step": step, "memory": memory,
        },
        ["torch " + torch.__version__],
    )


if __name__ == "__main__":
    main()
