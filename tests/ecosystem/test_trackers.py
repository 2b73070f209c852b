"""The trackers themselves: what each shows after a stage that was stopped and went on, read by its own reader.

Not in `make test`, since they are heavy; each test is skipped where its tracker is not installed (requirements.txt
pins tensorboard).
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.runs.records.logs import MetricsLine
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, tiny_model

pytestmark = pytest.mark.ecosystem


@pytest.fixture
def resumed(tmp_path: Path) -> Callable[[Any], Path]:
    """A run of 6 steps that is stopped at step 4, whose checkpoint is of step 3, and goes on."""

    def make(tracker: Any) -> Path:
        tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
        tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path / "start")
        tokenizer.save_pretrained(tmp_path / "start")
        rows = [{"prompt": f"{i}?", "completion": f"{i}."} for i in range(12)]
        sft = pt.SFT(
            **{
                "learning_rate": 1e-3,
                "rows_per_step": 2,
                "steps": 6,
                "held_out": 0.2,
                "log": {"to": tracker, "held_out_every": 2},
                "checkpoint": {"every_steps": 3},
                "export": "none",
            }
        )

        def stop(report: Any) -> None:
            if report.step == 4:
                raise KeyboardInterrupt

        out = tmp_path / "mine"
        with pytest.raises(KeyboardInterrupt):
            pt.train(sft, tmp_path / "start", rows, out=out, on_step=stop, progress=False)
        time.sleep(1.1)  # wandb names its offline folders by the second
        pt.train(sft, tmp_path / "start", rows, out=out, progress=False)
        return out

    return make


def written(out: Path, split: str) -> list[tuple[int, float]]:
    """(step, loss) as metrics.jsonl has them."""
    lines = [MetricsLine.from_json(json.loads(line)) for line in (out / "sft/metrics.jsonl").read_text().splitlines()]
    return [(line.step or 0, line.values["loss"] or 0.0) for line in lines if line.split == split]


def check(out: Path, read: Callable[[str], list[tuple[int, float]]]) -> None:
    for split in ("train", "held_out"):
        told = read(f"{split}/loss")
        assert [step for step, _ in told] == [step for step, _ in written(out, split)], split
        assert [loss for _, loss in told] == pytest.approx([loss for _, loss in written(out, split)], rel=1e-6)
    assert [step for step, _ in written(out, "train")] == [1, 2, 3, 4, 5, 6]


def test_tensorboard(resumed: Callable[[Any], Path]) -> None:
    pytest.importorskip("tensorboard")
    out = resumed("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(out / "tracking/tensorboard/sft"), size_guidance={"tensors": 0})
    events.Reload()
    check(out, lambda name: [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(name)])
    assert events.SummaryMetadata("train/loss").display_name == "Loss (nats)"
    (config,) = events.Tensors("config/text")
    assert b"rows_per_step: 2" in make_ndarray(config.tensor_proto).item()


def test_mlflow(resumed: Callable[[Any], Path]) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    out = resumed({"kind": "mlflow", "experiment": "tests"})
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{out.resolve()}/tracking/mlflow/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    check(out, lambda name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)])
    assert run.info.run_name == "mine/sft" and run.info.status == "FINISHED"
    assert run.data.params["rows_per_step"] == "2" and run.data.tags["unit/train/loss"] == "Loss (nats)"


def test_wandb(resumed: Callable[[Any], Path]) -> None:
    pytest.importorskip("wandb")
    out = resumed("wandb")
    from wandb.proto import wandb_internal_pb2

    told: dict[str, list[tuple[int, float]]] = {}
    found = (out / "tracking/wandb/wandb").glob("offline-run-*/run-*.wandb")
    files = sorted(found, key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 2 and len({path.name for path in files}) == 1  # two offline folders of one run, by its id
    for path in files:
        for content in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            items = record.history.item
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            for name, value in values.items():
                told.setdefault(name, []).append((values.get("step", 0), value))
    check(out, lambda name: told[name])


def records(content: bytes) -> Iterator[bytes]:
    """Of a .wandb file, which is a LevelDB log: 7 bytes of its own, then blocks of 32 KiB with records in pieces."""
    at, block, parts = 7, 32 * 1024, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # what is too short for a head is padding
            at += block - at % block
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""


def test_trackio(resumed: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("trackio") is None:  # not imported here: it reads its folder's name when it is
        pytest.skip("trackio is not installed")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    out = resumed({"kind": "trackio", "project": "tests"})
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("tests")
    logs = SQLiteStorage.get_logs("tests", name)
    assert name.startswith("sft-") and list((out / "tracking/trackio").rglob("*.db"))
    check(out, lambda key: [(row["step"], row[key]) for row in logs if key in row])
