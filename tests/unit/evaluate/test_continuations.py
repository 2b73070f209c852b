"""How likely continuations are: trees of choices against a row for each choice, and whether greedy would say them."""

from __future__ import annotations

import random

import pytest
import torch

from posttrain.evaluate.lm_eval.likelihood import Continuations, ContinuationScorer
from tests.fixtures import tiny_model


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_choices_are_scored_as_each_alone(arch: str) -> None:
    model = tiny_model(arch)
    rng = random.Random(0)
    asked = []
    for _ in range(4):
        context = tuple(rng.choices(range(3, 97), k=rng.randint(1, 9)))
        with torch.no_grad():
            greedy = [int(model(input_ids=torch.tensor([context])).logits[0, -1].argmax())]
            greedy.append(int(model(input_ids=torch.tensor([[*context, *greedy]])).logits[0, -1].argmax()))
        # What greedy decoding would say, the same with another end, and any other.
        others = [tuple(rng.choices(range(3, 97), k=rng.randint(1, 4))) for _ in range(2)]
        asked.append(Continuations(context, (tuple(greedy), (greedy[0], (greedy[1] + 1) % 97), *others)))
    found = ContinuationScorer(model).score(asked)
    for one, likelihoods in zip(asked, found, strict=True):
        assert [likelihood.is_greedy for likelihood in likelihoods[:2]] == [True, False]
        for ids, likelihood in zip(one.branches, likelihoods, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*one.context, *ids]])).logits[0, len(one.context) - 1 : -1]
            wanted = torch.log_softmax(logits.double(), dim=-1).gather(1, torch.tensor(ids)[:, None]).sum()
            assert likelihood.logprob == pytest.approx(float(wanted), abs=1e-4)
            assert likelihood.is_greedy == bool((logits.argmax(dim=-1) == torch.tensor(ids)).all())


def test_progress_is_told_by_micro_batch() -> None:
    asked = [Continuations((1, 2), ((3,), (4, 5))), Continuations((6,), ((7, 8, 9),))]
    told: list[tuple[int, int]] = []
    ContinuationScorer(tiny_model()).score(asked, lambda count, tokens: told.append((count, tokens)))
    assert [sum(column) for column in zip(*told, strict=True)] == [3, 6]


def test_nothing_is_asked_of_no_context() -> None:
    assert ContinuationScorer(tiny_model()).score([]) == []
