"""Several engines over one model with several adapters: each samples as if its own were alone."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from posttrain.errors import ModelError, UnknownKeyError
from posttrain.models.adapters.active import ACTIVE, AdapterName, adapter_in_use
from posttrain.rollout.engine import Completion, Request
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from tests.fixtures import tiny_model
from tests.unit.rollout.test_native_engine import some_prompts

LONG = SamplingDistribution(temperature=0.7, max_new_tokens=12, seed=4)
NAMES: tuple[str | None, ...] = ("pia", "max", None)


def lora(rank: int, *modules: str) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=16, target_modules=list(modules), init_lora_weights=False)


def two_adapters() -> PeftModel:
    """On different layers, so that one has places that the other has not; the first is what trains."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(tiny_model(dtype=torch.float64), lora(2, "q_proj", "v_proj"), adapter_name="pia")
        model.add_adapter("max", lora(3, "v_proj", "down_proj", "lm_head"))
    return model.double()  # type: ignore[return-value]


def alone(model: PeftModel, name: str | None) -> Any:
    """The same by `peft`'s own means: all but one adapter deleted, or none put on."""
    if name is None:
        return tiny_model(dtype=torch.float64)
    model = copy.deepcopy(model)
    model.set_adapter(name)
    for other in [other for other in model.peft_config if other != name]:
        model.delete_adapter(other)
    return model.merge_and_unload()


def state_of(model: PeftModel) -> list[Any]:
    """What is active and what trains."""
    active = [(model.active_adapter, *(getattr(m, "_active_adapter", None) for m in model.modules()))]
    return [*active, *((name, p.requires_grad) for name, p in model.named_parameters())]


async def interleaved(engines: Sequence[NativeEngine], prompts: Sequence[Sequence[int]]) -> list[list[Completion]]:
    tasks = [
        [asyncio.create_task(engine.generate_one(Request(prompt, LONG, alternatives=2))) for prompt in prompts]
        for engine in engines
    ]
    return [await asyncio.gather(*own) for own in tasks]


def assert_same(answers: Sequence[Completion], expected: Sequence[Completion]) -> None:
    assert [one.ids for one in answers] == [one.ids for one in expected]
    for one, other in zip(answers, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-9)
        for raw, wanted in zip(one.alternatives, other.alternatives, strict=True):
            assert raw.logprob == pytest.approx(wanted.logprob, abs=1e-9)


def test_requests_of_two_adapters_and_of_the_base_between_each_other() -> None:
    model, prompts = two_adapters(), some_prompts(3)
    engines = [NativeEngine(model, adapter=name) for name in NAMES]
    before = state_of(model)
    answers = asyncio.run(interleaved(engines, prompts))
    assert state_of(model) == before
    expected = [asyncio.run(interleaved([NativeEngine(alone(model, name))], prompts))[0] for name in NAMES]
    for own, wanted in zip(answers, expected, strict=True):
        assert_same(own, wanted)
    assert len({tuple(one.ids for one in own) for own in answers}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_ask_is_answered_by_the_engine_s_own_adapter(name: str | None) -> None:
    model, prompts = two_adapters(), some_prompts(3)
    engine, other = NativeEngine(model, adapter=name), NativeEngine(alone(model, name))
    before = state_of(model)
    assert [c.ids for (c,) in engine.generate(prompts, LONG)] == [c.ids for (c,) in other.generate(prompts, LONG)]
    assert list(engine.stream(prompts[1], LONG)) == list(other.stream(prompts[1], LONG))
    assert engine.score([1, 2], [3, 4]) == pytest.approx(other.score([1, 2], [3, 4]), abs=1e-9)
    (own,), (wanted,) = engine.prompt_scores([[5, 6, 7]]), other.prompt_scores([[5, 6, 7]])
    assert [one and one.logprob for one in own] == pytest.approx([one and one.logprob for one in wanted], abs=1e-9)
    assert state_of(model) == before


def test_an_engine_that_names_none_samples_from_what_is_active() -> None:
    model, prompt = two_adapters(), some_prompts(2)[1]
    engine = NativeEngine(model)
    assert engine.adapter is ACTIVE
    for name in ("max", "pia"):
        model.set_adapter(name)
        assert (
            engine.generate([prompt], LONG)[0][0].ids
            == NativeEngine(alone(model, name)).generate([prompt], LONG)[0][0].ids
        )


def test_an_adapter_that_is_loaded_later_disturbs_nobody() -> None:
    """It brings layers of its own, which an engine must not leave on."""
    model, prompt = two_adapters(), some_prompts(2)[1]
    engine, base = NativeEngine(model, adapter="pia"), NativeEngine(model, adapter=None)
    expected = [one.generate([prompt], LONG)[0][0].ids for one in (engine, base)]
    model.add_adapter("late", lora(2, "k_proj", "up_proj"))
    model.double().set_adapter("late")
    assert [one.generate([prompt], LONG)[0][0].ids for one in (engine, base)] == expected


def test_adapters_with_trained_copies_of_modules_are_switched_too() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = get_peft_model(tiny_model(dtype=torch.float64), config, adapter_name="pia").double()
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["pia"].weight.mul_(-1)  # type: ignore[union-attr,operator]
    prompt, base = some_prompts(2)[1], tiny_model(dtype=torch.float64)
    answers = [NativeEngine(model, adapter=name).generate([prompt], LONG)[0][0] for name in ("pia", None)]
    assert answers[1].ids == NativeEngine(base).generate([prompt], LONG)[0][0].ids
    assert answers[0].ids == NativeEngine(model).generate([prompt], LONG)[0][0].ids != answers[1].ids


def test_virtual_tokens_of_two_adapters_and_their_base() -> None:
    base, prompts = tiny_model(), some_prompts(3)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(base, config, adapter_name="pia")
    model.add_adapter("max", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    with torch.no_grad():
        for encoder in model.prompt_encoder.values():
            encoder.embedding.weight.normal_(generator=torch.Generator().manual_seed(3))
    engines = [NativeEngine(model, adapter=name) for name in NAMES]
    assert [engine.path for engine in engines] == ["recomputed", "recomputed", "cached"]
    answers = asyncio.run(interleaved(engines, prompts))
    expected = []
    for name in ("pia", "max"):
        model.set_adapter(name)
        expected.append(asyncio.run(interleaved([NativeEngine(model)], prompts))[0])
    expected.append(asyncio.run(interleaved([NativeEngine(tiny_model())], prompts))[0])
    assert [[one.ids for one in own] for own in answers] == [[one.ids for one in own] for own in expected]
    assert len({tuple(one.ids for one in own) for own in answers}) == 3


@pytest.mark.parametrize(
    ("adapter", "words"), [("pai", "did you mean `pia`"), ("other", "load it into the model first")]
)
def test_an_adapter_that_the_model_lacks_is_refused(adapter: str, words: str) -> None:
    with pytest.raises(UnknownKeyError, match=f"the adapter `{adapter}` is not known") as caught:
        NativeEngine(two_adapters(), adapter=adapter)
    assert words in str(caught.value)
    with pytest.raises(UnknownKeyError, match="has no adapter"):
        NativeEngine(tiny_model(), adapter="pia")


def test_an_adapter_that_was_deleted_meanwhile_is_refused() -> None:
    model = two_adapters()
    engine = NativeEngine(model, adapter="max")
    model.delete_adapter("max")
    with pytest.raises(UnknownKeyError, match="the adapter `max` is not known"):
        engine.generate([[1, 2]], LONG)


def test_a_merged_adapter_cannot_be_switched_off() -> None:
    model = two_adapters()
    model.merge_adapter()
    with pytest.raises(ModelError, match="cannot be switched"):
        NativeEngine(model, adapter=None)


def test_the_base_of_a_model_without_adapters_is_itself() -> None:
    prompt = some_prompts(2)[1]
    engine: NativeEngine = NativeEngine(tiny_model(), adapter=None)
    assert engine.generate([prompt], LONG)[0][0].ids == NativeEngine(tiny_model()).generate([prompt], LONG)[0][0].ids


@pytest.mark.parametrize("name", ["max", None])
def test_an_error_within_puts_everything_back(name: AdapterName) -> None:
    model = two_adapters()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="within"), adapter_in_use(model, name):
        raise RuntimeError("within")
    assert state_of(model) == before
