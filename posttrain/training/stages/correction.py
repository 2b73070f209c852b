"""The stage `correction`: the model's own answers become the rejected side, the rows' answers the chosen one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from posttrain.config import Correction, Data
from posttrain.data.encode import Encoder
from posttrain.data.read import Examples, read
from posttrain.data.unread import unread_keys
from posttrain.models.devices import device_of
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.rollout.native import NativeEngine
from posttrain.runs.records.logs import DroppedRow
from posttrain.runs.records.stage import DataCounts
from posttrain.sampling import SamplingDistribution
from posttrain.training.order import stream_seed
from posttrain.training.stages.correction_pairs import Answering, correction_pairs, stand_in_pairs
from posttrain.training.stages.kind import OUTPUT_NAMES, MakingKind, StageContext


@dataclass(frozen=True, slots=True)
class CorrectionInputs:
    """What is asked, each with its own place: CorrectionInputs(rows, keep=None)."""

    rows: Examples
    keep: Examples | None
    """Prompts whose answers should stay as they are."""


def rows_to_correct(ctx: StageContext[Correction]) -> CorrectionInputs:
    """The stage's rows and its `keep`; all are looked at now, so that a bad one is found before a model loads."""
    stage, folder = ctx.stage, ctx.folder.path
    assert stage.data is not None  # the recipe's validation refuses a stage without data
    rows = _read(stage.data, folder / "rejected_rows.jsonl")
    return CorrectionInputs(rows, None if stage.keep is None else _read(stage.keep, folder / "rejected_keep.jsonl"))


def make_corrections(ctx: StageContext[Correction], inputs: CorrectionInputs) -> DataCounts:
    """Write data.jsonl into the stage's folder; returns what stage.json says under "data".

    Raises:
        DataError: a row says no wanted answer, or no pair came out.
    """
    stage, folder, rows, keep = ctx.stage, ctx.folder, inputs.rows, inputs.keep
    ctx.say(*rows.counts.notes, *unread_keys(rows.counts.unread_keys))
    answers = ctx.answers
    assert not isinstance(ctx.start, LoadedModel)  # a recipe's stage starts from a folder
    loaded = load(ctx.start, device=device_of(answers.device if answers else "auto"), say=ctx.progress.say)
    sampling = SamplingDistribution(**stage.sampling.model_dump(), seed=stream_seed(ctx.seed, "sampling"))
    # Each prompt of `keep` is asked twice: once greedily, for the side to stay at, and once as the others.
    kept = keep.counts.kept if keep is not None else 0
    total = (rows.counts.kept + kept) * stage.samples_per_prompt + kept
    encoder = Encoder(loaded.tokenizer, answers.encoding if answers else loaded.speech.settings())
    with ctx.progress.phase(f"{folder.name}: own answers", total=total, unit="answers") as phase:
        counts = correction_pairs(
            rows,
            Answering(
                encoder,
                NativeEngine(loaded.model, decode=encoder.tokens.decode),
                sampling,
                stage.samples_per_prompt,
                on_finish=lambda _, __, completion: phase.advance(1, tokens=len(completion.ids)),
            ),
            keep=keep or (),
            out=folder.path / OUTPUT_NAMES["data"],
            dropped=folder.path / DroppedRow.FILE,
        )
    ctx.say(str(counts))
    return DataCounts(
        read=rows.counts.read + (keep.counts.read if keep is not None else 0),
        kept=counts.pairs,
        dropped=counts.skipped,
        truncated=counts.truncated,
        findings={},
        tokens=None,
        trained_tokens=None,
        stop_share=None,
        rows=None,
        held_out_rows=None,
        answers=counts.answers,
        prompts=counts.prompts,
        pairs=counts.pairs,
        skipped=counts.skipped,
        prompts_without_pair=counts.prompts_without_pair,
    )


def stand_in_corrections(ctx: StageContext[Correction], inputs: CorrectionInputs) -> str:
    """Pairs of the rows' own answers: the prompts and chosen sides are what will train, the rejected sides are not.

    Raises:
        RowError: a row says no wanted answer.
    """
    ctx.folder.path.mkdir(parents=True, exist_ok=True)
    prompts = stand_in_pairs(inputs.rows, ctx.folder.path / OUTPUT_NAMES["data"])
    kept = inputs.keep.counts.kept if inputs.keep is not None else 0
    asked = ctx.stage.samples_per_prompt
    also = f" and {kept:,} prompts to keep" if kept else ""
    return (
        f"{prompts:,} prompts with a wanted answer{also} are read; {(prompts + kept) * asked:,} answers of the model "
        f"will be sampled. Not known before: how many of them differ from the wanted ones and make pairs, and how long "
        f"they are (at most {ctx.stage.sampling.max_new_tokens} tokens)"
    )


CORRECTION: MakingKind[Correction, CorrectionInputs] = MakingKind(
    outputs=Correction.OUTPUTS, inputs=rows_to_correct, make=make_corrections, stand_in=stand_in_corrections
)


def _read(data: Data, rejected: Path) -> Examples:
    return read(list(data.path), **data.keywords(rejected))
