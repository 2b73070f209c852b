"""What the memory plan says against what the process takes: `python -m benchmarks.memory_plan [--only NAME]`.

Each configuration runs in a process of its own: the preflight, then three steps. A thread reads the resident set every
five milliseconds, once for the checks before step 1 and once for the steps. The plan is made after the checks and is
the larger of what they took, which it knows, and of the sum of its items, which are predicted: both are shown. The
models are random and as large as SmolLM2-135M (30 layers of width 576, 49,152 ids), or the one that comes with the
package. On CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

LIMIT = 0.15
"""Share by which the plan may be off."""
EVERY_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Case:
    """Case("full 2,048", "sft", "smollm2", tokens=2048): rows of so many tokens, one to a micro-batch, two a step."""

    name: str
    method: str
    model: str
    tokens: int
    options: Mapping[str, Any]


def _case(name: str, method: str, model: str, tokens: int, **options: Any) -> Case:
    return Case(name, method, model, tokens, options)


CASES = (
    _case("embedded sft", "sft", "embedded", 256),
    _case("embedded dpo", "dpo", "embedded", 256, reference={"kind": "live"}),
    _case("full sft", "sft", "smollm2", 2048),
    _case("lora sft", "sft", "smollm2", 2048, adapter={"rank": 16}),
    _case("reward model", "reward", "smollm2", 512),
    _case("padded sft", "sft", "smollm2", 512, compute={"logprobs": "padded"}),
    _case("embedded grpo", "grpo", "embedded", 128, completions_per_prompt=8, kl_beta=0.04),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes that a configuration took: Measured("full sft", planned=5.1e9, checks=3.2e9, steps=5.0e9, items={...})."""

    name: str
    planned: int
    checks: int
    steps: int
    items: Mapping[str, int]

    @property
    def off(self) -> float:
        return self.planned / max(self.checks, self.steps) - 1

    @property
    def predicted(self) -> int:
        """The sum of the items: a step's memory before one was taken."""
        return sum(self.items.values())

    @property
    def steps_off(self) -> float:
        """Of what is predicted alone, which no figure of the checks helps."""
        return self.predicted / self.steps - 1


class Watch:
    """The largest resident set of each stretch: with Watch() as watch: watch.stretch("steps"); ...; watch.peaks."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._name, self._stop = "imports", threading.Event()
        self._process = psutil.Process()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def stretch(self, name: str) -> None:
        gc.collect()
        self._name = name

    def _look(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            self.peaks[self._name] = max(self.peaks.get(self._name, 0), self._process.memory_info().rss)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


def rows_of(case: Case, count: int = 8) -> list[dict[str, str]]:
    """Rows whose trees have about `tokens` tokens under a tokenizer of one id a byte."""
    length = case.tokens - 40
    if case.method == "grpo":
        return [{"prompt": f"Is it {i}?", "answer": str(i)} for i in range(count)]
    if case.method == "sft":
        return [{"prompt": f"Is it {i}?", "completion": "a" * length} for i in range(count)]
    return [
        {"prompt": f"Is it {i}?", "chosen": "a" * (length // 2 - 10), "rejected": "b" * (length // 2 - 10)}
        for i in range(count)
    ]


def start_of(case: Case, folder: Path, layers: int) -> str | Path:
    """The model to start from: a name, or a folder with a random one."""
    if case.model == "embedded":
        return "embedded"
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.fixtures import byte_tokenizer

    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "start")
    byte_tokenizer("CHATML").save_pretrained(folder / "start")
    return folder / "start"


def letters(prompt: Any, completion: str, task: Any) -> float:
    """A reward that differs between completions, so that each group has a gradient."""
    return sum(letter < "n" for letter in completion) / max(1, len(completion))


def stage_of(case: Case, steps: int) -> Any:
    from posttrain.config.online import Online
    from posttrain.config.stages import DPO, SFT, Reward

    options = dict(case.options)
    if case.method == "grpo":
        return Online(
            "grpo",
            rewards=[{"kind": "function", "function": "benchmarks.memory_plan:letters"}],
            prompts_per_step=2,
            steps=steps,
            sampling={"max_new_tokens": case.tokens},
            held_out=0,
            checkpoint={"every_steps": 100},
            **options,
        )
    compute = {"tokens_per_microbatch": case.tokens, **options.pop("compute", {})}
    kinds: dict[str, Callable[..., Any]] = {"sft": SFT, "dpo": DPO, "reward": Reward}
    return kinds[case.method](
        rows_per_step=2,
        steps=steps,
        max_length=case.tokens,
        held_out=0,
        compute=compute,
        log={"samples_every": None, "held_out_every": None},
        checkpoint={"every_steps": 100},
        **options,
    )


def measure(case: Case, folder: Path, steps: int) -> Measured:
    """In this process, which should be a fresh one."""
    from posttrain.data.read import read
    from posttrain.runs.folder import StageFolder
    from posttrain.runs.progress import Progress
    from posttrain.training.loop import Loop
    from posttrain.training.stages.kind import StageContext
    from posttrain.training.stages.prepare import prepare

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(case)), encoding="utf-8")
    start = folder / "start" if case.model != "embedded" else "embedded"
    store = StageFolder(folder / "stage")
    store.write_stage(name="stage", method=case.method, status="running")
    with Watch() as watch:
        watch.stretch("checks")
        stage, examples = stage_of(case, steps), read(folder / "rows.jsonl")
        prepared = prepare(StageContext(stage, start, store, 0, Progress(), examples=examples))
        plan = prepared.preflight.memory
        assert plan is not None
        loop = Loop(prepared.work, store, Progress())
        watch.stretch("steps")
        for step in range(steps):
            for trees in loop.source.at(step):
                loop._update(trees, step, _Silent())  # type: ignore[arg-type]
        peaks = dict(watch.peaks)
    store.close()
    items = {item.name: item.bytes for item in plan.items}
    return Measured(case.name, plan.peak_bytes, peaks["checks"], peaks["steps"], items)


class _Silent:
    def advance(self, amount: float = 1, *, tokens: int = 0, note: str | None = None) -> None: ...


def in_a_process(case: Case, layers: int, steps: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        if case.model != "embedded":  # made by another process, so that its memory is not this one's
            _run(case.name, folder, layers, steps, "--make")
        return Measured(**json.loads(_run(case.name, folder, layers, steps, "--inside").splitlines()[-1]))


def _run(name: str, folder: str, layers: int, steps: int, what: str) -> str:
    command = [sys.executable, "-m", "benchmarks.memory_plan", what, folder, "--only", name]
    command += ["--layers", str(layers), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    return done.stdout


def table(found: list[Measured]) -> str:
    """
    configuration     planned   checks    steps     off  predicted  of steps
    full sft             5.10     3.20     5.00    +2 %       5.10      +2 %
    """
    lines = [f"{'configuration':<16}{'planned':>9}{'checks':>9}{'steps':>9}{'off':>8}{'predicted':>11}{'of steps':>10}"]
    for one in found:
        sizes = "".join(f"{size / 1e9:9.2f}" for size in (one.planned, one.checks, one.steps))
        lines.append(f"{one.name:<16}{sizes}{one.off:+8.0%}{one.predicted / 1e9:11.2f}{one.steps_off:+10.0%}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", help="one configuration by name")
    parser.add_argument("--layers", type=int, default=30, help="of the random model")
    parser.add_argument("--steps", type=int, default=3, help="updates that are watched; the second has Adam's moments")
    parser.add_argument("--items", action="store_true", help="print the plan's items too")
    parser.add_argument("--make", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--inside", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.only in (None, case.name)]
    if arguments.make:
        start_of(cases[0], Path(arguments.make), arguments.layers)
        return
    if arguments.inside:
        one = measure(cases[0], Path(arguments.inside), arguments.steps)
        print(json.dumps({name: getattr(one, name) for name in ("name", "planned", "checks", "steps", "items")}))
        return
    found = []
    for case in cases:
        found.append(in_a_process(case, arguments.layers, arguments.steps))
        print(table(found[-1:]).splitlines()[-1], flush=True)
        if arguments.items:
            print("\n".join(f"  {name:<18}{size / 1e6:10,.0f} MB" for name, size in found[-1].items.items()))
    print(table(found))
    if any(abs(one.off) > LIMIT for one in found):
        raise SystemExit(f"a plan is off by more than {LIMIT:.0%}")


if __name__ == "__main__":
    main()
