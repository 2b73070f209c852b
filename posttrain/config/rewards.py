"""Rewards as a recipe writes them: one record per kind, and what all of them share.

rewards:
  - {kind: math}
  - {kind: overlong, max_length: 512, buffer: 64, weight: 0.5}
  - {kind: function, function: my_rewards:polite, parameters: {word: please}}
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.functions import ADDRESS
from posttrain.config.judge_endpoint import STANDARD, JudgeEndpoint
from posttrain.config.values import (
    Float,
    Int,
    Pattern,
    Settings,
    as_text,
    choose,
    refuse,
    require_unique,
)


class RewardSettings(Settings):
    """What every reward has."""

    # Errors look among all kinds of a family for a key that the written kind lacks (`explain`).
    IS_FAMILY: ClassVar[bool] = True

    kind: str
    """What is rewarded."""
    # Of any sign: a negative one turns a measure of something unwanted (repetition, length) into a penalty.
    weight: Float = 1.0
    """What the reward is multiplied with before the rewards are added up; 0 only logs it, below 0 punishes."""
    # No blanks, dots or slashes: it becomes part of metric names and of column heads.
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """How the part is called in logs; the kind, if nothing is given."""

    @property
    def label(self) -> str:
        return self.name or self.kind


class Tagged(RewardSettings):
    """What verifiers of a text share."""

    tag: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """The answer stands in this tag: `answer` for `<answer>4</answer>`. None: it is all that follows the thoughts."""


class MathReward(RewardSettings):
    """1 where the answer is the row's answer as mathematics."""

    kind: Literal["math"]
    """`math`: is the result right?"""
    require_boxed: bool = False
    """Only `\\boxed{...}` is an answer; otherwise `####`, "answer is", and a last number or line are too."""
    seconds: Int = Field(default=3, ge=1, le=60)
    """For reading each of two formulas, and for comparing them."""


class ExactReward(Tagged):
    """1 where the answer is the row's answer, letter by letter, runs of blanks aside."""

    kind: Literal["exact"]
    """`exact`: is it the row's answer?"""
    ignore_case: bool = False
    """Whether A and a are the same."""


class FuzzyReward(Tagged):
    """How alike the answer and the row's answer are, 0 to 1."""

    kind: Literal["fuzzy"]
    """`fuzzy`: how close is it to the row's answer?"""
    measure: Literal["words", "characters"] = "words"
    """F1 over words, or the ratio of matching characters."""
    at_least: Float = Field(default=0.0, ge=0, le=1)
    """Less than this is 0."""


class RegexReward(RewardSettings):
    """1 where a pattern occurs in the response, its thoughts included."""

    kind: Literal["regex"]
    """`regex`: does the text occur?"""
    pattern: Pattern | None = None
    """Regular expression; None takes each row's own `pattern`."""
    ignore_case: bool = False
    """Whether A and a are the same."""
    whole: bool = False
    """The pattern has to match from the response's start to its end."""
    absent: bool = False
    """1 where it does not occur."""


class JsonSchemaReward(RewardSettings):
    """1 where the answer is JSON that fits a JSON schema."""

    kind: Literal["json_schema"]
    """`json_schema`: is it JSON of this form?"""
    # The alias, because `schema` is a method of pydantic's own base class.
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """The schema; None takes each row's own `schema`, and any JSON where there is none."""


class FormatReward(RewardSettings):
    """1 where the response is a row of tags, each once, in this order, with nothing around them."""

    kind: Literal["format"]
    """`format`: are the tags in their places?"""
    tags: tuple[str, ...] = Field(default=("think", "answer"), min_length=1)
    """The tags in their order."""
    partial: bool = False
    """Part of the reward for each tag that occurs once, whatever stands around it."""


class ThinkTagsReward(RewardSettings):
    """1 where thoughts stand in one pair of <think> tags, and an answer follows."""

    kind: Literal["think_tags"]
    """`think_tags`: does it think, and then answer?"""
    opened: bool = False
    """The chat template already writes `<think>`."""
    partial: bool = False
    """A quarter for each condition: opened once, closed once, begins with its thoughts, goes on after them."""


class LengthReward(RewardSettings):
    """1 at a length, falling in a straight line to 0."""

    kind: Literal["length"]
    """`length`: is it as long as it should be?"""
    target: Int = Field(ge=0)
    """The length with the highest reward."""
    tolerance: Int = Field(ge=1)
    """How far from it the reward is 0."""
    unit: Literal["tokens", "words", "characters"] = "tokens"
    """What is counted."""


class OverlongReward(RewardSettings):
    """0 up to a length, then falling to -1: DAPO's soft overlong punishment."""

    kind: Literal["overlong"]
    """`overlong`: does it come near the limit?"""
    max_length: Int = Field(ge=1)
    """Tokens at which the reward is -1: `max_new_tokens`, usually."""
    buffer: Int = Field(ge=1)
    """Tokens before that at which it begins to fall."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        # The reward would begin to fall at a negative length, so that every response is punished.
        if self.buffer > self.max_length:
            raise refuse(
                "the buffer is longer than the response may be",
                path=("buffer",),
                found=f"buffer: {self.buffer}, max_length: {self.max_length}",
                remedy="write a smaller buffer, such as a fifth of max_length",
            )
        return self


class CosineReward(RewardSettings):
    """Another reward's right or wrong, made to depend on the length (Yeo et al. 2025, arXiv:2502.03373)."""

    kind: Literal["cosine"]
    """`cosine`: is it right, and short?"""
    # One of the union below, of which this record is itself a part: it is resolved by `model_rebuild`.
    of: AnyReward
    """The verifier, in full: `of: {kind: math}`."""
    max_length: Int = Field(ge=1)
    """Tokens at which the reward has reached its value for long responses."""
    right: tuple[Float, Float] = (1.0, 0.5)
    """For right responses: at length 0, and at `max_length`."""
    wrong: tuple[Float, Float] = (-1.0, -0.5)
    """For wrong ones."""
    at_limit: Float = -1.0
    """For a response that was cut off."""


class RepetitionReward(RewardSettings):
    """Minus the share of repeated n-grams."""

    kind: Literal["repetition"]
    """`repetition`: does it say things again?"""
    ngram: Int = Field(default=3, ge=1)
    """Words of an n-gram."""
    penalty: Float = Field(default=1.0, gt=0)
    """What a response of one n-gram over and over loses, nearly."""


# Stated here and not asked of the detector: reading a recipe must not load its tables.
LANGUAGES = frozenset(
    (
        *("ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "gu", "he", "hi", "hu", "hy", "id"),
        *("it", "ja", "ka", "kn", "ko", "ml", "mr", "ne", "nl", "no", "pa", "pl", "pt", "ro", "ru", "sv", "ta", "te"),
        *("th", "tr", "uk", "ur", "vi", "zh"),
    )
)
"""Languages that `posttrain.rewards.language` can tell, by their two letters."""


class LanguageReward(RewardSettings):
    """The share of the response that is in a language."""

    kind: Literal["language"]
    """`language`: is it in the language?"""
    language: str | None = Field(default=None, pattern=r"^[a-z]{2}$")
    """Two letters, such as en; None takes the row's `language`, or else the prompt's own."""

    @field_validator("language")
    @classmethod
    def _known(cls, language: str | None) -> str | None:
        return None if language is None else choose("language", language, sorted(LANGUAGES))


class RefusalReward(RewardSettings):
    """1 where the response does not refuse, or does where it should."""

    kind: Literal["refusal"]
    """`refusal`: does it answer?"""
    want: Literal["answer", "refuse", "row"] = "answer"
    """`row`: each row's `refuse` says true or false."""


class InstructionsReward(RewardSettings):
    """The share of the row's checkable constraints that the response meets (IFEval)."""

    kind: Literal["instructions"]
    """`instructions`: does it do what it was told?"""
    partial: bool = True
    """False: 1 only if all are met."""
    variant: Literal["strict", "own"] = "strict"
    """`strict` decides as the authors' checkers, `own` as people read the constraints (whole words, "don't" as one)."""


class CodeReward(RewardSettings):
    """1 where the program in the response passes the row's tests, in a sandbox."""

    kind: Literal["code"]
    """`code`: does the program work?"""
    partial: bool = False
    """The share of the row's checks that pass, where it has several."""
    seconds: Float = Field(default=5.0, gt=0)
    """Wall time of one check."""
    memory_mb: Int = Field(default=512, ge=64)
    """Address space of a program; libraries such as NumPy want 2,000."""
    lanes: Int = Field(default=1, ge=1)
    """Programs that run at once."""
    packages: bool = False
    """Programs may import what is installed beside posttrain, and read its files."""
    namespaces: bool | None = None
    """None: Linux namespaces where they may be made; true: or not at all; false: without (docs/sandbox.md)."""


class ReasoningGymReward(Tagged):
    """The score that a reasoning-gym task gives the answer; for rows made by `reasoning_gym:NAME`."""

    kind: Literal["reasoning_gym"]
    """`reasoning_gym`: what does the task's own rule say?"""
    partial: bool = False
    """Keep scores between 0 and 1."""


class ModelReward(RewardSettings):
    """A trained reward model's number."""

    kind: Literal["reward_model"]
    """`reward_model`: what does a model trained on preferences say?"""
    model: Annotated[str, BeforeValidator(as_text)]
    """Folder or name."""
    head: str | None = None
    """One attribute, group, condition or member of it by name."""
    normalised: bool = False
    """With the scale and shift that were stored with the model."""
    scale: Float = 1.0
    """What the number is multiplied with."""
    shift: Float = 0.0
    """What is added to it."""
    # Beside a policy on the GPU a reward model competes for its memory, and running out costs the run.
    device: str = "cpu"
    """Where the model is: cpu, cuda, cuda:1."""


class JudgeReward(JudgeEndpoint, RewardSettings):
    """What a model behind an OpenAI-compatible endpoint thinks, 0 to 1."""

    kind: Literal["judge"]
    """`judge`: what does another model say?"""
    against: Literal["group", "answer", "nobody"] = "group"
    """Each response is compared with the others to its prompt, with the row's answer, or marked by itself."""
    standard: str = STANDARD
    """What the judge goes by."""
    # All against all grows with the square of the group: 8 responses are 28 pairs, each asked twice.
    opponents: Int | None = Field(default=None, ge=1)
    """In a group: how many others each response meets; null: all."""
    show_reference: bool = False
    """The judge sees the row's answer."""


class FunctionReward(RewardSettings):
    """A function of yours: `(prompt, completion, task) -> float | None`, or of lists."""

    kind: Literal["function"]
    """`function`: your own."""
    # The form only: whether there is such a function is known where its module's folder is.
    function: str = Field(pattern=ADDRESS)
    """`file.py:function`, or `module:function`; the module is looked for beside the recipe and among what is
    installed."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Given to the function by name, besides the prompt, the completion and the task."""
    verifies: bool = False
    """It must give 1 to each row's own answer; `posttrain check` tries that."""

    @property
    def label(self) -> str:
        return self.name or self.function.rpartition(":")[2].replace(".", "_")


# By `kind` alone: tried one after the other, each kind would report its own version of the same mistake.
AnyReward = Annotated[
    MathReward
    | ExactReward
    | FuzzyReward
    | RegexReward
    | JsonSchemaReward
    | FormatReward
    | ThinkTagsReward
    | LengthReward
    | OverlongReward
    | CosineReward
    | RepetitionReward
    | LanguageReward
    | RefusalReward
    | InstructionsReward
    | CodeReward
    | ReasoningGymReward
    | ModelReward
    | JudgeReward
    | FunctionReward,
    Field(discriminator="kind"),
]
CosineReward.model_rebuild()


class RewardList(Settings):
    """What a response is rewarded for: the weighted sum of these."""

    rewards: tuple[AnyReward, ...] = Field(min_length=1)
    """The rewards, in the order of the logs."""

    @field_validator("rewards")
    @classmethod
    def _unique_labels(cls, rewards: tuple[AnyReward, ...]) -> tuple[AnyReward, ...]:
        return require_unique("rewards", rewards, [reward.label for reward in rewards])
