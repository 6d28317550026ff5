"""PyTorch on the GPU, for scripts/gpu-check: what `lumuon bench gpu` measures, by nanochat's own code.

nanochat's GPT under torch.compile(dynamic=False) with PyTorch's SDPA attention, its MuonAdamW (compiled
by itself), torch.optim.Muon and torch.optim.AdamW(fused=True). What this script sets: sizes, random
tokens and gradients, room for as many compiled shapes as there are. One JSON object goes to --json,
anew after each figure, those that matter most first; what could not be measured is missing from it,
with the reason under "failed".
"""

import argparse
import json
import os
import sys
import time


def main():
    begun = time.perf_counter()
    parser = argparse.ArgumentParser()
    parser.add_argument("--nanochat", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--depths", default="12,24")
    parser.add_argument("--train_depth", type=int, default=12)
    parser.add_argument("--sequence_lens", default="1024,2048")
    parser.add_argument("--batch_tokens", type=int, default=32768)
    parser.add_argument("--vocab_size", type=int, default=32768)
    parser.add_argument("--elements", type=int, default=2**26)
    parser.add_argument("--runs", type=int, default=7)
    o = parser.parse_args()
    os.environ["NANOCHAT_DTYPE"] = "bfloat16"
    os.environ.setdefault("NANOCHAT_BASE_DIR", "/tmp")
    os.environ["HF_HUB_OFFLINE"] = "1"  # where nanochat would fetch another attention
    sys.path.insert(0, o.nanochat)
    import torch
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.optim import MuonAdamW

    torch._dynamo.config.recompile_limit = 256
    torch.manual_seed(1)
    figures = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "failed": {}}
    figures["import_s"] = imported = time.perf_counter() - begun

    def timed(f, times):
        """Median seconds of f."""
        f()
        f()
        seconds = []
        for _ in range(o.runs):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(times):
                f()
            torch.cuda.synchronize()
            seconds.append((time.perf_counter() - start) / times)
        return sorted(seconds)[len(seconds) // 2]

    def attempt(name, f):
        try:
            figures[name] = f()
        except Exception as error:  # the others still count
            figures["failed"][name] = f"{type(error).__name__}: {str(error)[:300]}"
        torch.cuda.empty_cache()
        with open(o.json + ".new", "w") as file:
            json.dump(figures, file, indent=2)
        os.replace(o.json + ".new", o.json)

    def parameter(sizes, dtype=torch.float32):
        p = torch.nn.Parameter(torch.randn(sizes, device="cuda", dtype=dtype) * 0.02)
        p.grad = torch.randn(sizes, device="cuda", dtype=dtype)
        return p

    def limits():
        a = torch.randn(o.elements, device="cuda")
        b = torch.empty_like(a)
        copy = timed(lambda: b.copy_(a), 10)
        x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        product = timed(lambda: x @ y, 3)
        return {"copy_gb_per_s": 8 * o.elements / copy / 1e9, "product_tflop_per_s": 2 * 8192**3 / product / 1e12}

    def adamw():
        p = parameter([o.elements])
        opt = torch.optim.AdamW([p], lr=1e-3, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1, fused=True)
        seconds = timed(opt.step, 5)
        return {"ms": seconds * 1e3, "gb_per_s": 28 * o.elements / seconds / 1e9}

    def groups(depth):
        heads = -(-depth * 64 // 128)
        width, gated = heads * 128, -(-depth // 2)
        muon = [(4 * depth, [width, width]), (depth, [4 * width, width]), (depth, [width, 4 * width]), (gated, [heads, 32])]
        vocab = o.vocab_size
        adamw = [(1, [vocab, width], torch.float32), (1, [vocab, width], torch.bfloat16),
                 (gated, [vocab, width], torch.bfloat16), (1, [depth], torch.float32), (1, [depth], torch.float32)]
        tables = [dict(kind="muon", params=[parameter(s) for _ in range(n)], lr=1e-3, momentum=0.95, ns_steps=5,
                       beta2=0.9, weight_decay=0.1) for n, s in muon]
        tables += [dict(kind="adamw", params=[parameter(s, t) for _ in range(n)], lr=1e-3, betas=(0.8, 0.95),
                        eps=1e-10, weight_decay=0.1) for n, s, t in adamw]
        return tables

    def optimizer(depth):
        opt = MuonAdamW(groups(depth))
        start = time.perf_counter()
        opt.step()
        torch.cuda.synchronize()
        return {"depth": depth, "first_step_s": time.perf_counter() - start, "ms": timed(opt.step, 3) * 1e3}

    def torch_muon(depth):
        params = [p for t in groups(depth) if t["kind"] == "muon" for p in t["params"]]
        opt = torch.optim.Muon(params, lr=1e-3, weight_decay=0.1, momentum=0.95, ns_steps=5)
        return {"depth": depth, "ms": timed(opt.step, 1) * 1e3}

    def training(sequence_len):
        entered = time.perf_counter()
        rows, heads = max(1, o.batch_tokens // sequence_len), -(-o.train_depth * 64 // 128)
        config = GPTConfig(sequence_len=sequence_len, vocab_size=o.vocab_size, n_layer=o.train_depth, n_head=heads,
                           n_kv_head=heads, n_embd=heads * 128, window_pattern="L")
        with torch.device("meta"):
            model = GPT(config)
        model.to_empty(device="cuda")
        model.init_weights()
        opt = model.setup_optimizer()
        compiled = torch.compile(model, dynamic=False)
        tokens = torch.randint(0, o.vocab_size, (rows, sequence_len + 1), device="cuda")
        idx, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

        def step():
            loss = compiled(idx, targets)
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            return loss.item()

        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        ended = time.perf_counter()
        first, from_start = ended - start, imported + ended - entered
        seconds = timed(step, 1)
        return {"depth": o.train_depth, "sequence_len": sequence_len, "rows": rows, "first_step_s": first,
                "from_start_s": from_start, "ms": seconds * 1e3,
                "tokens_per_second": rows * sequence_len / seconds, "peak_bytes": torch.cuda.max_memory_allocated()}

    attempt("limits", limits)
    attempt("adamw_fused", adamw)
    depths, lengths = (list(map(int, text.split(","))) for text in (o.depths, o.sequence_lens))
    for i in range(max(len(depths), len(lengths))):
        for depth in depths[i : i + 1]:
            attempt(f"optimizer_d{depth}", lambda: optimizer(depth))
        for length in lengths[i : i + 1]:
            attempt(f"training_{length}", lambda: training(length))
        torch._dynamo.reset()
    for depth in depths:
        attempt(f"torch_muon_d{depth}", lambda: torch_muon(depth))


if __name__ == "__main__":
    main()
