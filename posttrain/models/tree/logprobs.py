"""Batch in, log-probs out: the only forward pass that training knows.

`Policy` wraps a causal LM of `transformers` (or a `peft` model around one) so that sharding, autocast and activation
checkpointing see one forward. Three implementations of the same function:

- `tree`: the flat batch through the backbone once, prompts shared, and the chunked projection. Fast.
- `padded`: ordinary right-padded rows through the model's own forward and its own logits. Slow.
- `rows`: as `padded`, one row at a time; for models whose rows depend on the longest one beside them (`rope.py`), and
  the oracle.

No batch runs on a path that was not proven for this model on rows as long (`paths.py`): the first forward does it where
nobody called `prove` before, so that it holds for policies, references, critics, teachers and reward models alike.

`TreeModel` is what a policy shares with a reward model (`heads.py`), which makes scores of the same hidden states.

Dropout is off in all of them unless the caller asks for it: with dropout, two calls on the same batch disagree and the
step-0 identities of preference losses are noise. Off means that every module is in eval mode, also while gradients are
recorded and layers are checkpointed: decoders such as OPT, BioGPT and BART call dropout by the layer's own flag.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from peft import PeftModel
from torch import Tensor, nn

from posttrain.data.trees import to_device
from posttrain.errors import ModelError
from posttrain.models.adapters.kinds import adapter_kind, virtual_tokens, waits_for_gradient
from posttrain.models.tree.attention import TreeCalls, TreeLayout, current_tree, probe_backend, tree_implementation
from posttrain.models.tree.backbone import backbone
from posttrain.models.tree.checkpointing import checkpointed_layers, layers_to_checkpoint
from posttrain.models.tree.divergence import (
    Against,
    Distributions,
    ExactKL,
    HasDistributions,
    divergence,
    exact_kl,
    spaced_tokens,
)
from posttrain.models.tree.every_token import count_every_token
from posttrain.models.tree.fused import fused_blocks
from posttrain.models.tree.paths import Path, Paths
from posttrain.models.tree.projection import collision_of, gather_logprobs, log_collisions, read_head, target_logprobs
from posttrain.models.tree.rope import forget_lengths, static_positions
from posttrain.models.tree.router import Routers, rows_of_tokens, summed, tokens_that_count
from posttrain.models.tree.rows import PaddedRows, padded_rows, row_lengths, single_rows
from posttrain.models.tree.virtual import backbone_inputs
from posttrain.types import Batch, Routing, TokenLogprobs, TokenTree

LARGEST_LOGITS = 1 << 26
"""Elements of the logits that a comparison makes; longer rows are compared by their hidden states under one head."""


class TreeModel(nn.Module, ABC):
    """A model of `transformers` that runs on token trees; a subclass says what becomes of the hidden states.

    Args:
        model: the model, or a `peft` model around one.
        path: the fastest path that may be taken; a slower one is where this one gives other numbers.
        autocast: the dtype of matrix multiplies (bf16 on hardware that gains from it), None for the weights' own.
        dropout: train with the model's and the adapter's dropout, in calls that record gradients.
        activation_checkpointing: compute each layer's activations again in the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path = "tree",
        *,
        autocast: torch.dtype | None = None,
        dropout: bool = False,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        self.model = model
        self.virtual_tokens = virtual_tokens(model)
        """Of the adapter; they stand before every row, so that rows share no prompt and the tree does not serve."""
        self.paths = Paths("padded" if self.virtual_tokens and path == "tree" else path)
        self.autocast = autocast
        self.dropout = dropout
        self.unfused = False
        """Run norms and gates as the model does also without autocast, as a proof of what runs under it has to."""
        self.backend: str | None = None
        """Of the tree's attention; None is the fastest that agrees with `segments` here (`probe_backend`)."""
        self.calls: TreeCalls | None = None
        """What the layers asked of the tree in the last forward."""
        self._backends: dict[torch.dtype, str] = {}
        self.routers = Routers(model)
        self._layers = layers_to_checkpoint(model) if activation_checkpointing else ()
        count_every_token(model)
        model.eval()  # `self.eval()` would end in `train` below, and do nothing

    @property
    def transformer(self) -> Any:
        """The model of `transformers`, with the adapter's layers in it if there is an adapter."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def train(self, mode: bool = True) -> Self:
        """Modes are this class's business: dropout is decided per call, never by who called `train()` last."""
        return self

    compares: ClassVar[str] = "log-probs"
    """What `compared` returns, in words."""

    @abstractmethod
    def compared(self, batch: Batch, path: Path | None = None) -> tuple[Tensor, Tensor]:
        """What the checks before step 1 compare: one number per place that a loss sees, and the branch of each."""

    def waiting(self) -> frozenset[str]:
        """Parameters that get no gradient until others, which start at zero, have moved."""
        return waits_for_gradient(self.model)

    reads_ahead_is_wrong: bool = True
    """Whether a token's value must not depend on later ones; a judge of whole responses may read as it likes."""

    @property
    def path(self) -> Path:
        """That most rows take, as far as is known."""
        return self.paths.path

    @path.setter
    def path(self, wanted: Path) -> None:
        self.paths = Paths(wanted)

    def trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def prove(self, trees: Sequence[TokenTree], *, gradient: bool = True) -> Path:
        """Decide on these trees which path rows like them take; see `posttrain.models.tree.paths`.

        Raises:
            ModelError: the model is not causal, and what it is used for does not allow that.
        """
        return self.paths.prove(self, trees, gradient=gradient)

    def path_of(self, batch: Batch, path: Path | None = None) -> Path:
        """The path that this batch takes, proven on it if need be; `path` overrides it, for comparisons. Rows that are
        longer than the angles of the model's rotary embedding are fixed for run one at a time on any path."""
        limit = static_positions(self.transformer.config.get_text_config())
        if limit is not None:
            forget_lengths(self.model)
            if int(batch.positions_T.max()) + self.virtual_tokens >= limit:
                return "rows"
        if path == "tree" and self.virtual_tokens:
            raise ModelError(
                "virtual tokens stand before every row, so rows share no prompt",
                found=f"path tree with {self.virtual_tokens} virtual tokens",
                remedy="use the padded path",
            )
        return path or self.paths.of(self, batch)

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Calls inside are compared with one another, so that they must be equal: no dropout, whatever was asked."""
        asked, self.dropout = self.dropout, False
        try:
            yield
        finally:
            self.dropout = asked

    @contextmanager
    def _running_on(self, path: Path) -> Iterator[None]:
        """One forward pass: its path, its dropout, its precision, and the layers that it computes again."""
        noisy = self.dropout and torch.is_grad_enabled()
        autocast = torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()
        again = checkpointed_layers(self._layers, partial(self._again, noisy))
        with self._modes(noisy), again, autocast:
            yield

    def _tree_hidden(self, batch: Batch) -> Tensor:
        """The backbone's last hidden states of the flat batch, [T, D]."""
        layout = TreeLayout(batch, self.backend or self._fastest_backend())
        self.calls = layout.calls
        with self._tree_blocks(layout):
            output = backbone(self.transformer)(
                input_ids=batch.input_ids_T[None],
                position_ids=batch.positions_T[None],
                use_cache=False,
                **self.routers.asked(),
            )
        self.routers.keep(output, lambda: rows_of_tokens(batch))
        return output.last_hidden_state[0]

    def _fastest_backend(self) -> str:
        dtype = self.autocast or self.dtype
        if dtype not in self._backends:
            self._backends[dtype] = probe_backend(self.device, dtype)
        return self._backends[dtype]

    def _predictor_states(self, batch: Batch, chosen: Path) -> Tensor:
        """The backbone's last hidden states where each trained token is predicted, [N, D]."""
        if chosen == "tree":
            return self._tree_hidden(batch).index_select(0, batch.predictor_index_N)
        parts = []
        for part in [batch] if chosen == "padded" else single_rows(batch):
            rows, states = self._backbone_rows(part, chosen)
            parts.append(states[rows.row_N, rows.predictor_N])
        return torch.cat(parts)

    def _backbone_rows(self, batch: Batch, chosen: Path) -> tuple[PaddedRows, Tensor]:
        """The batch as rows, and the backbone's last hidden states of them, [B, L, D]."""
        if chosen == "rows":
            forget_lengths(self.model)
        rows = padded_rows(batch)
        inputs = backbone_inputs(self.model, rows.input_ids, rows.attention_mask)
        output = backbone(self.transformer)(**inputs, use_cache=False, **self.routers.asked())
        self.routers.keep(output, lambda: self._weights_of(rows))
        return rows, output.last_hidden_state

    def row_outputs(self, batch: Batch) -> Tensor:
        """What the model gives at each place of a batch's only row, [L, D], on a path that every model has."""
        batch = to_device(batch, self.device)
        with self._running_on("rows"):
            states = self._backbone_rows(batch, "rows")[1][0]
        return states[-len(batch.input_ids_T) :]  # a prompt's virtual tokens come first

    @torch.no_grad()
    def routing(self, batch: Batch) -> Routing | None:
        """Where the batch's tokens go, by a pass of the backbone alone."""
        batch = to_device(batch, self.device)
        chosen = self.path_of(batch)
        with self._running_on(chosen), self.routers.recording(True) as routed:
            if chosen == "tree":
                self._tree_hidden(batch)
            else:
                for part in [batch] if chosen == "padded" else single_rows(batch):
                    self._backbone_rows(part, chosen)
        return summed(routed)

    def _weights_of(self, rows: PaddedRows) -> Tensor:
        """Of padded rows: padding counts for nothing; a prompt's virtual tokens pass through the routers, too."""
        embedded = self.virtual_tokens if adapter_kind(self.model) != "prefix" else 0
        return tokens_that_count(rows.attention_mask, embedded)

    @contextmanager
    def _tree_blocks(self, layout: TreeLayout) -> Iterator[None]:
        """The model with the tree's attention and, where no autocast chooses dtypes, with the fused blocks."""
        fused = nullcontext() if self.autocast or self.unfused else fused_blocks(self.transformer)
        with tree_implementation(self.transformer, layout), fused:
            yield

    # ------------------------------------------------------------ modes

    @contextmanager
    def _modes(self, noisy: bool) -> Iterator[None]:
        """Dropout on or off in every module.

        The flag is all that dropout, layer drop and a router's jitter look at. The checkpointing of `transformers`
        looks at it too, for something else, and is off: it is called here (`checkpointing.py`), or not at all.
        """
        before = [(module, module.training) for module in self.model.modules()]
        asking = [module for module, _ in before if getattr(module, "gradient_checkpointing", False) is True]
        for module, _ in before:
            module.training = noisy
        for module in asking:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        try:
            yield
        finally:
            for module, training in before:
                module.training = training
            for module in asking:
                module.gradient_checkpointing = True  # type: ignore[assignment]

    def _again(self, noisy: bool) -> AbstractContextManager[None]:
        """For a layer's recomputation, asked for while its forward begins: the tree of that forward, since by the time
        of the backward pass its context was left."""
        return self._recomputed(current_tree(), noisy)

    @contextmanager
    def _recomputed(self, tree: TreeLayout | None, noisy: bool) -> Iterator[None]:
        """A layer's recomputation, as its forward was: the same blocks and the same dropout."""
        with self._tree_blocks(tree) if tree is not None else nullcontext(), self._modes(noisy):
            yield


def read_values(head: nn.Module, states_ND: Tensor) -> Tensor:
    """What a scalar head says of states, [N], in fp32 or wider: bf16 has three digits, too few for an advantage."""
    weight = next(head.parameters())
    with torch.autocast(states_ND.device.type, enabled=False):
        values_N = head(states_ND.to(weight.dtype))[:, 0]
    return values_N if values_N.dtype == torch.float64 else values_N.float()


class Policy(TreeModel):
    """A causal LM whose forward returns log-probs.

    policy(batch) -> TokenLogprobs(logprobs_N); nats, one per trained token, in the order of `batch.target_index_N`.
    """

    @property
    def causal_lm(self) -> Any:
        return self.transformer

    def forward(
        self,
        batch: Batch,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        collision: bool = False,
        against: Against | None = None,
        value_head: nn.Module | None = None,
        router: bool = False,
        path: Path | None = None,
    ) -> TokenLogprobs:
        """Log-probs of the batch's trained tokens under softmax(logits / temperature).

        Args:
            collision: give `log_collision_N` too; on the tree path it is a second projection.
            against: give `divergence_N` from this model too; on the tree path of the same hidden states, on the others
                by a second forward pass.
            value_head: [N, D] -> [N, 1]; give `values_N` too, of the states that predict the tokens.
            router: give `routing` too, if this is a mixture of experts whose family balances its router by a loss.
            path: overrides the policy's own, for the comparison of the two.

        Raises:
            ModelError: the model in `against` has another vocabulary.
        """
        batch = to_device(batch, self.device)
        chosen = self.path_of(batch, path)
        run = {"tree": self._tree, "padded": self._padded, "rows": self._rows}[chosen]
        with self._running_on(chosen):
            with self.routers.recording(router) as routed:
                found, hidden_ND = run(batch, temperature, entropy, collision)
            if router:
                found = replace(found, routing=summed(routed))
            if value_head is not None:
                states_ND = self._predictor_states(batch, chosen) if hidden_ND is None else hidden_ND
                found = replace(found, values_N=read_values(value_head, states_ND))
        if against is None:
            return found
        return replace(found, divergence_N=self._divergence(batch, against, hidden_ND, temperature, chosen))

    def values(self, batch: Batch, head: nn.Module) -> Tensor:
        """What a head on this backbone says of the state before each trained token, [N]."""
        batch = to_device(batch, self.device)
        chosen = self.path_of(batch)
        with self._running_on(chosen):
            return read_values(head, self._predictor_states(batch, chosen))

    def _divergence(
        self, batch: Batch, against: Against, hidden_ND: Tensor | None, temperature: float, chosen: Path
    ) -> Tensor:
        """From the other model at each token [N], of hidden states that are there already where they are."""
        index_S = spaced_tokens(batch, against.every)
        with torch.no_grad():
            theirs = against.other.distributions(batch, index_S, temperature=temperature)
        if hidden_ND is None:
            own = self.distributions(batch, index_S, temperature=temperature, path=chosen)
        else:
            states_SD = hidden_ND.index_select(0, index_S.to(hidden_ND.device))
            own = Distributions(states_SD, read_head(self.causal_lm), temperature, self.autocast)
        return against.spread(divergence(own, theirs, against.mixture), index_S, batch.count.tokens)

    def compared(self, batch: Batch, path: Path | None = None) -> tuple[Tensor, Tensor]:
        """Of long rows and large vocabularies by the hidden states and one head, on every path: the logits of a row of
        8,192 tokens and 150,000 ids are 5 GB. That the head is the model's is shown by the short rows."""
        batch = to_device(batch, self.device)
        chosen = self.path_of(batch, path)
        vocabulary = int(self.transformer.config.get_text_config().vocab_size)
        with self._running_on(chosen):
            if sum(row_lengths(batch)) * vocabulary <= LARGEST_LOGITS:
                run = {"tree": self._tree, "padded": self._padded, "rows": self._rows}[chosen]
                return run(batch, 1.0, False, False)[0].logprobs_N, batch.branch_N
            states_ND = self._predictor_states(batch, chosen)
            return target_logprobs(states_ND, read_head(self.causal_lm), batch.target_ids_N)[0], batch.branch_N

    def row_outputs(self, batch: Batch) -> Tensor:
        """The logits, [L, V]."""
        batch = to_device(batch, self.device)
        rows = padded_rows(batch)
        with self._running_on("rows"):
            output = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
        return output.logits[0, -len(batch.input_ids_T) :].float()

    def distributions(
        self, batch: Batch, index_S: Tensor | None = None, *, temperature: float = 1.0, path: Path | None = None
    ) -> Distributions:
        """The next-token distributions at some trained tokens, not yet projected to the vocabulary.

        index_S: which of the batch's N trained tokens; None is all. On the padded path their logits are held, [S, V].
        """
        batch = to_device(batch, self.device)
        index_S = torch.arange(batch.count.tokens) if index_S is None else index_S
        chosen = self.path_of(batch, path)
        with self._running_on(chosen):
            if chosen != "tree":
                return Distributions(self._row_logits(batch, index_S.to(self.device)), None, temperature)
            predictors_S = batch.predictor_index_N[index_S.to(self.device)]
            states_SD = self._tree_hidden(batch).index_select(0, predictors_S)
            return Distributions(states_SD, read_head(self.causal_lm), temperature, self.autocast)

    def exact_kl(
        self, reference: HasDistributions, batch: Batch, sample_S: Tensor | None = None, *, temperature: float = 1.0
    ) -> ExactKL:
        """KL over the whole vocabulary, both directions, at a sample of the batch's trained tokens; no gradient.

        Args:
            reference: a policy, or a reference that is a model: live, or the adapter that is off.
            sample_S: indices of trained tokens (`posttrain.models.tree.divergence.sample_tokens`); None is all.

        Raises:
            ModelError: the two have other vocabularies.
        """
        sample_S = torch.arange(batch.count.tokens) if sample_S is None else sample_S
        with torch.no_grad():
            own = self.distributions(batch, sample_S, temperature=temperature)
            return exact_kl(own, reference.distributions(batch, sample_S, temperature=temperature), sample_S)

    def divergence(
        self, teacher: HasDistributions, batch: Batch, mixture: float = 0.5, *, temperature: float = 1.0
    ) -> Tensor:
        """Generalised JSD to a teacher at each trained token [N], nats, with the policy's gradient.

        Raises:
            ConfigError: `mixture` outside 0 (KL(teacher || policy)) to 1 (KL(policy || teacher)).
            ModelError: the two have other vocabularies.
        """
        with torch.no_grad():
            theirs = teacher.distributions(batch, temperature=temperature)
        return divergence(self.distributions(batch, temperature=temperature), theirs, mixture)

    def _row_logits(self, batch: Batch, index_S: Tensor) -> Tensor:
        """Logits at some trained tokens, one row through the whole model at a time, [S, V]."""
        parts, places = [], []
        for branch, row in enumerate(single_rows(batch)):
            of_branch_S = (batch.branch_N[index_S] == branch).nonzero()[:, 0]
            if not len(of_branch_S):
                continue
            forget_lengths(self.model)
            first = int((batch.branch_N < branch).sum())  # branches are laid end to end
            rows = padded_rows(row)
            logits = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits[0]
            virtual = logits.shape[0] - rows.input_ids.shape[1]
            parts.append(logits[rows.predictor_N[index_S[of_branch_S] - first] + virtual])
            places.append(of_branch_S)
        return torch.cat(parts)[torch.cat(places).argsort()]

    def _tree(
        self, batch: Batch, temperature: float, entropy: bool, collision: bool
    ) -> tuple[TokenLogprobs, Tensor | None]:
        """And the hidden states that they were made of."""
        hidden_ND = self._tree_hidden(batch).index_select(0, batch.predictor_index_N)
        head = read_head(self.causal_lm)
        found = TokenLogprobs(
            *target_logprobs(hidden_ND, head, batch.target_ids_N, temperature=temperature, entropy=entropy),
            log_collisions(hidden_ND, head, temperature=temperature) if collision else None,
        )
        return found, hidden_ND

    def _padded(
        self, batch: Batch, temperature: float, entropy: bool, collision: bool
    ) -> tuple[TokenLogprobs, Tensor | None]:
        """Each branch as a row of its own, prompt first, padded to the right, through the whole model."""
        rows = padded_rows(batch)
        output = self.model(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False, **self.routers.asked()
        )
        self.routers.keep(output, lambda: self._weights_of(rows))
        # The logits of prompt and P-tuning begin with the virtual tokens' own; those of a prefix do not.
        virtual = output.logits.shape[1] - rows.input_ids.shape[1]
        logits = output.logits[rows.row_N, rows.predictor_N + virtual]
        logprobs_N, entropy_N = gather_logprobs(logits, batch.target_ids_N, temperature, entropy=entropy)
        collision_N = collision_of(logits, temperature) if collision else None
        return TokenLogprobs(logprobs_N, entropy_N if entropy else None, collision_N), None

    def _rows(
        self, batch: Batch, temperature: float, entropy: bool, collision: bool
    ) -> tuple[TokenLogprobs, Tensor | None]:
        """Each branch alone, so that no row's log-probs depend on how long another is."""
        parts = []
        for row in single_rows(batch):
            forget_lengths(self.model)
            parts.append(self._padded(row, temperature, entropy, collision)[0])
        entropies = [part.entropy_N for part in parts if part.entropy_N is not None]
        collisions = [part.log_collision_N for part in parts if part.log_collision_N is not None]
        found = TokenLogprobs(
            torch.cat([part.logprobs_N for part in parts]),
            torch.cat(entropies) if entropy else None,
            torch.cat(collisions) if collision else None,
        )
        return found, None
