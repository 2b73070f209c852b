"""Everything before step 1: cheap checks first, all rows known, and out of memory explained wherever it happens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import load_recipe
from posttrain.config.adapters import LoRA
from posttrain.config.stages import DPO, SFT, Reward, TrainingStage
from posttrain.data.read import read
from posttrain.data.trees import collate
from posttrain.errors import ConfigError, MemoryLimitError, PreflightError
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.folders.loading import LoadedModel, ModelSource
from posttrain.models.reference import CachedReference
from posttrain.models.tree.router import RouterLoss
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.preflight import PreflightRecord
from posttrain.training.checks import gradient, preflight
from posttrain.training.pipeline import run_recipe
from posttrain.training.stages import rows
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.prepare import prepare
from tests.families import family_model
from tests.fixtures import byte_tokenizer, tiny_model
from tests.online import loop_of
from tests.training import run_loop, work_of

CUDA = torch.OutOfMemoryError("CUDA out of memory")
CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes")


def start(arch: str = "llama", **options: Any) -> LoadedModel:
    tokenizer = byte_tokenizer("CHATML")
    model = tiny_model(arch, vocab=len(tokenizer), **options)
    source = ModelSource("tiny", "folder", Path("tiny"), "model")
    return LoadedModel(model, tokenizer, source, "", source)


def adapted(adapter: LoRA, arch: str = "llama", **options: Any) -> LoadedModel:
    loaded = start(arch, **options)
    return replace(
        loaded, model=add_adapter(loaded.model, adapter, tokenizer=loaded.tokenizer, seed=0), adapter=adapter
    )


def prepared(stage_settings: TrainingStage, folder: Path, model: LoadedModel | None = None, long_row: int = 0) -> Any:
    """Preflight and reference over 70 short rows and one of `long_row` more letters, the last of all."""
    kind = "pairs" if stage_settings.method in ("dpo", "reward") else "demonstrations"
    rows = []
    for index in range(71):
        more = "x" * long_row if index == 70 else ""
        answer = {"chosen": f"Yes{more}.", "rejected": "No."} if kind == "pairs" else {"completion": f"Yes{more}."}
        rows.append({"prompt": f"Is it {index}?", **answer})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage_folder = StageFolder(folder / "stage")
    stage_folder.write_stage(name="stage", method=stage_settings.method, status="running")
    try:
        return prepare(StageContext(stage_settings, model or start(), stage_folder, 0, Progress(), examples=read(path)))
    finally:
        stage_folder.close()


# ---------------------------------------------------------------- the order of the checks


def test_what_may_stop_the_stage_comes_before_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache takes minutes; a dead gradient is known in a second."""

    def dear(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the reference cache was computed before the checks")

    failed = preflight.Check("gradient", "gradients", "fail", "planted", {"total": 1, "trainable": 1})
    monkeypatch.setattr(CachedReference, "build", dear)
    monkeypatch.setattr(gradient, "check_gradient", lambda *args, **options: failed)
    with pytest.raises(PreflightError, match="planted"):
        prepared(DPO(beta=0.1), tmp_path)
    names = [check.name for check in StageFolder(tmp_path / "stage").document(PreflightRecord).checks]
    assert names[names.index("tree") :] == ["tree", "leak", "identity", "gradient", "memory"]


def test_the_real_reference_is_proven_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof before the cache is the policy itself; a cache that holds other numbers must not pass on its word."""
    logprobs = CachedReference.logprobs
    monkeypatch.setattr(CachedReference, "logprobs", lambda self, batch: logprobs(self, batch) + 0.5)
    with pytest.raises(PreflightError, match="policy = reference"):
        prepared(DPO(beta=0.1), tmp_path)
    written = {check.name: check.status for check in StageFolder(tmp_path / "stage").document(PreflightRecord).checks}
    assert written["identity"] == "fail" and list(written.values()).count("fail") == 1


def test_a_healthy_stage_ends_with_its_own_reference(tmp_path: Path) -> None:
    ready = prepared(DPO(beta=0.1), tmp_path)
    assert ready.reference_kind == "cached" and not ready.preflight.failed
    assert isinstance(ready.work.reference, CachedReference)


# ---------------------------------------------------------------- dropout


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sft_with_dropout_is_proven_without_it_and_trains_with_it(tmp_path: Path, checkpointing: bool) -> None:
    """The noise is wanted in training; in the checks it would read as a leak between rows."""
    compute = {"activation_checkpointing": checkpointing}
    ready = prepared(SFT(adapter=LoRA(dropout=0.1), compute=compute), tmp_path, adapted(LoRA(dropout=0.1)))
    assert not ready.preflight.failed
    policy, batch = ready.work.policy, collate(ready.work.rows[:2])
    assert policy.dropout and policy.path == "tree"
    weights = [
        p for name, p in policy.named_parameters() if "lora_B" in name
    ]  # zero still: only their gradient is noisy
    first, second = (torch.autograd.grad(policy(batch).logprobs_N.sum(), weights) for _ in range(2))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_preference_stage_has_no_dropout_anywhere(tmp_path: Path) -> None:
    model = adapted(LoRA(dropout=0.1), "gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    ready = prepared(DPO(beta=0.1, adapter=LoRA(dropout=0.1)), tmp_path, model)
    policy, batch = ready.work.policy, collate(ready.work.rows[:2])
    assert not policy.dropout and torch.equal(policy(batch).logprobs_N, policy(batch).logprobs_N)


def test_noise_is_told_as_noise(tmp_path: Path) -> None:
    """Not as a leak, nor with the advice to run padded: OPT's policy was padded when it was told to."""
    model = start()
    model.model.model.layers[0].mlp.act_fn = torch.nn.RReLU()
    model.model.model.layers[0].mlp.act_fn.forward = lambda x: torch.nn.functional.dropout(x, 0.1)
    with pytest.raises(PreflightError, match="two equal calls") as caught:
        prepared(SFT(), tmp_path, model)
    assert "mlp.act_fn (RReLU)" in str(caught.value) and "padded" not in str(caught.value)


# ---------------------------------------------------------------- mixtures of experts


def test_the_experts_are_balanced_with_the_models_own_weight(tmp_path: Path) -> None:
    model = start("qwen3_moe", router_aux_loss_coef=0.02)
    ready = prepared(DPO(beta=0.1), tmp_path, model)
    assert ready.work.algorithm.router == RouterLoss(0.02)
    (check,) = [check for check in ready.preflight.checks if check.name == "router"]
    assert check.status == "pass" and "weight 0.02" in check.detail
    assert prepared(SFT(router_aux_loss_coef=0.5), tmp_path, model).work.algorithm.router == RouterLoss(0.5)
    off = prepared(SFT(router_aux_loss_coef=0), tmp_path, model)
    assert off.work.algorithm.router is None
    (check,) = [check for check in off.preflight.checks if check.name == "router"]
    assert "is not added" in check.detail


def test_a_reward_model_balances_its_experts_only_when_told_to(tmp_path: Path) -> None:
    """As in TRL: its RewardTrainer adds nothing."""
    model = start("qwen3_moe")
    assert reward_prepared(Reward(), tmp_path, model).work.algorithm.router is None
    assert reward_prepared(Reward(router_aux_loss_coef=0.01), tmp_path, model).work.algorithm.router == RouterLoss(0.01)


def reward_prepared(stage_settings: Reward, folder: Path, model: LoadedModel) -> Any:
    rows = [{"prompt": f"Is it {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(40)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage_folder = StageFolder(folder / "stage")
    try:
        return prepare(StageContext(stage_settings, model, stage_folder, 0, Progress(), examples=read(path)))
    finally:
        stage_folder.close()


def test_a_weight_without_experts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no load-balancing loss") as caught:
        prepared(SFT(router_aux_loss_coef=0.01), tmp_path)
    assert "router_aux_loss_coef" in str(caught.value) and "without experts" in str(caught.value)
    assert not [check for check in prepared(SFT(), tmp_path).preflight.checks if check.name == "router"]


def test_experts_without_a_loss_are_told(tmp_path: Path) -> None:
    model = start()
    tokens = len(model.tokenizer)
    biased = replace(model, model=family_model("glm4_moe", vocab_size=tokens, first_k_dense_replace=0))
    (check,) = [check for check in prepared(SFT(), tmp_path, biased).preflight.checks if check.name == "router"]
    assert check.status == "warn" and "router loss not available: Glm4MoeForCausalLM" in check.detail


# ---------------------------------------------------------------- the largest row


def test_the_largest_row_is_found_wherever_it_stands(tmp_path: Path) -> None:
    """Row 71 of 71: the micro-batch and the memory plan must hold it."""
    ready = prepared(SFT(max_length=None), tmp_path, start(max_position_embeddings=4096), long_row=2000)
    (largest,) = [tree for tree in ready.work.rows if tree.num_tokens > 2000]
    assert ready.work.tokens_per_microbatch >= largest.num_tokens
    items = {item.name: item for item in ready.preflight.memory.items}
    assert items["activations"].detail.startswith(f"{largest.num_tokens:,} tokens")
    asked = SFT(max_length=None, compute={"tokens_per_microbatch": 64})
    small = prepared(asked, tmp_path, start(max_position_embeddings=4096), long_row=2000)
    assert small.work.tokens_per_microbatch == 64
    planned = {item.name: item for item in small.preflight.memory.items}
    assert planned["activations"].detail == items["activations"].detail  # a tree is never cut


def test_attention_masks_are_in_the_plan(tmp_path: Path) -> None:
    """A branch of 2,000 tokens under its prompt: 4 bytes for each pair of tokens, in each micro-batch."""
    ready = prepared(SFT(max_length=None), tmp_path, start(max_position_embeddings=4096), long_row=2000)
    (largest,) = [tree for tree in ready.work.rows if tree.num_tokens > 2000]
    branch = len(largest.branches[0].ids)
    (masks,) = [item for item in ready.preflight.memory.items if item.name == "attention masks"]
    assert masks.bytes == branch * (branch + len(largest.prompt_ids)) * 4
    assert ready.preflight.memory.largest.name in {"activations", "attention masks", "logits buffer"}


def test_the_lengths_of_a_data_set_make_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = prepared(SFT(), tmp_path, long_row=30).work.rows
    sizes = [tree.num_tokens for tree in rows]

    def refuse(*args: Any) -> None:
        raise AssertionError("a tree was made")

    monkeypatch.setattr(type(rows), "_tree", refuse)
    assert preflight.lengths(rows).tolist() == sizes


# ---------------------------------------------------------------- out of memory


@pytest.mark.parametrize("error", [CUDA, CPU])
@pytest.mark.parametrize("place", ["choose_path", "check_leak", "check_gradient", "reference"])
def test_running_out_before_step_1_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    if place == "choose_path":
        monkeypatch.setattr("posttrain.models.tree.paths.against", full)
    else:
        places = {"reference": rows, "check_gradient": gradient, "check_leak": preflight}
        monkeypatch.setattr(places[place], place, full)
    with pytest.raises(MemoryLimitError) as explained:
        prepared(DPO(beta=0.1), tmp_path)
    text = str(explained.value)
    assert "weights" in text and "tokens_per_microbatch" in text
    assert ("the reference's log-probs" if place == "reference" else "the checks before step 1") in text


def test_running_out_in_an_evaluation_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise CUDA

    monkeypatch.setattr("posttrain.training.evaluation.evaluate_model", full)
    (tmp_path / "small.yaml").write_text(
        "{schema: 1, name: small, model: embedded, out: runs, stages: [{method: sft, data: rows.jsonl}], evaluate: "
        "{suites: [{name: facts, kind: match, prompts: package://heldout_facts.jsonl, pattern: a}]}}"
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(MemoryLimitError, match=r"the evaluation(.|\n)*max_new_tokens"):
        run_recipe(load_recipe(tmp_path / "small.yaml", []))


def test_running_out_on_held_out_rows_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise CPU

    monkeypatch.setattr("posttrain.training.loop.measure", full)
    with pytest.raises(MemoryLimitError, match="the step"):
        run_loop(work_of(), tmp_path)


# ---------------------------------------------------------------- weights that are no numbers


@pytest.mark.parametrize("settings", [SFT(), DPO(beta=0.1), Reward()], ids=["sft", "dpo", "reward"])
def test_nan_in_the_start_is_the_first_thing_said(tmp_path: Path, settings: TrainingStage) -> None:
    """It used to be told as attention that leaks, from the padded path that was advised against it."""
    model = start()
    with torch.no_grad():
        model.model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    folder: Any = model
    if isinstance(settings, Reward):
        folder = tmp_path / "start"
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    with pytest.raises(PreflightError, match=r"layers\.1\.mlp\.up_proj\.weight hold NaN"):
        prepared(settings, tmp_path, folder)
    (check,) = StageFolder(tmp_path / "stage").document(PreflightRecord).checks
    assert (check.name, check.status) == ("weights", "fail")


def test_nan_in_the_start_of_a_stage_that_samples(tmp_path: Path) -> None:
    model = start()
    with torch.no_grad():
        model.model.model.norm.weight[0] = float("inf")
    with pytest.raises(PreflightError, match=r"model\.norm\.weight hold NaN or infinity"):
        loop_of(model, tmp_path / "run")  # type: ignore[arg-type]
