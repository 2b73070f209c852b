"""Batch in, scores out: a backbone and a scalar head on the token tree.

    score = ScoreModel(with_head(causal_lm))
    score(batch) -> Scores(scores_BH)

The model inside is the `...ForSequenceClassification` class that `transformers` has for the backbone, so that a saved
reward model is an ordinary folder, but its forward is not used: it finds the last token by comparing ids with the pad
id, and where the pad token ends a turn that is another token. Here a response is scored where its mask ends.

The prompt's tokens are shared by all responses, as in `Policy`; the padded path is the oracle that the parity check
compares with.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from posttrain.errors import EncodingError, ModelError
from posttrain.losses.reward import response_tokens
from posttrain.losses.reward_rule import Pooling, RewardRule, StepRule, aggregate_steps, last_of_each
from posttrain.models.adapters.kinds import adapter_kind
from posttrain.models.sharding.mesh import Sharding
from posttrain.models.sharding.shards import any_nonzero
from posttrain.models.tree.backbone import backbone
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.provable import Route
from posttrain.models.tree.router import summed
from posttrain.outputs import Scores
from posttrain.types import PLAIN, Batch, Wants

HEAD = "score"
"""What `transformers` calls the head of its decoder classifiers."""
Init = Literal["zero", "normal"]


class ScoreModel(TreeModel):
    """A reward model whose forward returns scores.

    score(batch) -> Scores(scores_BH=[[0.7], [-0.2]])

    Args:
        pooling: score the last trained token of a response, the mean of its trained tokens, or each of them as the end
            of a step.
        steps: how the scores of steps become one.

    The other arguments are `TreeModel`'s.
    """

    compares: ClassVar[str] = "scores"

    def __init__(
        self,
        model: nn.Module,
        path: Route = "tree",
        *,
        pooling: Pooling = "last",
        steps: StepRule = "min",
        autocast: torch.dtype | None = None,
        dropout: bool = False,
        activation_checkpointing: bool = False,
        offload_activations: bool = False,
        sharding: Sharding | None = None,
    ):
        super().__init__(
            model,
            path,
            autocast=autocast,
            dropout=dropout,
            activation_checkpointing=activation_checkpointing,
            offload_activations=offload_activations,
            sharding=sharding,
        )
        if not is_reward_model(model):
            raise ModelError(
                "the model has no reward head",
                found=type(model).__name__,
                expected="a model of class ...ForSequenceClassification",
                remedy="put a head on it with posttrain.models.tree.heads.with_head",
            )
        if self.virtual_tokens and adapter_kind(model) != "prefix":
            # Behind embeddings instead of ids, transformers scores the last column of a padded row.
            raise ModelError(
                "a reward model with a virtual prompt would be scored at padding by others",
                found=f"an adapter of kind {adapter_kind(model)}",
                remedy="use `kind: prefix`, `kind: lora`, or train all weights",
            )
        self.reads_ahead_is_wrong = pooling == "steps"  # the score of a step must not know the steps after it
        self.pooling: Pooling = pooling
        self.steps: StepRule = steps

    @classmethod
    def of(cls, model: nn.Module, rule: RewardRule, **options: Any) -> ScoreModel:
        """The model with the pooling of a saved or trained rule."""
        return cls(model, pooling=rule.pooling, steps=rule.steps, **options)

    def forward(self, batch: Batch, wants: Wants = PLAIN, *, path: Route | None = None) -> Scores:
        """The scores; of `wants` only `routing` and a probe are read.

        Raises:
            EncodingError: a response without a trained token has no place to be scored at.
        """
        if wants.probe is not None:
            return self._probed(batch, wants, path)
        with self.routers.recording(wants.routing) as routed:
            pooled, branches = self._pooled(batch, path)
        scores = self._head(pooled)
        if self.pooling != "steps":
            return Scores(scores, routing=summed(routed))
        of_branches = aggregate_steps(scores, branches, batch.num_branches, self.steps)
        return Scores(of_branches, scores, branches, summed(routed))

    def _compared(self, batch: Batch, path: Route | None) -> tuple[Tensor, Tensor]:
        """The scores, and the pooled states along a fixed random direction: a head that starts at zero gives every
        response the same score and would hide every difference."""
        pooled, branches = self._pooled(batch, path)
        scores = self._head(pooled)
        direction = torch.randn(pooled.shape[1], generator=torch.Generator().manual_seed(0)).to(scores)
        # A sum over D states, scaled back to their size, so that the tolerance for one value holds for it too.
        along = pooled.to(scores) @ direction / pooled.shape[1] ** 0.5
        values = torch.cat([scores, along[:, None]], dim=1)
        return values.flatten(), branches.repeat_interleave(values.shape[1])

    def waiting(self) -> frozenset[str]:
        """While the head is zero, no gradient passes it: only its own weights move in the first step."""
        if any(any_nonzero(p) for p in getattr(self.transformer, HEAD).parameters() if p.requires_grad):
            return super().waiting()
        # Otherwise the check for dead layers would stop every reward model at step 1: all of its backbone waits.
        return frozenset(name for name, _ in self.model.named_parameters() if f"{HEAD}." not in name)

    def _head(self, pooled: Tensor) -> Tensor:
        """In the weights' precision: bf16 has three digits, and two good responses differ in the third."""
        head = getattr(self.transformer, HEAD)
        with torch.autocast(self.device.type, enabled=False):
            scores = head(pooled.to(head.weight.dtype))
        return scores if scores.dtype == torch.float64 else scores.float()

    def _pooled(self, batch: Batch, path: Route | None) -> tuple[Tensor, Tensor]:
        """The states that are scored, [B, D] (of steps: [S, D]), and the branch of each."""
        tokens_B = response_tokens(batch)
        if not bool(tokens_B.all()):
            tree = int(batch.tree_B[int((tokens_B == 0).nonzero()[0])])
            raise EncodingError(
                "a response has no token to score",
                where=batch.rows[tree],
                expected="at least one response token (of a step-wise model: one step mark)",
                remedy="remove the row, or check the step mark",
            )
        chosen = self.path_of(batch, path)
        run = {"tree": self._tree_states, "padded": self._padded_states, "rows": self._row_states}[chosen]
        with self._running_on(chosen):
            states_ND = run(batch)
            if self.pooling == "steps":
                return states_ND, batch.branch_N
            branches = torch.arange(batch.num_branches, device=states_ND.device)
            if self.pooling == "last":
                return states_ND.index_select(0, last_of_each(batch.branch_N, batch.num_branches)), branches
            sums_BD = states_ND.new_zeros(batch.num_branches, states_ND.shape[1])
            return sums_BD.index_add(0, batch.branch_N, states_ND) / tokens_B[:, None].to(states_ND), branches

    def _tree_states(self, batch: Batch) -> Tensor:
        """The last hidden state of each trained token, [N, D]."""
        return self._tree_hidden(batch).index_select(0, batch.target_index_N)

    def _padded_states(self, batch: Batch) -> Tensor:
        """Each branch as a row of its own, prompt first, through the backbone's own attention."""
        return self._by_rows(batch, "padded", lambda rows, states: states[rows.row_N, rows.predictor_N + 1])

    def _row_states(self, batch: Batch) -> Tensor:
        """Each branch alone."""
        return self._by_rows(batch, "rows", lambda rows, states: states[rows.row_N, rows.predictor_N + 1])


# ---------------------------------------------------------------- the model with its head


def is_reward_model(model: nn.Module) -> bool:
    """Whether the model is a decoder with a `score` head, an adapter around it or not."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return type(plain).__name__.endswith("ForSequenceClassification") and HEAD in dict(plain.named_children())


def with_head(
    causal_lm: PreTrainedModel,
    names: tuple[str, ...] = ("reward",),
    *,
    init: Init = "zero",
    seed: int = 0,
    pad_token_id: int | None = None,
) -> PreTrainedModel:
    """The backbone of a causal LM under a fresh head; the backbone is shared with `causal_lm`, not copied.

    Args:
        names: of the head's outputs; they become the labels of the saved model.
        init: `zero`: the first loss is exactly ln 2, and Adam, whose steps have the same size however small the
            gradient, moves the backbone only once the head points somewhere. `normal`: standard deviation
            1 / sqrt(D + 1) (Stiennon et al. 2020, in the authors' code); the members of an ensemble need it to differ.
        seed: of the head's own random stream; the global one is left as it was.
        pad_token_id: what `transformers` skips at the end of a row; see `reward_models.pad_id`.

    Raises:
        ModelError: `transformers` has no classifier for this architecture.
    """
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(causal_lm.config), None)
    if kind is None:
        raise ModelError(
            "transformers has no reward head for this architecture",
            found=type(causal_lm).__name__,
            expected="an architecture with a ...ForSequenceClassification class",
            remedy="start the reward model from another base model",
        )
    # Copied: the causal model goes on with its own config, and one label more or less would change what it exports.
    config = copy.deepcopy(causal_lm.config)
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.pad_token_id = config.get_text_config().pad_token_id = pad_token_id
    # Without memory: all of its backbone is replaced in the next line, and a second one might not fit.
    with torch.device("meta"):
        model = kind(config)
    setattr(model, model.base_model_prefix, backbone(causal_lm))
    model.set_submodule(HEAD, _fresh_head(causal_lm, len(names), init, seed))
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise ModelError(
            "the architecture's classifier has more than a backbone and a score layer",
            found=", ".join(left[:5]),
            remedy="start the reward model from another base model",
        )
    return model.eval()


def _fresh_head(causal_lm: PreTrainedModel, outputs: int, init: Init, seed: int) -> nn.Linear:
    size = causal_lm.config.get_text_config().hidden_size
    head = nn.utils.skip_init(nn.Linear, size, outputs, bias=False, dtype=causal_lm.dtype, device=causal_lm.device)
    # Drawn on the CPU in fp32 and then copied: the same seed gives the same head on every device.
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(outputs, size, generator=generator) * (size + 1) ** -0.5
    with torch.no_grad():
        head.weight.copy_(weights if init == "normal" else torch.zeros_like(weights))
    return head
