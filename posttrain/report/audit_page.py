"""An audit's folder becomes one self-contained page: findings.jsonl and audit.json in, audit.html out.

The page looks like the report of a run and shares its charts, its colours and its style sheet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from posttrain.intervals import quantile
from posttrain.report.charts import Chart, Key, Shape, dots
from posttrain.report.distributions import box_chart, common_bins, histogram
from posttrain.report.numbers import count, duration, number
from posttrain.report.page import UNSEEN
from posttrain.report.palette import custom_properties
from posttrain.runs.files import read_json, read_jsonl

PAGE = "audit.html"
SMALLEST, LARGEST = 13, 38
"""Letter sizes of a word cloud, in CSS pixels."""
SHOWN_ROWS = 12
KINDS = {"error": "bad", "warning": "warn", "note": "plain"}
ALIKE = 0.95
"""Likeness from which on the check calls two sides too alike."""
TRIMMED = 0.005
"""Share of the values that a histogram leaves out at each end, so that one endless answer does not flatten the rest."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its cards, each of one chart or more: Section("lengths", "Lengths", [[Chart(...)], ...])"""

    anchor: str
    title: str
    cards: list[list[Chart]]
    note: str = ""
    look: str = ""


@dataclass(frozen=True, slots=True)
class Word:
    text: str
    size: int
    strength: float
    title: str


@dataclass(frozen=True, slots=True)
class Cloud:
    title: str
    colour: str
    words: list[Word]


@dataclass(frozen=True, slots=True)
class ShownFinding:
    """A finding as the page shows it."""

    check: str
    severity: str
    kind: str
    message: str
    remedy: str
    rows: str = ""
    figures: list[tuple[str, str]] = field(default_factory=list)
    phrases: list[dict[str, str]] = field(default_factory=list)
    examples: list[list[tuple[str, str]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the template needs."""

    title: str
    kind: str
    grade: str
    facts: list[tuple[str, str]]
    findings: list[ShownFinding]
    sections: list[Section]
    clouds: list[Cloud]
    checks: list[tuple[str, str, str]]


def write_audit_page(folder: str | os.PathLike[str]) -> Path:
    """Write audit.html into the folder of an audit and return its path; the same folder gives the same bytes.

    Raises:
        SourceError: the folder lacks audit.json or findings.jsonl, or they cannot be read.
    """
    home = Path(folder)
    about = dict(read_json(home / "audit.json"))
    text = render(about, read_jsonl(home / "findings.jsonl"))
    path = home / PAGE
    # Hidden and with the process id: two audits of one folder do not write into each other's draft.
    draft = home / f".{PAGE}.{os.getpid()}"
    draft.write_bytes(text.encode("utf-8", errors="replace"))
    draft.replace(path)
    return path


def render(about: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> str:
    """The whole page as text."""
    templates = Path(__file__).parent / "templates"
    environment = Environment(
        loader=PackageLoader("posttrain.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (templates / "report.js").read_text(encoding="utf-8")
    sheets = [(templates / name).read_text(encoding="utf-8") for name in ("report.css", "audit.css")]
    text = environment.get_template("audit.html.jinja").render(
        page=page_of(about, findings),
        style=Markup(custom_properties() + "".join(sheets)),
        script=Markup(script),
        # Only this very script may run: text from a data set that slipped through as markup would stay dead.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return text.translate(UNSEEN)


def page_of(about: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> Page:
    """The records of an audit as what the template shows."""
    severities = [str(finding["severity"]) for finding in findings]
    # The page's grade is its gravest finding's, however many milder ones there are.
    worst = next((s for s in ("error", "warning", "note") if s in severities), None)
    told = [f"{severities.count(s)} {s}{'' if severities.count(s) == 1 else 's'}" for s in KINDS if s in severities]
    # Names alone: a page that is passed on must not carry the folders of the machine that made it.
    sources = [Path(source).name for source in about["sources"]]
    pictures = about["pictures"]
    found: dict[str, str] = {}
    for finding in findings:
        found.setdefault(str(finding["check"]), str(finding["severity"]))
    return Page(
        title=", ".join(sources[:3]) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "") or "rows",
        kind=KINDS[worst] if worst else "good",
        grade=", ".join(told) or "nothing found",
        facts=_facts(about),
        findings=[_shown(finding) for finding in findings],
        sections=_sections(pictures),
        clouds=_clouds(pictures.get("clouds") or {}),
        checks=[(name, found.get(name, "nothing found"), duration(float(s))) for name, s in about["checks"].items()],
    )


def _facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    refused = sum(about["refused"].values())
    facts = [
        (str(about["kind"]).capitalize(), count(about["rows"])),
        ("Responses", count(about["responses"])),
        ("Checks", count(len(about["checks"]))),
        ("Time", duration(float(about["seconds"]))),
    ]
    if refused:
        facts.insert(1, ("Rows that cannot be used", count(refused)))
    return facts


# ---------------------------------------------------------------- findings


def _shown(finding: Mapping[str, Any]) -> ShownFinding:
    evidence = finding["evidence"]
    return ShownFinding(
        check=str(finding["check"]).replace("_", " "),
        severity=str(finding["severity"]),
        kind=KINDS[str(finding["severity"])],
        message=str(finding["message"]),
        remedy=str(finding["remedy"]),
        rows=_rows(finding["rows"], int(finding["num_rows"])),
        figures=_figures(evidence),
        phrases=[{key: str(entry[key]) for key in entry} for entry in evidence.get("phrases", ())],
        examples=[_example(entry) for entry in evidence.get("examples", ())],
    )


def _rows(rows: Mapping[str, Sequence[int]], total: int) -> str:
    if not total:
        return ""
    parts, left = [], SHOWN_ROWS
    for source, numbers in rows.items():
        if left > 0:
            parts.append(f"{Path(source).name} {', '.join(count(number) for number in numbers[:left])}")
            left -= len(numbers)
    # findings.jsonl names them all; the page only has to lead to a few.
    more = f" and {count(total - SHOWN_ROWS)} more" if total > SHOWN_ROWS else ""
    return f"Rows: {'; '.join(parts)}{more}"


def _figures(evidence: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Plain numbers and intervals; nested things are shown by their own parts of the page."""
    figures = []
    for name, value in evidence.items():
        title = name.replace("_", " ")
        is_share = name.endswith(("share", "accuracy", "interval", "agreement", "others"))
        unit = "share" if is_share else ""
        # True is an int to Python and would be shown as 1; z is for findings.jsonl, the shares beside it say more.
        if isinstance(value, bool) or name in ("z",):
            continue
        if isinstance(value, int | float):
            figures.append((title, number(float(value), unit)))
        elif isinstance(value, str) and len(value) <= 120:
            figures.append((title, value))
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(item, int | float) for item in value):
            figures.append((title, f"{number(float(value[0]), unit)} to {number(float(value[1]), unit)}"))
        elif name == "accuracy_by_tokens":
            figures += [(f"accuracy of {n}", number(float(bounds[0]), "share")) for n, bounds in value.items()]
        elif name == "shares":
            figures += [
                (f"{what}: chosen, rejected", f"{number(pair['chosen'], 'share')}, {number(pair['rejected'], 'share')}")
                for what, pair in value.items()
            ]
        elif name == "languages":
            figures.append((title, ", ".join(f"{what} {count(n)}" for what, n in value.items())))
        elif name == "found" and isinstance(value, list):
            figures.append((title, "  ".join(str(item) for item in value)))
    return figures


def _example(entry: Any) -> list[tuple[str, str]]:
    if isinstance(entry, Mapping):
        return [(str(title), str(value)) for title, value in entry.items()]
    return [("text", str(entry) if isinstance(entry, str) else json.dumps(entry))]


# ---------------------------------------------------------------- pictures


def _sections(pictures: Mapping[str, Any]) -> list[Section]:
    sections = [_length_section(pictures.get("lengths") or {}), _score_section(pictures.get("scores") or {})]
    sections += [_model_section(pictures.get("model") or {}), _map_section(pictures.get("map") or {})]
    return [section for section in sections if section.cards or section.note]


def _two_sides(title: str, values: Mapping[str, Sequence[float]], unit: str, suffix: str = "") -> list[list[Chart]]:
    """A card with a histogram and boxes of both sides."""
    groups = {side: list(values.get(side + suffix, ())) for side in ("chosen", "rejected")}
    # Trimmed for the edges alone: the values beyond are counted in the outer bins, so that shares stay shares of all.
    edges = common_bins(*(_trimmed(group) for group in groups.values()))
    if edges is None:
        return []
    inside = {
        side: (side, [min(max(value, edges.low), edges.high) for value in group]) for side, group in groups.items()
    }
    boxes = box_chart(f"{title}, side by side", [(side, side, group) for side, group in groups.items()], unit)
    return [[_rename(histogram(title, inside, edges, unit), groups), boxes]]


def _one(title: str, values: Sequence[float], unit: str, limit: float = 0.0) -> list[list[Chart]]:
    kept = _trimmed(values)
    edges = common_bins(kept)
    if edges is None:
        return []
    inside = [min(max(value, edges.low), edges.high) for value in values]
    chart = histogram(title, {title.lower(): ("accent", inside)}, edges, unit)
    above = number(sum(value > limit for value in values) / len(values), "share")
    middle = quantile(sorted(values), 0.5)
    caption = f"median {number(middle)}; above {number(limit) if limit else 'zero'}: {above}"
    return [[replace(chart, caption=caption)]]


def _trimmed(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    cut = int(TRIMMED * len(ordered))
    return ordered[cut : len(ordered) - cut] if cut else ordered


def _rename(chart: Chart, groups: Mapping[str, Sequence[float]]) -> Chart:
    medians = [f"{side} {number(quantile(sorted(group), 0.5))}" for side, group in groups.items() if group]
    return replace(chart, caption=f"median {', '.join(medians)}")


def _length_section(lengths: Mapping[str, Sequence[float]]) -> Section:
    if "responses" in lengths:
        values = lengths["responses"]
        edges = common_bins(_trimmed(values))
        inside = [min(value, edges.high) for value in values] if edges is not None else []
        if edges is None:
            return Section("lengths", "Lengths", [])
        return Section(
            "lengths", "Lengths", [[histogram("Lengths", {"responses": ("accent", inside)}, edges, "words")]]
        )
    cards = _two_sides("Lengths", lengths, "words")
    cards += _one("Difference of each pair", lengths.get("difference", ()), "chosen minus rejected, words")
    cards += _one("Ratio of each pair", lengths.get("log_ratio", ()), "log2 of chosen / rejected")
    return Section("lengths", "Lengths", cards)


def _score_section(scores: Mapping[str, Sequence[float]]) -> Section:
    cards = _two_sides("Scores", scores, "score")
    cards += _one("Difference of scores", scores.get("difference", ()), "chosen minus rejected")
    return Section("scores", "Scores", cards)


def _model_section(model: Mapping[str, Sequence[float]]) -> Section:
    cards = _two_sides(
        "Log-probs", {key.removeprefix("logprob_"): v for key, v in model.items() if "logprob" in key}, "nats per token"
    )
    cards += _two_sides(
        "Surprise",
        {key.removeprefix("surprise_"): v for key, v in model.items() if "surprise" in key},
        "nats per token",
    )
    cards += _one("Likeness of the sides", model.get("alike", ()), "1 + CHES / |chosen|²", limit=ALIKE)
    note = (
        "Surprise is -log p - entropy: zero, on average, for what the policy itself would say. Likeness near one "
        "foretells that the chosen side falls with the rejected one (Razin et al. 2024)."
    )
    return Section("model", "Under the model", cards, note if cards else "")


def _map_section(drawn: Mapping[str, Any]) -> Section:
    if "missing" in drawn:
        return Section("map", "Map", [], str(drawn["missing"]))
    if not drawn:
        return Section("map", "Map", [])
    # Coordinates lie within -1 and 1; 2.1 instead of 2 keeps whole dots at the edge.
    by_side = [[(0.5 + x / 2.1, 0.5 + y / 2.1) for x, y, side in drawn["points"] if side == which] for which in (0, 1)]
    names = (("chosen", "chosen"), ("rejected", "rejected")) if by_side[1] else (("responses", "accent"),)
    paths = [Shape(dots(points), colour, "cloud") for points, (_, colour) in zip(by_side, names, strict=False)]
    chart = Chart(
        title="Responses, near where their words are alike",
        said=f"{drawn['how']}. Where the two colours part, a glance tells the winner.",
        caption=str(drawn["how"]),
        paths=paths,
        keys=[Key(label, colour, "area") for label, colour in names] if by_side[1] else [],
    )
    note = (
        "Where the two colours part, a glance at the words tells the winner; well mixed, the difference is in the "
        "substance."
    )
    return Section("map", "Map", [[chart]], note if by_side[1] else "", "map")


def _clouds(clouds: Mapping[str, Sequence[Sequence[Any]]]) -> list[Cloud]:
    if not clouds:
        return []
    weights = [float(entry[1]) for words in clouds.values() for entry in words]
    # One scale for both clouds: a side of weak words must not look as sure as the other.
    largest, smallest = max(weights, default=1.0), min(weights, default=0.0)
    return [_cloud(side, clouds.get(side, ()), smallest, largest) for side in ("chosen", "rejected")]


def _cloud(side: str, words: Sequence[Sequence[Any]], smallest: float, largest: float) -> Cloud:
    """The surest words largest, in alphabetical order: the eye finds the large ones, the reader the others."""
    shown = []
    for text, weight, here, there in sorted(words, key=lambda entry: str(entry[0])):
        # Below 1, the power lifts the middle: weights fall off so fast that all but a few words would be in the
        # smallest letters.
        share = ((float(weight) - smallest) / (largest - smallest)) ** 0.7 if largest > smallest else 1.0
        title = f"z {weight}: chosen only in {count(here)} pairs, rejected only in {count(there)}"
        shown.append(
            Word(str(text), round(SMALLEST + share * (LARGEST - SMALLEST)), round(0.72 + 0.28 * share, 2), title)
        )
    return Cloud(f"Only the {side} side says", side, shown)
