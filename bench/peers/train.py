"""A training step of nanochat's GPT under PyTorch, for `lumuon bench train --peers=FOLDER`.

nanochat's own gpt.py and optim.py, unchanged: the model under torch.compile(dynamic=False) as in its
base_train.py, attention by PyTorch's SDPA (its choice without FlashAttention 3), its MuonAdamW. A step
is forward, backward, optimizer and clearing the gradients, on random tokens. What this script sets:
the number of threads, NANOCHAT_DTYPE, and CUDA_VISIBLE_DEVICES to nothing.

Commands: `model` builds, compiles and runs two steps, `step` times one, `memory` tells the resident
peak of the steps since, and of the process before there was a model.
"""

import argparse

import common


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nanochat", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", choices=["f32", "bf16"], required=True)
    for name in ("n_layer", "n_embd", "n_head", "n_kv_head", "vocab_size", "sequence_len", "batch_size"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--window_pattern", required=True)
    o = parser.parse_args()
    common.set_environment(o.threads, o.precision)
    common.add_checkout(o.nanochat)
    torch = common.import_torch(o.threads)
    from nanochat.gpt import GPT, GPTConfig

    session = {}
    empty = common.resident("VmRSS")

    def step():
        loss = session["model"](session["idx"], session["targets"])
        loss.backward()
        session["opt"].step()
        session["opt"].zero_grad(set_to_none=True)
        session["loss"] = loss.item()

    def build():
        config = GPTConfig(
            sequence_len=o.sequence_len, vocab_size=o.vocab_size, n_layer=o.n_layer, n_head=o.n_head,
            n_kv_head=o.n_kv_head, n_embd=o.n_embd, window_pattern=o.window_pattern,
        )
        with torch.device("meta"):
            model = GPT(config)
        model.to_empty(device="cpu")
        model.init_weights()
        session["opt"] = model.setup_optimizer()
        session["model"] = torch.compile(model, dynamic=False)
        tokens = torch.randint(0, o.vocab_size, (o.batch_size, o.sequence_len + 1))
        session["idx"], session["targets"] = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        seconds = common.milliseconds(step) / 1e3  # compiles
        step()
        common.settle_memory()
        return [seconds]

    def timed():
        return [common.milliseconds(step), session["loss"]]

    def memory():
        return [common.resident("VmHWM"), empty]

    common.serve({"model": build, "step": timed, "memory": memory}, ["torch " + torch.__version__])


if __name__ == "__main__":
    main()
