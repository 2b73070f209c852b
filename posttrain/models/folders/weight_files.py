"""Weight files on disk: whether all are there and open, and how keys are named where files and model disagree.

The first look at any folder, before `transformers` or `peft` see it: both report a torn file by a stack trace, and
`peft` passes over missing weights in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from posttrain.errors import ModelError

GET_AGAIN = "copy or download the folder again"
"""The remedy for every file that somebody else wrote and that does not read."""


def check_weight_files(folder: Path) -> None:
    """Every shard that the index names is there and can be opened.

    Raises:
        ModelError: naming the index, or the shards that are missing or torn.
    """
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except FileNotFoundError:
        names = [path.name for path in folder.glob("*.safetensors")]
    except (ValueError, KeyError) as error:
        raise ModelError("the list of shards cannot be read", where=index, found=error, remedy=GET_AGAIN) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not (names or any(folder.glob("*.bin"))):
        raise ModelError(
            "weights are missing",
            where=folder,
            found="no *.safetensors" if not names else f"no {', '.join(missing)}",
            remedy=GET_AGAIN,
        )
    for name in names:
        weight_keys(folder / name)


def weight_keys(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file, from its header; no weight is read.

    Raises:
        ModelError: the file is torn. Its header holds the length of the data, so a cut file does not open.
    """
    try:
        with safe_open(path, "pt") as weights:
            return set(weights.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError("the weight file is torn", where=path, found=error, remedy=GET_AGAIN) from error


def abbreviated(keys: Iterable[str]) -> str:
    """The first five in order: "a, b, c, d, e and 7 more"; an empty text for none."""
    ordered = sorted(keys)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
