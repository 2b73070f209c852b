"""Sampling that cuts or bends the policy's distribution, where there is no ratio: like is compared with like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.online import Online
from posttrain.data.encode import Encoder
from posttrain.errors import ConfigError
from posttrain.rollout.native import NativeEngine
from posttrain.runs.records.preflight import PreflightRecord
from posttrain.runs.records.sampled import RolloutLine
from posttrain.training.checks.sampler import LogprobGap
from posttrain.types import Task
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer
from tests.online import loop_of, run, save_start, source_of

BENT: list[dict[str, Any]] = [
    {"top_p": 0.6},
    {"top_k": 7},
    {"min_p": 0.1},
    {"repetition_penalty": 1.4},
    {"presence_penalty": 0.8},
    {"frequency_penalty": 0.5},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.2},
]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


def prepared(start: Path, folder: Path, method: str, sampling: dict[str, Any], **options: Any) -> Any:
    given: dict[str, Any] = {"teacher": str(start), "rewards": ()} if method == "gkd" else {}
    given |= {"least_reward": 0.2} if method == "rft" else {}
    options = {"sampling": {"max_new_tokens": 6, **sampling}, "held_out": 0, "steps": 1, **given, **options}
    return loop_of(start, folder, method, **options)


def check_of(loop: Any) -> dict[str, Any]:
    return next(check for check in loop.folder.document(PreflightRecord).checks if check.title.startswith("sampler"))


@pytest.mark.parametrize("path", ["tree", "padded"])
@pytest.mark.parametrize("sampling", BENT, ids=str)
def test_the_engine_is_compared_under_its_own_distribution(
    start: Path, tmp_path: Path, sampling: dict[str, Any], path: str
) -> None:
    loop = prepared(start, tmp_path, "rft", sampling, compute={"tokens_per_microbatch": 64, "logprobs": path})
    loop.folder.close()
    check = check_of(loop)
    assert check.status == "pass" and check.evidence["largest_logprob_gap"] < 1e-5


@pytest.mark.parametrize("method", ["rft", "online_dpo", "gkd"])
def test_a_method_without_a_ratio_trains_on_cut_samples(start: Path, tmp_path: Path, method: str) -> None:
    loop = run(prepared(start, tmp_path, method, {"top_p": 0.9, "min_p": 0.02}, seed=3))
    (values,) = [record.values for record in loop.folder.metrics("train")]
    assert check_of(loop).status == "pass" and values["loss"] == values["loss"]


@pytest.mark.parametrize("method", ["rft", "gkd"])
def test_temperature_0_is_the_models_own_answer(start: Path, tmp_path: Path, method: str) -> None:
    teacher = save_start(tmp_path / "teacher", seed=7)
    given = {"teacher": str(teacher)} if method == "gkd" else {"least_reward": 0.0}
    loop = run(prepared(start, tmp_path / "run", method, {"temperature": 0.0}, completions_per_prompt=1, **given))
    (values,) = [record.values for record in loop.folder.metrics("train")]
    assert check_of(loop).status == "pass" and values["grad_norm"] > 0 and 0 < values["loss"] < 20


LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("method", ["grpo", "rft"])
def test_what_spells_a_stop_string_trains_and_the_reward_sees_the_text_before_it(
    start: Path, tmp_path: Path, method: str
) -> None:
    """The ids and log-probs stay whole, or the ratio of a completion would be of another one."""
    seen: list[str] = []

    def judge(prompt: Any, completion: str, task: Task) -> float:
        seen.append(completion)
        return float(len(seen) % 2)

    sampling = {"stop": LETTERS, "max_new_tokens": 20}
    loop = prepared(start, tmp_path, method, sampling, rewards=(judge,), preflight={"on_failure": "warn"})
    del seen[:]  # those of the preflight
    tokens = Encoder(byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))).tokens
    try:
        trained = {
            tuple(branch.ids[branch.loss_mask].tolist())
            for batch in source_of(loop).at(0)
            for tree in batch
            for branch in tree.branches
        }
        rollouts = loop.folder.lines(RolloutLine)
    finally:
        loop.folder.close()
    stopped = [one for one in rollouts if one.finish == "stop_string"]
    assert len(stopped) > 6 and check_of(loop).status == "pass"
    for one in stopped:
        text = tokens.decode(one.ids)
        assert text[:-1] == one.completion and text[-1] in LETTERS
    assert not any(letter in text for text in seen for letter in LETTERS)
    assert {tuple(one.ids) for one in stopped} & trained
    assert trained <= {tuple(one.ids) for one in rollouts}


def test_an_engine_that_draws_from_another_distribution_is_found(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ignores the cut that it was asked for."""
    generate = NativeEngine.generate

    def whole(self: Any, prompts: Any, sampling: Any, **options: Any) -> Any:
        return generate(self, prompts, replace(sampling, top_k=None), **options)

    monkeypatch.setattr(NativeEngine, "generate", whole)
    loop = prepared(start, tmp_path, "rft", {"top_k": 3}, preflight={"on_failure": "warn"})
    loop.folder.close()
    check = check_of(loop)
    assert check.status == "fail" and check.evidence["outside"] > 5


def test_a_ratio_still_refuses_a_cut() -> None:
    for method in ("grpo", "rloo", "distil_reverse_kl"):
        given = {"teacher": "embedded"} if method == "distil_reverse_kl" else {}
        with pytest.raises(ConfigError, match="importance ratios"):
            Online(method, sampling={"top_p": 0.9}, **given)


def test_what_one_side_excludes_is_counted_apart() -> None:
    ours = torch.tensor([-1.0, -torch.inf, -2.0])
    assert LogprobGap.of(ours, torch.tensor([-1.5, -0.1, -2.0])) == LogprobGap(0.25, 0.5, 1)
    assert LogprobGap.of(ours[1:2], ours[1:2]).mean == float("inf")
