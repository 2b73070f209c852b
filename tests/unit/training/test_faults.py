"""A step that is not finite names the first module, parameter and rows; what it calls good holds numbers alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain.errors import CheckpointError, NonFiniteError
from posttrain.models.folders.finite import is_finite, non_finite_weights
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training import checkpoint
from posttrain.training.checks.preflight import check_weights
from posttrain.training.loop import Loop
from posttrain.training.work import Work
from tests.fixtures import random_trees, tiny_model
from tests.training import VOCAB, run_loop, weights_of, work_of


class NaNBackward(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * math.nan


def _break(module: nn.Module, when: Any, how: Any) -> None:
    """From the time `when()` holds, the module's output goes through `how`."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        return how(output) if when() and torch.is_grad_enabled() else output

    module.register_forward_hook(hook)


def _stopped(work: Work, folder: Path, at: int, plant: Any) -> tuple[NonFiniteError, dict[str, Any], Loop]:
    store = StageFolder(folder)
    loop = Loop(work, store, Progress())
    plant(lambda: loop.step >= at)
    with pytest.raises(NonFiniteError) as error:
        loop.run()
    store.close()
    (alarm,) = [one for one in store.alarms() if one.name == "non_finite"]
    return error.value, alarm, loop


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "bco"])
@pytest.mark.parametrize("module", ["model.layers.1.mlp", "model.layers.0.self_attn", "model.norm"])
def test_the_first_module_is_named(tmp_path: Path, method: str, module: str) -> None:
    work = work_of(method, tokens_per_microbatch=40)

    def poison(output: Any) -> Any:
        return (output[0] * math.inf, *output[1:]) if isinstance(output, tuple) else output * math.nan

    def plant(when: Any) -> None:
        _break(work.policy.model.get_submodule(module), when, poison)

    error, alarm, _ = _stopped(work, tmp_path, 2, plant)
    assert "step 3" in str(error) and f"the output of {module} (" in str(error), str(error)
    assert f"output of {module}" in error.tensors and f"output of {module}" in alarm.evidence["tensors"]
    assert alarm.last_good_checkpoint == "checkpoints/step-00000002"
    assert "test.jsonl, row" in str(error)


def test_only_the_row_that_does_it_is_named(tmp_path: Path) -> None:
    """A token that one row alone has, whose embedding is NaN: the others in its micro-batch are not named."""
    rows = [one for one in random_trees(4, vocab=VOCAB - 1, seed=3, branches=1)]
    bad = rows[2]
    bad.prompt_ids[0] = VOCAB - 1
    work = work_of("sft", rows=rows, held_out=[], tokens_per_microbatch=10_000)
    embedding = work.policy.model.get_input_embeddings()

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.where((inputs[0] == VOCAB - 1)[..., None], output * math.nan, output)

    embedding.register_forward_hook(hook)
    with pytest.raises(NonFiniteError) as error:
        run_loop(work, tmp_path)
    assert error.value.rows == (str(bad.row),)
    assert "model.embed_tokens (Embedding)" in str(error.value)


@pytest.mark.parametrize("module", ["model.layers.1.mlp.up_proj", "model.layers.0.input_layernorm"])
def test_a_gradient_is_followed_to_its_module_and_parameter(tmp_path: Path, module: str) -> None:
    work = work_of("dpo", tokens_per_microbatch=30)
    before: dict[str, Tensor] = {}

    def plant(when: Any) -> None:
        def now() -> bool:
            if when() and not before:
                before.update(weights_of(work))
            return bool(when())

        _break(work.policy.model.get_submodule(module), now, NaNBackward.apply)

    error, alarm, _ = _stopped(work, tmp_path, 1, plant)
    assert f"the backward pass of {module} (" in str(error), str(error)
    parameter = f"{module}.weight"
    assert f"the first parameter that it reaches is {parameter}" in str(error) and parameter in error.tensors
    assert f"backward pass of {module}" in alarm.evidence["tensors"]
    for name, weight in weights_of(work).items():
        assert torch.equal(weight, before[name]), name
    assert all(p.grad is None for p in work.policy.model.parameters())


def test_a_gradient_that_no_parameter_made_is_placed_between_two_modules(tmp_path: Path) -> None:
    work = work_of("sft")

    def plant(when: Any) -> None:
        def spoil(output: Any) -> Any:
            return (NaNBackward.apply(output[0]), *output[1:])

        _break(work.policy.model.model.layers[1].self_attn, when, spoil)

    error, _, _ = _stopped(work, tmp_path, 1, plant)
    assert "the gradient at the output of model.layers.1.self_attn.o_proj (Linear) is the first to be NaN" in str(error)
    assert "behind that of model.layers.1.self_attn (LlamaAttention), which is finite" in str(error), str(error)


def test_a_loss_of_finite_log_probs_is_blamed_itself(tmp_path: Path) -> None:
    work = work_of("sft")
    inner = work.algorithm.loss

    def loss(*given: Any, **more: Any) -> Any:
        from dataclasses import replace

        out = inner(*given, **more)
        return replace(out, loss=out.loss * math.nan) if torch.is_grad_enabled() else out

    object.__setattr__(work.algorithm, "loss", loss)
    with pytest.raises(NonFiniteError, match="every module's output is finite: it is the loss that is not") as error:
        run_loop(work, tmp_path)
    assert error.value.tensors == ("loss",)


def test_the_second_pass_leaves_random_stream_and_gradients_alone(tmp_path: Path) -> None:
    """What is saved at the stop goes on bit for bit as an uninterrupted run, with dropout too."""
    work = work_of("sft", tokens_per_microbatch=30)

    def plant(when: Any) -> None:
        def poison(output: Tensor) -> Tensor:
            torch.rand(3)  # what dropout would draw
            return output * math.nan

        _break(work.policy.model.model.norm, when, poison)

    draws = torch.rand(1, generator=torch.Generator().manual_seed(0))
    _stopped(work, tmp_path, 2, plant)
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None and saved.step == 2 and draws is not None
    untouched = work_of("sft", tokens_per_microbatch=30)
    run_loop(untouched, tmp_path / "other")
    resumed = work_of("sft", tokens_per_microbatch=30)
    run_loop(resumed, tmp_path)
    assert all(torch.equal(w, weights_of(untouched)[n]) for n, w in weights_of(resumed).items())


# ---------------------------------------------------------------- what is called good


def test_weights_that_an_update_has_overflowed_are_not_saved_as_good(tmp_path: Path) -> None:
    """An unused row of the embedding becomes NaN: no loss sees it, and the checkpoint would hold it for ever."""
    rows = random_trees(14, vocab=VOCAB - 1, seed=3, branches=1)
    work = work_of("sft", rows=rows, held_out=[], checkpoint={"every_steps": 3, "keep": 3}, epochs=3)
    folder = StageFolder(tmp_path)
    loop = Loop(work, folder, Progress())
    step = loop.optimizer.step

    def overflow(number: int, rows: list[str]) -> Any:
        done = step(number, rows)
        if number == 4:
            with torch.no_grad():
                work.policy.model.get_input_embeddings().weight[VOCAB - 1, 0] = math.nan
        return done

    loop.optimizer.step = overflow  # type: ignore[assignment, method-assign]
    with pytest.raises(NonFiniteError, match=r"after step 6, model\.embed_tokens\.weight hold NaN") as error:
        loop.run()
    folder.close()
    assert "The last checkpoint that is finite is step-00000003" in str(error.value)
    (alarm,) = [one for one in folder.alarms() if one.name == "non_finite"]
    assert alarm.last_good_checkpoint == "checkpoints/step-00000003"
    assert checkpoint.latest(folder.checkpoints).step == 3  # type: ignore[union-attr]


def test_a_stop_on_weights_that_hold_nan_says_so_and_keeps_none_of_them(tmp_path: Path) -> None:
    work = work_of("sft", checkpoint={"every_steps": 2, "keep": 2})

    def plant(when: Any) -> None:
        def poison(module: nn.Module, inputs: Any) -> None:
            if when() and torch.is_grad_enabled():
                with torch.no_grad():
                    work.policy.model.model.layers[0].mlp.up_proj.weight.fill_(math.nan)

        work.policy.model.model.layers[0].register_forward_pre_hook(poison)

    error, alarm, _ = _stopped(work, tmp_path, 3, plant)
    assert "the weights themselves are not finite: model.layers.0.mlp.up_proj.weight" in str(error)
    assert alarm.last_good_checkpoint == "checkpoints/step-00000002"
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("step-*"))] == ["step-00000002"]


def test_a_checkpoint_that_holds_nan_is_not_gone_on_from(tmp_path: Path) -> None:
    run_loop(work_of("sft", checkpoint={"every_steps": 3, "keep": 3}), tmp_path)
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    _spoil(newest)
    assert checkpoint.latest_finite(tmp_path / "checkpoints") == newest.parent / "step-00000006"
    with pytest.raises(CheckpointError, match=r"first is model\.norm\.weight") as error:
        run_loop(work_of("sft", checkpoint={"every_steps": 3, "keep": 3}), tmp_path)
    assert f"remove {newest.name} to go on from step-00000006" in str(error.value)


def _spoil(folder: Path) -> None:
    """Write a NaN into a checkpoint as a run without the check would have, with its manifest."""
    import json

    weights = load_file(folder / "weights.safetensors")
    weights["model.norm.weight"][3] = math.nan
    save_file(weights, folder / "weights.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["weights.safetensors"] = checkpoint.file_identity(folder / "weights.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))


# ---------------------------------------------------------------- before step 1


def test_nan_in_the_loaded_weights_is_found_and_named() -> None:
    model = tiny_model(vocab=VOCAB)
    assert check_weights(model).status == "pass"
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[2, 3] = math.inf
        model.lm_head.weight[5] = math.nan
    check = check_weights(model)
    assert check.status == "fail"
    assert check.evidence["tensors"] == ["model.layers.1.self_attn.k_proj.weight", "lm_head.weight"]
    assert "model.layers.1.self_attn.k_proj.weight" in check.detail


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_finite_is_what_isfinite_says(dtype: torch.dtype, value: float) -> None:
    x = torch.full((7, 5), 1.0, dtype=dtype)
    assert is_finite(x) and is_finite(torch.zeros(0)) and is_finite(torch.ones(3, dtype=torch.long))
    x[6, 4] = value
    assert not is_finite(x)


def test_a_mask_of_infinities_is_no_fault() -> None:
    module = nn.Module()
    module.register_buffer("mask", torch.full((2, 2), -math.inf))
    assert non_finite_weights(module) == []
    module.register_buffer("spoilt", torch.full((2, 2), math.nan))
    assert non_finite_weights(module) == ["spoilt"]
