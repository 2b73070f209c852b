"""A stage's rows: read, encoded, split, counted; before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain.config import ConditionalSFT, Data, Mix, Reward, TrainingStage
from posttrain.data.blocks import EncodeCounts
from posttrain.data.dataset import EncodedDataset
from posttrain.data.encode import FINDINGS, Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.read import Examples
from posttrain.data.recast import Condition, Recast, read_as, recast_note, require_kind
from posttrain.data.round_trip import require_written
from posttrain.data.row_columns import categories_of
from posttrain.data.sources.splits import MIXED_SPLITS
from posttrain.data.split import row_contents, split_by_content
from posttrain.data.store import encode
from posttrain.data.templates.template import DOCUMENTED_SPLITS
from posttrain.data.unread import unread_columns, unread_keys
from posttrain.data.write import write_jsonl
from posttrain.errors import DataError
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.responses import has_ties, ties_error
from posttrain.models.devices import device_of
from posttrain.models.folders.export_files import SpokenPrompt
from posttrain.models.folders.loading import LoadedModel
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.checks.preflight import Check, Status
from posttrain.training.objectives import Algorithm
from posttrain.training.order import stream_seed
from posttrain.training.stages.audited import audit_rows
from posttrain.training.stages.reward import encoder_of
from posttrain.training.stages.speech import (
    date_without_effect,
    prompts_of,
    run_date,
    stage_encoding,
    stops_in_answers,
)
from posttrain.training.stages.starts import Start, settle
from posttrain.types import Example, RowRef, TokenTree

NAMED_ROWS = 5
"""Rows that an error or a finding names; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A stage's rows, read and encoded; no weight has been touched yet."""

    rows: Sequence[TokenTree]
    held_out: Sequence[TokenTree]
    encoder: Encoder
    counts: dict[str, Any]
    """What stage.json says under "data"."""
    fingerprints: tuple[str, ...]
    findings: tuple[Check, ...] = ()
    """What the preflight has to say of the rows beside the counts."""
    categories: Mapping[RowRef, str] = field(default_factory=dict)
    """What kind each row that may be held out is, where a column says it."""
    proofs: tuple[Check, ...] = ()
    """That all rows are what the template renders, for the training rows and for a held-out file."""
    prompts: tuple[SpokenPrompt, ...] = ()
    """A few of the rows' prompts, which the exported folder must build alike."""


def load_inputs(
    stage: TrainingStage,
    objective: Algorithm,
    start: str | Path | LoadedModel | Start,
    folder: StageFolder,
    seed: int,
    progress: Progress,
    examples: Examples | None,
) -> Inputs:
    """Read and encode a stage's rows, hold some of them out, and write dropped.jsonl.

    Raises:
        DataError, EncodingError: a row, a file or the template cannot serve; no model has been loaded.
    """
    if not isinstance(start, Start):
        start = settle(stage, start, device_of(stage.compute.device))
    spoken, contradictions = stage_encoding(stage, start.speech, run_date(folder))
    for line in contradictions:
        progress.say(f"{folder.name}: {line}")
    settings = _encoder_settings(stage, spoken, start.positions)
    if settings.max_length != stage.max_length:
        progress.say(f"{folder.name}: max_length is {settings.max_length:,}, the most positions that the model has")
    encoder = _encoder(stage, start.tokenizer, settings)
    for line in date_without_effect(stage, encoder):
        progress.say(f"{folder.name}: {line}")
    reader = _Reader(stage, objective, encoder, folder, progress)
    training = reader.encoded("train", stage.data, examples)
    if isinstance(stage.held_out, Data):
        apart = reader.encoded("held_out", stage.held_out, None)
        _write_dropped(folder, [training, apart])
        return _with_file(training, apart, reader.encoder)
    _write_dropped(folder, [training])
    every = training.rows
    kept, out = split_by_content(row_contents(every), stage.held_out, stream_seed(seed, "split"))
    if stage.held_out and not out:
        progress.say(
            f"{folder.name}: no row is held out ({stage.held_out:g} of {len(every):,} rows, rounded down), so nothing "
            "is measured on rows that were not trained on; raise held_out, or name a file"
        )
    counts = {**training.record, "rows": len(kept), "held_out_rows": len(out)}
    return Inputs(
        every[kept],
        every[out],
        reader.encoder,
        counts,
        (every.fingerprint,),
        training.findings,
        training.categories,
        (training.proof,),
        training.prompts,
    )


def _encoder(stage: TrainingStage, tokenizer: Any, settings: EncoderSettings) -> Encoder:
    return encoder_of(stage, tokenizer, settings) if isinstance(stage, Reward) else Encoder(tokenizer, settings)


# ---------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The rows of `data` or of `held_out`, and what became of those that are left out."""

    split: str
    rows: EncodedDataset
    record: dict[str, Any]
    rejected: Path
    """Rows that could not be read, under `bad_rows: skip`."""
    proof: Check
    findings: tuple[Check, ...] = ()
    categories: Mapping[RowRef, str] = field(default_factory=dict)
    prompts: tuple[SpokenPrompt, ...] = ()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads and encodes for one stage."""

    stage: TrainingStage
    objective: Algorithm
    encoder: Encoder
    folder: StageFolder
    progress: Progress

    def encoded(self, split: str, data: Data | None, examples: Examples | None) -> _Encoded:
        rejected = self.folder.path / f"rejected_{split}.jsonl"
        if examples is not None:
            require_kind(examples, self.objective.kind)
        if examples is None:
            assert data is not None  # the recipe's validation refuses a stage without data
            examples = read_data(data, self.objective.kind, rejected)
        elif examples.options.bad_rows == "skip" and examples.options.rejected_path is None:
            examples = Examples(examples.sources, replace(examples.options, rejected_path=rejected))
        else:
            rejected = examples.options.rejected_path or rejected
        findings = _files_check(split, examples) + _unread_check(split, examples) + _keys_check(split, examples)
        for said in examples.counts.notes:
            self.progress.say(f"{self.folder.name}: {said}")
        if split == "train":
            findings += audit_rows(self.stage, examples, self.folder, self.progress)
        name = "rows" if split == "train" else "held-out rows"
        total = examples.counts.kept
        with self.progress.phase(f"{self.folder.name}: encoding {name}", total=total, unit="rows") as phase:
            rows = encode(
                self._recast(examples),
                self.encoder,
                store=self.folder.path / "encoded",
                progress=phase.advance,
                bad_rows=examples.options.bad_rows,
            )
        counts = rows.counts
        require_written(
            counts.read,
            counts.findings.get("lost_text", 0),
            counts.characters,
            counts.lost_characters,
            lossy=self.encoder.settings.lossy,
            examples=rows.found.get("lost_text", ()),
        )
        for note in (recast_note(examples, self.objective.kind), *rows.notes):
            if note:
                self.progress.say(f"{self.folder.name}: {note}")
        for name in _objectives(self.stage):
            if name in PAIRWISE and PAIRWISE[name].needs_margins:
                _require_margins(rows, name)
            if name in ONE_ORDER:
                _require_one_order(rows, name)
        categories: Mapping[RowRef, str] = {}
        stage = self.stage
        if isinstance(stage, Reward) and (split == "held_out" or not isinstance(stage.held_out, Data)):
            categories = categories_of(examples, stage.category)
        proof = _encoding_check(split, rows)
        prompts = prompts_of(self._recast(examples), self.encoder) if split == "train" else ()
        findings += stops_in_answers(rows, self.encoder) if split == "train" else ()
        return _Encoded(split, rows, _record(examples, rows), rejected, proof, findings, categories, prompts)

    def _recast(self, examples: Examples) -> Iterable[Example]:
        """The rows as the method takes them."""
        stage, kind = self.stage, self.objective.kind
        if isinstance(stage, ConditionalSFT):
            return Recast(examples, kind, Condition(stage.good, stage.bad, stage.place))
        return Recast(examples, kind) if recast_note(examples, kind) else examples


def _record(examples: Examples, rows: EncodedDataset) -> dict[str, Any]:
    counts = rows.counts
    return {
        "format": examples.format,
        "read": examples.counts.read,
        "kept": counts.kept,
        "split": counts.split,
        "unused_columns": sorted(examples.counts.unused_columns),
        "unread_keys": dict(sorted(examples.counts.unread_keys.items())),
        "notes": list(examples.counts.notes),
        "dropped": {**examples.counts.skipped, **counts.dropped},
        "truncated": dict(counts.truncated),
        "findings": dict(counts.findings),
        "characters": counts.characters,
        "lost_characters": counts.lost_characters,
        "tokens": counts.tokens,
        "trained_tokens": counts.trained_tokens,
        "stop_share": counts.stop_share,
    }


def _unread_check(split: str, examples: Examples) -> tuple[Check, ...]:
    """The columns that nothing reads: a `system` that is misspelt is lost there, and so is a label under SFT."""
    if not examples.counts.unused_columns:
        return ()
    found = unread_columns(examples.counts.unused_columns, examples.format, examples.options.columns)
    title = "columns" if split == "train" else "columns of the held-out rows"
    evidence = {"format": examples.format, "unused": list(found.columns)}
    detail = f"read as '{examples.format}'; {found}"
    if not found.doubts:
        return (Check("columns", title, "pass", detail, evidence),)
    return (Check("columns", title, "warn", detail, evidence, "; ".join(found.doubts)),)


def _files_check(split: str, examples: Examples) -> tuple[Check, ...]:
    """Which files of a folder or pattern were read; files of different splits that are read together are a warning."""
    notes = examples.options.notes
    if not notes:
        return ()
    title = "files" if split == "train" else "files of the held-out rows"
    mixed = any(note.startswith(MIXED_SPLITS) for note in notes)
    remedy = "leave out the files that something is measured on, or name the split" if mixed else None
    return (Check("files", title, "warn" if mixed else "pass", "; ".join(notes), {"notes": list(notes)}, remedy),)


def _keys_check(split: str, examples: Examples) -> tuple[Check, ...]:
    """The keys inside turns, calls, tools and parts that nothing reads."""
    counts = examples.counts.unread_keys
    if not counts:
        return ()
    said = unread_keys(counts)
    title = "keys inside rows" if split == "train" else "keys inside the held-out rows"
    doubts = [sentence for sentence in said if "did you mean" in sentence or "a yes in a turn" in sentence]
    status: Status = "warn" if doubts else "pass"
    evidence = {"unread": dict(sorted(counts.items()))}
    return (Check("keys", title, status, "; ".join(said), evidence, "; ".join(doubts) or None),)


def _encoding_check(split: str, rows: EncodedDataset) -> Check:
    """What the proof of every row found: how many are rendered word for word, and what is worth knowing of the others.

    A row that fails the proof is no row here: it ends the encoding with an error that names it, or stands among the
    dropped rows.
    """
    counts = rows.counts
    title = "rows as rendered" if split == "train" else "held-out rows as rendered"
    split_rows = sum(number for name, number in counts.findings.items() if name in DOCUMENTED_SPLITS)
    refused = counts.dropped.get("template", 0) + counts.dropped.get("prompt_mismatch", 0)
    detail = f"prompt and trained text of {counts.read - refused:,} rows proven against the template's rendering"
    if split_rows:
        detail += f", {split_rows:,} of them as a documented split"
    if refused:
        first = next((line for line in rows.dropped() if line["reason"] in ("template", "prompt_mismatch")), None)
        detail += f"; {refused:,} refused" + (f", first {first['row']}: {first['message']}" if first else "")
    named = [f"{FINDINGS[name]}: {number:,} rows, first {rows.found[name][0]}" for name, number in _notable(counts)]
    if counts.lost_characters:
        named.append(f"{counts.lost_characters:,} of {counts.characters:,} characters lost")
    evidence: dict[str, Any] = {
        "rows": counts.read,
        "refused": refused,
        "findings": dict(counts.findings),
        "examples": {name: found[:NAMED_ROWS] for name, found in rows.found.items()},
        "characters": counts.characters,
        "lost_characters": counts.lost_characters,
    }
    status: Status = "warn" if refused or any(name in _DOUBTFUL for name, _ in _notable(counts)) else "pass"
    remedy = "look at these rows; docs/encoding.md says what each of these findings means" if status == "warn" else None
    return Check(
        "encoding" if split == "train" else "held_out_encoding",
        title,
        status,
        "; ".join([detail, *named]),
        evidence,
        remedy,
    )


_DOUBTFUL = frozenset({"lost_text", "hidden_calls", "hidden_tools", "foreign_thoughts"})
"""Findings that are more often a mistake than meant."""


def _notable(counts: EncodeCounts) -> list[tuple[str, int]]:
    return sorted((name, number) for name, number in counts.findings.items() if name in FINDINGS)


def read_data(data: Data, kind: Any, rejected: Path) -> Examples:
    """The rows of a recipe's `data`; all of them are looked at now, so that a bad one is found before a model loads."""
    return read_as(
        list(data.path),
        kind,
        format=data.format,
        columns=data.columns,
        roles=data.roles,
        bad_rows=data.bad_rows,
        rejected_path=rejected if data.bad_rows == "skip" else None,
        limit=data.limit,
        split=data.split,
        allow_ties=data.allow_ties,
        dialogues_in_text=data.dialogues_in_text,
    )


ONE_ORDER: Mapping[str, str] = {"dpo_pl": "dpo", "plackett_luce": "bradley_terry"}
"""Objectives of a whole list, and which of its pairs takes lists with ties."""


def _objectives(stage: TrainingStage) -> list[str]:
    """What the stage's loss is made of: its method, a mix's terms, a reward stage's objective."""
    if isinstance(stage, Mix):
        return [term.loss for term in stage.losses]
    return [stage.objective.kind] if isinstance(stage, Reward) else [stage.method]


def _require_one_order(rows: EncodedDataset, objective: str) -> None:
    tied = [tree for tree in rows if tree.scores is not None and has_ties(tree.scores)]
    if tied:
        raise ties_error(objective, ONE_ORDER[objective], tied[0].row, tied[0].scores or (), len(tied))


def _require_margins(rows: EncodedDataset, method: str) -> None:
    lacking = [str(tree.row) for tree in rows if tree.margin is None]
    if not lacking:
        return
    more = f" and {len(lacking) - NAMED_ROWS:,} more" if len(lacking) > NAMED_ROWS else ""
    raise DataError(
        f"`{method}` trains on the annotators' margins, and {len(lacking):,} of {len(rows):,} pairs have none",
        where=lacking[0],
        found=f"no margin in {'; '.join(lacking[:NAMED_ROWS])}{more}",
        expected="a number `margin` in every pair: how much better the chosen response is",
        example='{"prompt": "Who?", "chosen": "I am Pia.", "rejected": "What.", "margin": 2.0}',
        remedy="add the margins, name the column that holds them (`columns: {margin: YOURS}`), remove those rows, "
        "or use `method: dpo`, which needs none",
    )


# ---------------------------------------------------------------- held out, left out


def _with_file(training: _Encoded, apart: _Encoded, encoder: Encoder) -> Inputs:
    """Held-out rows from a file of their own; those that are trained on as well are counted and found."""
    trained = set(training.rows.keys)
    shared = [index for index, key in enumerate(apart.rows.keys) if key in trained]
    held_out = {**apart.record, "rows": len(apart.rows), "in_training_rows": len(shared)}
    counts = {
        **training.record,
        "rows": len(training.rows),
        "held_out_rows": len(apart.rows),
        "held_out": held_out,
    }
    check = _held_out_check(apart, shared)
    fingerprints = (training.rows.fingerprint, apart.rows.fingerprint)
    findings = (*training.findings, *apart.findings, check)
    return Inputs(
        training.rows,
        apart.rows,
        encoder,
        counts,
        fingerprints,
        findings,
        apart.categories,
        (training.proof, apart.proof),
        training.prompts,
    )


def _held_out_check(apart: _Encoded, shared: Sequence[int]) -> Check:
    total, left_out = len(apart.rows), sum(apart.record["dropped"].values())
    detail = f"{total:,} rows" + (f", {left_out:,} dropped" if left_out else "")
    evidence: dict[str, Any] = {
        "rows": total,
        "dropped": apart.record["dropped"],
        "in_training_rows": len(shared),
    }
    if not shared:
        return Check("held_out", "held-out rows", "pass", f"{detail}, none of them among the training rows", evidence)
    named = [str(apart.rows[index].row) for index in shared[:NAMED_ROWS]]
    return Check(
        "held_out",
        "held-out rows",
        "warn",
        f"{detail}; {len(shared):,} of them are among the training rows, word for word: {named[0]}"
        + (", ..." if len(shared) > 1 else ""),
        {**evidence, "examples": named},
        "remove them from one of the two files; what is measured on them says nothing about new rows",
    )


def _write_dropped(folder: StageFolder, parts: Sequence[_Encoded]) -> None:
    """dropped.jsonl anew, so that a stage that goes on lists each row once: {"row", "reason", ..., "split"}."""
    path = folder.path / "dropped.jsonl"
    if not write_jsonl(path, (line for part in parts for line in _left_out(part))):
        path.unlink()
    for part in parts:
        if part.rejected.parent == folder.path:
            part.rejected.unlink(missing_ok=True)


def _left_out(part: _Encoded) -> Iterator[dict[str, Any]]:
    if part.rejected.exists():
        with part.rejected.open(encoding="utf-8") as lines:
            for line in lines:
                yield {**json.loads(line), "split": part.split}
    for record in part.rows.dropped():
        yield {**record, "split": part.split}


# ---------------------------------------------------------------- the encoder's settings


def _encoder_settings(stage: TrainingStage, spoken: EncoderSettings, positions: int | None) -> EncoderSettings:
    """How the model is spoken to, with the stage's options for rows; none may have more tokens than the model has
    positions."""
    options = stage.encoding.model_dump(exclude={"template", "template_kwargs", "date"})  # type: ignore[attr-defined]
    limits = [limit for limit in (stage.max_length, positions) if limit is not None]
    return replace(spoken, max_length=min(limits, default=None), **options)
