"""What `posttrain plan` says against what a step holds: `python -m benchmarks.plan_memory [--only NAME] [--items]`.

Each configuration is planned from its settings and shapes alone, then two steps run in a process of their own, on CPU
in fp32. Measured is the second step, which has Adam's moments: all tensors that are there before it (`gc`), and the
most bytes that torch's allocator handed out beyond them at one moment of it (`torch.profiler`). The resident set is
shown beside it (VmHWM less what the process had before its model): it holds what the heap did not give back, too.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 0.15
"""Share by which a plan may be off."""
NOT_TENSORS = ("program", "allocator")
"""Items of a plan that torch's allocator does not hand out."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Measured("full sft", planned=2.1e9, tensors=2.2e9, resident=3.9e9, items={...})."""

    name: str
    planned: int
    tensors: int
    resident: int
    items: Mapping[str, int]

    @property
    def ratio(self) -> float:
        return self.planned / self.tensors


def cases() -> tuple[Any, ...]:
    from benchmarks.memory_plan import Case

    ckpt = {"compute": {"activation_checkpointing": True}}
    live, cached = {"reference": {"kind": "live"}}, {"reference": {"kind": "cached"}}
    # Of random weights the tree and the padded path may differ by more than the proof allows.
    grpo = {"completions_per_prompt": 8, "kl_beta": 0.04, "compute": {"logprobs": "tree"}}
    return (
        Case("embedded sft", "sft", "embedded", 256, {}),
        Case("embedded dpo, live", "dpo", "embedded", 256, live),
        Case("full sft", "sft", "smollm2", 512, {}),
        Case("full sft, checkpointed", "sft", "smollm2", 512, ckpt),
        Case("lora sft", "sft", "smollm2", 512, {"adapter": {"rank": 16}}),
        Case("lora sft, checkpointed", "sft", "smollm2", 512, {"adapter": {"rank": 16}, **ckpt}),
        Case("dpo, live reference", "dpo", "smollm2", 512, live),
        Case("dpo, cached reference", "dpo", "smollm2", 512, cached),
        Case("grpo, native engine", "grpo", "smollm2", 64, grpo),
        Case("reward model", "reward", "smollm2", 512, {}),
    )


# ---------------------------------------------------------------- planned


def planned(stage: Any, model: str, folder: Path, tokens: int | None) -> Mapping[str, int]:
    """The items of the fullest moment, from shapes: no weight is read."""
    from posttrain.planning.cards import Card
    from posttrain.planning.memory import rank_memory
    from posttrain.planning.mesh import Mesh
    from posttrain.planning.models import Models
    from posttrain.planning.plan import situation_of

    card = Card("cpu", 64e9, None, 1e11, 1e10, 1e10, "stated", device="cpu")
    where = situation_of(stage, card, Mesh(), folder=folder, tokens=tokens)
    return {item.name: item.bytes for item in rank_memory(Models(model), where).fullest.items}


# ---------------------------------------------------------------- measured


def there() -> int:
    """Bytes of all tensors of this process, each storage once."""
    import torch

    gc.collect()
    found = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in found}
    return sum(storages.values())


def measure(case: Any, folder: Path) -> Measured:
    """In this process, which should be a fresh one."""
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.memory_plan import _Silent, rows_of, stage_of
    from posttrain.data.read import read
    from posttrain.runs.folder import StageFolder
    from posttrain.runs.progress import Progress
    from posttrain.training.checks.memory import _fullest
    from posttrain.training.loop import Loop
    from posttrain.training.stages.kind import StageContext
    from posttrain.training.stages.prepare import prepare

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(case)), encoding="utf-8")
    start = str(folder / "start") if case.model != "embedded" else "embedded"
    store = StageFolder(folder / "stage")
    store.write_stage(name="stage", method=case.method, status="running")
    changes: dict[str, Any] = {"preflight": "off", **({"audit": {"on_error": "off"}} if case.method == "dpo" else {})}
    case = type(case)(case.name, case.method, case.model, case.tokens, {**case.options, **changes})
    stage, examples = stage_of(case, 2), read(folder / "rows.jsonl")
    before = resident()
    prepared = prepare(StageContext(stage, start, store, 0, Progress(), examples=examples))
    loop = Loop(prepared.work, store, Progress())
    first = list(loop.source.at(0))
    for trees in first:
        loop._update(trees, 0, _Silent())  # type: ignore[arg-type]
    standing = there()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for trees in loop.source.at(1):
            loop._update(trees, 1, _Silent())  # type: ignore[arg-type]
    events = seen.profiler.kineto_results.events()
    moves = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    tensors = standing + _fullest([size for _, size in moves])[0]
    store.close()
    # What no encoded rows say: how long the prompts are that are sampled from.
    prompt = len(first[0][0].prompt_ids)
    tokens_of_row = prompt + stage.sampling.max_new_tokens if case.method == "grpo" else None
    items = planned(stage, start, folder / "stage", tokens_of_row)
    total = sum(size for name, size in items.items() if name not in NOT_TENSORS)
    return Measured(case.name, total, tensors, resident() - before, items)


def resident() -> int:
    """Bytes of this process at its fullest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_a_process(case: Any, layers: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        if case.model != "embedded":  # made by another process, so that its memory is not this one's
            _run(case.name, folder, layers, "--make")
        return Measured(**json.loads(_run(case.name, folder, layers, "--inside").splitlines()[-1]))


def _run(name: str, folder: str, layers: int, what: str) -> str:
    command = [sys.executable, "-m", "benchmarks.plan_memory", what, folder, "--only", name, "--layers", str(layers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    return done.stdout


HEAD = f"{'GB':<26}{'planned':>9}{'measured':>10}{'ratio':>8}{'resident':>10}"


def line(found: Measured) -> str:
    sizes = f"{found.planned / 1e9:9.3f}{found.tensors / 1e9:10.3f}{found.ratio:8.2f}{found.resident / 1e9:10.2f}"
    return f"{found.name:<26}{sizes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", help="one configuration by name")
    parser.add_argument("--layers", type=int, default=30, help="of the random model")
    parser.add_argument("--items", action="store_true", help="print the plan's items too")
    parser.add_argument("--make", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--inside", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    chosen = [case for case in cases() if arguments.only in (None, case.name)]
    if arguments.make:
        from benchmarks.memory_plan import start_of

        start_of(chosen[0], Path(arguments.make), arguments.layers)
        return
    if arguments.inside:
        one = measure(chosen[0], Path(arguments.inside))
        print(json.dumps({name: getattr(one, name) for name in ("name", "planned", "tensors", "resident", "items")}))
        return
    found = []
    print(HEAD, flush=True)
    for case in chosen:
        found.append(in_a_process(case, arguments.layers))
        print(line(found[-1]), flush=True)
        if arguments.items:
            print("\n".join(f"  {name:<24}{size / 1e6:10,.0f} MB" for name, size in found[-1].items.items()))
    if far := [one.name for one in found if abs(one.ratio - 1) > LIMIT]:
        raise SystemExit(f"a plan is off by more than {LIMIT:.0%}: {', '.join(far)}")


if __name__ == "__main__":
    main()
