"""The stage `pairs`: preference pairs that models make, by one of four kinds.

- {name: made, method: pairs, data: tasks.jsonl, make: {kind: best_worst, samples: 8, scorer: {stage: reward}}}
- {name: made, method: pairs, data: prompts.jsonl, make: {kind: judged, judge: runs/large/sft/model}}
- {name: made, method: pairs, data: prompts.jsonl, make: {kind: critique, rounds: 2}}
- {name: made, method: pairs, data: chats.jsonl, make: {kind: degraded, good: row, flaws: [too_long, rude]}}
- {method: dpo, data: {stage: made}}
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.attempts import AttemptSampling, AttemptSettings
from posttrain.config.base import MakingStage
from posttrain.config.principles import FLAWS
from posttrain.config.settings import Gate
from posttrain.config.strategies.base import AnyScorer
from posttrain.config.teacher import AnyTeacher, LocalTeacher, TeacherSampling
from posttrain.config.values import Float, Int, Settings, choose, listed, refuse

STANDARD = "helpfulness, correctness, relevance, and clarity"
"""What a judge goes by where nothing else is said; the same as that of the reward `judge`."""


class PairsSettings(Settings):
    """One way to make pairs."""

    IS_FAMILY: ClassVar[bool] = True


class BestWorst(AttemptSettings, PairsSettings):
    """The policy's best answer to a prompt against its worst, by a score: both are what it would say itself."""

    kind: Literal["best_worst"] = "best_worst"
    """`best_worst`: the best and the worst of several answers."""
    scorer: AnyScorer
    """Who says how good an answer is: rewards (verifiers, a judge among them), a reward model, the log-prob, itself."""
    margin: Float = Field(default=0.0, ge=0)
    """Least difference of the two scores; equal scores never make a pair."""
    pairs_per_prompt: Int | None = Field(default=1, ge=1)
    """1: the best against the worst; more: further pairs of different answers, those of the largest difference first;
    null: all that have the margin."""

    @model_validator(mode="after")
    def _two_answers(self) -> Self:
        _require_two(self.samples)
        return self


class Judged(AttemptSettings, PairsSettings):
    """Two answers of the policy against each other, by a judge that sees them in both orders (RLAIF)."""

    kind: Literal["judged"] = "judged"
    """`judged`: a model says which of two answers is better (Lee et al. 2023, arXiv:2309.00267)."""
    samples: Int = Field(default=2, ge=2)
    """Answers to each prompt: the first meets the second, the third the fourth; equal texts count once."""
    judge: AnyTeacher
    """Who compares: a model by name or folder, `{stage: NAME}`, or `{url: ..., model: ...}`."""
    standard: str = Field(default=STANDARD, min_length=1)
    """What the judge goes by."""
    verdict: TeacherSampling = TeacherSampling(temperature=0.0)
    """How the verdicts are drawn, reasons included."""


class WithAnswer(PairsSettings):
    """One answer of each prompt, to which another model makes the other side."""

    good: Literal["policy", "row"] = "policy"
    """Whose answer it is: the `policy`'s own, or the `row`'s."""
    sampling: AttemptSampling = AttemptSampling()
    """How the policy's answer is drawn."""


class Critique(WithAnswer):
    """A critique of the answer by a principle, and a revision after it: the revision is chosen, the answer rejected."""

    kind: Literal["critique"] = "critique"
    """`critique`: critique and revision by a list of principles (Bai et al. 2022, arXiv:2212.08073, section 3.1)."""
    critic: AnyTeacher = LocalTeacher()
    """Who criticises and revises: `policy`, a model by name or folder, `{stage: NAME}`, or `{url: ..., model: ...}`."""
    writing: TeacherSampling = TeacherSampling()
    """How critiques and revisions are drawn."""
    principles: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The principles, one sentence each; one is drawn for each round by the seed. None: those that ship with posttrain
    (docs/synthesis.md lists them)."""
    principles_file: str | None = None
    """A text file with one principle a line, instead of `principles`; blank lines and lines with # are passed over."""
    rounds: Int = Field(default=1, ge=1)
    """Critiques with a revision each; every round goes on from the revision before it, by another principle."""

    @model_validator(mode="after")
    def _principles_once(self) -> Self:
        if self.principles_file is not None and self.principles:
            raise refuse(
                "`principles` and `principles_file` both say what answers are revised by",
                path=("principles_file",),
                found=self.principles_file,
                remedy="keep one of the two",
            )
        return self


class Degraded(WithAnswer):
    """A bad answer that a model writes on purpose, with a known flaw; the good answer is chosen."""

    kind: Literal["degraded"] = "degraded"
    """`degraded`: a prompt asks for an answer with a known flaw."""
    writer: AnyTeacher = LocalTeacher()
    """Who writes it: `policy`, a model by name or folder, `{stage: NAME}`, or `{url: ..., model: ...}`."""
    writing: TeacherSampling = TeacherSampling()
    """How the bad answers are drawn."""
    flaws: tuple[str, ...] = tuple(FLAWS)
    """Which flaws, by name; one is drawn for each row by the seed."""
    own_flaws: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    """Further flaws, by name, each as a sentence that says what is bad about the answer."""

    @field_validator("flaws", mode="before")
    @classmethod
    def _one_flaw(cls, value: Any) -> Any:
        return listed(value)

    @model_validator(mode="after")
    def _known_flaws(self) -> Self:
        for name in self.flaws:
            choose("flaw", name, FLAWS)
        for name in self.own_flaws:
            if name in FLAWS:
                raise refuse(
                    f"`{name}` is a flaw that is known already",
                    path=("own_flaws", name),
                    remedy="give yours another name; rows say by it what is wrong with them",
                )
        if not self.texts:
            raise refuse("there is no flaw to ask for", path=("flaws",), remedy="leave `flaws` out, or name one")
        return self

    @property
    def texts(self) -> dict[str, str]:
        """Name -> what is bad about the answer."""
        return {**{name: FLAWS[name] for name in self.flaws}, **self.own_flaws}


def _short(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AnyPairs = Annotated[
    Annotated[BestWorst | Judged | Critique | Degraded, Field(discriminator="kind")], BeforeValidator(_short)
]


class Pairs(MakingStage):
    """Make preference pairs from the policy's own answers, and from what other models say of them. Trains nothing."""

    method: Literal["pairs"] = "pairs"
    """Pairs that models make."""
    make: AnyPairs
    """How, by its `kind`."""
    gate: Gate = "warn"
    """What findings of severity `error` in the pairs do, by the audit's cheap checks (length bias among them): `stop`
    the stage, `warn`, or `off`: no check runs."""


def _require_two(samples: int) -> None:
    if samples < 2:
        raise refuse(
            "a pair needs two answers",
            path=("samples",),
            found=f"samples: {samples}",
            remedy="write `samples: 8`",
        )
