"""docs/api.md, written from the package itself: `python -m tools.api_reference > docs/api.md`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

import posttrain as pt

HEAD = """# Python API

`import posttrain as pt` gives every name of this page, and loads neither torch nor transformers until one is used. The
page is written from the package, and its examples are run by a test. Stages, adapters and their groups have the keys of
[a recipe](recipes.md); what a run leaves on disk is in [the run folder](run-folder.md).

```python
import posttrain as pt

rows = [{"prompt": f"{n} + 1?", "completion": f"{n + 1}."} for n in range(24)]

run = pt.train(pt.SFT(steps=2, rows_per_step=4), "embedded", rows, held_out=rows[:2], out="runs/mine")
print(run.summary())  # status, held-out figures, alarms, where the model lies
run.metrics("train").loss  # a pandas column
policy = run.load()  # the trained model, to train on or to ask
```

- **Rows** are what `pt.read` takes, wherever data is taken: a path, glob, folder or hub id, a list or generator of
  dicts, a `datasets.Dataset`, a pandas or polars DataFrame. `pt.train`, `pt.audit` and `pt.encode` read
  them by themselves.
- **Stages** are records (`pt.DPO(beta=0.1)`), or what a recipe writes: `"dpo"`, `{"method": "dpo", "beta": 0.1}`.
- **Rewards** are functions `(prompt, completion, task) -> float | None`, names of kinds (`"math"`), or entries
  (`{"kind": "math"}`); one may stand for a list of one ([rewards](rewards.md)).
- **Functions of your own** as losses, suites (`evaluate=[...]`) and callbacks (`on_step=f`) are on
  [a page of their own](extending.md).
- **Conversations** are a user's text, or turns as `Message`s or as `{"role": ..., "content": ...}`.
- **Models** are names and folders, or what `pt.load` gave. A model of `transformers` in memory is saved first, with its
  tokenizer: `model.save_pretrained("start")`, `tokenizer.save_pretrained("start")`, then `"start"`.
- **Progress** is shown in a terminal and in a notebook. Where stderr is a file or a pipe, `pt.train` and
  `pt.run_recipe` write a line a minute and the others none. `progress=False` silences it, `True` insists, and an object
  of `posttrain.runs.progress` is used as it is.
- **Errors** are `pt.PosttrainError`s with `problem`, `where`, `found`, `expected`, `example` and `remedy`; what is
  wrong with an argument is said before a model is loaded. The tree is in `posttrain/errors.py`.

```python
try:
    pt.train("dpo", "embedded", rows, out="runs/pairs")  # demonstrations, where pairs are needed
except pt.PosttrainError as error:
    print(error.remedy)

for finding in pt.audit(rows, progress=False):
    print(finding.check, finding.message)

encoder = pt.Encoder(policy.tokenizer, policy.speech.settings())
encoder.prompt([{"role": "user", "content": "2 + 1?"}])  # ids, as training and inference build them

again = pt.Run.open("runs/mine")  # a run of another day
```
"""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Train": ("train", "Run", "load", "load_reward"),
    "Look at data": ("read", "audit", "select", "Selection", "Encoder", "EncoderSettings", "encode", "EncodedDataset"),
    "Recipes": ("load_recipe", "check_recipe", "plan", "run_recipe", "sweep", "Sweep", "Recipe", "Data"),
    "Stages": (
        "SFT",
        "DPO",
        "Preference",
        "Mix",
        "Objective",
        "objective",
        "ConditionalSFT",
        "Reward",
        "GRPO",
        "PPO",
        "Online",
    ),
    "Adapters": (
        "LoRA",
        "QLoRA",
        "AdaLoRA",
        "OFT",
        "IA3",
        "Bottleneck",
        "PrefixTuning",
        "PromptTuning",
        "PTuning",
        "Continue",
    ),
    "Rows that models make": ("distil", "make"),
    "After a run": ("samples", "write_report", "rate"),
    "Models at work": ("Policy", "RewardModel", "merge"),
    "Spend compute on an answer": (
        "solve",
        "Solution",
        "BestOfN",
        "SelfConsistency",
        "EarlyStoppingConsistency",
        "AdaptiveConsistency",
        "DeepConf",
        "LikeliestAnswer",
        "PRMBeam",
        "DVTS",
        "ParticleFilter",
        "MCTS",
        "TreeOfThoughts",
        "GraphOfThoughts",
        "ChainOfThought",
        "BudgetForcing",
        "SelfRefine",
        "CritiqueBy",
        "SelfVerification",
        "FewShot",
        "Retrieval",
    ),
    "Errors": ("PosttrainError",),
}
"""Every public name, under the heading where its reader looks for it."""
MEMBERS: Mapping[str, tuple[str, ...]] = {
    "Sweep": ("best", "rows", "failed", "report"),
    "Run": ("open", "metrics", "lines", "summary", "plot", "load", "alarms", "model", "report"),
    "Encoder": ("prompt", "example", "decode_marked", "stop_ids"),
    "RewardModel": ("score", "score_rows"),
}
"""Methods and attributes that belong to the interface, by class."""
FUNCTIONS_IN_DISGUISE: Mapping[str, str] = {
    "DPO": "`pt.Preference` with its method set.",
    "GRPO": "`pt.Online` with its method set.",
    "PPO": "`pt.Online` with its method set.",
}
"""Stages that a table makes, whose class is named after their method."""


def api_reference() -> str:
    """The page; a test holds docs/api.md equal to it."""
    parts = [HEAD]
    for heading, names in GROUPS.items():
        parts.append(f"## {heading}\n")
        for name in names:
            parts.append(entry(name, getattr(pt, name)))
            parts += [member(name, inner) for inner in MEMBERS.get(name, ())]
    return "\n".join(parts)


def entry(name: str, value: Any) -> str:
    """A name with its signature, and its first sentence."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        text = f"{FUNCTIONS_IN_DISGUISE.get(name) or first_sentence(value)} Keys: [recipes.md](recipes.md)."
        return f"### `{name}(**keys)`\n\n{text}\n"
    return f"### `{name}`\n\n{block(name, value)}\n{first_sentence(value)}\n"


def member(owner: str, name: str) -> str:
    value = getattr(pt, owner).__dict__.get(name)
    if isinstance(value, property) or value is None:
        text = f" {first_sentence(value)}" if value is not None and value.__doc__ else ""
        return f"**`.{name}`**{text}\n"
    function = value.__func__ if isinstance(value, classmethod) else value
    called = f"{owner}.{name}" if isinstance(value, classmethod) else f".{name}"
    return f"{block(called, function)}\n{first_sentence(function)}\n"


def block(name: str, value: Any) -> str:
    return f"```text\n{signature(name, value)}\n```\n"


def signature(name: str, value: Callable[..., Any]) -> str:
    """name(argument: type = default) -> type, one argument a line where it is long; annotations as they are written."""
    known = inspect.signature(value)
    shown = []
    star = False
    for parameter in known.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        annotation = "" if parameter.annotation is parameter.empty else f": {plain(parameter.annotation)}"
        default = "" if parameter.default is parameter.empty else f" = {plain_default(parameter.default)}"
        mark = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        mark = "**" if parameter.kind is parameter.VAR_KEYWORD else mark
        star = star or mark == "*"
        shown.append(f"{mark}{parameter.name}{annotation}{default}")
    returned = known.return_annotation
    gives = "" if returned is known.empty or isinstance(value, type) else f" -> {plain(returned)}"
    line = f"{name}({', '.join(shown)}){gives}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {item},\n" for item in shown) + f"){gives}"


def plain(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = text.replace("Shown", "Progress | bool | None")
    return re.sub(r"\b(posttrain|torch|pathlib|typing|collections)(\.\w+)*\.(?=[A-Z])", "", text)


def plain_default(value: Any) -> str:
    # A factory of a dataclass has no repr that is the same on two machines.
    return "..." if " object at 0x" in repr(value) or repr(value).startswith("<") else repr(value)


def first_sentence(value: Any) -> str:
    """The first paragraph of a docstring, as one line."""
    text = inspect.getdoc(value) or ""
    return " ".join(text.partition("\n\n")[0].split())


if __name__ == "__main__":
    print(api_reference(), end="")
