"""Adapters: what a stage trains in place of all weights, one record per `kind`.

    adapter: {kind: lora, rank: 16}      LoRA(rank=16)
    adapter: {kind: ia3}                 IA3()
    adapter: ia3                         a kind alone may stand for the group; a group without a kind is LoRA

Each record says with three facts of its class how a run treats it: whether it can be folded into the weights
(`MERGES`), whether it puts virtual tokens before every row (`VIRTUAL`), and which learning rate suits it (`RATE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.values import Float, Int, NameOrNames, Settings, refuse


class AdapterSettings(Settings):
    """What every kind of adapter has."""

    IS_FAMILY: ClassVar[bool] = True
    MERGES: ClassVar[bool] = True
    """Whether it can be folded into the weights; one that cannot is exported alone."""
    VIRTUAL: ClassVar[bool] = False
    """Whether it puts virtual tokens before every row; such rows share no prompt, so they run padded."""
    TRAINS_TOKENS: ClassVar[bool] = False
    """Whether the rows of new tokens can train beside it (`trainable_token_indices` of peft)."""
    # A multiple and no rate of its own: methods differ by a factor of 100, and the kind of adapter shifts all alike.
    RATE: ClassVar[tuple[float, str]] = (10.0, 'Schulman et al. 2025, "LoRA Without Regret"')
    """The default learning rate as a multiple of the method's rate for all weights, and its source."""

    kind: str
    """The kind of adapter."""

    @property
    def virtual_tokens(self) -> int:
        """Positions of the model that the adapter takes from every row."""
        return 0


class LowRank(AdapterSettings):
    """What the kinds with a low-rank update share."""

    rank: Int = Field(default=16, ge=1)
    """Rank of the update (r)."""
    alpha: Float = Field(default=32.0, gt=0)
    """Scale of the update: alpha / rank. 32 whatever the rank: Schulman et al. 2025, "LoRA Without Regret"."""
    dropout: Float = Field(default=0.0, ge=0, lt=1)
    """On the adapter's input, in supervised training only: elsewhere policy and reference would differ at step 0."""
    targets: NameOrNames = Field(default="all-linear", min_length=1)
    """`all-linear`, a list of module names, or a regular expression. All of them: Dettmers et al. 2023 (QLoRA)."""


class LoRA(LowRank):
    """A low-rank adapter, Hu et al. 2021, arXiv:2106.09685; the weights themselves stay as they are."""

    TRAINS_TOKENS: ClassVar[bool] = True

    kind: Literal["lora"] = "lora"
    """The kind of adapter."""
    dora: bool = False
    """Learn magnitude and direction apart: Liu et al. 2024 (DoRA), arXiv:2402.09353."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank): Kalajdzievski 2023, arXiv:2312.03732."""
    # None that changes the base weights, as PiSSA and LoftQ do: without the adapter, the model is still the start.
    init: Literal["default", "gaussian"] = "default"
    """How the first factor starts; the second starts at zero, so a fresh adapter changes nothing."""


class QLoRA(LowRank):
    """LoRA over weights kept in 4 or 8 bits, Dettmers et al. 2023, arXiv:2305.14314. Needs CUDA and bitsandbytes.

    It is exported folded into the dequantised weights, the ones that it was trained over.
    """

    kind: Literal["qlora"] = "qlora"
    """The kind of adapter."""
    bits: Literal[4, 8] = 4
    """Bits of a frozen weight: 4 is NF4, 8 is LLM.int8()."""
    double_quant: bool = True
    """With 4 bits: quantise the scales too, which saves 0.4 bits a weight."""


class AdaLoRA(LowRank):
    """LoRA that gives ranks to the layers that need them, Zhang et al. 2023, arXiv:2303.10512.

    Each layer starts with `initial_rank`; singular values that matter little are masked until `rank` are left on
    average. The scale is alpha / initial_rank.
    """

    TRAINS_TOKENS: ClassVar[bool] = True

    kind: Literal["adalora"] = "adalora"
    """The kind of adapter."""
    rank: Int = Field(default=8, ge=1)
    """Average rank at the end."""
    initial_rank: Int = Field(default=12, ge=2)
    """Rank of every layer at the start; 1.5 times the final one, as in the paper."""
    initial_ratio: Float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps before ranks are taken away."""
    final_ratio: Float = Field(default=0.5, ge=0, lt=1)
    """Share of the steps at the end with the ranks as they are."""
    every_steps: Int = Field(default=1, ge=1)
    """Steps between two allocations."""
    orthogonality: Float = Field(default=0.1, ge=0)
    """Weight of the penalty that keeps the factors orthogonal (gamma in the paper)."""

    @model_validator(mode="after")
    def _ranks_fall(self) -> Self:
        # `peft` would mask nothing, and the stage train plain LoRA under this name.
        if self.rank >= self.initial_rank:
            raise refuse(
                "ranks are taken away, so the average at the end lies below the start",
                path=("rank",),
                found=f"rank: {self.rank}, initial_rank: {self.initial_rank}",
                remedy=f"write `initial_rank: {max(self.rank + 1, round(1.5 * self.rank))}`",
            )
        if self.initial_ratio + self.final_ratio >= 1:
            raise refuse(
                "no step is left in which ranks are taken away",
                path=("final_ratio",),
                found=f"initial_ratio: {self.initial_ratio:g}, final_ratio: {self.final_ratio:g}",
                expected="together below 1",
                remedy="write `initial_ratio: 0.1` and `final_ratio: 0.5`",
            )
        return self


class IA3(AdapterSettings):
    """Three learnt vectors per layer that scale keys, values and the feed-forward, Liu et al. 2022, arXiv:2205.05638.

    The smallest kind: some hundred numbers per layer.
    """

    RATE: ClassVar[tuple[float, str]] = (150.0, "Liu et al. 2022: 3e-3 for sft")

    kind: Literal["ia3"] = "ia3"
    """The kind of adapter."""
    targets: NameOrNames = Field(default="auto", min_length=1)
    """`auto` (keys, values and the feed-forward's output, for the architectures that `peft` knows), or module names."""
    feedforward: NameOrNames = ()
    """Those of `targets` that are scaled at their input instead of their output; `auto` brings its own."""


class OFT(AdapterSettings):
    """Orthogonal fine-tuning: weights are rotated block by block, Qiu et al. 2023, arXiv:2306.07280.

    Angles between neurons stay as they were. The rotation is a Cayley transform with a five-term series.
    """

    RATE: ClassVar[tuple[float, str]] = (10.0, "that of LoRA")

    kind: Literal["oft"] = "oft"
    """The kind of adapter."""
    block_size: Int = Field(default=32, ge=2)
    """Inputs that are rotated together; where it does not divide a layer's width, the nearest divisor is taken."""
    targets: NameOrNames = Field(default="all-linear", min_length=1)
    """`all-linear`, a list of module names, or a regular expression."""
    dropout: Float = Field(default=0.0, ge=0, lt=1)
    """Share of blocks that are left unrotated, in supervised training only."""


class Bottleneck(AdapterSettings):
    """Small networks after the attention and the feed-forward: y + up(act(down(y))), Houlsby et al. 2019,
    arXiv:1902.00751.

    `peft` has no such adapter, so this one is posttrain's own, and only posttrain loads it. It is not linear, so it
    cannot be merged.
    """

    MERGES: ClassVar[bool] = False
    RATE: ClassVar[tuple[float, str]] = (5.0, "Pfeiffer et al. 2021, arXiv:2005.00247: 1e-4 for sft")

    kind: Literal["bottleneck"] = "bottleneck"
    """The kind of adapter."""
    size: Int = Field(default=64, ge=1)
    """Width of the bottleneck; with 64, the paper comes close to its best on every task."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """What stands between the two projections."""
    targets: NameOrNames = Field(default="auto", min_length=1)
    """The layers whose outputs go through it: `auto` (the last layer of each attention and of each feed-forward), a
    list of module names, or a regular expression."""
    dropout: Float = Field(default=0.0, ge=0, lt=1)
    """On its input, in supervised training only."""


class VirtualTokens(AdapterSettings):
    """What the kinds with virtual tokens share."""

    MERGES: ClassVar[bool] = False
    VIRTUAL: ClassVar[bool] = True

    tokens: Int = Field(default=20, ge=1)
    """Virtual tokens before every row; each takes one of the model's positions."""

    @property
    def virtual_tokens(self) -> int:
        return self.tokens


class PrefixTuning(VirtualTokens):
    """Learnt keys and values before every layer's own, Li and Liang 2021, arXiv:2101.00190."""

    RATE: ClassVar[tuple[float, str]] = (500.0, "1e-2 for sft, as in the examples of `peft`")

    kind: Literal["prefix"] = "prefix"
    """The kind of adapter."""
    projection: Int | None = Field(default=None, ge=1)
    """Width of the network that makes the prefix while training (the paper's reparametrisation); null: none. With one,
    training cannot go on from the saved prefix."""


class PromptTuning(VirtualTokens):
    """Learnt embeddings before every row, Lester et al. 2021, arXiv:2104.08691."""

    RATE: ClassVar[tuple[float, str]] = (1500.0, "3e-2 for sft, as in the examples of `peft`")

    kind: Literal["prompt"] = "prompt"
    """The kind of adapter."""
    init: Literal["vocabulary", "random"] = "vocabulary"
    """Start from embeddings of random tokens, or from noise."""
    text: str | None = Field(default=None, min_length=1)
    """Start from the embeddings of this text instead, repeated or cut to `tokens`."""


class PTuning(VirtualTokens):
    """Embeddings before every row that a small network makes while training, Liu et al. 2021, arXiv:2103.10385.

    The network is not saved, only what it makes; training cannot go on from there.
    """

    RATE: ClassVar[tuple[float, str]] = (50.0, "1e-3 for sft, as in the examples of `peft`")

    kind: Literal["p_tuning"] = "p_tuning"
    """The kind of adapter."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network."""
    hidden: Int = Field(default=128, ge=1)
    """Its width."""


class Continue(AdapterSettings):
    """Go on training the adapter that the start comes with; its kind and sizes are its own.

    The reference of a preference stage is the start with this adapter as it was.
    """

    kind: Literal["continue"] = "continue"
    """The kind of adapter."""


ADAPTERS: Mapping[str, type[AdapterSettings]] = {
    "lora": LoRA,
    "qlora": QLoRA,
    "adalora": AdaLoRA,
    "ia3": IA3,
    "oft": OFT,
    "bottleneck": Bottleneck,
    "prefix": PrefixTuning,
    "prompt": PromptTuning,
    "p_tuning": PTuning,
    "continue": Continue,
}
"""What `kind` says -> its record."""


def _short(value: Any) -> Any:
    """`adapter: ia3` is {kind: ia3}, and `adapter: {rank: 8}` is a LoRA."""
    if isinstance(value, str):
        return {"kind": value}
    # LoRA is what nearly every recipe means by an adapter.
    return {"kind": "lora", **value} if isinstance(value, Mapping) and "kind" not in value else value


if TYPE_CHECKING:  # the table is only known when it runs
    Adapter = AdapterSettings
else:
    Adapter = Annotated[
        Union[tuple(ADAPTERS.values())],  # noqa: UP007
        Field(discriminator="kind"),
        BeforeValidator(_short),
    ]
