"""reward_model against the reward model's own door, and pass_rate with a policy whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import posttrain as pt
from posttrain.config.load import load_recipe
from posttrain.config.model_scores import PassRateScore, RewardModelScore
from posttrain.curation.rows import Pool, Rows, Tools
from posttrain.curation.scores import pass_rate, reward_model
from posttrain.curation.scores.pass_rate import NO_ROOM, pass_rate_score
from posttrain.curation.scores.reward_model import reward_model_score
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.read import read
from posttrain.errors import ConfigError
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.folders.export import ExportSettings
from posttrain.models.reward.export import _write
from posttrain.models.reward.scoring import load_reward
from posttrain.models.tree.heads import with_head
from posttrain.runs.progress import Progress
from posttrain.types import Task
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer("CHATML", eos="<|im_end|>", pad_is_eos=True)
V = len(TOKENIZER)


def pool(rows: list[dict[str, Any]], **options: Any) -> Pool:
    return Pool.of(Rows(read(rows, scan=False, **options)))


# ---------------------------------------------------------------- reward models


def reward_folder(folder: Path, rule: RewardRule) -> Path:
    model = with_head(tiny_model("llama", vocab=V), init="normal", pad_token_id=TOKENIZER.pad_token_id)
    settings = ExportSettings(merge=True, stop_ids=(), info={})
    _write(model, TOKENIZER, folder, settings, None, rule=rule, encoding=EncoderSettings(), statistics={})
    return folder


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_folder(tmp_path_factory.mktemp("reward"), RewardRule())


def scored(model: Path, rows: Pool, cache: Path | None = None, **settings: Any) -> Any:
    given = RewardModelScore(kind="reward_model", model=str(model), **settings)
    return reward_model_score(given, rows, Tools(device="cpu", cache=cache))


def test_rewards_are_those_of_the_reward_models_own_door(reward: Path) -> None:
    rows = pool([{"prompt": f"Q{n}", "completion": "word " * n + "end"} for n in range(5)])
    own = load_reward(reward)
    expected = [own.score(f"Q{n}", "word " * n + "end") for n in range(5)]
    assert scored(reward, rows).score_R.tolist() == pytest.approx(expected, rel=1e-5)


def test_of_comparisons_the_best_response_and_its_margin(reward: Path) -> None:
    ranked = {"prompt": "Q", "responses": ["middle", "worst of all", "best"], "ranking": [2, 0, 1]}
    rows = pool([{"prompt": "Q", "chosen": "good", "rejected": "a bad one"}])
    own = load_reward(reward)
    good, bad = own.score("Q", "good"), own.score("Q", "a bad one")
    assert scored(reward, rows).score_R.tolist() == pytest.approx([good], rel=1e-5)
    assert scored(reward, rows, of="margin").score_R.tolist() == pytest.approx([good - bad], rel=1e-4)
    best, *others = (own.score("Q", answer) for answer in ("best", "middle", "worst of all"))
    margin = scored(reward, pool([ranked]), of="margin").score_R
    assert margin.tolist() == pytest.approx([best - max(others)], rel=1e-4)


def test_what_was_scored_is_not_scored_again(reward: Path, tmp_path: Path, monkeypatch) -> None:
    rows = [{"prompt": f"Q{n}", "completion": f"A{n}"} for n in range(4)]
    first = scored(reward, pool(rows), tmp_path).score_R
    real, trees = reward_model.score_trees, []
    monkeypatch.setattr(reward_model, "score_trees", lambda *args, **more: trees.extend(args[2]) or real(*args, **more))
    again = scored(reward, pool([*rows[::-1], {"prompt": "new", "completion": "A"}]), tmp_path).score_R
    assert again[:4].tolist() == first[::-1].tolist() and len(trees) == 1


def test_what_a_reward_model_cannot_score(reward: Path, tmp_path: Path) -> None:
    found = scored(reward, pool([{"prompt": "Q" * 600, "completion": "A"}, {"prompt": "Q", "completion": "A"}]))
    assert np.isnan(found.score_R).tolist() == [True, False] and "too_long" in found.missing[0]
    with pytest.raises(ConfigError, match="margin"):
        scored(reward, pool([{"prompt": "Q", "completion": "A"}]), of="margin")
    steps = reward_folder(tmp_path / "steps", RewardRule("steps", step_mark="e"))
    with pytest.raises(ConfigError, match="scores steps"):
        scored(steps, pool([{"prompt": "Q", "completion": "A"}]))
    with pytest.raises(ConfigError, match="known in its recipe alone"):
        given = RewardModelScore(kind="reward_model", stage="reward")
        reward_model_score(given, pool([{"prompt": "Q", "completion": "A"}]), Tools())


RECIPE = """schema: 1
model: sprout
stages:
  - {{name: judge, method: reward, data: pairs.jsonl}}
  - name: picked
    method: select
    data: chat.jsonl
    steps: [{{kind: score, score: {{kind: reward_model, stage: {stage}}}, keep: {{top: 0.5}}}}]
"""


def test_a_stage_of_the_recipe_may_score_and_must_be_there(tmp_path: Path) -> None:
    for name in ("pairs.jsonl", "chat.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(stage="judge"))
    load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(stage="juge"))
    with pytest.raises(ConfigError, match="trains a reward model"):
        load_recipe(tmp_path / "recipe.yaml")


# ---------------------------------------------------------------- pass rates


@pytest.fixture(scope="module")
def coin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers every prompt of CHATML with "4" or "5", each with the probability 1/2, and ends there."""
    newline, four, five, end = (TOKENIZER.convert_tokens_to_ids(token) for token in ("Ċ", "4", "5", "<|im_end|>"))
    model = tiny_model("llama", vocab=V)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1) if "norm" in name else weight.zero_()
        model.model.embed_tokens.weight[:, 0] = 1
        model.model.embed_tokens.weight[newline] = torch.eye(32)[1]
        for token, place in ((four, 1), (five, 1), (end, 0)):
            model.lm_head.weight[token, place] = 60 / math.sqrt(32)
    folder = tmp_path_factory.mktemp("coin")
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def passed(model: Path, rows: Pool, given: Tools | None = None, **settings: Any) -> Any:
    score = PassRateScore(kind="pass_rate", model=str(model), rewards=[{"kind": "math"}], **settings)
    return pass_rate_score(score, rows, given or Tools(device="cpu"))


TASKS = [{"prompt": "2 + 2?", "answer": "4"}, {"prompt": "2 + 2?", "answer": "5"}, {"prompt": "3 + 3?", "answer": "6"}]


def test_a_pass_rate_is_the_share_of_right_answers(coin: Path) -> None:
    heard = Heard()
    found = passed(coin, pool(TASKS, kind=Task), Tools(device="cpu", progress=heard), samples=64).score_R
    # One prompt, one draw of answers: what is no 4 is a 5.
    assert 0.3 < found[0] < 0.7 and found[0] + found[1] == 1 and found[2] == 0
    assert "3 tasks x 64 answers of up to 512 tokens, at most 98,304 tokens" in heard.lines[0]


def test_a_cut_answer_is_not_right_and_is_counted(coin: Path) -> None:
    found = passed(coin, pool(TASKS[:1], kind=Task), samples=4, sampling={"max_new_tokens": 1})
    assert found.score_R.tolist() == [0] and "4 of 4 answers were cut at 1 tokens" in found.notes[0]


def test_a_kill_costs_one_block_and_changes_no_answer(coin: Path, tmp_path: Path, monkeypatch) -> None:
    rows = [{"prompt": f"{n} + 0?", "answer": "4"} for n in range(5)]
    whole = passed(coin, pool(rows, kind=Task), samples=8).score_R.tolist()
    monkeypatch.setattr(pass_rate, "AT_ONCE", 16)
    real, judged = pass_rate._Attempts.judge, []

    def counted(self: Any, rows: Any, *args: Any) -> int:
        if len(judged) == 4:
            raise KeyboardInterrupt
        judged.extend(rows)
        return real(self, rows, *args)

    monkeypatch.setattr(pass_rate._Attempts, "judge", counted)
    given = Tools(device="cpu", cache=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        passed(coin, pool(rows, kind=Task), given, samples=8)
    judged.clear()
    assert passed(coin, pool(rows, kind=Task), given, samples=8).score_R.tolist() == whole
    assert len(judged) == 1


def test_what_has_no_pass_rate(coin: Path) -> None:
    found = passed(coin, pool([{"prompt": "Q" * 600, "answer": "4"}, TASKS[0]], kind=Task), samples=2)
    assert found.missing == {0: NO_ROOM}
    with pytest.raises(ConfigError, match="of tasks"):
        passed(coin, pool([{"prompt": "Q", "completion": "A"}]))
    with pytest.raises(ConfigError, match="same answer each time"):
        passed(coin, pool(TASKS, kind=Task), sampling={"temperature": 0})


def test_only_what_the_policy_can_learn_from_is_kept(coin: Path) -> None:
    score = {"kind": "pass_rate", "model": str(coin), "rewards": [{"kind": "math"}], "samples": 16}
    step = {"kind": "score", "score": score, "keep": {"least": 0.1, "most": 0.9}}
    picked = pt.select(read(TASKS, kind=Task, scan=False), steps=[step], progress=False)
    assert [row["answer"] for row in picked.kept] == ["4", "5"]
