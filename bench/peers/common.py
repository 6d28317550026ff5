"""What the peers' scripts share: the checkout and the threads they run with, times, resident memory.

The scripts are servers: they read a command a line from stdin, answer with a line of tab-separated
fields on stdout, and time nothing while `lumuon bench` times something of its own. What else the
peers print goes to stderr.
"""

import ctypes
import gc
import os
import sys
import time


def set_environment(threads, precision):
    """Before torch is imported: as many threads as Lumuon has, nanochat's compute dtype, no GPU."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["NANOCHAT_DTYPE"] = {"f32": "float32", "bf16": "bfloat16"}[precision]
    os.environ.setdefault("NANOCHAT_BASE_DIR", "/tmp")


def import_torch(threads):
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    return torch


def add_checkout(folder):
    """Make `import nanochat` mean the checkout in folder."""
    if not os.path.isfile(os.path.join(folder, "nanochat", "optim.py")):
        raise SystemExit(f"{folder} is no nanochat checkout: there is no nanochat/optim.py in it")
    sys.path.insert(0, folder)


def milliseconds(f):
    begun = time.perf_counter()
    f()
    return (time.perf_counter() - begun) * 1e3


def resident(field):
    """VmRSS or VmHWM of this process in bytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


def settle_memory():
    """Give free memory back and let VmHWM start again from what is resident now, which is returned."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return resident("VmRSS")


def serve(commands, ready):
    """Answer lines `name field ...` with commands[name](*fields) until stdin ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr

    def answer(*fields):
        answers.write("\t".join(str(f).replace("\t", " ").replace("\n", " ") for f in fields) + "\n")
        answers.flush()

    answer("ready", *ready)
    for line in sys.stdin:
        name, *fields = line.split()
        try:
            answer("ok", *commands[name](*fields))
        except Exception as error:  # told to the bench, which goes on without this figure
            answer("failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
