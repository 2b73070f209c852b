"""Models whose tokens differ, put together by the tokens' texts: which row of each model is which row of the merge.

    vocabulary = vocabulary_of(models, base, "union")      # None where all agree
    vocabulary.rows_of[1]                                  # [V] int64: the second model's row of each id; -1: none

What can be put together are tokens that were added to one vocabulary: the same pieces and the same merges cut the text
between them. Two tokenizers that cut text differently have no common rows, whatever their tokens are called: adding
one's pieces to the other as whole tokens would change how every word is cut, and no weight was trained on that.

Deviations from mergekit's `tokenizer: {source: union}`
 1. A row that some model (or the base) lacks is not filled in for it (mergekit takes zeros or means). The merged row is
    the weighted mean of the models that have it, and of one alone its own row; the method sees the rows that all have.
    Nothing is made up, and a token that one specialist learnt is not shrunk by models that never saw it.
    `missing_tokens: pieces` fills in, with what the model itself would have read: the mean of the rows of the pieces
    into which its own tokenizer cuts the token's text, which is how a row of a new token is started (Hewitt 2021,
    nlp.stanford.edu/~johnhew/vocab-expansion.html, takes the mean of all rows).
 2. Tokenizers of another kind are refused; mergekit puts their pieces together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain.errors import ConfigError
from posttrain.models.folders.own_code import code_runs
from posttrain.models.folders.quiet import quiet
from posttrain.models.merging.inputs import OpenModel
from posttrain.models.merging.methods.table import Parts
from posttrain.models.merging.refusals import other_cut


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The merged model's tokens: Vocabulary(tokenizer, rows=514, rows_of=(...), names={"embed_tokens.weight"})."""

    tokenizer: Any
    rows: int
    """Of its embeddings."""
    rows_of: tuple[Tensor, ...]
    """For each model, and the base last where there is one: its own row of each merged row; -1 where it has none."""
    names: frozenset[str]
    """The tensors that have a row for each token."""
    pieces: tuple[Mapping[int, tuple[int, ...]], ...] = ()
    """For each of `rows_of`: the merged rows that are filled in, with the model's own rows whose mean is taken. Empty:
    nothing is filled in."""
    added: tuple[str, ...] = ()
    """Tokens that were added to the first model's, or that the base does not have and that are gone."""


def vocabulary_of(
    models: Sequence[OpenModel], base: OpenModel | None, tokens: str, missing: str = "own"
) -> Vocabulary | None:
    """The merged vocabulary; None where every model has the same tokens at the same ids.

    Args:
        tokens: `refuse` (they were found equal), `union` or `base`.
        missing: `pieces` fills in the rows of tokens that a model lacks; `own` does not.

    Raises:
        ConfigError: `base` without a base, tokenizers that cut text differently, or a token that one cannot write.
    """
    everyone = [*models, *([base] if base is not None else [])]
    first = models[0]
    if tokens == "refuse":
        return None
    if tokens == "base" and base is None:
        raise ConfigError(
            "`tokens: base` takes the base's tokens, and this merge has no base",
            where="tokens",
            remedy="write `tokens: union`, or name a `base`",
        )
    alike = all(one.tokenizer.get_vocab() == first.tokenizer.get_vocab() and one.rows == first.rows for one in everyone)
    if alike:
        return None
    ground = base if tokens == "base" and base is not None else first
    for other in everyone:
        if (difference := other_cut(ground, other)) is not None:
            raise ConfigError(
                f"`{ground.name}` and `{other.name}` have tokenizers that cut text differently, and no union of tokens "
                "makes one of them",
                where=other.folder,
                found=f"another {difference}",
                expected="one vocabulary, to which tokens were added",
                remedy="merge models of one tokenizer; to join others, distil one into the other",
            )
    before = ground.tokenizer.get_vocab()
    tokenizer = copy.deepcopy(ground.tokenizer)
    added: list[str] = []
    for other in models:
        theirs = sorted(other.tokenizer.added_tokens_decoder.items())
        lacking = [token for _, token in theirs if token.content not in before and token.content not in added]
        if tokens == "union":
            for token in lacking:  # one by one: a special and a plain token are added by different calls
                tokenizer.add_tokens([token], special_tokens=token.special)
        added += [token.content for token in lacking]
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    rows = max(ground.rows, max(by_id) + 1)
    rows_of = tuple(_rows_of(one, by_id, rows) for one in everyone)
    pieces: tuple[dict[int, tuple[int, ...]], ...] = ()
    if missing == "pieces":
        pieces = tuple(_pieces_of(one, own, by_id) for one, own in zip(everyone, rows_of, strict=True))
    return Vocabulary(tokenizer, rows, rows_of, per_token_names(first), pieces, tuple(added))


def _pieces_of(model: OpenModel, rows: Tensor, by_id: dict[int, str]) -> dict[int, tuple[int, ...]]:
    """The model's own tokens for the text of each token that it lacks: {514: (60, 116, 62)}."""
    found = {}
    for index in (rows < 0).nonzero().flatten().tolist():
        if index not in by_id:  # a row that pads the vocabulary has no text
            continue
        ids = model.tokenizer(by_id[index], add_special_tokens=False).input_ids
        # The row of "unknown" says nothing of this token, and one beyond the matrix there is not.
        found[index] = tuple(id for id in ids if id != model.tokenizer.unk_token_id and id < model.rows)
        if not found[index]:
            raise ConfigError(
                f"`{model.name}` lacks the token {by_id[index]!r}, and its tokenizer cannot write it either",
                where=model.folder,
                found="no piece of the text but the unknown token",
                expected="a text that the tokenizer can write, whose pieces' mean stands for the token",
                remedy="write `missing_tokens: own`",
            )
    return found


def _rows_of(model: OpenModel, by_id: dict[int, str], rows: int) -> Tensor:
    own = model.tokenizer.get_vocab()
    taken = set(own.values())
    found = torch.full((rows,), -1, dtype=torch.int64)
    for index in range(rows):
        # Rows that pad a vocabulary to a round number have no token: they stay in their place, for an output that was
        # trained to be improbable must not become a likely one.
        row = own.get(by_id[index], -1) if index in by_id else (-1 if index in taken else index)
        found[index] = row if row < model.rows else -1
    return found


def per_token_names(model: OpenModel) -> frozenset[str]:
    """The names of its embeddings, and of its output projection where that is another tensor.

    Raises:
        ConfigError: its architecture calls them otherwise in memory than in its files.
    """
    loader = AutoModelForSequenceClassification if model.is_reward else AutoModelForCausalLM
    model_code = code_runs(model.folder)
    with quiet(), torch.device("meta"):  # shapes without memory
        skeleton: Any = loader.from_config(model.config, trust_remote_code=model_code)
    ends: list[nn.Module | None] = [skeleton.get_input_embeddings(), skeleton.get_output_embeddings()]
    weights = {id(weight) for end in ends if end is not None for weight in end.parameters()}
    if model.is_reward:  # its head has an output for each score, and none for a token
        weights = {id(weight) for weight in skeleton.get_input_embeddings().parameters()}
    named = skeleton.named_parameters(remove_duplicate=False)
    names = frozenset(name for name, weight in named if id(weight) in weights and name in model.entries)
    if not names:
        raise ConfigError(
            f"the embeddings of `{model.name}` are not among its tensors under the name that its architecture has",
            where=model.folder,
            remedy="save the model again with `save_pretrained`; or merge models of the same tokens",
        )
    return names


# ---------------------------------------------------------------- rows


def merge_rows(parts: Parts, vocabulary: Vocabulary, merge: Callable[[Parts], Tensor]) -> Tensor:
    """A tensor with a row for each token: [V, ...], merged by the method where all models have the row.

    `parts` holds the tensors as the models have them, [V_m, ...] each; see deviation 1 for the other rows.
    """
    tensors = [*parts.tensors, *([parts.base] if parts.base is not None else [])]
    rows_of = list(vocabulary.rows_of[: len(tensors)])
    for place, pieces in enumerate(vocabulary.pieces[: len(tensors)]):
        tensors[place], rows_of[place] = with_pieces(tensors[place], rows_of[place], pieces)
    filled = tensors[: len(parts.tensors)]
    shared = torch.stack([rows >= 0 for rows in rows_of]).all(dim=0)
    common = [tensor[rows[shared]] for tensor, rows in zip(tensors, rows_of, strict=True)]
    count = len(parts.tensors)
    base = common[count] if parts.base is not None else None
    out = tensors[0].new_zeros((vocabulary.rows, *tensors[0].shape[1:]))
    out[shared] = merge(replace(parts, base=base, tensors=tuple(common[:count]))).to(out.dtype)

    weights = [dict(given).get("weight", 1.0) for given in parts.per_model]
    if min(weights) <= 0:  # a model that is taken away gives no token either; and no mean by shares
        weights = [1.0] * count
    mass = out.new_zeros(vocabulary.rows)
    for weight, rows in zip(weights, rows_of[:count], strict=True):
        mass += weight * (rows >= 0)
    for weight, tensor, rows in zip(weights, filled, rows_of[:count], strict=True):
        there = (rows >= 0) & ~shared
        # Divided first: the share of a model that is alone is 1, and its row stays as it is to the last bit.
        out[there] += (weight / mass[there]).reshape(-1, *[1] * (out.dim() - 1)) * tensor[rows[there]]
    if parts.base is not None:
        only_base = (rows_of[count] >= 0) & ~shared & (mass == 0)
        out[only_base] = tensors[count][rows_of[count][only_base]]
    return out


def with_pieces(tensor: Tensor, rows: Tensor, pieces: Mapping[int, tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """One model's tensor with a row behind its own for each token that it lacks, and where each merged row lies then.

    with_pieces([[1.], [3.]], [0, 1, -1], {2: (0, 1)}) gives [[1.], [3.], [2.]] and [0, 1, 2].
    """
    if not pieces:
        return tensor, rows
    means = torch.stack([tensor[list(ids)].mean(dim=0) for ids in pieces.values()])
    rows = rows.clone()
    rows[list(pieces)] = torch.arange(len(tensor), len(tensor) + len(means))
    return torch.cat([tensor, means]), rows
