"""The page: sections laid out by the templates, with style and script inside, written beside the run it describes."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from posttrain.arguments import checked_path
from posttrain.report.answers import answer_suites
from posttrain.report.budget import budget_view
from posttrain.report.charts import Chart
from posttrain.report.comparison import compared_earlier, compared_siblings
from posttrain.report.cross import cross_view
from posttrain.report.distributions import interval_chart
from posttrain.report.evaluation import Table, final_table
from posttrain.report.lineage import lanes
from posttrain.report.merging import kept_view
from posttrain.report.numbers import duration, size
from posttrain.report.palette import custom_properties
from posttrain.report.passk import passk_view
from posttrain.report.ratings import ratings_view
from posttrain.report.sections import view
from posttrain.report.text import moment
from posttrain.report.twins import twin_tables
from posttrain.report.verdict import verdict
from posttrain.runs.files import write_bytes
from posttrain.runs.read import RunContents, read_run
from posttrain.runs.values import as_text

REPORT = "report.html"
REWARD_MODEL = "posttrain_reward.json"
"""Says of an exported model that it scores answers and writes none."""
MOST_INTERVAL_CHARTS = 12
MOST_FILES = 60
UNSEEN = {code: f"⟨U+{code:04X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0x7F, 0xA0))}
UNSEEN |= {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n\r"}
"""Control characters in the data become signs: one that turns the writing direction would reach beyond its row."""


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Write report.html into a run folder and return its path.

    The run may be finished, interrupted, failed or still going on: the page says what is there and what is missing.
    The same folder gives the same bytes. An earlier report is replaced in one move, never left half written.

    Raises:
        SourceError: `run_dir` is no run folder.
    """
    folder = checked_path("run_dir", run_dir, "runs/mine")
    page = render(read_run(folder))
    path = folder / REPORT
    # Lone surrogates, which broken generations can hold, have no UTF-8; a "?" in their place is better than no report.
    write_bytes(path, page.encode("utf-8", errors="replace"))
    return path


def render(run: RunContents) -> str:
    """The whole page as text."""
    table = final_table(run)
    style = custom_properties() + _asset("report.css")
    script = _asset("report.js")
    page = _environment().get_template("page.html.jinja")
    text = page.render(
        run=run,
        facts=_facts(run),
        took=duration(run.seconds) if run.seconds is not None else "",
        verdict=verdict(run, table),
        table=table,
        interval_charts=_interval_charts(table),
        cross=cross_view(run),
        ratings=ratings_view(run),
        passk=passk_view(run),
        kept=kept_view(run),
        budget=budget_view(run),
        stages=[view(stage, index) for index, stage in enumerate(run.stages, start=1)],
        lanes=lanes(run),
        twins=twin_tables(run),
        compared=compared_siblings(run),
        earlier=compared_earlier(run),
        suites=answer_suites(run, list(dict.fromkeys(row.suite for row in table.rows))),
        configs=_configs(run),
        files=_files(run),
        models=_models(run),
        style=Markup(style),
        script=Markup(script),
        # Only this very script may run: text from a data set that slipped through as markup would stay dead.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    # At the very end, so that no way of a text into the page can be forgotten.
    return text.translate(UNSEEN)


def fragment(template: str, **values: object) -> str:
    """A small page of its own, with the report's style and no script."""
    style = custom_properties() + _asset("report.css")
    return _environment().get_template(template).render(style=Markup(style), **values)


# Once a process: the templates are compiled the same for every page.
@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("posttrain.report", "templates"),
        autoescape=True,
        # A field that a template misspells must fail in a test, not leave a blank on somebody's page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible_breaks"] = _visible_breaks
    environment.filters["yaml"] = _yaml
    return environment


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _visible_breaks(text: str) -> Markup:
    """Line ends get a mark, for whether the one after a turn trains is a question that people ask."""
    return Markup('<i class="nl"></i>\n').join(escape(line) for line in text.split("\n"))


def _yaml(text: str) -> Markup:
    """YAML with its keys and comments told apart by colour."""
    lines = []
    for line in text.splitlines():
        key = re.match(r"^(\s*(?:- )*)([\w.-]+)(:)(?=\s|$)(.*)$", line)
        if line.lstrip().startswith("#"):
            lines.append(Markup("<i>{}</i>").format(line))
        elif key:
            lines.append(Markup("{}<b>{}</b>:{}").format(key[1], key[2], key[4]))
        else:
            lines.append(escape(line))
    return Markup("\n").join(lines)


# ---------------------------------------------------------------- the parts that belong to the run as a whole


def _facts(run: RunContents) -> list[tuple[str, str]]:
    environment = run.environment
    facts = [("Date", moment(run.about.created or ""))]
    if run.seconds is not None:
        facts.append(("Total time", duration(run.seconds)))
    machine = [environment.cpu]
    if threads := environment.threads:
        machine.append(f"{threads} thread{'s' if threads > 1 else ''}")
    if memory := environment.memory_gb:
        machine.append(f"{memory:.1f} GB".replace(".0 GB", " GB"))
    if environment.device != "cpu":
        machine.append(environment.device)
    facts.append(("Machine", ", ".join(part for part in machine if part)))
    if run.about.processes:
        facts.append(("Processes", str(run.about.processes)))
    if restarts := run.about.restarts:
        shown = "; ".join(f"{moment(restart.time)}, {restart.said}" for restart in restarts)
        facts.append(("Started again", f"{len(restarts)} time{'s' if len(restarts) > 1 else ''}: {shown}"))
    facts.append(("System", environment.platform or ""))
    versions = {
        "posttrain": run.about.posttrain_version,
        "python": environment.python,
        "torch": environment.torch,
        "transformers": environment.transformers,
        **environment.more,
    }
    facts.append(("Versions", ", ".join(f"{name} {as_text(value)}" for name, value in versions.items() if value)))
    return [(title, value) for title, value in facts if value]


def _interval_charts(table: Table) -> list[Chart]:
    """What the suites are asked for, then what else became worse; the table has the rest."""
    rows = sorted((row for row in table.rows if row.telling), key=lambda row: not row.meaning.primary)
    charts = []
    for row in rows[:MOST_INTERVAL_CHARTS]:
        scores = [(name, cell.score) for name, cell in zip(table.columns, row.cells, strict=True) if cell is not None]
        if scores:
            how = row.meaning
            charts.append(interval_chart(row.suite, scores, how.unit, how.title, how.limit))
    return charts


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration file as it stands in the folder."""

    title: str
    text: str


def _configs(run: RunContents) -> list[Config]:
    """The recipe, then what each stage ran with, defaults included."""
    found = [Config("recipe.yaml", run.recipe)] if run.recipe else []
    return found + [Config(f"{stage.name}/config.yaml", stage.config) for stage in run.stages if stage.config]


@dataclass(frozen=True, slots=True)
class FileLine:
    path: str
    size: str


def _files(run: RunContents) -> tuple[list[FileLine], int]:
    """The folder's files with their sizes, and how many more there are."""
    sizes: dict[str, int] = {}
    for path in sorted(run.folder.rglob("*")):
        name = path.relative_to(run.folder)
        # The report itself and what is hidden (locks, drafts) would make each writing differ from the last.
        if not path.is_file() or path.is_symlink() or name.name == REPORT or any(p.startswith(".") for p in name.parts):
            continue
        label = _grouped(name)
        # Folders that hold one thing count as one line: a checkpoint's shards would fill the list by themselves.
        sizes[label] = sizes.get(label, 0) + path.stat().st_size
    lines = [FileLine(label, size(total)) for label, total in sizes.items()]
    return lines[:MOST_FILES], max(0, len(lines) - MOST_FILES)


def _grouped(name: PurePath) -> str:
    """A checkpoint is told as one, and so is a folder of encoded rows or of cached log-probs."""
    depth = 3 if len(name.parts) > 1 and name.parts[1] == "checkpoints" else 2
    if len(name.parts) <= depth or name.parts[1] in ("model", "evaluations"):
        return name.as_posix()
    return "/".join(name.parts[:depth]) + "/"


@dataclass(frozen=True, slots=True)
class Snippet:
    title: str
    code: str


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """An exported model and how to load it."""

    stage: str
    path: str
    adapter: bool
    snippets: list[Snippet]


def _models(run: RunContents) -> list[ModelFolder]:
    """The exported models, the last stage's first."""
    found: list[ModelFolder] = []
    for stage in reversed(run.stages):
        folder = stage.model_folder
        if folder is not None and any(folder.iterdir()):
            # With a config.json of its own a folder is a whole model, whatever else lies in it.
            adapter = (folder / "adapter_config.json").exists() and not (folder / "config.json").exists()
            path = folder.as_posix()
            scores = (folder / REWARD_MODEL).exists()
            snippets = _reward_snippets(path) if scores else _snippets(path, adapter)
            found.append(ModelFolder(stage.name, path, adapter, snippets))
    return found


def _reward_snippets(path: str) -> list[Snippet]:
    """transformers alone loads it too, but knows nothing of steps, mixes and corrections of length."""
    python = "\n".join(
        [
            "import posttrain as pt",
            "",
            f"reward = pt.load_reward({path!r})",
            'print(reward.score("Who are you?", "I am Pia."))',
            'for rating in reward.score_rows(pt.read("answers.jsonl")):',
            "    print(rating.row, rating.rewards, rating.steps)",
        ]
    )
    return [Snippet("posttrain", f"posttrain score {_quoted(path)} answers.jsonl"), Snippet("Python", python)]


def _quoted(path: str) -> str:
    # The command is there to be copied: a blank in the path, or a quote, would make it another one.
    return path if re.fullmatch(r"[\w./-]+", path) else "'" + path.replace("'", "'\\''") + "'"


def _snippets(path: str, adapter: bool) -> list[Snippet]:
    transformers = "\n".join(
        [
            "from peft import AutoPeftModelForCausalLM" if adapter else "from transformers import AutoModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            f"path = {path!r}",
            "tokenizer = AutoTokenizer.from_pretrained(path)",
            f"model = {'AutoPeftModelForCausalLM' if adapter else 'AutoModelForCausalLM'}.from_pretrained(path)",
            'messages = [{"role": "user", "content": "Who are you?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
            "output = model.generate(**inputs, max_new_tokens=64)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
        ]
    )
    quoted = _quoted(path)
    found = [Snippet("posttrain", f"posttrain generate {quoted}"), Snippet("transformers", transformers)]
    if not adapter:
        found.append(Snippet("vLLM", f"vllm serve {quoted}"))
    return found
