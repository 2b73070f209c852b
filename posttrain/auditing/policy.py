"""What a model thinks of the pairs: log-probs of both sides, and how alike their hidden states are.

The only part of the audit that needs torch; `run.py` loads it when a model is given, `checks.py` when its checks run.

measured = measure_pairs(corpus, pairs, loaded.model, Encoder(loaded.tokenizer))
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.auditing.corpus import Corpus
from posttrain.auditing.finding import AuditFinding, AuditSeverity, excerpt, percent
from posttrain.auditing.subject import FEWEST_PAIRS, PairMeasurements, Subject
from posttrain.data.encode import Encoder
from posttrain.data.store import encode
from posttrain.data.trees import collate, pack, to_device
from posttrain.intervals import wilson
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.provable import Route
from posttrain.types import Batch, Example, TokenTree, Wants

STALE = 1.0
"""Nats per token by which a response is less likely than the policy's own samples would be in its place."""
SEPARATED = 1.0
"""Nats per token by which the chosen side is likelier already."""
ALIKE_STATES = 0.95
"""CHES relative to the chosen side's own norm, plus one: 1 where the two sides' hidden states are the same."""
TOKENS_AT_ONCE = 4096
"""Tokens of one forward; small, since the entropy needs the whole vocabulary's log-probs of each."""
_WINDOW = 256
"""Trees that are packed together: enough to fill batches well, few enough that progress moves."""


class HiddenPolicy(Policy):
    """A policy that also hands out the hidden states that its log-probs are made of."""

    @torch.no_grad()
    def measured(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(log-probs [N], entropy [N], mean hidden state of each branch's predictors [B, D])

        The predictors of a response are the prompt's last token and all of its own but the last: the prefixes whose
        hidden states CHES sums up.
        """
        batch = to_device(batch, self.device)
        out = self(batch, Wants(entropy=True, hidden=True))
        logprobs_N, entropy_N, hidden_ND = out.logprobs_N, out.entropy_N, out.hidden_ND
        sums_BD = torch.zeros(batch.num_branches, hidden_ND.shape[1], device=hidden_ND.device)
        sums_BD.index_add_(0, batch.branch_N, hidden_ND.float())
        counts_B = torch.bincount(batch.branch_N, minlength=batch.num_branches).clamp(min=1)
        return logprobs_N.float(), entropy_N.float(), sums_BD / counts_B[:, None]


def measure_pairs(
    corpus: Corpus,
    examples: Iterable[Example],
    model: Any,
    encoder: Encoder,
    *,
    path: Route | None = None,
    progress: Callable[[int], None] | None = None,
) -> PairMeasurements:
    """Log-probs and hidden similarities of every pair; of a ranked list the best and the worst response.

    Args:
        examples: what the corpus was made of, once more.
        path: the fastest that may be taken; it is proven on the rows themselves.

    Raises:
        EncodingError, EmptyDatasetError: the rows cannot be encoded for this model.
    """
    policy = HiddenPolicy(model)
    row_of_ref = {ref: row for row, ref in enumerate(corpus.refs(range(len(corpus))))}
    values_of_row: list[tuple[int, list[float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        # Rows that cannot be encoded are left to the encoder's own counts: a check on the others is still worth having.
        trees = encode(examples, encoder, store=folder, workers=1, bad_rows="skip")
        if path is not None:
            policy.path = path
        for start in range(0, len(trees), _WINDOW):
            # Branches are in the order of the ranking: the first is the best response, the last the worst.
            ranked = [trees[i] for i in range(start, min(start + _WINDOW, len(trees)))]
            window = [TokenTree(t.prompt_ids, (t.branches[0], t.branches[-1]), t.key, t.row) for t in ranked]
            for group in pack(window, TOKENS_AT_ONCE):
                values = _measure_batch(policy, collate(group))
                values_of_row += [(row_of_ref[tree.row], row) for tree, row in zip(group, values, strict=True)]
            if progress is not None:
                progress(len(window))
    values_of_row.sort()  # packing has changed the order; columns are in the order of rows
    columns = np.array([values for _, values in values_of_row], dtype=np.float64).T
    return PairMeasurements(np.array([row for row, _ in values_of_row], dtype=np.int64), *columns)


def _measure_batch(policy: HiddenPolicy, batch: Batch) -> np.ndarray:
    """The columns of `PairMeasurements` after `row_P`, [P, 8]."""
    logprobs_N, entropy_N, hidden_BD = policy.measured(batch)
    branch_N = batch.branch_N.to(logprobs_N.device)
    num_branches = batch.num_branches
    logprob_B = torch.zeros(num_branches, device=logprobs_N.device).index_add_(0, branch_N, logprobs_N)
    surprise_B = torch.zeros_like(logprob_B).index_add_(0, branch_N, -logprobs_N - entropy_N)
    tokens_B = torch.bincount(branch_N, minlength=num_branches).clamp(min=1)
    surprise_B = surprise_B / tokens_B
    # CHES of definition 2: <chosen, rejected> - |chosen|^2, here of mean states, which makes it length-normalised.
    chosen_PD, rejected_PD = hidden_BD[0::2], hidden_BD[1::2]
    norm_P = (chosen_PD * chosen_PD).sum(dim=1)
    ches_P = (chosen_PD * rejected_PD).sum(dim=1) - norm_P
    columns = [
        logprob_B[0::2],
        logprob_B[1::2],
        tokens_B[0::2],
        tokens_B[1::2],
        surprise_B[0::2],
        surprise_B[1::2],
        ches_P,
        1 + ches_P / norm_P,
    ]
    return torch.stack([column.float() for column in columns], dim=1).cpu().numpy()


# ---------------------------------------------------------------- checks


def stale_negatives(subject: Subject) -> list[AuditFinding]:
    """Rejected sides that the policy would never say: pushing them down further teaches nothing."""
    measured = subject.measured
    if measured is None:
        return []
    stale = (measured.surprise_R >= STALE) & (measured.surprise_R > measured.surprise_C)
    # The interval's lower end, in all checks below: a share of a few dozen pairs is uncertain by ten points.
    low, _ = wilson(float(stale.sum()), len(measured))
    if low < 0.2:
        return []

    share = float(stale.mean())
    evidence = {
        "median_surprise_chosen": float(np.median(measured.surprise_C)),
        "median_surprise_rejected": float(np.median(measured.surprise_R)),
        "threshold_nats_per_token": STALE,
        "examples": _pair_examples(subject, measured.row_P[np.argsort(-measured.surprise_R)[:3]], "rejected"),
    }
    message = (
        f"the rejected side is {STALE:g} nat a token or more less likely than the policy's own samples in "
        f"{percent(share)} of the pairs"
    )
    remedy = (
        "sample rejected sides from this policy (stage `correction`, or best and worst of its own answers): what it "
        "does not say needs no unlearning (Tajwar et al. 2024, arXiv:2404.14367)"
    )
    rows = subject.corpus.refs(measured.row_P[stale])
    return [
        AuditFinding("stale_negatives", "warning" if low >= 0.5 else "note", message, share, rows, evidence, remedy)
    ]


def separated_pairs(subject: Subject) -> list[AuditFinding]:
    """Pairs that the policy tells apart already."""
    measured = subject.measured
    if measured is None:
        return []
    gap = measured.logprob_C / measured.tokens_C - measured.logprob_R / measured.tokens_R
    apart = (gap >= SEPARATED) & (measured.logprob_C > measured.logprob_R)
    low, _ = wilson(float(apart.sum()), len(measured))
    if low < 0.2:
        return []
    share = float(apart.mean())
    evidence = {"median_gap_nats_per_token": float(np.median(gap)), "threshold_nats_per_token": SEPARATED}
    of_pairs = f"{percent(share)} of the pairs"
    message = f"the policy already prefers the chosen side by {SEPARATED:g} nat a token or more in {of_pairs}"
    remedy = (
        "drop the widest of them, or collect harder pairs: these give a reference-free objective next to no gradient"
    )
    rows = subject.corpus.refs(measured.row_P[apart])
    return [
        AuditFinding("separated_pairs", "warning" if low >= 0.5 else "note", message, share, rows, evidence, remedy)
    ]


def wrong_ranking(subject: Subject) -> list[AuditFinding]:
    """Pairs whose rejected side the reference finds likelier; DPO seldom turns them round."""
    measured = subject.measured
    if measured is None or len(measured) < FEWEST_PAIRS:
        return []
    # Sums of log-probs, as DPO's implicit reward has them.
    wrong = measured.logprob_C < measured.logprob_R
    per_token = measured.logprob_C / measured.tokens_C < measured.logprob_R / measured.tokens_R
    low, high = wilson(float(wrong.sum()), len(measured))
    low_per_token, _ = wilson(float(per_token.sum()), len(measured))
    if low < 0.5 or low_per_token < 0.5:  # a longer side is less likely by its length alone: both must say it
        return []
    share = float(wrong.mean())
    severity: AuditSeverity = "warning" if min(low, low_per_token) >= 0.65 else "note"
    evidence = {
        "ranking_accuracy": 1 - share,
        "interval": [1 - high, 1 - low],
        "ranking_accuracy_per_token": 1 - float(per_token.mean()),
        "median_gap_of_wrong_ones": float(np.median((measured.logprob_R - measured.logprob_C)[wrong])),
    }
    message = f"the reference finds the rejected side likelier in {percent(share)} of the pairs"
    remedy = (
        "train on the chosen sides first (SFT), or check the labels: DPO rarely turns such pairs round (Chen et al. "
        "2024, arXiv:2405.19534)"
    )
    rows = subject.corpus.refs(measured.row_P[wrong & per_token])
    return [AuditFinding("wrong_ranking", severity, message, share, rows, evidence, remedy)]


def displacement(subject: Subject) -> list[AuditFinding]:
    """Pairs whose two sides have nearly the same hidden states: training on them drags the chosen side down, too."""
    measured = subject.measured
    if measured is None:
        return []
    alike = measured.alike_P >= ALIKE_STATES
    share = float(alike.mean())
    if share < 0.05:
        return []

    top = np.argsort(-measured.alike_P)[:3]
    evidence = {
        "measure": "CHES, length-normalised (Razin et al. 2024, arXiv:2410.08847)",
        "median_ches": float(np.median(measured.ches_P)),
        "median_alike": float(np.median(measured.alike_P)),
        "threshold_alike": ALIKE_STATES,
        "examples": _pair_examples(subject, measured.row_P[top], "both"),
    }
    message = (
        f"the two sides have nearly the same hidden states in {percent(share)} of the pairs: expect the chosen side to "
        "fall, too"
    )
    remedy = (
        "leave out the pairs with the highest CHES, or use an objective that holds the chosen side up (dpo_nll, dpop), "
        "and watch the alarm for likelihood displacement"
    )
    rows = subject.corpus.refs(measured.row_P[alike])
    return [
        AuditFinding("displacement", "warning" if share >= 0.25 else "note", message, share, rows, evidence, remedy)
    ]


def _pair_examples(subject: Subject, rows: np.ndarray, side: str) -> list[dict[str, str]]:
    corpus, sides = subject.corpus, subject.corpus.sides
    shown = []
    for row in rows.tolist():
        entry = {"row": str(corpus.ref(row)), "rejected": excerpt(corpus.responses[int(sides.rejected_P[row])])}
        if side == "both":
            entry["chosen"] = excerpt(corpus.responses[int(sides.chosen_P[row])])
        shown.append(entry)
    return shown
