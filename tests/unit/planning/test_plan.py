"""The plan of a stage: sums worked by hand on a tiny shape, what settings do to them, and remedies that hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import posttrain as pt
from posttrain.cli.app import app
from posttrain.config.base import TrainingStage
from posttrain.config.online import Online
from posttrain.config.stages import DPO, SFT, Preference, Reward
from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.planning.cards import Card
from posttrain.planning.flops import attention_forward, forward_of, operations_of
from posttrain.planning.memory import Situation, cells_of, rank_memory, weight_bytes
from posttrain.planning.mesh import Mesh
from posttrain.planning.models import Models
from posttrain.planning.needs import needs_of
from posttrain.planning.plan import plan, plan_stage, situation_of
from posttrain.planning.remedies import changed, fitting_cards, remedies
from posttrain.planning.rows import Shape
from posttrain.planning.seconds import seconds_of, traffic_of
from tests.unit.planning.test_shapes import TINY

CARD = Card("tiny", 1e9, 1e12, 1e11, 1e10, 1e9, "made up")
TOTAL = 3 * 496 + 1608
"""Parameters of the tiny shape, untied; counted in test_shapes.py."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("tiny")
    AutoConfig.for_model(**TINY, tie_word_embeddings=False).save_pretrained(folder)
    return Models(str(folder))


ALONE = Mesh()


def situation(stage: TrainingStage, mesh: Mesh = ALONE, card: Card = CARD, tokens: int = 40) -> Situation:
    return situation_of(stage, card, mesh, tokens=tokens)


def items(models: Models, stage: TrainingStage, mesh: Mesh = ALONE, **options: Any) -> dict[str, int]:
    memory = rank_memory(models, situation(stage, mesh, **options))
    return {item.name: item.bytes for item in memory.training.items}


FP32 = {"precision": "fp32", "tokens_per_microbatch": 40}


def sft(**options: Any) -> SFT:
    return SFT(rows_per_step=8, compute={**FP32, **options.pop("compute", {})}, **options)


# ---------------------------------------------------------------- memory


def test_what_stands_is_four_four_and_eight_bytes(models: Models) -> None:
    found = items(models, sft())
    assert (found["weights"], found["gradients"], found["Adam moments"]) == (4 * TOTAL, 4 * TOTAL, 8 * TOTAL)
    assert "reference" not in found and "collectives" not in found and found["driver"] == 600_000_000


def test_an_adapter_trains_alone(models: Models) -> None:
    low = 3 * 2 * 2 * (16 + 12 + 12 + 16 + 20 + 20 + 20) // 2
    found = items(models, sft(adapter={"rank": 2}))
    assert found["weights"] == 4 * (TOTAL + low)
    assert (found["gradients"], found["Adam moments"]) == (4 * low, 8 * low)
    quantised = sft(adapter={"kind": "qlora", "rank": 2}).adapter
    packed = weight_bytes(models.facts(quantised), quantised)
    assert packed == int(1440 * 4.127 / 8) + 4 * (TOTAL + low - 1440)


def test_shards_share_and_gather(models: Models) -> None:
    """Of 4 ranks each has a quarter; gathered are the root (1,608) and two layers of 496, in fp32."""
    found = items(models, sft(), Mesh(4, 1, 1))
    assert found["weights"] == found["gradients"] == TOTAL and found["Adam moments"] == 2 * TOTAL
    assert found["gathered layers"] == 4 * (1608 + 2 * 496)
    assert found["whole gradients"] == 4 * (1608 + 2 * 496) + 4 * 1608
    assert found["collectives"] == 1_000_000_000
    half = items(models, sft(compute={"precision": "bf16"}), Mesh(4, 1, 1))
    assert half["gathered layers"] == 4 * 1608 + 2 * 2 * 496 and half["weights"] == TOTAL
    assert half["whole gradients"] == 4 * 1608 + 2 * 2 * 496 + 4 * 1608
    whole = items(models, sft(compute={"precision": "bf16", "gather": "fp32"}), Mesh(4, 1, 1))
    assert whole["gathered layers"] == found["gathered layers"]
    copies = items(models, sft(), Mesh(1, 4, 1))
    assert copies["weights"] == 4 * TOTAL and copies["bucket of gradients"] == 4 * TOTAL


def test_what_is_offloaded_is_not_on_the_card(models: Models) -> None:
    moments = items(models, sft(compute={"offload": "optimizer"}), Mesh(4, 1, 1))
    assert "Adam moments" not in moments and moments["weights"] == TOTAL
    everything = items(models, sft(compute={"offload": "all"}), Mesh(4, 1, 1))
    assert not {"weights", "gradients", "Adam moments"} & set(everything)
    on_cpu = items(models, sft(compute={"offload": "optimizer"}), card=replace(CARD, device="cpu"))
    assert on_cpu["Adam moments"] == 8 * TOTAL


def test_activations_that_are_offloaded_come_back_a_layer_at_a_time(models: Models) -> None:
    def kept(card: Card = CARD, **compute: Any) -> tuple[int, int]:
        found = items(models, sft(compute={**FP32, **compute}), card=card)
        return found["activations"], found["activations"] + found["working space"]

    there, at_once = kept()
    away, later = kept(offload_activations=True)
    again, layer_by_layer = kept(offload_activations=True, activation_checkpointing=True)
    # Checkpointing also holds what layers are given beside their input, angles among it, which autograd does not see.
    assert away < 0.1 * there and again < 0.1 * there and later < 0.5 * at_once and layer_by_layer < 0.5 * at_once
    cpu = replace(CARD, device="cpu")
    assert kept(cpu, offload_activations=True) == kept(cpu)


def test_references_by_kind(models: Models) -> None:
    live = DPO(reference={"kind": "live"}, compute=FP32)
    assert items(models, live)["reference"] == 4 * TOTAL
    assert items(models, live, Mesh(4, 1, 1))["reference"] == TOTAL
    assert "reference" not in items(models, DPO(reference={"kind": "cached"}, compute=FP32))
    low = DPO(reference={"kind": "live"}, adapter={"rank": 2}, compute=FP32)
    facts = models.facts(low.adapter)
    assert items(models, low)["reference"] == 4 * facts.trained
    off = DPO(reference={"kind": "adapter_off"}, adapter={"rank": 2}, compute=FP32)
    assert "reference" not in items(models, off)


@pytest.mark.parametrize(
    ("stage", "reference"),
    [
        (SFT(), "none"),
        (DPO(), "cached"),
        (DPO(epochs=0.5), "live"),
        (DPO(epochs=0.5, adapter={"rank": 2}), "adapter_off"),
        (DPO(epochs=0.5, adapter={"kind": "prompt"}), "live"),
        (Preference("simpo"), "none"),
        (Reward(), "none"),
        (Online("grpo", kl_beta=0.1), "live"),
        (Online("grpo", kl_beta=0.1, adapter={"rank": 2}), "adapter_off"),
        (Online("dr_grpo"), "none"),
    ],
    ids=str,
)
def test_which_reference_a_stage_keeps(stage: TrainingStage, reference: str) -> None:
    assert needs_of(stage).reference == reference


def test_ppo_has_a_second_model_with_its_optimizer(models: Models) -> None:
    """The backbone without the projection of 800, and weights, gradient and two moments of each parameter."""
    own = Online("ppo", compute=FP32, sampling={"max_new_tokens": 20})
    assert items(models, own)["value model"] == 16 * (TOTAL - 800)
    frozen = Online("ppo", compute=FP32, sampling={"max_new_tokens": 20}, value_backbone="freeze")
    assert items(models, frozen)["value model"] == 4 * (TOTAL - 800)
    shared = Online("ppo", compute=FP32, sampling={"max_new_tokens": 20}, value_backbone="shared")
    assert "value model" not in items(models, shared)


def test_a_teacher_and_a_reward_model_are_there_too(models: Models) -> None:
    stage = Online("gkd", teacher=models.name, compute=FP32, sampling={"max_new_tokens": 20})
    found = items(models, stage)
    assert found["teacher"] == 4 * TOTAL and found["teacher's states"] > 0
    judge = {"kind": "reward_model", "model": models.name, "device": "cuda"}
    judged = Online("grpo", rewards=[judge], compute=FP32, sampling={"max_new_tokens": 20})
    assert items(models, judged)["reward model"] == 4 * TOTAL
    elsewhere = Online("grpo", rewards=[{**judge, "device": "cpu"}], compute=FP32, sampling={"max_new_tokens": 20})
    assert "reward model" not in items(models, elsewhere)


def grpo(**options: Any) -> Any:
    return Online("grpo", prompts_per_step=4, compute=FP32, sampling={"max_new_tokens": 20}, **options)


def test_the_native_cache_has_the_cells_that_the_engine_lays_out(models: Models) -> None:
    """32 completions of 20 + 20 tokens, 24 values a token in fp32; 320 cells hold 8 of them."""
    where = situation(grpo())
    assert (cells_of(where).rows, cells_of(where).slots, cells_of(where).width) == (32, 32, 40)
    memory = rank_memory(models, where)
    assert memory.sampling is not None
    found = {item.name: item.bytes for item in memory.sampling.items}
    assert found["keys and values"] == 24 * 4 * 32 * 40 and found["logits"] == 3 * 32 * 100 * 4
    assert found["attention"] == 2 * 8 * 32 * 40 * 4 and "gradients" not in found
    assert cells_of(situation(grpo(engine={"kind": "native", "tokens": 320}))).slots == 8
    assert cells_of(situation(grpo(engine={"kind": "native", "rows": 5}))).slots == 5
    assert cells_of(situation(grpo(), Mesh(1, 4, 1))).rows == 8


def test_other_engines(models: Models) -> None:
    colocated = rank_memory(models, situation(grpo(engine={"kind": "vllm_colocated", "gpu_memory": 0.4})))
    assert colocated.sampling is not None
    sampling = {item.name: item.bytes for item in colocated.sampling.items}
    assert sampling["vLLM"] == 400_000_000 and sampling["weight sync"] == 4 * 800 and "vLLM asleep" not in sampling
    assert "vLLM asleep" in {item.name for item in colocated.training.items}
    served = plan_stage(models, situation(grpo(engine={"kind": "vllm_served", "url": "http://127.0.0.1:8000"})))
    assert any("cards of its own" in note for note in served.notes)
    assert served.traffic.weight_sync == 2 * TOTAL


def test_micro_batches(models: Models) -> None:
    """8 rows of 40 tokens: one each in micro-batches of 40, and never less than a row."""
    assert rank_memory(models, situation(sft())).microbatches == 8
    assert rank_memory(models, situation(sft(), Mesh(1, 4, 1))).microbatches == 2
    small = rank_memory(models, situation(sft(compute={"tokens_per_microbatch": 7})))
    assert small.microbatch == 40
    auto = rank_memory(models, situation(sft(compute={"tokens_per_microbatch": "auto"})))
    assert (auto.microbatch, auto.microbatches) == (8 * 40, 1)


def test_on_cpu_the_program_and_the_heap_count(models: Models) -> None:
    found = items(models, sft(), card=replace(CARD, device="cpu"))
    assert found["program"] == 450_000_000 and found["allocator"] > 0 and "driver" not in found


# ---------------------------------------------------------------- operations, seconds, bytes


def test_operations_by_hand(models: Models) -> None:
    """8 rows of 20 + 20 tokens, 1,440 multiplied weights, 4 heads of 2 in 3 layers, 100 ids of width 8."""
    found = operations_of(models, situation(sft()))
    assert found.forward == 2 * 1440 * 40 * 8 and found.backward == 2 * found.forward
    pairs = 210 + 210 + 400
    assert found.attention == 4 * 3 * 4 * 2 * pairs * 8 * 3.5
    assert found.projection == 2 * 800 * 20 * 8 * 4 and found.recomputed == 0
    assert found.total == found.forward + found.backward + found.attention + found.projection == found.training
    again = operations_of(models, situation(sft(compute={"activation_checkpointing": True})))
    assert again.recomputed == found.forward and again.attention == pytest.approx(found.attention * 4.5 / 3.5)


def test_a_frozen_base_needs_half_of_a_backward_pass(models: Models) -> None:
    stage = sft(adapter={"rank": 2})
    facts = models.facts(stage.adapter)
    found = operations_of(models, situation(stage))
    assert found.backward == 2 * (facts.multiplied + facts.trained_multiplied) * 320
    assert facts.trained_multiplied == facts.trained and found.projection == 2 * 800 * 20 * 8 * 2


def test_passes_without_gradients(models: Models) -> None:
    once = forward_of(models.facts(None), Shape(20, (20, 20)))
    live = operations_of(models, situation(DPO(rows_per_step=8, reference={"kind": "live"}, compute=FP32)))
    assert live.reference == 8 * once
    cached = operations_of(models, situation(DPO(rows_per_step=8, epochs=4, compute=FP32)))
    assert cached.reference == 2 * once
    twice = operations_of(models, situation(grpo(updates_per_rollout=2)))
    row = Shape(20, (20,) * 8)
    assert twice.reference == 2 * 4 * forward_of(models.facts(None), row)  # the start's, and those that sampled
    assert twice.forward == 2 * 1440 * row.tokens * 4 * 2
    assert twice.decode == 2 * (1440 + 800) * 160 * 4 + 4 * 3 * 8 * 4 * 8 * (20 * 20 + 210)


def test_the_forward_pass_is_what_torch_counts() -> None:
    """Of a row in one node, without heads that share keys: torch counts attention over all pairs, not the seen half."""
    config = AutoConfig.for_model(**{**TINY, "num_key_value_heads": 4}, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, 24, dtype=torch.long))
    from posttrain.planning.skeleton import facts_of

    facts = facts_of(config, None, "policy")
    row = Shape(0, (24,))
    attention = attention_forward(facts, row)
    whole = forward_of(facts, row) - attention + attention * 24 * 24 / row.pairs
    # The rotary angles are a product, too: head size / 2 x 24.
    assert counter.get_total_flops() == pytest.approx(whole, abs=2 * 24)


def test_bytes_between_ranks_by_hand(models: Models) -> None:
    """4 ranks, 8 rows: 2 micro-batches each. Gathered: layers forward and backward, the root once."""
    where = situation(sft(), Mesh(4, 1, 1))
    found = traffic_of(models, where, rank_memory(models, where))
    assert found.gathered == 0.75 * 4 * (2 * 3 * 496 + 1608) * 2
    assert found.reduced == 0.75 * 4 * TOTAL * 2 and found.replicas == 0
    where = situation(sft(), Mesh(1, 4, 1))
    found = traffic_of(models, where, rank_memory(models, where))
    assert (found.gathered, found.reduced) == (0, 0) and found.replicas == 1.5 * 4 * TOTAL
    hybrid = situation(sft(), Mesh(2, 2, 2))
    found = traffic_of(models, hybrid, rank_memory(models, hybrid))
    assert found.replicas == 2 * 0.5 * 4 * TOTAL / 2 * 2
    alone = situation(sft())
    assert traffic_of(models, alone, rank_memory(models, alone)).total == 0


@pytest.mark.long
def test_seconds_follow_the_card(models: Models) -> None:
    where = situation(sft())
    found = plan_stage(models, where)
    assert found.seconds.products == found.operations.total / 1e11 / 0.6
    assert found.seconds.optimizer == 28 * TOTAL / 0.75e10 and found.seconds.sampling == 0
    assert found.tokens == 320 and found.tokens_per_second == 320 / found.seconds.total
    memory = rank_memory(models, where)
    faster = replace(where, card=replace(CARD, fp32=2e11))
    again = seconds_of(models, faster, memory, found.operations, found.traffic)
    assert again.products == found.seconds.products / 2 and again.memory == found.seconds.memory
    ranks = plan_stage(models, situation(sft(), Mesh(1, 8, 1)))
    assert ranks.seconds.products == pytest.approx(found.seconds.products / 8)
    assert ranks.seconds.collectives == pytest.approx(ranks.traffic.total / 0.7e9)


def test_decoding_is_bound_by_the_memory(models: Models) -> None:
    """Twice the bandwidth, half the time; a vLLM has no launches, so nothing else is in the way."""
    stage = grpo(engine={"kind": "vllm_colocated"})
    slow = plan_stage(models, situation(stage)).seconds.sampling
    fast = plan_stage(models, situation(stage, card=replace(CARD, bandwidth=2e10))).seconds.sampling
    assert fast == pytest.approx(slow / 2, rel=0.2) and slow > 0


# ---------------------------------------------------------------- remedies


def test_a_stage_that_fits_needs_none(models: Models) -> None:
    assert remedies(models, situation(sft())) == ()


@pytest.mark.long
def test_every_remedy_holds_what_it_says() -> None:
    models = Models("smollm2-135m")
    stage = DPO(name="mine", reference={"kind": "live"}, compute={"precision": "fp32", "tokens_per_microbatch": 6144})
    where = situation_of(stage, replace(CARD, memory=6e9), Mesh(), tokens=1024)
    assert not rank_memory(models, where).fits
    found = remedies(models, where)
    assert found and all(remedy.fits and remedy.total_bytes <= 6e9 for remedy in found[:-1])
    first = found[0]
    key, _, value = first.change.partition("=")
    assert key == "mine.compute.tokens_per_microbatch"
    smaller = changed(stage, "compute.tokens_per_microbatch", int(value))
    assert smaller is not None
    again = rank_memory(models, situation_of(smaller, where.card, Mesh(), tokens=1024))
    assert again.fits and again.fullest.total_bytes == first.total_bytes
    assert any("activation_checkpointing=true" in remedy.change for remedy in found)


@pytest.mark.long
def test_several_knobs_where_none_is_enough_alone() -> None:
    models = Models("smollm2-135m")
    where = situation_of(SFT(compute={"precision": "fp32"}), replace(CARD, memory=1.6e9), Mesh(), tokens=2048)
    found = remedies(models, where)
    assert " " in found[0].change and found[0].fits and "kind: lora" in found[0].change


def test_a_setting_that_the_recipe_refuses_is_no_remedy() -> None:
    stage = SFT(adapter={"kind": "prefix"})
    assert changed(stage, "compute.activation_checkpointing", True) is None
    assert changed(stage, "max_length", 256) is not None


@pytest.mark.long
def test_the_smallest_number_of_cards() -> None:
    models = Models("smollm2-135m")
    where = situation_of(SFT(compute={"precision": "bf16"}), replace(CARD, memory=4.5e9), Mesh(), tokens=2048)
    more = fitting_cards(models, where)
    assert more is not None and more.mesh.ranks > 1 and rank_memory(models, more).fits
    fewer = replace(where, mesh=Mesh(more.mesh.ranks // 2, 1, 1))
    assert not rank_memory(models, fewer).fits


# ---------------------------------------------------------------- the verb

RECIPE = """
schema: 1
name: planned
model: smollm2-135m
out: {out}
stages:
  - {{method: sft, data: rows.jsonl, rows_per_step: 4}}
  - {{method: correction, data: rows.jsonl}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    path = tmp_path / "planned.yaml"
    path.write_text(RECIPE.format(out=tmp_path / "runs"))
    return path


def test_the_verb_shows_memory_and_time(recipe: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(recipe), "--gpus", "2"])
    assert done.exit_code == 0, done.output
    for words in ("2 x h100-80gb", "mesh {shard: 2, replicate: 1}", "Adam moments", "fits:", "tokens/s", "stated"):
        assert words in done.output
    assert "correction (correction): trains nothing" in done.output


@pytest.mark.long
def test_the_verb_s_json_and_its_exit_code(recipe: Path) -> None:
    done = CliRunner().invoke(
        app, ["plan", str(recipe), "--gpu", "t4", "model=qwen3-0.6b", "sft.max_length=16384", "--json"]
    )
    found = json.loads(done.stdout)
    assert done.exit_code == 1 and not found["fits"] and found["card"]["name"] == "t4"
    (stage,) = found["stages"]
    assert stage["remedies"] and stage["longest"] == 16_384 and stage["precision"] == "fp32"
    sizes = [item["bytes"] for item in stage["memory"]["training"]["items"]]
    assert sum(sizes) == stage["memory"]["training"]["total_bytes"]


@pytest.mark.long
def test_the_recipe_s_own_mesh(recipe: Path) -> None:
    own = ["sft.compute.mesh={shard: 2, replicate: 2}"]
    assert pt.plan(str(recipe), overrides=own).stages[0].mesh == Mesh(2, 2, 1)
    assert pt.plan(str(recipe), overrides=own, mesh="shard=4").stages[0].mesh == Mesh(4, 1, 1)
    with pytest.raises(ConfigError, match="2 x 2 = 4, and 8 cards"):
        pt.plan(str(recipe), overrides=own, gpus=8)


@pytest.mark.long
def test_a_quantised_base_is_not_shared(recipe: Path) -> None:
    """Training refuses that, so no plan says that it fits."""
    low = ["sft.adapter={kind: qlora, rank: 8}"]
    stage = pt.plan(str(recipe), overrides=low, gpus=4).stages[0]
    assert stage.mesh == Mesh(1, 4, 1) and any("shard: 1, replicate: 4" in note for note in stage.notes)
    with pytest.raises(ConfigError, match="shard=1,replicate=4"):
        pt.plan(str(recipe), overrides=low, mesh="shard=4")
    assert pt.plan(str(recipe), overrides=low, mesh="shard=1,replicate=4").stages[0].mesh == Mesh(1, 4, 1)


@pytest.mark.long
def test_from_python(recipe: Path) -> None:
    found = pt.plan(str(recipe), cpu=True, overrides=["sft.max_length=128"])
    assert found.card.device == "cpu" and found.stages[0].longest == 128 and "this machine" in found.efficiency
    assert "max_length" in found.stages[0].rows
    with pytest.raises(UnknownKeyError, match="a100-80gb"):
        plan(str(recipe), gpu="a100-80g")
    with pytest.raises(ConfigError, match="one of the two"):
        plan(str(recipe), gpu="t4", cpu=True)


@pytest.mark.long
def test_encoded_rows_say_how_long_rows_are(recipe: Path) -> None:
    rows = [{"prompt": "one two", "completion": "three " * n} for n in (1, 30)]
    folder = recipe.parent / "runs" / "planned" / "sft" / "encoded"
    policy = pt.load("embedded")
    data = pt.encode(rows, pt.Encoder(policy.tokenizer, policy.speech.settings()), store=folder)
    found = pt.plan(str(recipe)).stages[0]
    assert found.longest == int(data.num_tokens.max()) and "2 encoded rows" in found.rows
    assert found.tokens == pytest.approx(4 * float(data.num_tokens.mean()), abs=8)
    assert pt.plan(str(recipe), tokens=100).stages[0].longest == 100
