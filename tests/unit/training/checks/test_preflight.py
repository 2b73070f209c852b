"""Each check of the preflight on a planted fault, and silent on what is healthy."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from posttrain.config.adapters import LoRA
from posttrain.config.stages import SFT
from posttrain.errors import PreflightError
from posttrain.models.adapters.kinds import adapter_layers, add_adapter
from posttrain.models.reference import LiveReference
from posttrain.models.tree.attention import TreeLayout
from posttrain.training.checks import preflight
from posttrain.training.checks.gradient import check_gradient
from posttrain.training.checks.memory import Item, MemoryPlan
from tests.adapters import WEIGHTS
from tests.fixtures import make_tree, tiny_model
from tests.training import VOCAB, work_of


def test_healthy_work_passes() -> None:
    work = work_of()
    checks = [
        preflight.choose_path(work.policy, work.rows, "auto"),
        preflight.check_leak(work.policy, work.rows),
        preflight.check_identity(work.policy, work.reference, work.algorithm, work.rows),  # type: ignore[arg-type]
        check_gradient(work.policy, work.reference, work.algorithm, work.rows),
    ]
    assert [check.status for check in checks] == ["pass"] * 4
    assert all(p.grad is None for p in work.policy.parameters())
    assert checks[2].evidence["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert checks[2].evidence["margin"] == 0.0


def test_a_model_that_the_tree_cannot_serve_runs_padded_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of()
    init = TreeLayout.__init__

    def wrong(self: Any, batch: Any, backend: str = "segments") -> None:
        init(self, batch, backend)
        self.ancestors = [() for _ in self.nodes]  # branches no longer see their prompts

    monkeypatch.setattr(TreeLayout, "__init__", wrong)
    check = preflight.choose_path(work.policy, work.rows, "auto")
    assert check.status == "warn" and "LlamaForCausalLM runs padded" in check.detail
    assert work.policy.path == "padded"
    assert preflight.choose_path(work.policy, work.rows, "tree").status == "fail"


def test_a_model_that_refuses_the_flat_batch_runs_padded() -> None:
    work = work_of(model=Refuses(tiny_model()))
    check = preflight.choose_path(work.policy, work.rows, "auto")
    assert check.status == "warn" and work.policy.path == "padded"
    assert check.detail == "Refuses runs padded: its code stops on rows laid end to end without a mask"
    assert "AttributeError" in check.evidence["error"]


class Refuses(torch.nn.Module):
    """A model whose backbone knows no `tree`."""

    def __init__(self, model: Any):
        super().__init__()
        self.inner, self.config = model, model.config

    def base_model(self, input_ids: Any, position_ids: Any, use_cache: bool) -> None: ...

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, **kwargs: Any) -> Any:
        return self.inner(**kwargs)


def test_a_reference_that_is_not_the_start_fails() -> None:
    work = work_of()
    other = LiveReference(work_of(model=tiny_model(seed=9)).policy)
    check = preflight.check_identity(work.policy, other, work.algorithm, work.rows)
    assert check.status == "fail" and check.remedy


def test_dead_tensors_are_named() -> None:
    work = work_of("sft", rows=[make_tree([1, 2], [3, 4])])
    dead = torch.nn.Parameter(torch.ones(3))
    work.policy.model.register_parameter("forgotten", dead)
    check = check_gradient(work.policy, None, work.algorithm, work.rows)
    assert check.status == "warn" and "forgotten" in check.detail


def test_stop_tokens_are_looked_for_where_they_train() -> None:
    good = [make_tree([1], [5, 2]), make_tree([1], [6, 7, 2])]
    assert preflight.check_stop_token(good, frozenset({2}), wanted=True).status == "pass"
    masked = [make_tree([1], ([5, 2], [True, False]))]
    assert preflight.check_stop_token(masked, frozenset({2}), wanted=True).status == "fail"
    assert preflight.check_stop_token(masked, frozenset({2}), wanted=False).status == "pass"
    assert preflight.check_stop_token([*good, *masked], frozenset({2}), wanted=True).status == "warn"


def test_two_bos_and_a_bos_before_a_response() -> None:
    assert preflight.check_bos([make_tree([1, 5], [6])], 1).status == "pass"
    assert preflight.check_bos([make_tree([1, 1, 5], [6])], 1).status == "fail"
    assert preflight.check_bos([make_tree([1, 5], [1, 6])], 1).status == "fail"
    assert preflight.check_bos([make_tree([1, 5, 1], [6])], None).status == "pass"
    # SmolLM2 opens every turn with its BOS: that is no second beginning
    assert preflight.check_bos([make_tree([1, 5, 1, 7], [6])], 1).status == "pass"


def test_lost_rows_are_worth_a_warning() -> None:
    assert preflight.check_data(990, {"too_long": 10}, {}, 100, 50).status == "pass"
    lost = preflight.check_data(90, {"too_long": 10}, {"prompt_cut": 3}, 100, 50)
    assert lost.status == "warn" and "too_long 10, prompt_cut 3" in lost.detail


def test_a_plan_that_does_not_fit_is_worth_a_warning() -> None:
    plan = MemoryPlan((Item("weights", 10), Item("activations", 95, "5 tokens")), available_bytes=100)
    check = preflight.check_memory(plan)
    assert check.status == "warn" and "largest: activations" in check.detail
    assert preflight.check_memory(replace(plan, available_bytes=200)).status == "pass"


def test_a_failed_check_stops_with_its_remedy() -> None:
    failed = preflight.Check("leak", "no leak", "fail", "it leaks", remedy="mend it")
    with pytest.raises(PreflightError, match=r"no leak: it leaks(.|\n)*mend it"):
        preflight.Preflight((failed,), ()).require()
    preflight.Preflight((), ()).require()


# ---------------------------------------------------------------- two equal calls, and what does not train


class Noise(torch.nn.Module):
    """Noise that eval mode does not turn off, as functional dropout without its flag."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, 0.1)


def test_noise_that_eval_mode_leaves_on_is_named_with_its_module() -> None:
    work = work_of()
    assert preflight.check_repeat(work.policy, work.rows).status == "pass"
    work.policy.model.model.layers[1].mlp.act_fn = Noise()  # type: ignore[union-attr]
    check = preflight.check_repeat(work.policy, work.rows)
    assert check.status == "fail"
    assert "LlamaForCausalLM" in check.detail and "model.layers.1.mlp.act_fn (Noise)" in check.detail


def test_noise_in_a_layers_own_forward_is_named_by_the_layer() -> None:
    """A functional call is no module: what follows it has other inputs, so the layer itself is to blame."""
    work = work_of()
    layer = work.policy.model.model.layers[0]  # type: ignore[union-attr]
    forward = type(layer).forward
    layer.forward = lambda x, **kwargs: forward(layer, torch.nn.functional.dropout(x, 0.1), **kwargs)
    assert "begins in model.layers.0 (LlamaDecoderLayer)" in preflight.check_repeat(work.policy, work.rows).detail


def test_noise_in_the_backward_pass_is_found() -> None:
    work = work_of()
    work.policy.model.lm_head.weight.register_hook(lambda g: g + torch.randn_like(g) * g.norm())  # type: ignore[union-attr]
    check = preflight.check_repeat(work.policy, work.rows)
    assert check.status == "fail" and "backward pass" in check.detail and check.evidence["value"] == 0


def test_a_noisy_model_is_blamed_for_nothing_else() -> None:
    noise = preflight.Check(
        "repeat", "two equal calls", "fail", "LlamaForCausalLM computes something else", {}, "set p"
    )
    leak = preflight.Check("leak", "no leak between branches", "fail", "log-probs differ", {}, "set padded")
    with pytest.raises(PreflightError, match="two equal calls") as caught:
        preflight.Preflight((noise, leak), ()).require()
    assert "leak" not in str(caught.value)


def test_dropout_that_is_wanted_is_off_while_calls_are_compared() -> None:
    from tests.families import family_model, noisy_config

    work = work_of("sft", model=family_model("opt", noisy_config("opt")), dropout=True)
    assert preflight.check_repeat(work.policy, work.rows).status == "pass"
    assert work.policy.dropout  # and on again for training


def test_weights_that_do_not_train_are_named() -> None:
    work = work_of()
    work.policy.model.model.norm.weight.requires_grad_(False)  # type: ignore[union-attr]
    check = check_gradient(work.policy, work.reference, work.algorithm, work.rows)
    assert check.status == "warn" and "1 are frozen, model.norm.weight" in check.detail


def test_quantised_weights_are_an_error_without_an_adapter() -> None:
    work = work_of()
    packed = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    work.policy.model.model.layers[0].mlp.register_parameter("weight_packed", packed)  # type: ignore[union-attr]
    check = check_gradient(work.policy, work.reference, work.algorithm, work.rows)
    assert check.status == "fail" and "quantised" in check.detail and "mlp.weight_packed" in check.detail


def test_a_table_of_positions_is_fixed_by_design() -> None:
    from tests.families import family_model

    work = work_of("sft", model=family_model("marian"))
    work.policy.path = "padded"
    detail = check_gradient(work.policy, None, work.algorithm, work.rows).detail
    assert "frozen" not in detail


# ---------------------------------------------------------------- an adapter's layers


def _with_a_dead_block() -> Any:
    """A model in which nothing that the last MLP says carries a gradient, as a part that the forward does not use."""
    model = tiny_model(vocab=VOCAB)
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output.detach())
    return model


DEAD = [f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora", "oft", "bottleneck", "adalora"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_dead_layers_of_an_adapter_are_an_error_that_lists_them(kind: str, method: str) -> None:
    work = work_of(method, model=add_adapter(_with_a_dead_block(), WEIGHTS[kind]))
    check = check_gradient(work.policy, work.reference, work.algorithm, work.rows)
    dead = DEAD if kind != "bottleneck" else ["model.layers.1.mlp.down_proj"]
    assert check.status == "fail" and sorted(check.evidence["dead_layers"]) == sorted(dead)
    assert all(name in check.detail for name in dead) and "preflight: {dead_layers: warn}" in str(check.remedy)
    told = check_gradient(work.policy, work.reference, work.algorithm, work.rows, dead_layers="warn")
    assert told.status == "warn" and told.evidence["dead_layers"] == check.evidence["dead_layers"]


def test_the_advice_about_dead_layers_works() -> None:
    work = work_of("sft", model=add_adapter(_with_a_dead_block(), WEIGHTS["lora"]))
    check = check_gradient(work.policy, None, work.algorithm, work.rows)
    advised = re.search(r"\{targets: '(.*?)'\}", str(check.remedy))
    assert advised is not None
    adapter = LoRA(rank=2, targets=advised.group(1))
    followed = work_of("sft", model=add_adapter(_with_a_dead_block(), adapter))
    again = check_gradient(followed.policy, None, followed.algorithm, followed.rows)
    assert again.status == "pass", again.detail
    assert len(adapter_layers(followed.policy.model)) == 14 - len(DEAD)
    settings = SFT(data="rows.jsonl", adapter=adapter, preflight={"dead_layers": "warn"})  # type: ignore[arg-type]
    assert settings.preflight.dead_layers == "warn"


def test_experts_that_saw_no_token_are_not_dead() -> None:
    model = tiny_model("qwen3_moe", vocab=VOCAB)
    work = work_of("sft", model=add_adapter(model, WEIGHTS["lora"]), rows=[make_tree([1, 2], [3, 4])])
    check = check_gradient(work.policy, None, work.algorithm, work.rows)
    assert check.status in ("pass", "warn") and "dead_layers" not in check.evidence
