"""stage.json: what a stage started from, what it ran on, and what became of it.

It is written piecemeal: when the stage begins, when its preflight has passed, while it trains, and at its end. A key
that the stage has not come to yet is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from posttrain.intervals import Score
from posttrain.runs.records.base import Record, WholeFile, optional_key, other_keys
from posttrain.runs.records.run import SCHEMA
from posttrain.runs.values import as_mapping, as_whole


@dataclass(frozen=True, slots=True)
class StartModel(Record):
    """StartModel("embedded", "/home/ada/posttrain/embedded/model", "e6f2a45a...")"""

    name: str | None
    path: str | None
    fingerprint: str | None
    """Of its weights."""


@dataclass(frozen=True, slots=True)
class Replaced(Record):
    """Why a finished stage was moved aside: Replaced("2026-03-02T08:00:00+00:00", ("`beta` 0.1 -> 0.5",))"""

    when: str | None
    because: tuple[str, ...]
    """What differs in the run that came after it: settings from this stage's value to the later one, contents."""


@dataclass(frozen=True, slots=True)
class SharedFrom(Record):
    """The run of the same sweep that trained a stage which is linked into this one: SharedFrom("dpo.beta-0.05_seed-0",
    31.2)"""

    run: str
    seconds: float | None
    """Of work, there."""


@dataclass(frozen=True, slots=True)
class Machine(Record):
    """What the stage was computed on.

    Machine("3.11.7", "2.13.0+cpu", "5.23.0", "Linux-6.1-x86_64", "AMD EPYC", "cpu", threads=2, memory_gb=8.2)
    """

    python: str | None
    torch: str | None
    transformers: str | None
    platform: str | None
    cpu: str | None
    device: str | None
    threads: int | None
    memory_gb: float | None
    more: Mapping[str, Any] = other_keys()
    """Further libraries by name."""


@dataclass(frozen=True, slots=True)
class ParameterCounts(Record):
    """ParameterCounts(total=2_066_112, trainable=131_072)"""

    total: int | None
    trainable: int | None


def _by_reason_or_number(value: object) -> Mapping[str, int] | int:
    if (number := as_whole(value)) is not None:
        return number
    return {reason: rows for reason, item in as_mapping(value).items() if (rows := as_whole(item)) is not None}


@dataclass(frozen=True, slots=True)
class SourceCounts(Record):
    """One source of a mixture: SourceCounts("maths", read=1_000, kept=990, rows=941, held_out_rows=49, tokens=52_812,
    trained_tokens=31_504, taken=2_016, epochs=2.14)"""

    name: str
    read: int | None
    kept: int | None
    rows: int | None
    """That train."""
    held_out_rows: int | None
    tokens: int | None
    trained_tokens: int | None
    taken: int | None = optional_key()
    """Rows that the whole run takes of it, each as often as it comes."""
    epochs: float | None = optional_key()
    """How often the run goes through it."""


@dataclass(frozen=True, slots=True)
class DiversityPoint(Record):
    """How diverse the prompts are that a model has written so far: DiversityPoint(made=60, kept=41, repeated=0.2,
    distinct_1=0.41, distinct_2=0.83, nearest_distance=0.62, vendi=35.1)"""

    made: int
    """That were written so far, with those that were dropped."""
    kept: int
    repeated: float
    """The share of those written that say what an earlier one says, or nearly."""
    distinct_1: float | None = optional_key()
    """Different words per word of those that were kept; falls as they become more."""
    distinct_2: float | None = optional_key()
    """The same of pairs of words."""
    nearest_distance: float | None = optional_key()
    """Mean of 1 - cosine (TF-IDF) to the nearest other one that was kept; absent without scikit-learn."""
    vendi: float | None = optional_key()
    """Vendi score: of how many wholly different prompts they are worth."""


@dataclass(frozen=True, slots=True)
class DataCounts(Record):
    """What became of a stage's rows.

    DataCounts(read=1_659, kept=1_640, dropped={"too_long": 19}, truncated={}, findings={}, tokens=52_812,
               trained_tokens=31_504, stop_share=0.053, rows=1_577, held_out_rows=63, format="chat")
    """

    read: int | None
    kept: int | None
    dropped: Mapping[str, int]
    """Rows by reason."""
    truncated: Annotated[Mapping[str, int] | int, _by_reason_or_number]
    """Rows by reason; a stage that corrects the model's answers counts those that were cut in one number."""
    findings: Mapping[str, int]
    """What else the encoder noticed, rows by name."""
    tokens: int | None
    trained_tokens: int | None
    stop_share: float | None
    """Stop tokens among the trained ones."""
    rows: int | None
    """That train."""
    held_out_rows: int | None
    notes: tuple[str, ...] = ()
    """What the reader of the rows says of the file as a whole."""
    format: str | None = optional_key()
    """The layout in which the rows were written: chat, preference, ..."""
    split: int | None = optional_key()
    """Rows that are more than one tree."""
    unused_columns: tuple[str, ...] | None = optional_key()
    unread_keys: Mapping[str, int] | None = optional_key()
    """Keys inside turns that nothing reads, and in how many rows they stand."""
    characters: int | None = optional_key()
    lost_characters: int | None = optional_key()
    """That the tokenizer cannot write."""
    held_out: DataCounts | None = optional_key()
    """Of a file of held-out rows."""
    in_training_rows: int | None = optional_key()
    """Held-out rows that train as well, word for word."""
    answers: int | None = optional_key()
    """Of a stage that corrects the model's answers: how many were sampled."""
    prompts: int | None = optional_key()
    pairs: int | None = optional_key()
    skipped: Mapping[str, int] | None = optional_key()
    """Answers that make no pair, by reason."""
    prompts_without_pair: int | None = optional_key()
    sources: tuple[SourceCounts, ...] | None = optional_key()
    """Of a mixture, in the order of the recipe."""
    diversity: tuple[DiversityPoint, ...] | None = optional_key()
    """Of a stage that makes prompts, after each tenth of what was written."""
    more: Mapping[str, Any] = other_keys()

    @property
    def truncated_by_reason(self) -> Mapping[str, int]:
        return {} if isinstance(self.truncated, int) else self.truncated

    @property
    def truncated_answers(self) -> int | None:
        return self.truncated if isinstance(self.truncated, int) else None


@dataclass(frozen=True, slots=True)
class StepScore(Record):
    """A held-out score at a step: StepScore(26, 0.50, 0.377, 0.623, n=60)."""

    step: int | None
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    """Tasks."""

    @classmethod
    def of(cls, step: int, score: Score) -> StepScore:
        return cls(step, score.value, score.low, score.high, score.n)


@dataclass(frozen=True, slots=True)
class HeldOutScore(Record):
    """The held-out score of a stage that samples, at four moments: HeldOutScore(StepScore(0, ...), ...)."""

    start: StepScore
    best: StepScore
    last: StepScore
    kept: StepScore
    """Of the weights that the stage saved."""


@dataclass(frozen=True, slots=True)
class BestExamination(Record):
    """BestExamination(step=12, score=0.53)"""

    step: int | None
    score: float | None


@dataclass(frozen=True, slots=True)
class StageRecord(WholeFile):
    """stage.json.

    StageRecord(schema=2, name="dpo", method="dpo_nll", status="done", started="2026-03-01T12:00:00+00:00",
                start_model=StartModel("sft/model", ...), data=DataCounts(...), parameters=ParameterCounts(2_066_112,
                2_066_112), logprobs="tree", reference="cached", steps=78, seconds=36.2, output="model", ...)
    """

    FILE = "stage.json"

    schema: int | None = SCHEMA
    name: str | None = None
    method: str | None = None
    status: str | None = None
    """running, done, interrupted or failed."""
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None
    """Of work, over all attempts."""
    error: str | None = None
    """Why it failed."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the stage as a whole."""
    quick_identity: str | None = None
    """Hash of the settings and of the files that the stage depends on: a finished stage with another one runs again."""
    fingerprint: str | None = None
    """Hash of the settings, the encoded rows and the start's weights: a checkpoint of another one is refused."""
    seed: int | None = None
    """Where the stage's random streams start."""
    split_seed: int | None = None
    """What a held-out share was drawn from."""
    contents: Mapping[str, str] | None = None
    """Hashes of what the stage rests on beside its settings: its data by key, and `start_model`."""
    date: str | None = None
    environment: Machine | None = None
    start_model: StartModel | None = None
    end_weights: str | None = optional_key()
    """Fingerprint of the trained weights, of a model that was passed loaded: it may be passed on to another stage."""
    data: DataCounts | None = None
    parameters: ParameterCounts | None = None
    logprobs: str | None = None
    """tree or padded: the path on which log-probs were computed."""
    reference: str | None = None
    """Where the reference policy's log-probs came from: cached, live, adapter_off."""
    objective: str | None = None
    """The loss, where it has another name than the method: of `custom_pairwise` the function, of `rft` `sft`."""
    tokens_per_microbatch: int | None = None
    arithmetic: str | None = None
    """Rows, steps and epochs in a sentence."""
    steps: int | None = None
    """That were taken, once the stage is done."""
    stopped: str | None = None
    """Why it ended before its last step."""
    output: str | None = None
    """What the next stage takes, inside this folder: model, or data.jsonl."""
    alarms_not_watched: Mapping[str, str] | None = None
    """Alarms that cannot ring here, and why."""
    examine_keep: str | None = None
    """Which weights a stage that samples was asked to end with: best or last."""
    best: BestExamination | None = None
    """The examination whose weights it ended with; None where it ended with the last."""
    best_lost: str | None = None
    """Why it did not end with the best."""
    no_update: str | None = None
    """Why the last step without an update had none."""
    updates: int | None = None
    held_out_score: HeldOutScore | None = None
    replaced: Replaced | None = optional_key()
    """Of a result that was moved to `<stage>.1` and so on, before its stage ran again on other inputs."""
    shared: SharedFrom | None = optional_key()
    """Of a stage that another run of a sweep trained, and that is linked into this one."""
    more: Mapping[str, Any] = other_keys()

    @property
    def model_name(self) -> str:
        """The start's, or its path."""
        start = self.start_model
        return "" if start is None else start.name or start.path or ""

    @property
    def best_step(self) -> int | None:
        return None if self.best is None else self.best.step
