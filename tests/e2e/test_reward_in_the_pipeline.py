"""SFT, a reward model, DPO, and a win rate whose judge is trained after the models that it judges first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.config import load_recipe
from posttrain.rollout.native import NativeEngine
from posttrain.training.pipeline import run_recipe

RECIPE = """
model: embedded
evaluate:
  suites:
    - name: judged
      kind: win_rate
      prompts: package://heldout_manners.jsonl
      limit: 10
      reward_model: {stage: judge}
      sampling: {max_new_tokens: 12}
stages:
  - {name: sft, method: sft, data: package://demonstrations.jsonl, steps: 12, rows_per_step: 8, learning_rate: 1.0e-3}
  - {name: judge, method: reward, data: package://preferences.jsonl, held_out: 0.1, steps: 14, rows_per_step: 8,
     learning_rate: 5.0e-4}
  - {name: dpo, method: dpo_nll, data: package://preferences.jsonl, steps: 6, rows_per_step: 8, learning_rate: 1.5e-4}
"""


@pytest.mark.slow
def test_a_judge_that_comes_later_judges_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    generate = NativeEngine.generate

    def counted(engine: NativeEngine, prompts: list, *args: object, **options: object) -> object:
        asked.append(len(prompts))
        return generate(engine, prompts, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(NativeEngine, "generate", counted)
    path = tmp_path / "judged.yaml"
    path.write_text(f"out: {tmp_path}\n{RECIPE}", encoding="utf-8")
    result = run_recipe(load_recipe(path))
    assert asked == [10, 10, 10], "start, sft and dpo are asked once each, and the reward model never"
    assert set(result.summary) == {"start", "sft", "judge", "dpo"}
    assert 0 <= result.summary["judge"]["trained.accuracy"] <= 1  # type: ignore[operator]
    assert result.summary["start"]["judged.win_rate"] == 0.5
    for stage in ("sft", "dpo"):
        rate = result.summary[stage]["judged.win_rate"]
        assert rate is not None and 0 <= rate <= 1
        lines = (result.folder / stage / "evaluations" / "judged.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert sum(record["score"] for record in records) / 10 == pytest.approx(rate)
        assert all(
            record["score"]
            == (0.5 if record["reward"] == record["start_reward"] else record["reward"] > record["start_reward"])
            for record in records
        )

    own = json.loads((result.folder / "judge" / "reward_evaluation.json").read_text(encoding="utf-8"))
    assert own["pairs"] == 64 and own["trained"]["accuracy"]["value"] > own["untrained"]["accuracy"]["value"]
    matrix = json.loads((result.folder / "cross_scores.json").read_text(encoding="utf-8"))
    assert (matrix["policies"], matrix["reward_models"]) == (["start", "sft", "dpo"], ["judge"])
    page = result.report.read_text(encoding="utf-8")
    assert "Policies by reward models" in page and "untrained head" in page

    again = run_recipe(load_recipe(path))
    assert asked == [10, 10, 10]
    assert again.summary == result.summary
