"""docs/preflight.md from the table of explanations: `python -m tools.preflight_reference > docs/preflight.md`."""

from __future__ import annotations

from posttrain.training.checks.explained import EXPLAINED

HEAD = """\
# The preflight

Before step 1 a stage proves on its own rows what it relies on; `posttrain check recipe.yaml` does so for every stage
and trains nothing, and `posttrain check recipe.yaml --explain` says beside each line what stands in this table. A
check that fails ends the stage before it trains (`preflight: {on_failure: warn}` goes on in spite of it). The figures
are in the stage's `preflight.json` and in the report.

Which lines appear depends on the stage: one without a reference has no identity, one that samples has verifiers and a
sampler.

| line | what it proves | why it matters | otherwise |
|---|---|---|---|
"""

TAIL = """
## Experiments that are repeated

A sweep of small runs need not prove the same identities each time, nor write a model that nobody loads:

```yaml
stages:
  - method: dpo
    data: pairs.jsonl
    steps: 6
    preflight: fast     # or off
    export: none
```

| mode | what is proven |
|---|---|
| `full` | all of the above |
| `fast` | weights, rows, the path of the forward pass on the shortest rows, gradients; memory is estimated |
| `off` | weights; the path is still proven by the first forward pass, as everywhere |

None of it changes a weight. The report names the mode, and `off` is a warning there. With `export: none` the figures
stay and the weights do not: it is refused in a recipe where another stage comes after it. `python -m
benchmarks.quick` measures what each of them costs. Six steps of DPO on the embedded model, in a process that has
trained before, medians of three on 2 cores: 7.0 s with everything, 2.0 s with `fast` and no export, 1.9 s with `off`
and none; nearly all of the rest was the fresh process that reads the save back."""


def page() -> str:
    rows = [f"| {row.title} | {row.proves} | {row.matters} | {row.otherwise} |" for row in EXPLAINED.values()]
    return HEAD + "\n".join(rows) + "\n" + TAIL


if __name__ == "__main__":
    print(page(), end="")
