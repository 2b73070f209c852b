"""The methods of merging, their parameters and their sources: a table without torch, for recipes.

    MERGE_METHODS["ties"].per_model["density"].default      # 0.2

What each method computes stands in `posttrain.models.merging.methods`, whose table `METHODS` has the same names.
A parameter of a model (`weight`) may be written at the merge, too, where it counts for all models that have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from posttrain.losses.parameters import Parameter


@dataclass(frozen=True, slots=True)
class MergeParameter:
    """What a method takes: MergeParameter(0.2, Parameter("share that is kept", at_least=0.0, at_most=1.0))."""

    default: float | bool | str | None
    """None: it has to be written."""
    known: Parameter
    choices: tuple[str, ...] = ()
    """The words that it may be, if it is one."""

    @property
    def varies(self) -> bool:
        """Whether it is a number that may differ between layers and between tensors."""
        return not self.choices and not isinstance(self.default, bool)


@dataclass(frozen=True, slots=True)
class MergeRow:
    """MergeRow("Ilharco et al. 2023, ...", "needed", (1, None), {"weight": ...}, {"lambda": ...})"""

    source: str
    base: Literal["needed", "optional", "none"]
    """Whether it merges differences to a base, or may, or merges the weights themselves."""
    models: tuple[int, int | None]
    """How many models beside the base: at least, at most."""
    per_model: Mapping[str, MergeParameter] = field(default_factory=dict)
    options: Mapping[str, MergeParameter] = field(default_factory=dict)
    """Parameters of the merge as a whole."""
    random: bool = False
    """Whether it draws, so that the seed counts."""


def _number(default: float | None, meaning: str, **limits: float) -> MergeParameter:
    return MergeParameter(default, Parameter(meaning, **limits))


def _flag(default: bool, meaning: str) -> MergeParameter:
    return MergeParameter(default, Parameter(meaning))


def _density(default: float) -> MergeParameter:
    return _number(default, "share of the entries of a model's difference that is kept", at_least=0.0, at_most=1.0)


WEIGHT = _number(1.0, "what the model is multiplied with; below 0 it is taken away")
LAMBDA = _number(1.0, "what the merged difference is multiplied with before the base is added")
EPSILON = _number(
    0.15, "half the width of the range of probabilities around `density`; the paper's is twice it", at_least=0.0
)
GAMMA = _number(0.01, "share of the largest entries that is dropped as outliers", at_least=0.0, at_most=1.0)
THRESHOLD = _number(1e-5, "an entry whose difference is not larger counts as unchanged", at_least=0.0)
AVERAGE = _flag(True, "divide by the sum of the weights, so that they say shares")
SUM = _flag(False, "divide by the sum of the weights; false: differences add up, as in the paper")
DISJOINT_MEAN = _flag(True, "divide each entry by the weights of the models that agree on its sign, as in the paper")
DISJOINT_SUM = _flag(False, "divide each entry by the weights of the models that agree on its sign; false: add up")
RESCALE = MergeParameter(
    "paper",
    Parameter(
        "what makes up for dropped entries: `paper`, as the method's paper has it (DARE and DELLA divide by the "
        "probability to be kept, the others do nothing); `l1`, the sum of magnitudes is kept, as mergekit does; `none`"
    ),
    choices=("paper", "l1", "none"),
)

TIES_PAPER = "Yadav et al. 2023, arXiv:2306.01708"
DARE_PAPER = "Yu et al. 2023, arXiv:2311.03099"
DELLA_PAPER = "Deep et al. 2024, arXiv:2406.11617"
BREADCRUMBS_PAPER = "Davari and Belilovsky 2023, arXiv:2312.06795"
RAM_PAPER = "Reinforced Agent Merging, 2026, arXiv:2601.13572"

MERGE_METHODS: Mapping[str, MergeRow] = {
    "linear": MergeRow(
        "Wortsman et al. 2022 (model soups), arXiv:2203.05482",
        "none",
        (1, None),
        {"weight": WEIGHT},
        {"normalize": AVERAGE},
    ),
    "slerp": MergeRow(
        "Shoemake 1985, spherical interpolation, as merging uses it: each tensor is one vector",
        "none",
        (2, 2),
        options={"t": _number(0.5, "0 is the first model, 1 the second", at_least=0.0, at_most=1.0)},
    ),
    "nuslerp": MergeRow(
        "Goddard et al. 2024 (mergekit), arXiv:2403.13257: slerp with weights, also of differences",
        "optional",
        (2, 2),
        {"weight": WEIGHT},
        {
            "vectors": MergeParameter(
                "tensor",
                Parameter(
                    "what is turned as one vector: `tensor`, the whole of it; `rows`, each row; `columns`, each column"
                ),
                choices=("tensor", "rows", "columns"),
            ),
        },
    ),
    "multislerp": MergeRow(
        "Goddard 2025 (Multi-SLERP): the mean direction, with the mean of the lengths",
        "optional",
        (1, None),
        {"weight": WEIGHT},
        {"normalize": AVERAGE},
    ),
    "karcher": MergeRow(
        "Karcher 1977, the Riemannian centre of mass, on a sphere; for models arXiv:2603.04972",
        "none",
        (1, None),
        {"weight": WEIGHT},
        {
            "iterations": _number(10, "most steps towards the centre", at_least=1),
            "tolerance": _number(1e-5, "a shorter step is the last", above=0.0),
        },
    ),
    "task_arithmetic": MergeRow(
        "Ilharco et al. 2023, arXiv:2212.04089",
        "needed",
        (1, None),
        {"weight": WEIGHT},
        {"lambda": LAMBDA, "normalize": SUM},
    ),
    "ties": MergeRow(
        TIES_PAPER,
        "needed",
        (1, None),
        {"weight": WEIGHT, "density": _density(0.2)},
        {"lambda": LAMBDA, "normalize": DISJOINT_MEAN, "rescale": RESCALE},
    ),
    "dare_linear": MergeRow(
        DARE_PAPER,
        "needed",
        (1, None),
        {"weight": WEIGHT, "density": _density(0.5)},
        {"lambda": LAMBDA, "normalize": SUM, "rescale": RESCALE},
        random=True,
    ),
    "dare_ties": MergeRow(
        DARE_PAPER,
        "needed",
        (1, None),
        {"weight": WEIGHT, "density": _density(0.5)},
        {"lambda": LAMBDA, "normalize": DISJOINT_MEAN, "rescale": RESCALE},
        random=True,
    ),
    "della": MergeRow(
        DELLA_PAPER,
        "needed",
        (1, None),
        {"weight": WEIGHT, "density": _density(0.5), "epsilon": EPSILON},
        {"lambda": LAMBDA, "normalize": DISJOINT_MEAN, "rescale": RESCALE},
        random=True,
    ),
    "della_linear": MergeRow(
        DELLA_PAPER,
        "needed",
        (1, None),
        {"weight": WEIGHT, "density": _density(0.5), "epsilon": EPSILON},
        {"lambda": LAMBDA, "normalize": SUM, "rescale": RESCALE},
        random=True,
    ),
    "breadcrumbs": MergeRow(
        BREADCRUMBS_PAPER,
        "needed",
        (1, None),
        {"weight": WEIGHT, "density": _density(0.1), "gamma": GAMMA},
        {"lambda": LAMBDA, "normalize": SUM, "rescale": RESCALE},
    ),
    "breadcrumbs_ties": MergeRow(
        f"{BREADCRUMBS_PAPER}, with the signs of {TIES_PAPER}",
        "needed",
        (1, None),
        {"weight": WEIGHT, "density": _density(0.1), "gamma": GAMMA},
        {"lambda": LAMBDA, "normalize": DISJOINT_SUM, "rescale": RESCALE},
    ),
    "sce": MergeRow(
        "Wan et al. 2024 (FuseChat), arXiv:2408.07990",
        "needed",
        (2, None),
        options={
            "select_topk": _number(
                1.0,
                "share of the entries, those that vary most between the models, that is merged",
                at_least=0.0,
                at_most=1.0,
            )
        },
    ),
    "model_stock": MergeRow(
        "Jang et al. 2024, arXiv:2403.19522",
        "needed",
        (2, None),
        options={"filter_wise": _flag(False, "an angle for each row of a matrix, and not one for a tensor")},
    ),
    "ram": MergeRow(RAM_PAPER, "needed", (1, None), options={"threshold": THRESHOLD}),
    "ramplus_tl": MergeRow(
        RAM_PAPER,
        "needed",
        (1, None),
        options={
            "threshold": THRESHOLD,
            "r": _number(0.1, "how much an entry that one model alone changed grows with what it shares", at_least=0.0),
            "alpha": _number(0.2, "the largest ratio of shared to own entries that counts for that", at_least=0.0),
        },
    ),
    "nearswap": MergeRow(
        "alchemonaut 2024 (QuartetAnemoi-70B), as in mergekit",
        "needed",
        (1, 1),
        options={
            "t": _number(None, "a difference of this size is taken over whole, a larger one in part", at_least=0.0)
        },
    ),
    "arcee_fusion": MergeRow("Arcee AI 2024, as in mergekit", "needed", (1, 1)),
    "passthrough": MergeRow(
        "Goddard et al. 2024 (mergekit), arXiv:2403.13257",
        "none",
        (1, 1),
        {"scale": _number(1.0, "what the tensors are multiplied with")},
    ),
}
"""Every method by its name."""
