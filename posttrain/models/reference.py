"""The reference of preference losses and KL terms: the policy as it was at its start, whatever adapters it came with.

Three kinds that give the same numbers:

- `cached`: the log-probs of every tree, computed once before the first update and kept on disk. No second model in
  memory, and every later epoch is free.
- `adapter_off`: the policy with its adapter switched off. Right only while the adapter was fresh at the start: an
  adapter that had been trained before belongs to the reference too, so any other is refused.
- `live`: a frozen copy. Weights that do not train are shared with the policy, so a copy under LoRA costs the adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from posttrain.data.trees import collate, pack
from posttrain.errors import ConfigError, ModelError, NonFiniteError
from posttrain.models.adapters.kinds import is_fresh
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.logprob_store import LogprobStore, SegmentWriter
from posttrain.models.sharding.copies import twin
from posttrain.models.tree.divergence import Distributions
from posttrain.models.tree.logprobs import Policy
from posttrain.types import Batch, TokenTree, Wants

Kind = Literal["auto", "cached", "adapter_off", "live"]
Progress = Callable[[int, int], None]
"""progress(tokens done, tokens in all)"""

WINDOW = 1024
"""Trees packed together while a cache is filled: enough to fill micro-batches well, few enough to hold in memory."""

NOT_COMPUTED_WITH = ("_name_or_path", "transformers_version", "architectures", "use_cache", "dtype", "torch_dtype")
"""Keys of a config that change no log-prob."""


class Reference(Protocol):
    """reference.logprobs(batch) -> Tensor [N]: nats, detached, in the order of `batch.target_index_N`."""

    kind: str

    def logprobs(self, batch: Batch) -> Tensor: ...


def reference(
    kind: Kind,
    policy: Policy,
    *,
    trees: Sequence[TokenTree] | None = None,
    store: Path | None = None,
    tokens_per_microbatch: int = 4096,
    passes: float = 1.0,
    progress: Progress | None = None,
) -> CachedReference | AdapterOffReference | LiveReference:
    """A reference for `policy` as it is now; call this before the first update.

    `auto` takes `cached` where the trees are known and each is used at least once (`passes`, in epochs); else
    `adapter_off` if the adapter is fresh, else `live`.

    Args:
        trees: all trees that will be asked for; needed by `cached`.
        store: the folder of the cache; needed by `cached`.

    Raises:
        ConfigError: an unknown kind, `cached` without trees or store, `adapter_off` with an adapter that is not fresh.
    """
    if kind == "auto":
        # Under one epoch some trees are never asked for, and computing all of them first costs more than it saves.
        known = trees is not None and store is not None and passes >= 1
        kind = "cached" if known else "adapter_off" if is_fresh(policy.model) else "live"
    if kind == "cached":
        if trees is None or store is None:
            raise ConfigError(
                "a cached reference needs all trees before the first step",
                where="reference.kind",
                found="no trees" if trees is None else "no folder to keep them in",
                remedy="use `live`, or `adapter_off` with a fresh adapter, where the data is made during the run",
            )
        return CachedReference.build(
            policy, trees, store, tokens_per_microbatch=tokens_per_microbatch, progress=progress
        )
    if kind == "adapter_off":
        return AdapterOffReference(policy)
    if kind == "live":
        return LiveReference(policy)
    raise ConfigError(
        "no such kind of reference",
        where="reference.kind",
        found=repr(kind),
        expected="auto, cached, adapter_off or live",
        remedy="choose one of them",
    )


# ---------------------------------------------------------------- cached


class CachedReference:
    """Log-probs computed once, looked up by the tree's content.

    Args:
        key: what the numbers depend on besides the tree: `reference_key(policy)` at the start of training. A resumed
            run, whose policy has moved on, passes the key it kept.
    """

    kind = "cached"

    def __init__(self, store: Path, key: str, dtype: torch.dtype = torch.float32):
        self.key = key
        self._dtype = _stored_dtype(dtype)
        self._store = LogprobStore(store / key[:32], key, self._dtype)

    @classmethod
    def build(
        cls,
        policy: Policy,
        trees: Sequence[TokenTree],
        store: Path,
        *,
        tokens_per_microbatch: int,
        progress: Progress | None = None,
    ) -> CachedReference:
        """Compute what `store` does not hold yet for these weights; an interrupted build goes on where it stopped.

        Call it once for each data set (training, held-out): the last result knows the trees of all.

        Raises:
            NonFiniteError: a log-prob is NaN or infinite; the rows are named and nothing of them is kept.
        """
        cached = cls(store, reference_key(policy), policy.dtype)
        missing, total = cached._missing(trees)
        done = 0
        with SegmentWriter(cached._store.folder, cached._dtype) as writer:
            for members in _microbatches(trees, missing, tokens_per_microbatch):
                for tree, values in zip(members, _values(policy, members), strict=True):
                    writer.append(tree.key, values)
                done += sum(tree.num_tokens for tree in members)
                if progress:
                    progress(done, total)
        cached._store.refresh()
        return cached

    def _missing(self, trees: Sequence[TokenTree]) -> tuple[list[int], int]:
        """Indices of the trees to compute, each content once, and how many tokens they have."""
        seen: set[str] = set()
        missing, total = [], 0
        for index, tree in enumerate(trees):
            if tree.key in seen or tree.key in self._store:
                continue
            seen.add(tree.key)
            missing.append(index)
            total += tree.num_tokens
        return missing, total

    def logprobs(self, batch: Batch) -> Tensor:
        """Raises ModelError for a tree that was never cached: data that changed since the run began."""
        found = []
        for key, row, expected in zip(batch.keys, batch.rows, _trained_per_tree(batch), strict=True):
            values = self._store.get(key)
            # The length as well: numbers of another count would slide against the tokens of every row after this one.
            if values is None or len(values) != expected:
                raise ModelError(
                    "the reference log-probs of this row were never computed",
                    where=row,
                    found=f"no entry for tree {key[:12]} in {self._store.folder}",
                    remedy="build the cached reference over every data set of the stage, the held-out rows too",
                )
            found.append(values)
        return torch.from_numpy(np.concatenate(found)).to(batch.input_ids_T.device)


def reference_key(policy: Policy) -> str:
    """What reference log-probs depend on besides the tree: weights, config, path and precision, as one hash."""
    config = policy.causal_lm.config.to_dict()
    settings = {
        "weights": weights_fingerprint(policy.model),
        "config": {name: value for name, value in config.items() if name not in NOT_COMPUTED_WITH},
        # The paths agree to rounding only: after a change of path, step 0's log-ratios would no longer be exactly 0.
        "path": policy.path,
        "dtype": str(policy.dtype),
        "autocast": str(policy.autocast),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _stored_dtype(dtype: torch.dtype) -> np.dtype:
    """fp32, as log-probs are computed; fp64 where the model is."""
    return np.dtype(np.float64 if dtype == torch.float64 else np.float32)


def _microbatches(trees: Sequence[TokenTree], indices: list[int], budget: int) -> Iterator[list[TokenTree]]:
    for start in range(0, len(indices), WINDOW):
        yield from pack([trees[index] for index in indices[start : start + WINDOW]], budget)


def _values(policy: Policy, trees: list[TokenTree]) -> list[np.ndarray]:
    """One array for each tree; a tree that trains nothing has an empty one."""
    sizes = [tree.num_trained for tree in trees]
    if not any(sizes):
        return [np.empty(0)] * len(trees)
    batch = collate(trees)
    # Refused before it is stored: a NaN in the cache would meet every later run as a loss that is not finite.
    values_N = _frozen_logprobs(policy, batch).cpu().numpy()
    _refuse_non_finite(values_N, batch)
    return np.split(values_N, np.cumsum(sizes)[:-1])


def _trained_per_tree(batch: Batch) -> list[int]:
    tree_N = batch.tree_B[batch.branch_N]
    return torch.bincount(tree_N, minlength=batch.num_trees).tolist()


def _refuse_non_finite(values_N: np.ndarray, batch: Batch) -> None:
    if np.isfinite(values_N).all():
        return
    tree_N = batch.tree_B[batch.branch_N].numpy()
    raise NonFiniteError(
        "the reference's log-probs are not finite",
        tensors=("reference log-probs",),
        rows=sorted({str(batch.rows[index]) for index in tree_N[~np.isfinite(values_N)]}),
        remedy="check the start model: its weights or its precision overflow on these rows",
    )


# ---------------------------------------------------------------- adapter off


class AdapterOffReference:
    """The policy's own base: no copy and no cache, one more forward per micro-batch.

    Raises:
        ConfigError: the adapter is not fresh, so the base alone is not the start.
    """

    kind = "adapter_off"

    def __init__(self, policy: Policy):
        # An adapter that was trained before belongs to the start: without it, KL and log-ratios would be to another
        # model.
        if not is_fresh(policy.model):
            raise ConfigError(
                "the adapter is not fresh, so the model without it is not the start of this run",
                where="reference.kind",
                found="an adapter that was trained before, or no LoRA adapter at all",
                remedy="use `cached` or `live`",
            )
        self._policy = policy

    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        with self._off():
            return _frozen_logprobs(self._policy, batch, temperature)

    @torch.no_grad()
    def distributions(self, batch: Batch, index_S: Tensor | None = None, *, temperature: float = 1.0) -> Distributions:
        """For an exact KL; the head runs without the adapter too."""
        with self._off():
            # The head runs later, when this context is left: it has to switch the adapter off again by itself.
            found = self._policy.distributions(batch, index_S, temperature=temperature)
        return replace(found, switched=self._off)

    def _off(self) -> AbstractContextManager[Any]:
        return self._policy.model.disable_adapter()  # type: ignore[operator]


# ---------------------------------------------------------------- live


class LiveReference:
    """A frozen copy of the policy, adapters included.

    Parameters that do not train are shared with the policy and not copied. Do not merge the adapter into the policy's
    own weights while this lives: they are the reference's weights too.
    """

    kind = "live"

    def __init__(self, policy: Policy):
        policy.settle()
        self._shared = [p for p in policy.model.parameters() if not p.requires_grad]
        model = twin(policy.model, lambda own: own.detach().clone() if own.requires_grad else own)
        # The copies alone: freezing a shared parameter would freeze it in the policy as well.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
        self._policy = Policy(model, policy.path, autocast=policy.autocast, sharding=policy.sharding)

    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """Raises ModelError once a shared weight has been set to train: it would move under the reference."""
        self._require_frozen()
        return _frozen_logprobs(self._policy, batch, temperature)

    @torch.no_grad()
    def distributions(self, batch: Batch, index_S: Tensor | None = None, *, temperature: float = 1.0) -> Distributions:
        """For an exact KL. Raises as `logprobs` does."""
        self._require_frozen()
        return self._policy.distributions(batch, index_S, temperature=temperature)

    def _require_frozen(self) -> None:
        # Checked at each call: unfreezing may happen at any time, and the reference would then follow the policy in
        # silence.
        if any(parameter.requires_grad for parameter in self._shared):
            raise ModelError(
                "weights that the reference shares with the policy have begun to train",
                remedy="decide what trains before the reference is made",
            )


@torch.no_grad()
def _frozen_logprobs(policy: Policy, batch: Batch, temperature: float = 1.0) -> Tensor:
    return policy(batch, Wants(temperature=temperature)).logprobs_N
