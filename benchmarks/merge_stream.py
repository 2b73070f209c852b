"""How much memory a merge takes, and how fast it is beside `cp`: two models of about 1 GB, made here.

    python -m benchmarks.merge_stream                       # linear, task_arithmetic, ties, dare_ties
    python -m benchmarks.merge_stream --method linear --layers 8

Prints one JSON object for each method. The goals: the process that merges stays under its own size before the merge and
what 12 of the largest tensors take in fp32 (6 for methods that work on blocks of rows), and a linear merge reads at no
less than a third of `cp`'s rate.
The fresh process that reads the result back loads a whole model and is counted apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = ("linear", "task_arithmetic", "ties", "dare_ties")
HIDDEN, INNER, VOCABULARY = 1280, 3584, 32_000
TENSORS = {"linear": 6, "task_arithmetic": 6, "ties": 12, "dare_ties": 12}
"""Of the largest tensor in fp32: what a method may hold at a time. With a base: both models, the base, two differences,
their sum, the divisor, the signs, and what the thinning of a difference takes meanwhile."""


def make_model(folder: Path, layers: int, seed: int) -> int:
    """A random Llama in bf16, written tensor by tensor; gives its bytes."""
    import torch
    from transformers import LlamaConfig

    from posttrain.models.folders.loading import load
    from posttrain.models.folders.shard_files import ShardWriter
    from posttrain.models.folders.tokenizers import save_tokenizer

    folder.mkdir()
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=20,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    save_tokenizer(load("embedded").tokenizer, folder)
    square, wide = (HIDDEN, HIDDEN), (INNER, HIDDEN)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        for name, shape in (
            *((f"self_attn.{part}_proj", square) for part in "qkvo"),
            *((f"mlp.{part}_proj", wide) for part in ("gate", "up")),
            ("mlp.down_proj", (HIDDEN, INNER)),
            *((part, (HIDDEN,)) for part in ("input_layernorm", "post_attention_layernorm")),
        ):
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    writer = ShardWriter(folder, {name: (shape, torch.bfloat16) for name, shape in shapes.items()}, 600_000_000)
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        writer.write(name, torch.randn(shape, generator=generator).mul_(0.02).bfloat16())
    writer.close()
    return writer.bytes


def merged(kind: str, folder: Path) -> dict[str, Any]:
    """One merge in this process, which has done nothing else."""
    from posttrain.config.merging import MERGE_METHODS, merge_settings
    from posttrain.models.merging.run import merge_models

    base = {"base": folder / "base"} if MERGE_METHODS[kind].base == "needed" else {}
    settings = merge_settings(kind, [folder / "a", folder / "b"], **base)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.monotonic()
    report = merge_models(settings, folder / kind)
    return {
        "method": kind,
        "read_mb": round(report.read / 1e6),
        "seconds": round(report.seconds, 1),
        "seconds_with_reading_back": round(time.monotonic() - started, 1),
        "read_mb_per_second": round(report.read / 1e6 / report.seconds),
        "rss_before_mb": round(before / 1e6),
        "rss_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        "rss_of_fresh_process_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6),
    }


def copied(folder: Path) -> float:
    """MB/s of `cp` of one model, beside which the merge stands: bytes that were read."""
    started = time.monotonic()
    subprocess.run(["cp", "-r", str(folder / "a"), str(folder / "copy")], check=True)
    subprocess.run(["sync", "-f", str(folder / "copy")], check=True)
    seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in (folder / "copy").iterdir())
    shutil.rmtree(folder / "copy")
    return size / 1e6 / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="where models are already, or are made and stay")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(merged(chosen.one, chosen.folder)))
        return
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="merge-stream-"))
    folder.mkdir(exist_ok=True)
    try:
        sizes = [
            make_model(folder / name, chosen.layers, seed)
            for seed, name in enumerate(("a", "b", "base"))
            if not (folder / name).exists()
        ]
        rate = copied(folder)
        largest = VOCABULARY * HIDDEN * 4 / 1e6
        print(json.dumps({"model_mb": [round(size / 1e6) for size in sizes], "cp_mb_per_second": round(rate)}))
        for kind in chosen.method or METHODS:
            command = [sys.executable, "-m", "benchmarks.merge_stream", "--one", kind, "--folder", str(folder)]
            line = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            shutil.rmtree(folder / kind)
            line["within_memory"] = line["rss_peak_mb"] <= line["rss_before_mb"] + TENSORS[kind] * largest
            print(json.dumps(line), flush=True)
    finally:
        if chosen.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
