"""What `posttrain convert` makes of the tools' own examples: `python -m benchmarks.converting --axolotl CHECKOUT ...`.

Of each checkout, every YAML, JSON and shell script below `examples` is converted. A file that trains nothing (a
launcher's or an engine's) is refused by name and counted; of the others every key is said, says nothing here, or could
not be said, and a key that no table has is unknown. TRL has few files: of it, every field of its configs is looked up.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from posttrain.converting import convert
from posttrain.converting.trl_keys import TRL
from posttrain.errors import ConfigError

SUFFIXES = (".yaml", ".yml", ".json", ".sh")
TRL_CONFIGS = (
    "trainer/sft_config.py", "trainer/dpo_config.py", "trainer/kto_config.py", "trainer/reward_config.py",
    "trainer/grpo_config.py", "trainer/rloo_config.py", "trainer/model_config.py", "experimental/orpo/orpo_config.py",
    "experimental/cpo/cpo_config.py", "experimental/bco/bco_config.py", "experimental/prm/prm_config.py",
    "experimental/gkd/gkd_config.py",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("axolotl", "llamafactory", "trl", "openrlhf"):
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT")
    arguments = vars(parser.parse_args())
    print("| tool | files | converted | keys | said | nothing to write | not sayable | unknown | known |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, folder in arguments.items():
        if folder is not None:
            measure(name, folder)
    if arguments["trl"] is not None:
        fields = set(fields_of_trl(arguments["trl"]))
        print(f"\nTRL's configs: {len(fields)} fields, of which no table has {sorted(fields - set(TRL)) or 'none'}")


def measure(tool: str, folder: Path) -> None:
    """One row of the table, and why files were refused."""
    files = sorted(path for path in (folder / "examples").rglob("*") if path.suffix in SUFFIXES)
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for path in files:
        try:
            found = convert(path, method="sft" if tool == "trl" else None)
        except ConfigError as error:
            refused[error.problem.split("\n")[0]] += 1
            continue
        strange = [entry for entry in found.missed if "knows" in entry.why or "is known" in entry.why]
        unknown.update(entry.key for entry in strange)
        counts.update(said=len(found.said), idle=len(found.idle), missed=len(found.missed) - len(strange), files=1)
    keys = counts["said"] + counts["idle"] + counts["missed"] + sum(unknown.values())
    known = 1 - sum(unknown.values()) / max(1, keys)
    print(
        f"| {tool} | {len(files)} | {counts['files']} | {keys:,} | {counts['said']:,} | {counts['idle']:,} | "
        f"{counts['missed']:,} | {sum(unknown.values())} | {known:.2%} |"
    )
    for reason, times in refused.most_common():
        print(f"    {times} refused: {reason}")
    for key, times in unknown.most_common():
        print(f"    {times} unknown: {key}")


def fields_of_trl(folder: Path) -> Iterator[str]:
    """The fields of TRL's own configs, without those of transformers, read from their source."""
    for name in TRL_CONFIGS:
        for node in ast.parse((folder / "trl" / name).read_text(encoding="utf-8")).body:
            for line in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id[0] != "_":
                    yield line.target.id


if __name__ == "__main__":
    main()
