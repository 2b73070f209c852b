"""A stage whose objective is a function of the user's own: found by its address, proven, fingerprinted, resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import posttrain as pt
from posttrain.config import parse_recipe, stage_fingerprint
from posttrain.config.custom import CustomStage
from posttrain.errors import ConfigError, PosttrainError, PreflightError, ResumeError
from posttrain.models.tree.logprobs import Policy
from posttrain.outputs import TokenLogprobs
from posttrain.report.verdict import _called as called
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.read import read_run
from posttrain.training.checks.own import check_own
from posttrain.training.loop import Loop
from posttrain.training.objectives import kind_of, objective_of
from posttrain.training.own_objective import require_objective
from posttrain.types import Comparison, Demonstration
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, random_trees, tiny_model
from tests.training import VOCAB, run_loop, weights_of, work_of
from tests.unit.training.test_session import Export

MODULE = """
import torch
import posttrain as pt

@pt.objective(kind="pairwise", reference=True)
def hinge_squared(chosen_P, rejected_P, ref_chosen_P, ref_rejected_P, beta=0.1):
    margin_P = beta * ((chosen_P - ref_chosen_P) - (rejected_P - ref_rejected_P))
    return torch.relu(1 - margin_P).square(), {"inside": (margin_P < 1).float()}

@pt.objective(kind="tokens", entropy=True)
def confident(policy, weight=0.1):
    return -policy.logprobs_N + weight * policy.entropy_N

def plain(chosen_P, rejected_P):
    return chosen_P
"""
SETTINGS: dict[str, Any] = {"learning_rate": 1e-2, "rows_per_step": 2, "steps": 2, "held_out": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_losses.py").write_text(MODULE)
    lines = [json.dumps({"prompt": f"{i}?", "chosen": f"{i}.", "rejected": "No."}) for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("posttrain.training.stages.policy.begin_save", lambda model, tokenizer, at, *a, **k: Export(at))
    yield


def stage(folder: Path, **changes: Any) -> CustomStage:
    given = {"method": "custom_pairwise", "data": "pairs.jsonl", "objective": "my_losses.py:hinge_squared", **changes}
    recipe = json.dumps({"schema": 1, "name": "r", "model": "embedded", "stages": [given]})
    (found,) = parse_recipe(recipe, folder=folder).stages
    assert isinstance(found, CustomStage)
    return found


def test_a_recipe_names_the_function_and_its_parameters(folder: Path) -> None:
    found = objective_of(stage(folder, parameters={"beta": 0.3}))
    assert (found.name, found.kind, found.unit, found.needs_reference) == (
        "my_losses.py:hinge_squared",
        Comparison,
        "pairs",
        True,
    )
    assert dict(found.parameters) == {"beta": 0.3} and kind_of("custom_tokens") is Demonstration
    confident = objective_of(stage(folder, method="custom_tokens", objective="my_losses:confident"))
    assert (confident.unit, confident.needs_reference, confident.wants.entropy) == ("tokens", False, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "my_loses.py:hinge_squared"}, ["did you mean `my_losses.py`?"]),
        ({"objective": "my_losses.py:hinge_squard"}, ["did you mean `my_losses.py:hinge_squared`?"]),
        ({"objective": "my_losses.py:plain"}, ["nothing says what `my_losses.py:plain`", "@pt.objective"]),
        ({"objective": "my_losses.py:confident"}, ["`method: custom_tokens`"]),
        ({"parameters": {"bta": 0.3}}, ["custom_pairwise.parameters", "did you mean `beta`?"]),
        (
            {"objective": "my_losses.py:confident", "method": "custom_tokens", "reference": {"kind": "live"}},
            ["`reference` is without effect"],
        ),
    ],
)
def test_what_is_refused_before_anything_is_done(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(PosttrainError) as caught:
        require_objective(stage(folder, **changes))
    assert "custom_" in str(caught.value.where)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_source_counts_in_the_fingerprint(folder: Path) -> None:
    def fingerprint() -> str:
        return stage_fingerprint(stage(folder), data=["d"], start_model="m", seed=0)

    before = fingerprint()
    assert fingerprint() == before
    (folder / "my_losses.py").write_text(MODULE.replace(".square()", ".pow(3)"))
    assert fingerprint() != before


# ---------------------------------------------------------------- proven


def checked(function: Callable[..., Any], **options: Any) -> Any:
    declared = pt.objective(**{"kind": "pairwise", "reference": True, **options})(function)
    policy = Policy(tiny_model("llama", vocab=VOCAB))
    branches = 2 if declared.kind == "pairwise" else 1
    return check_own(
        policy, objective_of(pt.Objective(declared)), random_trees(5, vocab=VOCAB, branches=branches, seed=3)
    )


def dpo(chosen_P: Tensor, rejected_P: Tensor, start_P: Tensor, other_P: Tensor, beta: float = 0.1) -> Tensor:
    return -logsigmoid(beta * ((chosen_P - start_P) - (rejected_P - other_P)))


def centred(chosen_P: Tensor, rejected_P: Tensor, start_P: Tensor, other_P: Tensor) -> Tensor:
    margin_P = (chosen_P - start_P) - (rejected_P - other_P)
    return -logsigmoid(margin_P - margin_P.mean())


def rooted(chosen_P: Tensor, rejected_P: Tensor, start_P: Tensor, other_P: Tensor) -> Tensor:
    return ((chosen_P - start_P) - (rejected_P - other_P)).abs().sqrt()


def test_a_sound_function_passes() -> None:
    assert checked(dpo).status == "pass"
    assert checked(lambda policy: -policy.logprobs_N, kind="tokens", reference=False).status == "pass"


def test_a_loss_that_looks_at_other_rows_is_found() -> None:
    found = checked(centred)
    assert found.status == "fail" and "one by one have another gradient" in found.detail
    lengths = checked(
        lambda policy: -policy.logprobs_N / policy.logprobs_N.detach().norm(), kind="tokens", reference=False
    )
    assert lengths.status == "fail"


def test_a_gradient_that_is_not_finite_at_the_start_is_found() -> None:
    found = checked(rooted)
    assert found.status == "fail" and "at the start is not finite" in found.detail


# ---------------------------------------------------------------- trained


@pytest.fixture
def start(tmp_path: Path) -> Path:
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def test_a_run_has_the_functions_name_its_check_and_its_metric(folder: Path, start: Path, quick_export: None) -> None:
    trained = stage(folder, **SETTINGS)
    run = pt.train(trained, start, folder / "pairs.jsonl", out=folder / "mine")
    lines = run.lines("train")
    assert lines[0].values["loss"] == pytest.approx(1.0) and lines[0].values["inside"] == 1.0
    record = RunFolder(run.folder).stage("custom_pairwise").stage()
    assert record.objective == "my_losses.py:hinge_squared"
    checks = json.loads((run.folder / "custom_pairwise" / "preflight.json").read_text())["checks"]
    assert {check["status"] for check in checks if check["name"] in ("objective", "gradient", "identity")} == {"pass"}
    page = run.report.read_text()
    assert "my_losses.py:hinge_squared" in page and "inside" in page
    (shown,) = read_run(run.folder).stages
    assert called(shown) == "custom_pairwise (my_losses.py:hinge_squared)"


def test_a_function_that_fails_its_check_never_trains(folder: Path, start: Path, quick_export: None) -> None:
    declared = pt.objective(kind="pairwise", reference=True)(centred)
    with pytest.raises(PreflightError, match="one by one have another gradient"):
        pt.train(pt.Objective(declared, **SETTINGS), start, folder / "pairs.jsonl", out=folder / "mine")


def test_a_run_that_stopped_is_not_resumed_with_another_function(
    folder: Path, start: Path, quick_export: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "steps": 4, "checkpoint": {"every_steps": 1}}

    def train() -> Any:
        return pt.train(stage(folder, **settings), start, folder / "pairs.jsonl", out=folder / "mine")

    write = Loop._write_samples

    def stopped(self: Loop) -> None:
        if self.step == 4:
            raise KeyboardInterrupt
        write(self)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_write_samples", stopped)
        with pytest.raises(KeyboardInterrupt):
            train()
    (folder / "my_losses.py").write_text(MODULE.replace(".square()", ".pow(3)"))
    with pytest.raises(ResumeError, match="the objective's source changed"):
        train()
    (folder / "my_losses.py").write_text(MODULE)
    assert train().steps == 4


def test_resumed_equals_uninterrupted(tmp_path: Path, folder: Path) -> None:
    def work() -> Any:
        objective = objective_of(stage(folder, parameters={"beta": 0.5}))
        return replace(work_of("dpo", model=tiny_model("llama", vocab=VOCAB)), algorithm=objective)

    whole = work()
    run_loop(whole, tmp_path / "whole")
    stopped, at = work(), StageFolder(tmp_path / "resumed")
    loop = Loop(stopped, at, Progress())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Loop,
            "_after_step",
            lambda self: (_ for _ in ()).throw(KeyboardInterrupt) if self.step == 5 else after(self),
        )
        with pytest.raises(KeyboardInterrupt):
            loop.run()
    at.close()
    resumed = work()
    assert run_loop(resumed, tmp_path / "resumed").step == 8
    assert all(torch.equal(weight, weights_of(resumed)[name]) for name, weight in weights_of(whole).items())


after = Loop._after_step


def test_a_token_function_with_entropy_trains(tmp_path: Path, folder: Path) -> None:
    objective = objective_of(stage(folder, method="custom_tokens", objective="my_losses.py:confident"))
    work = replace(work_of("sft", model=tiny_model("llama", vocab=VOCAB), epochs=None, steps=2), algorithm=objective)
    run_loop(work, tmp_path / "run")
    first = StageFolder(tmp_path / "run").metrics("train")[0].values
    assert first["loss"] > first["entropy"] > 0


def test_the_type_of_policy_is_what_a_token_function_is_given() -> None:
    seen: list[TokenLogprobs] = []

    def watched(policy: TokenLogprobs) -> Tensor:
        seen.append(policy)
        return -policy.logprobs_N

    checked(watched, kind="tokens", reference=False)
    assert all(isinstance(given, TokenLogprobs) for given in seen) and seen


def test_an_undeclared_function_from_python_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing says what"):
        pt.Objective(dpo)
