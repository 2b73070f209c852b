"""What each causal LM family of the installed `transformers` does: the table in docs/models.md#families.

    python -m benchmarks.families                     # all, each in a process of its own; prints the table
    python -m benchmarks.families --write             # and puts it into docs/models.md
    python -m benchmarks.families bloom qwen3_next    # some

Each family is built as a tiny random model (`benchmarks.tiny_families`), and held to what `transformers` itself gives:
log-probs and the whole gradient of pairs against the plain forward of each row alone, and two equal calls. The oracle
here shares no code with posttrain.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch import Tensor

from benchmarks.tiny_families import VOCABULARY, names, tiny_family
from posttrain.data.trees import collate
from posttrain.errors import ModelError
from posttrain.models.tree.logprobs import Policy
from posttrain.types import Branch, RowRef, TokenTree

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
LENGTHS = ((5, 6, 9), (9, 12, 4), (14, 20, 17), (30, 26, 33))
"""(prompt, chosen, rejected) tokens of four pairs; the longest rows are several windows long."""
LOGPROB, GRADIENT = 2e-4, 1e-3
"""Allowed distance from the plain forward: nats, and the gradient relative to its norm."""

Status = Literal["tree", "padded", "rows", "refused", "not built", "WRONG"]


@dataclass(frozen=True, slots=True)
class Family:
    """Family("bloom", "BloomForCausalLM", "padded", "its attention adds a bias of its own ...", 3e-6, 1e-6)"""

    name: str
    model: str
    status: Status
    reason: str = ""
    logprob: float | None = None
    """Largest distance of a log-prob from the plain forward of its row alone, nats."""
    gradient: float | None = None

    def line(self) -> str:
        reason = re.sub(r" \([^()]*differ by at most[^()]*\)", "", self.reason).replace("|", "/")
        off = "" if self.logprob is None else f"{self.logprob:.0e} nats, gradient {self.gradient:.0e}"
        return f"| {self.name} | {self.model} | {self.status} | {off} | {reason} |"


def pairs(vocabulary: int = VOCABULARY) -> list[TokenTree]:
    """The probes; ids 0 to 2 are left to special tokens."""
    generator = np.random.default_rng(0)
    trees = []
    for number, (prompt, *sides) in enumerate(LENGTHS):
        ids = [generator.integers(3, vocabulary, length, dtype=np.int32) for length in (prompt, *sides)]
        branches = tuple(Branch(side, np.ones(len(side), dtype=bool)) for side in ids[1:])
        trees.append(TokenTree(ids[0], branches, f"pair-{number}", RowRef("pairs", number + 1)))
    return trees


def plain(model: Any, trees: Sequence[TokenTree]) -> Tensor:
    """Log-probs of every branch token by the model's own forward, one row at a time."""
    found = []
    for tree in trees:
        for branch in tree.branches:
            ids = torch.from_numpy(np.concatenate([tree.prompt_ids, branch.ids])).long()
            logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False).logits[0]
            log_p = torch.log_softmax(logits.float(), dim=-1)[len(tree.prompt_ids) - 1 : -1]
            found.append(log_p.gather(1, ids[len(tree.prompt_ids) :, None])[:, 0])
    return torch.cat(found)


def gradient_of(values: Tensor, model: Any) -> list[Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.linspace(0.5, 1.5, len(values))  # so that no two tokens may change places
    return list(torch.autograd.grad((values * weights).sum(), parameters, allow_unused=True, materialize_grads=True))


def examined(name: str) -> Family:
    """One family, in this process."""
    try:
        model = tiny_family(name)
    except ValueError as error:
        return Family(name, "", "not built", str(error)[:160])
    kind, trees = type(model).__name__, pairs()
    try:
        policy = Policy(model)
        policy.prove(trees)
    except ModelError as error:
        return Family(name, kind, "refused", f"{error.problem} ({error.found})")
    except Exception as error:  # a boundary: what the model's own plain forward raises is the family's result
        return Family(name, kind, "refused", f"its own forward stops: {type(error).__name__}: {str(error)[:120]}")
    reasons = policy.paths.reasons(policy)
    values = policy(collate(trees)).logprobs_N
    again = policy(collate(trees)).logprobs_N
    expected = plain(model, trees)
    apart = float((values - expected).detach().abs().max())
    ours, theirs = gradient_of(values, model), gradient_of(expected, model)
    size = torch.stack([one.double().norm() for one in theirs]).norm()
    slope = float(torch.stack([(a - b).double().norm() for a, b in zip(ours, theirs, strict=True)]).norm() / size)
    reason = "; ".join(one.partition(": ")[2] if one.startswith(f"{kind} runs") else one for one in reasons)
    status: Status = policy.path
    if not torch.equal(values, again):
        status, reason = "WRONG", f"two calls differ; {reason}"
    elif not (apart <= LOGPROB and slope <= GRADIENT):
        status, reason = "WRONG", f"not what the plain forward gives; {reason}"
    return Family(name, kind, status, reason, apart, slope)


def swept(asked: Sequence[str], seconds: int) -> Iterator[Family]:
    """Each family in a process of its own: some stop it, some take forever. Forked, so that imports are paid once."""
    context: Any = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    for name in asked:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(name, sender))
        process.start()
        sender.close()
        try:
            ready = receiver.poll(seconds)
            yield receiver.recv() if ready else Family(name, "", "not built", f"takes more than {seconds} s")
        except EOFError:
            process.join()
            yield Family(name, "", "not built", f"its process ended with {process.exitcode}")
        finally:
            process.kill()
            process.join()


def _report(name: str, sender: Connection) -> None:
    quieten()
    sender.send(examined(name))


def quieten() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def table(families: Sequence[Family]) -> str:
    counts = {
        status: sum(one.status == status for one in families) for status in dict.fromkeys(f.status for f in families)
    }
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items(), key=lambda item: -item[1]))
    return "\n".join(
        [
            f"transformers {transformers.__version__}: {len(families)} families ({said}).",
            "",
            "| family | class | path | distance from each row alone | why not faster |",
            "|---|---|---|---|---|",
            *(one.line() for one in families),
        ]
    )


def write(families: Sequence[Family]) -> None:
    """Into the page, between its marks."""
    page = PAGE.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{table(families)}\n{END}"
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: block, page, flags=re.DOTALL), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="families; none is all")
    parser.add_argument("--write", action="store_true", help="put the table into docs/models.md")
    parser.add_argument("--seconds", type=int, default=90, help="for each family")
    parser.add_argument("--results", type=Path, help="JSON lines: what is there is kept, what is missing is added")
    options = parser.parse_args()
    quieten()
    asked = options.names or names()
    known: dict[str, Family] = {}
    if options.results is not None and options.results.exists():
        lines = options.results.read_text(encoding="utf-8").splitlines()
        known = {one.name: one for one in (Family(**json.loads(line)) for line in lines)}
    for family in swept([name for name in asked if name not in known], options.seconds):
        known[family.name] = family
        print(family.line(), flush=True)
        if options.results is not None:
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(family)) + "\n")
    families = [known[name] for name in asked]
    print(table(families))
    if options.write:
        write(families)


if __name__ == "__main__":
    main()
