"""The engine with kept prefixes against the same engine without: the same ids and log-probs, and less computed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from posttrain.errors import NonFiniteError
from posttrain.rollout import decode
from posttrain.rollout.engine import Completion, FinishReason, Request
from posttrain.rollout.native import CACHE_TOLERANCE, NativeEngine
from posttrain.rollout.prefill import Place
from posttrain.sampling import SamplingDistribution
from tests.families import family_model
from tests.fixtures import ARCHITECTURES, SLIDING_WINDOW, tiny_model
from tests.unit.rollout.test_native_engine import ids_of, recurrent_model, some_prompts

SAMPLING = SamplingDistribution(temperature=0.7, max_new_tokens=9, stop_ids=frozenset({3, 5, 7}), seed=4)
ENDLESS = replace(SAMPLING, stop_ids=frozenset())
ROOM = 5_000

FAMILIES = ("bloom", "opt", "falcon", "cohere2", "gpt_oss", "dbrx", "olmoe", "stablelm", "deepseek_v3")
"""Beside `ARCHITECTURES`: ALiBi, positions counted in the mask, attention sinks, partly rotary, latent attention
(values of another size than keys), more mixtures of experts."""
FIELDS = {
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "qk_head_dim": 16,
        "v_head_dim": 12,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    }
}


assert SLIDING_WINDOW < 20  # shorter than what is reused, or the tests below say nothing about windows


def rounds_of(engine: NativeEngine, seed: int, rounds: int = 3) -> Iterator[tuple[list[list[int]], list[Completion]]]:
    """What search asks: prompts, then prompts with some of their completions, whole or cut, with a step of its own."""
    rng, prompts = random.Random(seed), some_prompts(4, seed=seed)
    for _ in range(rounds):
        groups = engine.generate(prompts, SAMPLING, completions_per_prompt=2)
        yield prompts, [completion for group in groups for completion in group]
        grown = [[*p, *c.ids[: rng.choice([2, 99])]] for p, group in zip(prompts, groups, strict=True) for c in group]
        prompts = [[*ids, *(rng.randrange(97) for _ in range(rng.choice([0, 0, 1, 6])))] for ids in grown]
        rng.shuffle(prompts)


def agree(model: PreTrainedModel, settings: dict[str, int], tolerance: float = CACHE_TOLERANCE, seed: int = 0) -> None:
    plain, keeping = NativeEngine(model, **settings), NativeEngine(model, prefix_tokens=ROOM, **settings)
    reused = 0
    for (asked, expected), (prompts, completions) in zip(rounds_of(plain, seed), rounds_of(keeping, seed), strict=True):
        assert prompts == asked
        for one, other in zip(expected, completions, strict=True):
            assert one.ids == other.ids and one.finish == other.finish
            assert one.logprobs == pytest.approx(other.logprobs, abs=tolerance)
        assert keeping.stats.decoded >= plain.stats.decoded
        reused += keeping.stats.reused
    assert reused > 100
    assert keeping.path == plain.path == "cached"
    assert keeping._prefixes is not None and keeping._prefixes.proven == {True, False}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_samples_the_same_after_kept_prefixes(arch: str) -> None:
    agree(tiny_model(arch), {}, tolerance=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_too(family: str) -> None:
    agree(family_model(family, **FIELDS.get(family, {})), {}, tolerance=1e-4)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mistral", "gpt2", "qwen3_moe"])
def test_in_float64_the_log_probs_are_the_same_to_rounding(arch: str) -> None:
    agree(tiny_model(arch, dtype=torch.float64), {}, tolerance=1e-9)


@pytest.mark.parametrize("settings", [{"max_rows": 3}, {"cache_tokens": 90}, {"prefill_tokens": 40}], ids=str)
@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_waves_preemption_and_small_forwards_change_nothing(arch: str, settings: dict[str, int]) -> None:
    agree(tiny_model(arch), settings, tolerance=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_random_trees_of_prompts(seed: int) -> None:
    """Prompts that branch anywhere, in any order and in stores of any size, float64."""
    rng, model = random.Random(seed), tiny_model("gemma3", dtype=torch.float64)
    tree: list[list[int]] = [[1]]
    for _ in range(40):
        stem = rng.choice(tree)
        tree.append(
            [*stem[: rng.randrange(1, len(stem) + 1)], *(rng.randrange(97) for _ in range(rng.randrange(1, 14)))]
        )
    plain = NativeEngine(model)
    keeping = NativeEngine(model, prefix_tokens=rng.choice([5, 60, 300, ROOM]), max_rows=rng.choice([3, 64]))
    for _ in range(5):
        prompts = rng.sample(tree, rng.randrange(1, 12))
        for expected, group in zip(plain.generate(prompts, ENDLESS), keeping.generate(prompts, ENDLESS), strict=True):
            assert group[0].ids == expected[0].ids
            assert group[0].logprobs == pytest.approx(expected[0].logprobs, abs=1e-9)
        assert keeping.stats.prefilled + keeping.stats.reused >= plain.stats.prefilled
        assert keeping._prefixes is not None and keeping._prefixes.cells <= keeping._prefixes.tokens


# ---------------------------------------------------------------- what is computed


def test_a_continuation_computes_nothing_but_its_last_token() -> None:
    """An ended row had all its tokens but the last in the cache; a prompt is computed up to its last: the same ones."""
    engine, prompts = NativeEngine(tiny_model(), prefix_tokens=ROOM), some_prompts()
    groups = engine.generate(prompts, ENDLESS, completions_per_prompt=2)
    grown = [[*p, *c.ids] for p, group in zip(prompts, groups, strict=True) for c in group]
    engine.generate(grown, ENDLESS)
    assert engine.stats.prefilled == 0
    assert engine.stats.reused == sum(len(ids) - 1 for ids in grown)
    engine.generate([[*ids, 50, 51, 52] for ids in grown], ENDLESS)
    assert engine.stats.prefilled == 2 * len(grown)  # of three new ones, the last goes through the step


def test_the_tokens_that_search_computes_are_counted() -> None:
    """Three rounds: prompts of 20, then with 9 more tokens each: 40 + 0 + 0 are computed and not 40 + 56 + 74."""
    prompts = [[index, *range(30, 49)] for index in (1, 2)]
    counts = {}
    for tokens in (0, ROOM):
        engine, asked, counts[tokens] = NativeEngine(tiny_model(), prefix_tokens=tokens), prompts, []
        for _ in range(3):
            groups = engine.generate(asked, ENDLESS)
            counts[tokens].append((engine.stats.prefilled, engine.stats.reused))
            asked = [[*p, *group[0].ids] for p, group in zip(asked, groups, strict=True)]
    assert counts[0] == [(38, 0), (56, 0), (74, 0)]
    assert counts[ROOM] == [(38, 0), (0, 56), (0, 74)]


def test_a_prompt_is_found_while_the_first_that_had_it_is_still_sampled() -> None:
    engine = NativeEngine(tiny_model(), prefix_tokens=ROOM)
    system = list(range(40, 80))
    engine.generate([[1, 2]], ENDLESS)  # the proof of the cache has its own steps

    async def ask() -> None:
        first = asyncio.create_task(engine.generate_one(Request([*system, 8, 9], ENDLESS)))
        while engine.stats.steps != 2 or not engine.in_flight:  # the batch before had nine
            await asyncio.sleep(0)
        assert engine.stats.reused == 0
        await engine.generate_one(Request([*system, 10, 11], ENDLESS))
        assert engine.stats.reused == 40 and engine.stats.prefilled == 41 + 1
        await first

    asyncio.run(ask())


def test_prompts_that_come_together_compute_what_they_share_once() -> None:
    engine, system = NativeEngine(tiny_model(), prefix_tokens=ROOM), list(range(40, 80))
    prompts = [[*system, 8, 9], [*system, 8, 10, 11], [*system, 12, 9], [5, *system]]
    expected = ids_of(NativeEngine(tiny_model()).generate(prompts, ENDLESS, completions_per_prompt=2))
    assert ids_of(engine.generate(prompts, ENDLESS, completions_per_prompt=2)) == expected
    # [8 9] whole; of [8 10 11], 10; of [12 9], 12; the last shares nothing from its start on.
    assert engine.stats.prefilled == 41 + 1 + 1 + 40
    assert engine.stats.reused == 41 + 40
    short = NativeEngine(tiny_model(), prefix_tokens=ROOM)
    short.generate([[*system[:20], 8, 9], [*system[:20], 10]], ENDLESS)  # not worth a forward pass of its own
    assert short.stats.reused == 0


def test_requests_and_streams_use_and_keep_prefixes() -> None:
    model, prompt = tiny_model(), some_prompts()[1]
    plain, engine = NativeEngine(model), NativeEngine(model, prefix_tokens=ROOM)
    engine.generate([[1, 2]], ENDLESS)
    asked: Sequence[int] = prompt
    for round_number in range(4):
        expected = plain.generate([asked], ENDLESS)[0][0].ids
        if round_number % 2:
            assert asyncio.run(engine.generate_one(Request(asked, ENDLESS))).ids == expected
        else:
            assert tuple(engine.stream(asked, ENDLESS)) == expected
        assert engine.stats.reused == (len(asked) - 1 if round_number else 0)
        asked = [*asked, *expected]


def forward_sizes(engine: NativeEngine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(rows, new tokens, cells of a row) of each prefill after kept tokens, from now on."""
    sizes, proper = [], engine._lm.last_logits

    def counted(**inputs: torch.Tensor) -> torch.Tensor:
        if "attention_mask" in inputs and inputs["input_ids"].shape[1] > 1:
            sizes.append((*inputs["input_ids"].shape, inputs["attention_mask"].shape[1]))
        return proper(**inputs)

    monkeypatch.setattr(engine._lm, "last_logits", counted)
    return sizes


def test_a_forward_pass_counts_what_stands_before_its_tokens_and_pads_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six rows with 40 kept tokens: their cells count, or a long past would make a forward of any size; and a row that
    lacks three tokens is not padded to one that lacks thirty."""
    engine, rng = NativeEngine(tiny_model(), prefix_tokens=ROOM, prefill_tokens=150), random.Random(0)
    stem = list(range(40, 81))
    engine.generate([stem], ENDLESS)
    sizes = forward_sizes(engine, monkeypatch)
    lacking = [4, 20, 3, 20, 4, 20]
    engine.generate(
        [[*stem, index, *(rng.randrange(97) for _ in range(n))] for index, n in enumerate(lacking)], ENDLESS
    )
    assert engine.stats.prefilled == sum(lacking)
    assert sizes and all(rows * cells <= 150 for rows, _, cells in sizes)
    assert sum(rows * new for rows, new, _ in sizes) <= engine.stats.prefilled + 2


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_padding_behind_a_long_past_stands_on_no_position_that_the_model_lacks(family: str) -> None:
    """One row has a past of 119 of 128 positions, the other lacks 30 tokens."""
    model = family_model(family)
    plain, engine = NativeEngine(model), NativeEngine(model, prefix_tokens=ROOM)
    stems = [[index % 97 for index in range(119)], list(range(60, 70))]
    engine.generate(stems, replace(ENDLESS, max_new_tokens=1))
    grown = [[*stems[0], 7, 8], [*stems[1], *range(30)]]
    for expected, group in zip(plain.generate(grown, ENDLESS), engine.generate(grown, ENDLESS), strict=True):
        assert group[0].ids == expected[0].ids
        assert group[0].logprobs == pytest.approx(expected[0].logprobs, abs=1e-4)
    assert engine.stats.reused >= 118


# ---------------------------------------------------------------- memory and weights


def held_bytes(engine: NativeEngine) -> int:
    assert engine._prefixes is not None
    return sum(
        block.untyped_storage().nbytes()
        for node in engine._prefixes._by_use
        for layer in node.layers
        if layer is not None
        for block in layer
    )


@pytest.mark.parametrize("bound", [1, 50, 400])
def test_memory_is_bounded_in_cells_and_in_bytes(bound: int) -> None:
    model = tiny_model()
    engine, plain = NativeEngine(model, prefix_tokens=bound), NativeEngine(model)
    token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads of them, head size, bytes
    for seed in range(6):
        prompts = some_prompts(5, seed=seed % 2)
        assert ids_of(engine.generate(prompts, SAMPLING)) == ids_of(plain.generate(prompts, SAMPLING))
        assert engine._prefixes is not None and engine._prefixes.cells <= bound
        assert held_bytes(engine) == engine._prefixes.cells * token


def test_new_weights_empty_the_store() -> None:
    model, prompts = tiny_model(), some_prompts()
    engine = NativeEngine(model, prefix_tokens=ROOM)
    engine.generate(prompts, SAMPLING)
    with torch.no_grad():  # the keys and values, too, are others afterwards
        model.get_input_embeddings().weight.mul_(-1.5)
    engine.update_weights(model, 1)
    expected = ids_of(NativeEngine(model, policy_version=1).generate(prompts, SAMPLING))
    assert ids_of(engine.generate(prompts, SAMPLING)) == expected
    assert engine.stats.reused == 0


def test_an_optimizer_step_is_seen_where_nobody_raised_the_version() -> None:
    model, prompts = tiny_model(), some_prompts()
    engine = NativeEngine(model, prefix_tokens=ROOM)
    engine.generate(prompts, SAMPLING)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    assert ids_of(engine.generate(prompts, SAMPLING)) == ids_of(NativeEngine(model).generate(prompts, SAMPLING))
    assert engine.stats.reused == 0


def test_another_adapter_finds_nothing_of_the_one_before() -> None:
    prompts = some_prompts()
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_model(), config)
    model.add_adapter("second", config)
    engine = NativeEngine(model, prefix_tokens=ROOM)
    engine.generate(prompts, SAMPLING)
    model.set_adapter("second")
    assert ids_of(engine.generate(prompts, SAMPLING)) == ids_of(NativeEngine(model).generate(prompts, SAMPLING))
    assert engine.stats.reused == 0
    with model.disable_adapter():
        assert ids_of(engine.generate(prompts, SAMPLING)) == ids_of(NativeEngine(model).generate(prompts, SAMPLING))
        assert engine.stats.reused == 0
        engine.generate(prompts, SAMPLING)
        assert engine.stats.reused > 0


def test_weights_that_change_in_mid_flight_leave_nothing_of_the_old_ones() -> None:
    model, prompts = tiny_model(), some_prompts(3)
    engine = NativeEngine(model, prefix_tokens=ROOM)
    engine.generate([[1, 2]], ENDLESS)

    async def ask() -> None:
        requests = [Request(prompt, ENDLESS) for prompt in prompts]
        tasks = [asyncio.create_task(engine.generate_one(request)) for request in requests]
        while engine.stats.steps != 4 or engine.in_flight < 3:
            await asyncio.sleep(0)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(-1.5)
        engine.policy_version = 1
        engine.generate([prompts[0]], ENDLESS)  # the store is the new weights' before the old decoder gives its rows up
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(ask())
    expected = NativeEngine(model, policy_version=1).generate(prompts, ENDLESS)
    assert ids_of(engine.generate(prompts, ENDLESS)) == ids_of(expected)
    for one, other in zip(expected, engine.generate(prompts, ENDLESS), strict=True):
        assert one[0].logprobs == pytest.approx(other[0].logprobs, abs=1e-4)


def test_what_is_aborted_or_not_finite_is_not_kept() -> None:
    model, prompt = tiny_model(), some_prompts()[1]
    engine = NativeEngine(model, prefix_tokens=ROOM)
    engine.generate([[1, 2]], ENDLESS)
    assert engine._prefixes is not None
    before = engine._prefixes.cells

    async def ask() -> Completion:
        request = Request(prompt, ENDLESS)
        task = asyncio.create_task(engine.generate_one(request))
        while engine.stats.steps != 4 or not engine.in_flight:
            await asyncio.sleep(0)
        engine.abort(request)
        return await task

    assert asyncio.run(ask()).finish is FinishReason.ABORTED
    assert engine._prefixes.cells == before + len(prompt) - 1  # its prompt alone, since it was admitted
    engine.abort()
    assert engine.in_flight == 0


def test_a_score_never_leans_on_what_is_kept() -> None:
    """It proves that new weights arrived, whoever forgot to say that they are new."""
    model, (_, prompt, *_) = tiny_model(), some_prompts()
    engine = NativeEngine(model, prefix_tokens=ROOM)
    ids = engine.generate([prompt], ENDLESS)[0][0].ids
    engine.generate([prompt], ENDLESS)  # proves what is kept, so that nothing would find out later
    with torch.no_grad():
        model.get_input_embeddings().weight.data.mul_(-1.5)  # a change that torch does not count
    assert engine.score(prompt, ids) == pytest.approx(NativeEngine(model).score(prompt, ids), abs=1e-5)


def test_inside_inference_mode_and_after_it() -> None:
    model, prompts = tiny_model(), some_prompts()
    engine = NativeEngine(model, prefix_tokens=ROOM)
    with torch.inference_mode():
        inside = ids_of(engine.generate(prompts, SAMPLING))
    for _ in range(2):
        grown = [[*p, *ids, 9] for p, (ids,) in zip(prompts, inside, strict=True)]
        assert ids_of(engine.generate(grown, SAMPLING)) == ids_of(NativeEngine(model).generate(grown, SAMPLING))
        assert engine.stats.reused > 0


# ---------------------------------------------------------------- where nothing can be kept, or what is kept is wrong


def test_a_model_without_a_cache_keeps_nothing() -> None:
    model, prompts = recurrent_model(), some_prompts(3, longest=8)
    engine = NativeEngine(model, prefix_tokens=ROOM)
    assert engine.path == "recomputed"
    for _ in range(2):
        assert ids_of(engine.generate(prompts, SAMPLING)) == ids_of(NativeEngine(model).generate(prompts, SAMPLING))
        assert engine.stats.reused == 0
    assert asyncio.run(engine.generate_one(Request(prompts[0], SAMPLING))).ids


def test_keys_that_depend_on_the_length_to_come_are_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10_000.0}
    model = tiny_model("phi3", rope_parameters={**rope, "original_max_position_embeddings": 64})
    with caplog.at_level(logging.WARNING):
        engine = NativeEngine(model, prefix_tokens=ROOM)
    assert "longrope" in caplog.text
    prompt = some_prompts()[1]
    engine.generate([prompt], SAMPLING)
    engine.generate([prompt], SAMPLING)
    assert engine.stats.reused == 0


def plant_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tokens after kept ones stand one position too far on."""
    proper = decode.prefill_inputs

    def shifted(batch: Sequence[Place], device: torch.device) -> dict[str, torch.Tensor]:
        inputs = proper(batch, device)
        return {**inputs, "position_ids": inputs["position_ids"] + 1} if "position_ids" in inputs else inputs

    monkeypatch.setattr(decode, "prefill_inputs", shifted)


@pytest.mark.parametrize("settings", [{}, {"max_rows": 3}, {"cache_tokens": 60}, {"cache_tokens": 100}], ids=str)
def test_a_prefill_that_computes_something_else_is_found_out_and_switched_off(
    settings: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, plant = tiny_model(), [list(range(30, 50)), [1, 2, 3]]
    plant_a_fault(monkeypatch)
    engine = NativeEngine(model, prefix_tokens=ROOM, **settings)
    engine.generate(plant, SAMPLING)
    # Some are sampled for a while before the first that continues something comes.
    prompts = [*some_prompts(3, longest=30), *([*ids, 8, 9, 4] for ids in plant)]
    longer = replace(SAMPLING, max_new_tokens=30)
    with caplog.at_level(logging.WARNING):
        answers = engine.generate(prompts, longer, completions_per_prompt=2)
    assert ids_of(answers) == ids_of(NativeEngine(model).generate(prompts, longer, completions_per_prompt=2))
    assert caplog.text.count("prefixes of earlier sequences are not reused") == 1
    assert engine.path == "cached"
    engine.generate(prompts, SAMPLING)
    assert engine.stats.reused == 0


def test_a_step_that_finds_a_fault_gives_logits_for_the_rows_that_were_taken_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`sample_tokens(decoder.rows, decoder.next_logits(waiting), ...)` takes the list first."""
    plant_a_fault(monkeypatch)
    engine = NativeEngine(tiny_model(), prefix_tokens=ROOM)
    engine.generate([[1, 2, 3]], SAMPLING)
    decoder, waiting = engine._fresh_decoder(), deque([engine.row_of(Request([1, 2, 3, 4, 5], SAMPLING))])
    with engine.sampling():
        decoder.admit(waiting)
        rows = decoder.rows
        logits_RV = decoder.next_logits(waiting)
    assert engine._prefixes is not None and engine._prefixes.tokens == 0
    assert rows is decoder.rows and len(rows) == len(logits_RV) == 1


def test_a_row_that_gave_its_cells_back_before_its_proof_proves_nothing() -> None:
    engine = NativeEngine(tiny_model(), prefix_tokens=ROOM)
    engine.generate([[1, 2, 3]], SAMPLING)
    decoder = engine._fresh_decoder()
    assert isinstance(decoder, decode.CachedDecoder) and engine._prefixes is not None
    first, second = (engine.row_of(Request([1, 2, last], SAMPLING)) for last in (3, 4))
    waiting = deque([first, second])
    with engine.sampling():
        decoder.admit(waiting)
        assert decoder._to_prove == {False: first}
        decoder.retire([first])
        assert len(decoder.next_logits(waiting)) == 1
    assert engine._prefixes.proven == set()


def test_completions_that_wait_for_a_prompt_do_not_get_what_was_found_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last prompt's cells are held for those of its completions that wait; here they are of the wrong prefill."""
    model = tiny_model()
    plant_a_fault(monkeypatch)
    engine, prompt = NativeEngine(model, prefix_tokens=ROOM, max_rows=2), some_prompts()[1]
    engine.generate([prompt], SAMPLING)
    grown = [*prompt, 8, 9, 4]
    expected = NativeEngine(model).generate([grown], SAMPLING, completions_per_prompt=5)
    assert ids_of(engine.generate([grown], SAMPLING, completions_per_prompt=5)) == ids_of(expected)


def test_broken_weights_are_not_the_stores_fault(caplog: pytest.LogCaptureFixture) -> None:
    model, prompts = tiny_model(), some_prompts()
    engine = NativeEngine(model, prefix_tokens=ROOM)
    engine.generate(prompts, SAMPLING)
    with torch.no_grad():
        model.get_output_embeddings().weight.data[0, 0] = float("nan")  # not counted: the keys are kept, and right
    with caplog.at_level(logging.WARNING), pytest.raises(NonFiniteError, match="not finite"):
        engine.generate(prompts, SAMPLING)
    assert engine.stats.reused > 0 and not caplog.text
