"""The audit's questions to a model: the numbers against a plain forward pass, and the checks on planted numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.auditing.checks import AUDIT_CHECKS
from posttrain.auditing.corpus import Corpus
from posttrain.auditing.finding import AuditFinding
from posttrain.auditing.policy import measure_pairs
from posttrain.auditing.subject import PairMeasurements, Subject
from posttrain.data.encode import Encoder
from posttrain.types import Comparison, Message, RowRef
from tests.audit_rows import clean_pairs, pair
from tests.fixtures import byte_tokenizer, tiny_model

PAIRS = [
    pair("Hi?", "Hello there.", "What.", 1),
    pair("Who are you?", "I am Pia.", "I am Ada, and I can help.", 2),
    pair("2 + 2?", "4", "5", 3),
    Comparison(
        (Message("user", "Name a colour."),),
        tuple((Message("assistant", said),) for said in ("A dog.", "Blue.", "Bluish.")),
        1,
        RowRef("pairs.jsonl", 4),
        (1, 2, 0),
    ),
]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Encoder]:
    tokenizer = byte_tokenizer(template="CHATML")
    return tiny_model("llama", vocab=len(tokenizer)), Encoder(tokenizer)


@torch.no_grad()
def by_hand(model: Any, encoder: Encoder, example: Comparison, side: int) -> tuple[float, float, int, torch.Tensor]:
    """(sum of log-probs, mean surprise, tokens, mean hidden state) of one response, by a plain forward pass."""
    from posttrain.types import Demonstration

    (tree,) = encoder.demonstration(Demonstration((*example.prompt, *example.responses[side]), example.row))
    (branch,) = tree.branches
    ids = torch.tensor(np.concatenate([tree.prompt_ids, branch.ids]), dtype=torch.long)[None]
    output = model(input_ids=ids, output_hidden_states=True)
    first, trained = len(tree.prompt_ids), branch.loss_mask
    log_p = torch.log_softmax(output.logits[0].float(), dim=-1)
    places = first - 1 + torch.arange(len(branch.ids))[torch.tensor(trained)]
    chosen = log_p[places, ids[0, places + 1]]
    entropy = -(log_p[places].exp() * log_p[places]).sum(dim=1)
    hidden = output.hidden_states[-1][0, places].mean(dim=0)
    return float(chosen.sum()), float((-chosen - entropy).mean()), len(places), hidden


@pytest.mark.parametrize("path", ["tree", "padded", None])
def test_numbers_are_those_of_a_plain_forward_pass(models: tuple[Any, Encoder], path: Any) -> None:
    model, encoder = models
    measured = measure_pairs(Corpus(PAIRS), PAIRS, model, encoder, path=path)
    assert measured.row_P.tolist() == [0, 1, 2, 3]
    for place, example in enumerate(PAIRS):
        order = example.ranking or (0, 1)
        chosen, rejected = by_hand(model, encoder, example, order[0]), by_hand(model, encoder, example, order[-1])
        assert measured.logprob_C[place] == pytest.approx(chosen[0], abs=1e-3)
        assert measured.logprob_R[place] == pytest.approx(rejected[0], abs=1e-3)
        assert measured.surprise_R[place] == pytest.approx(rejected[1], abs=1e-4)
        assert (measured.tokens_C[place], measured.tokens_R[place]) == (chosen[2], rejected[2])
        ches = float(chosen[3] @ rejected[3] - chosen[3] @ chosen[3])
        assert measured.ches_P[place] == pytest.approx(ches, abs=2e-3)
        assert measured.alike_P[place] == pytest.approx(1 + ches / float(chosen[3] @ chosen[3]), abs=1e-4)


def test_sides_that_share_their_words_are_more_alike(models: tuple[Any, Encoder]) -> None:
    model, encoder = models
    rows = [
        pair("Who?", "I am the baker of this village.", "I am the baker of that village.", 1),
        pair("Who?", "I am the baker of this village.", "0x3f; 99 %!", 2),
    ]
    measured = measure_pairs(Corpus(rows), rows, model, encoder)
    assert measured.alike_P[0] > 0.9 > measured.alike_P[1]


# ---------------------------------------------------------------- the checks

CORPUS = Corpus(clean_pairs(200))


def healthy(seed: int = 0) -> PairMeasurements:
    """A policy near its data: both sides about as likely as its own samples, the chosen one a little more."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(20, 80, (2, 200))
    per_token = generator.normal([[-1.0], [-1.1]], 0.15, (2, 200))
    surprise = generator.normal(0.2, 0.2, (2, 200))
    alike = generator.normal(0.6, 0.1, 200)
    sums = per_token * tokens
    return PairMeasurements(
        np.arange(200), sums[0], sums[1], tokens[0], tokens[1], surprise[0], surprise[1], alike * 50 - 50, alike
    )


def asked(check: str, measured: PairMeasurements | None) -> list[AuditFinding]:
    return list(AUDIT_CHECKS[check].find(Subject(CORPUS, measured=measured)))


MODEL_CHECKS = ["stale_negatives", "separated_pairs", "wrong_ranking", "displacement"]


@pytest.mark.parametrize("check", MODEL_CHECKS)
def test_a_healthy_policy_is_silent(check: str) -> None:
    for seed in range(3):
        assert asked(check, healthy(seed)) == []
    assert asked(check, None) == []


def some(share: float, values: np.ndarray, planted: np.ndarray | float) -> np.ndarray:
    first = np.arange(len(values)) < share * len(values)
    return np.where(first, planted, values)


def test_stale_negatives() -> None:
    measured = healthy()
    (most,) = asked("stale_negatives", replace(measured, surprise_R=some(0.7, measured.surprise_R, 3.0)))
    assert most.severity == "warning" and len(most.rows) == 140
    (some_,) = asked("stale_negatives", replace(measured, surprise_R=some(0.3, measured.surprise_R, 1.2)))
    assert some_.severity == "note"
    # Both sides off-policy alike is another matter than stale negatives: the chosen side is news to the policy.
    both = replace(measured, surprise_R=np.full(200, 2.0), surprise_C=np.full(200, 2.5))
    assert asked("stale_negatives", both) == []


def test_separated_pairs() -> None:
    measured = healthy()
    apart = some(0.8, measured.logprob_R, measured.logprob_C - 3.0 * measured.tokens_R)
    (finding,) = asked("separated_pairs", replace(measured, logprob_R=apart, tokens_R=measured.tokens_C))
    assert finding.severity == "warning" and len(finding.rows) >= 160
    a_third = some(0.35, measured.logprob_R, measured.logprob_C - 1.2 * measured.tokens_C)
    (mild,) = asked("separated_pairs", replace(measured, logprob_R=a_third, tokens_R=measured.tokens_C))
    assert mild.severity == "note"


def test_wrong_ranking_needs_both_readings() -> None:
    measured = healthy()
    swapped = replace(
        measured,
        logprob_C=measured.logprob_R - 20,
        logprob_R=measured.logprob_C,
        tokens_C=measured.tokens_R,
        tokens_R=measured.tokens_C,
    )
    (finding,) = asked("wrong_ranking", swapped)
    assert finding.severity == "warning" and finding.evidence["ranking_accuracy"] < 0.3
    longer = replace(measured, logprob_C=measured.logprob_C * 3, tokens_C=measured.tokens_C * 3)
    assert asked("wrong_ranking", longer) == []  # less likely by length alone


def test_displacement() -> None:
    measured = healthy()
    (many,) = asked("displacement", replace(measured, alike_P=some(0.4, measured.alike_P, 0.99)))
    assert many.severity == "warning" and "2410.08847" in many.evidence["measure"]
    (few,) = asked("displacement", replace(measured, alike_P=some(0.1, measured.alike_P, 0.96)))
    assert few.severity == "note" and len(few.rows) == 20
