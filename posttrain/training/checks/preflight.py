"""What is proven before step 1, on the run's own rows.

    weights     every weight is a number
    rows        three decoded rows, trained text marked     stop_token   trained text ends as inference expects
    data        kept, dropped and truncated by reason       bos          one beginning token at most
    tree        the fast path equals the slow one           leak         a branch moves no other
    identity    policy = reference at step 0                memory       what a step needs against what there is
    gradient    every tensor that trains gets a gradient
    repeat      two calls on the same rows are equal

A check never changes a weight, a random stream or the data. Each is one function that returns a `Check`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from posttrain.data.dataset import EncodedDataset
from posttrain.data.mixed_rows import MixedRows
from posttrain.data.trees import collate, count, to_device
from posttrain.errors import PreflightError
from posttrain.models.folders.finite import non_finite_weights
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.parity import LOGPROB_ERROR, leak
from posttrain.models.tree.paths import probes as cut_probes
from posttrain.models.tree.paths import row_length
from posttrain.models.tree.provable import Route
from posttrain.models.tree.repeat import repeat
from posttrain.models.tree.rope import static_positions
from posttrain.outputs import Mean
from posttrain.runs.records.preflight import (
    CheckRecord,
    DecodedPiece,
    DecodedRow,
    MemoryNeed,
    MemoryRecord,
    PreflightRecord,
)
from posttrain.training.checks.memory import MemoryPlan
from posttrain.training.objectives import Algorithm
from posttrain.training.step import Reference, start_loss
from posttrain.types import Batch, TokenTree

Status = Literal["pass", "warn", "fail"]
PARITY = "tree = padded"

SHOWN_ROWS = 3
_PADDED_ADAPTER = "remove compute.logprobs: tree, or train an adapter of the weights, such as kind: lora"
PROBED_TREES = 2
"""Trees that parity, leak and gradient are proven on: enough for packing to matter, small enough for a laptop."""
PROBED_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Values are compared on the longest tree of at most so many tokens too; a longer row is proven when it comes."""
PROBE_LENGTH = 256
"""Tokens to which the probes are cut."""
SEARCHED_TREES = 64
"""The probes are the shortest of the first so many trees."""


@dataclass(frozen=True, slots=True)
class Check:
    """Check("tree", "tree = padded", "pass", "log-probs differ by at most 2.5e-05 nats ...")"""

    name: str
    title: str
    status: Status
    detail: str
    evidence: dict[str, Any] = field(default_factory=dict)
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Preflight:
    """All checks of one stage, the decoded rows, and the memory plan."""

    checks: tuple[Check, ...]
    rows: tuple[DecodedRow, ...]
    memory: MemoryPlan | None = None

    @property
    def failed(self) -> list[Check]:
        """Of a model that is noisy, the check that says so alone: all that compare two calls fail with it."""
        failed = [check for check in self.checks if check.status == "fail"]
        return [check for check in failed if check.name == "repeat"] or failed

    def with_check(self, check: Check) -> Preflight:
        """The same with `check` in the place of the one of its name."""
        return replace(self, checks=tuple(check if old.name == check.name else old for old in self.checks))

    def record(self) -> PreflightRecord:
        """The content of preflight.json."""
        checks = tuple(CheckRecord(**asdict(check)) for check in self.checks)
        if (memory := self.memory) is None:
            return PreflightRecord(checks, self.rows, None)
        needs = tuple(MemoryNeed(**asdict(item)) for item in memory.items)
        needed = MemoryRecord(needs, memory.total_bytes, memory.peak_bytes, memory.available_bytes)
        return PreflightRecord(checks, self.rows, needed)

    def require(self) -> None:
        """Raise PreflightError, naming every failed check and its remedy, if one failed."""
        if not self.failed:
            return
        raise PreflightError(
            "; ".join(f"{check.title}: {check.detail}" for check in self.failed),
            remedy="; ".join(check.remedy for check in self.failed if check.remedy)
            + "; or set preflight.on_failure: warn to train in spite of it",
        )


class Decoder(Protocol):
    """What the checks need of the encoder."""

    stop_ids: frozenset[int]

    def decode_marked(self, tree: TokenTree, branch: int = 0) -> list[tuple[str, bool]]: ...


# ---------------------------------------------------------------- data


def decoded_rows(trees: Sequence[TokenTree], decoder: Decoder) -> tuple[DecodedRow, ...]:
    """The first rows as the model will see them, one entry per branch."""
    shown = []
    for tree in trees[:SHOWN_ROWS]:
        kinds = ["demonstration"] if len(tree.branches) == 1 else ["chosen", "rejected"]
        if tree.label is not None:
            kinds = list(tree.roles)
        if tree.step_labels is not None:
            kinds = ["response in steps"]
        kinds += [f"response {i + 1}" for i in range(len(kinds), len(tree.branches))]
        for index, kind in enumerate(kinds):
            pieces = decoder.decode_marked(tree, index)
            marked = tuple(DecodedPiece(text, trained) for text, trained in pieces)
            shown.append(DecodedRow(str(tree.row), kind, marked))
    return tuple(shown)


def check_data(
    kept: int, dropped: Mapping[str, int], truncated: Mapping[str, int], tokens: int, trained_tokens: int
) -> Check:
    """How many rows are left, and how much of them trains."""
    lost, cut = sum(dropped.values()), sum(truncated.values())
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in [*dropped.items(), *truncated.items()])
    share = trained_tokens / max(1, tokens)
    evidence = {"kept": kept, "dropped": dict(dropped), "truncated": dict(truncated), "trained_share": share}
    detail = f"{kept:,} rows kept, {lost:,} dropped, {cut:,} truncated; {share:.0%} of {tokens:,} tokens train"
    if reasons:
        detail += f" ({reasons})"
    many = lost > 0.05 * (kept + lost)
    remedy = "see dropped.jsonl for the rows; raise max_length or choose another encoding.truncation" if many else None
    return Check("data", "data", "warn" if many else "pass", detail, evidence, remedy)


def check_stop_token(trees: Sequence[TokenTree], stop_ids: frozenset[int], *, wanted: bool) -> Check:
    """The share of responses whose last token is a stop token that trains."""
    # The last trained token is what inference waits for: a policy that never learns to stop runs to the limit.
    ends = Counter(
        bool(branch.loss_mask[-1]) and int(branch.ids[-1]) in stop_ids for tree in trees for branch in tree.branches
    )
    share = ends[True] / max(1, ends.total())
    evidence = {"share": share, "responses": ends.total(), "stop_ids": sorted(stop_ids)}
    detail = f"{share:.0%} of responses end with a stop token that trains"
    if not wanted:
        return Check("stop_token", "stop token", "pass", f"{detail} (encoding.stop_token: ignore)", evidence)
    if share == 0:
        remedy = "check that the chat template ends assistant turns, or set encoding.stop_token: ignore on purpose"
        return Check("stop_token", "stop token", "fail", detail, evidence, remedy)
    if share < 0.9:
        remedy = "cut responses carry no stop token; raise max_length, or max_new_tokens where they were sampled"
        return Check("stop_token", "stop token", "warn", detail, evidence, remedy)
    return Check("stop_token", "stop token", "pass", detail, evidence)


def check_bos(trees: Sequence[TokenTree], bos_id: int | None) -> Check:
    """At most one beginning-of-sequence token per row, and none inside responses."""
    if bos_id is None:
        return Check("bos", "one BOS", "pass", "the tokenizer has no beginning token")
    # Two in a row at the start; elsewhere the id may be a turn's mark (SmolLM2's BOS is <|im_start|>).
    doubled = [str(tree.row) for tree in trees if (tree.prompt_ids[:2] == bos_id).sum() == 2]
    inside = [str(t.row) for t in trees if len(t.prompt_ids) and any(b.ids[0] == bos_id for b in t.branches)]
    if doubled or inside:
        where = "twice in the prompt" if doubled else "at the start of a response"
        rows = doubled or inside
        return Check(
            "bos",
            "one BOS",
            "fail",
            f"the beginning token stands {where} in {len(rows):,} of {len(trees):,} rows",
            {"rows": rows[:10]},
            "the chat template writes it already: leave it out of the text",
        )
    return Check("bos", "one BOS", "pass", f"no row has more than one (id {bos_id})")


# ---------------------------------------------------------------- the model


def check_weights(model: nn.Module) -> Check:
    """Every weight is a number: a NaN in one of them is in every log-prob, and would be blamed on the attention."""
    bad = non_finite_weights(model)
    title = "weights are finite"
    if not bad:
        return Check("weights", title, "pass", f"{sum(1 for _ in model.parameters()):,} tensors hold numbers alone")
    shown = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    remedy = "the model was saved like this, or its file is damaged: get it again, or start from the stage before it"
    return Check("weights", title, "fail", f"{shown} hold NaN or infinity", {"tensors": bad[:20]}, remedy)


def probes(trees: Sequence[TokenTree]) -> list[TokenTree]:
    """The shortest of the first trees, cut to `PROBE_LENGTH` tokens each: two rows of 2,048 tokens on the padded path
    would need more memory before step 1 than any step after it."""
    return [shortened(tree, PROBE_LENGTH) for tree in shortest(trees)]


def shortest(trees: Sequence[TokenTree]) -> list[TokenTree]:
    """The shortest of the first trees, whole."""
    return sorted(trees[:SEARCHED_TREES], key=lambda tree: tree.num_tokens)[:PROBED_TREES]


def shortened(tree: TokenTree, most: int) -> TokenTree:
    """A tree of at most `most` tokens: the end of the prompt, and of each branch the stretch up to its last trained
    token. It is another row than the one in the file, with a key of its own, and serves to compare two ways of
    computing the same thing."""
    if tree.num_tokens <= most:
        return tree
    # An equal part for the prompt and for each branch: a prompt alone, or an answer alone, would prove nothing.
    share = max(1, most // (len(tree.branches) + 1))
    branches, labels = [], None
    for branch in tree.branches:
        trained = np.flatnonzero(branch.loss_mask)
        end = int(trained[-1]) + 1 if len(trained) else len(branch.ids)
        kept = slice(max(0, end - share), end)
        if tree.step_labels is not None:  # stepwise feedback is one branch, with a label for each trained token
            first = int(branch.loss_mask[: kept.start].sum())
            labels = tree.step_labels[first : first + int(branch.loss_mask[kept].sum())]
        columns = {name: values[kept] for name, values in branch.columns.items()}
        branches.append(replace(branch, ids=branch.ids[kept], loss_mask=branch.loss_mask[kept], columns=columns))
    prompt_ids = tree.prompt_ids[max(0, len(tree.prompt_ids) - share) :]
    return replace(tree, prompt_ids=prompt_ids, branches=tuple(branches), key=f"{tree.key}:{most}", step_labels=labels)


def lengths(trees: Sequence[TokenTree]) -> np.ndarray:
    """Tokens of each tree; those of a data set on disk are read off its offsets, and no tree is made."""
    if isinstance(trees, EncodedDataset | MixedRows):
        return trees.num_tokens
    return np.asarray([tree.num_tokens for tree in trees])


def long_probe(trees: Sequence[TokenTree], most: int) -> TokenTree | None:
    """The longest tree of at most `most` tokens; None if all are longer."""
    tokens = lengths(trees)
    tokens = np.where(tokens <= most, tokens, 0)
    longest = int(tokens.argmax())
    return trees[longest] if tokens[longest] else None


def check_repeat(policy: TreeModel, trees: Sequence[TokenTree]) -> Check:
    """Two calls on the same rows, gradients recorded and dropout off, are equal, and so are their gradients.

    It comes before all comparisons: noise would show there as a leak between rows, or as a reference that is another
    model. One short tree is enough, since noise is in every token: two of them cost a second more for each 100 million
    parameters on a laptop.
    """
    noise = repeat(policy, cut_probes(probes(trees)[:1])[0])
    family = type(policy.transformer).__name__
    evidence = {"value": noise.value, "gradient": noise.gradient, "source": noise.source}
    apart = f"{policy.compares} differ by {noise.value:.1e}, gradients by {noise.gradient:.1e} of their norm"
    if noise.holds:
        return Check("repeat", "two equal calls", "pass", f"on the same rows, {apart}", evidence)
    where = f"it begins in {noise.source}" if noise.source else "it begins in the backward pass"
    detail = f"{family} computes something else each time, with dropout off ({apart}); {where}"
    remedy = "set the probability of that module's noise to 0 in the model's config.json, or start from another model"
    return Check("repeat", "two equal calls", "fail", detail, evidence, remedy)


def choose_path(policy: TreeModel, trees: Sequence[TokenTree], asked: Literal["auto", "tree", "padded"]) -> Check:
    """Prove the fastest path that is asked for and set `policy.path`; a model that it cannot serve runs on a slower one
    and says so.

    Raises:
        ModelError: the policy is not causal: it would train on what it sees.
        torch.OutOfMemoryError and its like: running out of memory says nothing about the model, and chooses nothing.
    """
    set_path(policy, asked)
    wanted = policy.path
    # The proof sets `policy.path` to a slower one where the wanted one does not hold.
    proven = path_probes(trees, PROBED_TOKENS.get(policy.device.type, PROBED_TOKENS["cpu"]))
    policy.prove(proven)
    check = _path_check(policy, wanted, asked, longest=max(map(row_length, proven)))
    return _long_rows(policy, trees, check)


def path_probes(trees: Sequence[TokenTree], most: int) -> list[TokenTree]:
    """The shortest trees, one of middle size, and the longest of at most `most` tokens."""
    short = probes(trees)
    middle = int(np.argsort(lengths(trees), kind="stable")[len(trees) // 2])
    others = [trees[middle], long_probe(trees, most)]
    known = {tree.key for tree in short}
    return [
        *short,
        *(tree for tree in others if tree is not None and tree.num_tokens <= most and tree.key not in known),
    ]


def _path_check(policy: TreeModel, wanted: Route, asked: str, *, longest: int) -> Check:
    """What the proof found, as a check: `warn` where the rows run slower than was asked for."""
    reasons = policy.paths.reasons(policy)
    verdict = policy.paths.verdicts.get(policy.path if policy.path in policy.paths.verdicts else wanted)
    gap = None if verdict is None else verdict.gap
    evidence: dict[str, Any] = {"path": policy.path, "rows": longest}
    evidence |= {"logprob": gap.logprob, "gradient": gap.gradient} if gap is not None else {}
    errors = [one.error for one in policy.paths.verdicts.values() if one.error]
    evidence |= {"error": errors[0]} if errors else {}
    if reasons:
        failed: Status = "fail" if asked == "tree" else "warn"
        remedy = "set compute.logprobs: padded to expect this"
        if policy.path == "rows":
            remedy = "a lower max_length may keep rows apart; else expect that it takes several times as long"
        return Check("tree", PARITY, failed, "; ".join(reasons), evidence, remedy)
    if policy.virtual_tokens:
        detail = f"rows run padded: {policy.virtual_tokens} virtual tokens stand before each, so they share no prompt"
        return Check("tree", PARITY, "fail" if asked == "tree" else "pass", detail, evidence, remedy=_PADDED_ADAPTER)
    proof = f"{gap.line()}, on rows of up to {longest:,} tokens" if gap is not None else "there is nothing to compare"
    detail = f"not asked: compute.logprobs is padded; {proof}" if asked == "padded" else proof
    return Check("tree", PARITY, "pass", detail, evidence)


def _long_rows(policy: TreeModel, trees: Sequence[TokenTree], check: Check) -> Check:
    """Say so if some rows are longer than the model's rotary angles are fixed for: `Policy` runs these alone."""
    limit = static_positions(policy.transformer.config.get_text_config())
    if limit is None:
        return check
    largest = np.argsort(-lengths(trees), kind="stable")[:SEARCHED_TREES]
    longest = max(row_length(trees[int(index)]) for index in largest)
    if longest <= limit:
        return check
    detail = (
        f"{check.detail}; micro-batches with a row of more than {limit:,} tokens (the longest has {longest:,}) run one "
        "row at a time, because this model's rotary angles depend on a row's length from there on"
    )
    remedy = f"max_length: {limit} keeps every row on the fast path"
    status: Status = "fail" if check.status == "fail" else "warn"
    return replace(check, status=status, detail=detail, remedy=remedy)


def check_leak(policy: TreeModel, trees: Sequence[TokenTree]) -> Check:
    """Changing one branch must move no other branch's log-probs and gradient."""
    # A leak makes a chosen answer's log-prob depend on the rejected one beside it: the pair's margin would be fiction.
    gap = leak(policy, cut_probes(probes(trees))[0])
    evidence = {"logprob": gap.logprob, "gradient": gap.gradient}
    if gap.holds:
        return Check("leak", "no leak between branches", "pass", f"after changing one: {gap.line()}", evidence)
    remedy = "set compute.logprobs: padded; this model's attention does not keep rows apart"
    return Check("leak", "no leak between branches", "fail", f"after changing one: {gap.line()}", evidence, remedy)


class PolicyAsReference:
    """The policy as its own reference, which is what any reference is before step 1: no copy, and no cache to fill.

    Proves the objective and the gradient before the reference's log-probs of all rows are computed.
    """

    kind = "itself"

    def __init__(self, policy: TreeModel):
        self._policy = policy

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        return self._policy(batch).logprobs_N


@torch.no_grad()
def check_identity(policy: TreeModel, reference: Reference, algorithm: Algorithm, trees: Sequence[TokenTree]) -> Check:
    """At step 0 the policy is its reference: margin 0, and the loss that the objective has there (ln 2 for DPO)."""
    # Whole rows, which a cache of the reference knows; without gradients, so that they cost little.
    whole = shortest(trees)
    whole = whole if sum(tree.num_tokens for tree in whole) <= 2 * PROBE_LENGTH else whole[:1]
    batch = to_device(collate(whole), policy.device)
    logprobs = policy(batch, algorithm.wants)
    reference_N = reference.logprobs(batch).to(logprobs.logprobs_N)
    total = count(whole)
    # The exact value is the same loss of the policy against itself, so it holds for objectives without a closed form.
    out = start_loss(algorithm, logprobs, reference_N, batch, total)
    loss = float(out.loss)
    exact = float(start_loss(algorithm, logprobs, logprobs.logprobs_N, batch, total).loss)
    margin = out.metrics.get("reward_margin", Mean(0.0, 1)).value
    apart = float((logprobs.logprobs_N - reference_N).abs().max())
    evidence = {"loss": loss, "expected_loss": exact, "margin": margin, "largest_logprob_gap": apart}
    detail = f"loss {loss:.6f} (expected {exact:.6f}), margin {margin:+.1e}, log-probs within {apart:.1e} nats"
    allowed = LOGPROB_ERROR[policy.autocast or policy.dtype]  # other micro-batches round differently
    equal = apart <= max(allowed, 1e-3) and abs(loss - exact) <= max(allowed, 1e-3) * max(1.0, abs(exact))
    remedy = None if equal else "the reference is not the policy's start: run with --fresh to compute it again"
    return Check("identity", "policy = reference at step 0", "pass" if equal else "fail", detail, evidence, remedy)


LEFT_OUT = {
    "fast": "two equal calls, no leak between branches, the reference at step 0, the sampler's log-probs, and the "
    "measured memory of a step",
    "off": "nothing but finite weights",
}
"""What a preflight that is not whole says of itself; the second is what it proves."""


def check_mode(mode: Literal["fast", "off"]) -> Check:
    """The line by which a report names a preflight that is not whole."""
    # Paths are proven all the same: a policy's first forward does it where nobody has (`models.tree.paths`).
    remedy = "before a result counts, run once with `preflight: full`, or `posttrain check`"
    if mode == "fast":
        return Check("mode", "fast preflight", "pass", f"not proven: {LEFT_OUT[mode]}", {"mode": mode}, remedy)
    detail = f"`preflight: off`: {LEFT_OUT[mode]} was proven of this run"
    return Check("mode", "no preflight", "warn", detail, {"mode": mode}, remedy)


def set_path(policy: TreeModel, asked: Literal["auto", "tree", "padded"]) -> None:
    """The fastest path that is asked for, unproven: the first forward proves it, or takes a slower one."""
    policy.path = "padded" if policy.virtual_tokens or asked == "padded" else "tree"


def check_memory(memory: MemoryPlan) -> Check:
    """The plan against the memory that is free."""
    evidence = {"total_bytes": memory.total_bytes, "available_bytes": memory.available_bytes}
    if memory.fits:
        return Check("memory", "memory", "pass", memory.line(), evidence)
    remedy = "lower compute.tokens_per_microbatch, set compute.activation_checkpointing: true, or train an adapter"
    return Check("memory", "memory", "warn", memory.line(), evidence, remedy)
