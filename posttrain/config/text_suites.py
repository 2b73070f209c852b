"""Suites that compare answers with reference texts, and those that ask for no answer at all: given texts, tasks of
lm-eval, and what training cost.

- {name: qa, kind: f1, prompts: heldout_qa.jsonl}
- {name: into_german, kind: bleu, prompts: heldout_de.jsonl, tokenize: intl}
- {name: manuals, kind: text_perplexity, texts: manuals.jsonl}
- {name: harness, kind: lm_eval, tasks: [arc_easy, ./tasks], limit: 200}
- {name: retention, kind: retention}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.suite_settings import SampledSuite, SuiteSettings
from posttrain.config.values import Float, Int, as_text, refuse


class ReferenceSuite(SampledSuite):
    """Answers compared with the row's `answer`, and with further right answers where the row has some."""

    references: str = Field(default="references", min_length=1)
    """The column with further right answers: a text, a list of texts, or SQuAD's `{text: [...]}`. The best fit counts,
    as each metric defines it."""


class F1Suite(ReferenceSuite):
    """Words in common with the row's answer, and exact match, both after SQuAD's normalisation (English)."""

    kind: Literal["f1"]
    """`f1`: does it say what the row says?"""


class BleuSuite(ReferenceSuite):
    """BLEU of the corpus, 0 to 100, by sacrebleu; needs `posttrain[metrics]`."""

    kind: Literal["bleu"]
    """`bleu`: is it the reference's translation?"""
    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    """How sacrebleu splits words: `13a` as WMT does, `intl` by Unicode's classes, `char` or `zh` where words are not
    separated by spaces. Figures of two tokenisations cannot be compared."""
    lowercase: bool = False
    """Whether A and a are the same."""
    goal: Float | None = Field(default=None, ge=0, le=100)
    """The BLEU that the run sets out to reach, 0 to 100. It changes no answer; the report says whether it did."""


class ChrfSuite(ReferenceSuite):
    """chrF of the corpus, 0 to 100, by sacrebleu: characters in common; needs `posttrain[metrics]`."""

    kind: Literal["chrf"]
    """`chrf`: is it the reference's translation, letter by letter?"""
    word_order: Literal[0, 2] = 0
    """0: chrF2; 2: chrF++, which counts words and pairs of them too."""
    goal: Float | None = Field(default=None, ge=0, le=100)
    """The chrF that the run sets out to reach, 0 to 100. It changes no answer; the report says whether it did."""


class RougeSuite(ReferenceSuite):
    """ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum (F1, 0 to 1) by rouge-score; needs `posttrain[metrics]`."""

    kind: Literal["rouge"]
    """`rouge`: does it summarise what the reference does?"""
    stemmer: bool = False
    """Whether `walked` and `walks` are one word (Porter's stemmer, English), as papers on summaries often have it."""


class TextPerplexitySuite(SuiteSettings):
    """How surprised a model is by texts that are given, as they stand: no template and no answer."""

    kind: Literal["text_perplexity"]
    """`text_perplexity`: does it still know the language?"""
    texts: Annotated[str, BeforeValidator(as_text)]
    """File of rows `{"text": ...}`; relative to the recipe."""
    limit: Int | None = Field(default=None, ge=1)
    """Use only the first so many texts."""
    window: Int | None = Field(default=None, ge=2)
    """The most tokens that are read at once; the model's positions, 2,048 at most, if absent. Longer texts are read in
    windows that overlap."""
    stride: Int | None = Field(default=None, ge=1)
    """Tokens that each further window scores; what is left of the window is context. Half of the window if absent."""

    @model_validator(mode="after")
    def _has_context(self) -> Self:
        if self.stride is not None and self.window is not None and self.stride >= self.window:
            raise refuse(
                "a window would score all of its tokens, the first of them without context",
                path=("stride",),
                found=f"stride: {self.stride}, window: {self.window}",
                expected="a stride below the window",
                remedy=f"write `stride: {max(1, self.window // 2)}`",
            )
        return self


def is_task_file(task: str) -> bool:
    """Whether an entry of `tasks` is a file or folder of the user's, and not the name of a task that lm-eval has."""
    return task.startswith((".", "/", "~")) or task.endswith((".yaml", ".yml"))


class LmEvalSuite(SuiteSettings):
    """Tasks of EleutherAI's lm-evaluation-harness, answered by posttrain's engine; needs `posttrain[lm_eval]`."""

    kind: Literal["lm_eval"]
    """`lm_eval`: what does the field's harness measure?"""
    tasks: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    """Names of its tasks and groups, files of tasks (`./my_task.yaml`), or folders that hold such files. What begins
    with `.`, `/` or `~` or ends in `.yaml` is a file or folder, relative to the recipe."""
    limit: Int | None = Field(default=None, ge=1)
    """Ask only the first so many documents of each task."""
    num_fewshot: Int | None = Field(default=None, ge=0)
    """Examples before each question; what the task says if absent. A task that says 0 keeps it."""
    apply_chat_template: bool = False
    """Ask through the model's chat template, as it was trained."""
    fewshot_as_multiturn: bool = True
    """With the template: each example is a turn of the conversation."""
    system_instruction: str | None = None
    """What the system message says."""
    seed: Int = 1234
    """Of the choice of few-shot examples, and of sampling where a task samples."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_task(cls, tasks: Any) -> Any:
        return tuple(name.strip() for name in tasks.split(",")) if isinstance(tasks, str) else tasks


class RetentionSuite(SuiteSettings):
    """What did training cost? General text, instructions that a program checks, and sums: figures that should stay."""

    kind: Literal["retention"]
    """`retention`: did it keep what it knew?"""
    limit: Int | None = Field(default=None, ge=1)
    """Ask only the first so many rows of each of the three parts."""
