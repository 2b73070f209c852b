"""Batch in, log-probs out: the only forward pass that training knows.

`Policy` wraps a causal LM of `transformers` (or a `peft` model around one) so that sharding, autocast and activation
checkpointing see one forward; what it shares with reward and value models, its paths and modes, is in `model.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.models.sharding.lockstep import joined, with_idle
from posttrain.models.tree.divergence import Distributions, ExactKL, divergence, exact_kl, spaced_tokens
from posttrain.models.tree.model import TreeModel, read_values
from posttrain.models.tree.projection import collision_of, gather_logprobs, log_collisions, read_head, target_logprobs
from posttrain.models.tree.provable import Route
from posttrain.models.tree.rope import forget_lengths
from posttrain.models.tree.router import summed
from posttrain.models.tree.rows import padded_rows, row_lengths, single_rows
from posttrain.outputs import TokenLogprobs
from posttrain.types import PLAIN, Against, Batch, HasDistributions, Wants

LARGEST_LOGITS = 1 << 26
"""Elements of the logits that a comparison makes; longer rows are compared by their hidden states under one head."""


class Policy(TreeModel):
    """A causal LM whose forward returns log-probs.

    policy(batch) -> TokenLogprobs(logprobs_N); nats, one per trained token, in the order of `batch.target_index_N`.
    policy(batch, Wants(temperature=0.7, entropy=True)) -> TokenLogprobs(logprobs_N, entropy_N)
    """

    @property
    def causal_lm(self) -> Any:
        return self.transformer

    def forward(
        self,
        batch: Batch,
        wants: Wants = PLAIN,
        *,
        path: Route | None = None,
        theirs: tuple[Tensor, Distributions] | None = None,
    ) -> TokenLogprobs:
        """Log-probs of the batch's trained tokens under softmax(logits / temperature), and what else is asked for.

        Args:
            path: overrides the policy's own, for the comparison of the two.
            theirs: what `wants.against` is compared by; computed where the model is called.

        Raises:
            ModelError: the model in `wants.against` has another vocabulary.
        """
        if wants.probe is not None:
            return self._probed(batch, wants, path)
        chosen = self.path_of(batch, path)
        with self._running_on(chosen):
            with self.routers.recording(wants.routing) as routed:
                out, states_ND = self._answer(batch, wants, chosen)
            if wants.routing:
                out = replace(out, routing=summed(routed))
            if wants.value_head is not None:
                # One pass for everything where there is one: a second would cost as much again, and keep its
                # activations too.
                of_states = self._predictor_states(batch, chosen) if states_ND is None else states_ND
                out = replace(out, values_N=read_values(wants.value_head, of_states))
            if wants.distributions_at is not None:
                own = self._distributions(batch, wants.distributions_at, wants.temperature, chosen, states_ND)
                out = replace(out, distributions=own)
            if theirs is not None:
                own = self._distributions(batch, theirs[0], wants.temperature, chosen, states_ND)
        if wants.against is None or theirs is None:
            return out
        index_S, other = theirs
        apart_S = divergence(own, other, wants.against.mixture)
        return replace(out, divergence_N=wants.against.spread(apart_S, index_S, batch.count.tokens))

    def _beforehand(self, batch: Batch, wants: Wants) -> dict[str, Any]:
        # The other model may be this very one without its adapter.
        return {} if wants.against is None else {"theirs": _theirs(wants.against, batch, wants.temperature)}

    # ------------------------------------------------------------ the same door, by what is asked

    def values(self, batch: Batch, head: nn.Module) -> Tensor:
        """What a head on this backbone says of the state before each trained token, [N]."""
        return self(batch, Wants(logprobs=False, value_head=head)).values_N

    def distributions(
        self, batch: Batch, index_S: Tensor | None = None, *, temperature: float = 1.0, path: Route | None = None
    ) -> Distributions:
        """The next-token distributions at some trained tokens, not yet projected to the vocabulary.

        index_S: which of the batch's N trained tokens; None is all. On the padded path their logits are held, [S, V].
        """
        index_S = torch.arange(batch.count.tokens) if index_S is None else index_S
        wants = Wants(logprobs=False, temperature=temperature, distributions_at=index_S)
        return self(batch, wants, path=path).distributions

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
        wants = Wants(logprobs=False, temperature=temperature, against=Against(teacher, mixture))
        return self(batch, wants).divergence_N

    # ------------------------------------------------------------ inside the door

    def _answer(self, batch: Batch, wants: Wants, chosen: Route) -> tuple[TokenLogprobs, Tensor | None]:
        """What is asked of the vocabulary, and the states [N, D] of this pass if it had any."""
        if wants.logprobs and not wants.hidden and chosen != "tree":
            return (self._padded(batch, wants) if chosen == "padded" else self._rows(batch, wants)), None
        of_states = chosen == "tree" or wants.hidden or wants.routing or wants.value_head is not None
        states_ND = self._predictor_states(batch, chosen) if of_states else None
        if not wants.logprobs or states_ND is None:
            nothing = torch.empty(0, device=batch.input_ids_T.device)
            return TokenLogprobs(nothing, hidden_ND=states_ND if wants.hidden else None), states_ND
        head = read_head(self.causal_lm)
        temperature, entropy = wants.temperature, wants.entropy
        out = TokenLogprobs(
            *target_logprobs(states_ND, head, batch.target_ids_N, temperature=temperature, entropy=entropy),
            log_collisions(states_ND, head, temperature=temperature) if wants.collision else None,
            hidden_ND=states_ND if wants.hidden else None,
        )
        return out, states_ND

    def _distributions(
        self, batch: Batch, index_S: Tensor, temperature: float, chosen: Route, states_ND: Tensor | None
    ) -> Distributions:
        """Of the states of this pass on the tree path, of the model's own logits on the others."""
        index_S = index_S.to(self.device)
        if chosen != "tree":
            return Distributions(self._row_logits(batch, index_S), None, temperature)
        assert states_ND is not None
        states_SD = states_ND.index_select(0, index_S)
        return Distributions(states_SD, read_head(self.causal_lm), temperature, self.autocast)

    def _compared(self, batch: Batch, path: Route | None) -> tuple[Tensor, Tensor]:
        """Of long rows and large vocabularies by the hidden states and one head, on every path: the logits of a row of
        8,192 tokens and 150,000 ids are 5 GB. That the head is the model's is shown by the short rows."""
        chosen = self.path_of(batch, path)
        vocabulary = int(self.transformer.config.get_text_config().vocab_size)
        fits = sum(row_lengths(batch)) * vocabulary <= LARGEST_LOGITS
        with self._running_on(chosen):
            return self._answer(batch, PLAIN if fits else Wants(hidden=True), chosen)[0].logprobs_N, batch.branch_N

    def _row_outputs(self, batch: Batch) -> Tensor:
        """The logits, [L, V]."""
        rows = padded_rows(batch)
        with self._running_on("rows"):
            output = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
        return output.logits[0, -len(batch.input_ids_T) :].float()

    def _row_logits(self, batch: Batch, index_S: Tensor) -> Tensor:
        """Logits at some trained tokens, one row through the whole model at a time, [S, V]."""
        single = single_rows(batch)
        places = [(batch.branch_N[index_S] == branch).nonzero()[:, 0] for branch in range(len(single))]
        asked = [branch for branch, of_branch_S in enumerate(places) if len(of_branch_S)]
        parts: list[Tensor] = []
        idle: list[Tensor] = []
        rows_to_run = with_idle([single[branch] for branch in asked], single[:1], self.sharding)
        for number, (row, counts) in enumerate(rows_to_run):
            forget_lengths(self.model)
            rows = padded_rows(row)
            logits = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits[0]
            if not counts:
                idle.append(logits)
                continue
            first = int((batch.branch_N < asked[number]).sum())  # branches are laid end to end
            virtual = logits.shape[0] - rows.input_ids.shape[1]
            parts.append(logits[rows.predictor_N[index_S[places[asked[number]]] - first] + virtual])
        # Of no token, as in a micro-batch whose responses were all masked; `cat` of nothing would end the step.
        if not asked:
            parts = [torch.empty(0, self.transformer.config.get_text_config().vocab_size, device=self.device)]
            return joined(parts, idle)
        # The rows were taken branch by branch; the caller's order is that of index_S.
        return joined(parts, idle)[torch.cat([places[branch] for branch in asked]).argsort()]

    def _padded(self, batch: Batch, wants: Wants) -> TokenLogprobs:
        """Each branch as a row of its own, prompt first, padded to the right, through the whole model."""
        rows = padded_rows(batch)
        output = self.model(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False, **self.routers.asked()
        )
        self.routers.keep(output, lambda: self._weights_of(rows))
        # The logits of prompt and P-tuning begin with the virtual tokens' own; those of a prefix do not.
        virtual = output.logits.shape[1] - rows.input_ids.shape[1]
        logits = output.logits[rows.row_N, rows.predictor_N + virtual]
        logprobs_N, entropy_N = gather_logprobs(logits, batch.target_ids_N, wants.temperature, entropy=wants.entropy)
        collision_N = collision_of(logits, wants.temperature) if wants.collision else None
        return TokenLogprobs(logprobs_N, entropy_N if wants.entropy else None, collision_N)

    def _rows(self, batch: Batch, wants: Wants) -> TokenLogprobs:
        """Each branch alone, so that no row's log-probs depend on how long another is."""
        parts: list[TokenLogprobs] = []
        idle: list[TokenLogprobs] = []
        single = single_rows(batch)
        for row, counts in with_idle(single, single[:1], self.sharding):
            forget_lengths(self.model)
            (parts if counts else idle).append(self._padded(row, wants))
        entropies = [part.entropy_N for part in parts if part.entropy_N is not None]
        collisions = [part.log_collision_N for part in parts if part.log_collision_N is not None]
        return TokenLogprobs(
            joined([part.logprobs_N for part in parts], [part.logprobs_N for part in idle]),
            torch.cat(entropies) if wants.entropy else None,
            torch.cat(collisions) if wants.collision else None,
        )


@torch.no_grad()
def _theirs(against: Against, batch: Batch, temperature: float) -> tuple[Tensor, Distributions]:
    """The tokens [S] at which the other model is compared, and its distributions there."""
    index_S = spaced_tokens(batch, against.every)
    return index_S, against.other.distributions(batch, index_S, temperature=temperature)
