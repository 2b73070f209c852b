"""Stand-in for tests/ranks.py"""
from __future__ import annotations
import os, socket, traceback
from functools import lru_cache
import torch.multiprocessing as mp

def _serve(rank, size, port, pipe):
    import warnings
    import torch, torch.distributed as dist
    warnings.simplefilter("error")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    from datetime import timedelta
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    while True:
        job = pipe.recv()
        if job is None:
            break
        f, args = job
        try:
            pipe.send((True, f(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))

class Ranks:
    def __init__(self, size):
        ctx = mp.get_context("spawn")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
        self.pipes, self.procs = [], []
        for r in range(size):
            a, b = ctx.Pipe()
            p = ctx.Process(target=_serve, args=(r, size, port, b), daemon=True); p.start()
            self.pipes.append(a); self.procs.append(p)
    def run(self, f, *args):
        for p in self.pipes: p.send((f, args))
        out = []
        for i, p in enumerate(self.pipes):
            out.append(p.recv())
        bad = [(i, o[1]) for i, o in enumerate(out) if not o[0]]
        if bad: raise AssertionError("\n".join(f"rank {i}: {t}" for i, t in bad))
        return [o[1] for o in out]

@lru_cache
def ranks(size):
    return Ranks(size)
