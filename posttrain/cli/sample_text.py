"""Samples as text for people and as JSON lines for programs.

What a model says is shown so that it can do nothing to the terminal: every control character but the line end becomes
its escape, and each line of it stands behind a bar.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict

from rich.text import Text

from posttrain.errors import ConfigError
from posttrain.runs.sample_log import Sample, short_row
from posttrain.runs.samples import Samples, ShownSample, StepSamples, numbers_said

LONGEST = 2_000
"""Characters of a text on a terminal; --json has all."""
FINISHES = {
    "stop_token": "ended by itself",
    "length": "CUT at the limit",
    "empty": "said nothing",
    "aborted": "aborted",
}
JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need; the others may turn the writing direction."""
COLOURS = {"best": "green", "worst": "red", "random": "cyan"}
MOST_STEPS = 100_000
"""Of one range; more is a mistyped number."""


def parse_steps(text: str | None) -> list[int] | None:
    """parse_steps("1,10,20-22") is [1, 10, 20, 21, 22].

    Raises:
        ConfigError: anything else.
    """
    if text is None:
        return None
    steps: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= last - first < MOST_STEPS:
            raise ConfigError(
                "these are no steps",
                where="--steps",
                found=text,
                expected="numbers and ranges",
                example="1,10,20-22",
                remedy="write steps between commas",
            )
        steps += range(first, last + 1)
    return steps


# ---------------------------------------------------------------- for people


def text_lines(samples: Samples, part: str | None = None) -> Iterator[Text | str]:
    steps = list(samples.known)
    total = sum(samples.known.values())
    shown = numbers_said([item.step for item in samples.steps])
    yield f"{samples.path}: {total:,} completions in steps {numbers_said(steps)}; shown: {shown}"
    for step in samples.steps:
        yield ""
        # As a style and not as codes in the line: those would be escaped with the codes of the texts.
        yield Text(_heading(step, part), style="bold")
        for item in step.shown:
            yield ""
            yield from _sample(item)


def _heading(step: StepSamples, part: str | None) -> str:
    if not step.completions:
        return f"step {step.step}: no completion matches"
    parts = [f"{step.completions:,} completion{'s' if step.completions > 1 else ''}"]
    if step.reward is not None:
        parts.append(f"mean {part or 'reward'} {step.reward:.3f}")
    if step.judged < step.completions:
        parts.append(f"{step.completions - step.judged} without one")
    if step.truncated:
        parts.append(f"{step.truncated / step.completions:.1%} cut at the limit")
    return f"step {step.step}: {', '.join(parts)}"


def _sample(shown: ShownSample) -> Iterator[Text | str]:
    sample = shown.sample
    yield Text.assemble("  ", (shown.label, f"bold {COLOURS[shown.label]}"), f"  {_reward(sample)}")
    yield from _field("task", _task(sample))
    yield from _block("prompt", sample.prompt)
    if sample.answer:
        yield from _block("gold", sample.answer)
    yield from _block("says", sample.completion)
    yield from _field("finish", _finish(sample))
    yield from _field("tokens", _figures(sample))


def _reward(sample: Sample) -> str:
    whole = "not judged" if sample.reward is None else f"reward {sample.reward:.4g}"
    parts = ", ".join(
        f"{visible(name)} {'abstained' if value is None else format(value, '.4g')}"
        for name, value in sample.parts.items()
    )
    return f"{whole} ({parts})" if parts else whole


def _task(sample: Sample) -> str:
    parts = [short_row(sample.row)]
    if sample.number is not None:
        parts.append(f"completion {sample.number + 1} of its group")
    if sample.version is not None:
        parts.append(f"by the weights after step {sample.version}")
    if sample.trained is False:
        parts.append("did not train")
    return visible(", ".join(part for part in parts if part))


def _finish(sample: Sample) -> str:
    words = FINISHES.get(sample.finish, visible(sample.finish))
    return f"{words}, {sample.tokens:,} tokens" if sample.tokens is not None else words


def _figures(sample: Sample) -> str:
    """What is known of its tokens, on average."""
    figures = []
    if sample.advantage is not None:
        figures.append(f"mean advantage {sample.advantage:+.4g}")
    if sample.logprob is not None:
        figures.append(f"mean log-prob {sample.logprob:.4g}")
    if sample.ratio is not None:
        figures.append(f"trainer/sampler {sample.ratio.mean:.4f} (furthest {sample.ratio.largest:.4f})")
    return ", ".join(figures)


def _field(title: str, value: str) -> Iterator[str]:
    if value:
        yield f"    {title:<8}{value}"


def _block(title: str, text: str) -> Iterator[str]:
    if not text:
        if title == "says":
            yield f"    {title:<8}(nothing)"
        return
    left = len(text) - LONGEST
    for index, line in enumerate(text[:LONGEST].split("\n")):
        yield f"    {title if not index else '':<8}| {visible(line)}"
    if left > 0:
        yield f"    {'':<8}... {left:,} more characters (--json has all)"


def visible(text: str) -> str:
    """One line of text in which every character that a terminal would obey is escaped: ESC becomes \\x1b."""
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character in JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


# ---------------------------------------------------------------- for programs


def json_lines(samples: Samples) -> Iterator[str]:
    """{"stage", "label", "step", "row", "prompt", "answer", "completion", "reward", "parts", "truncated", ...}"""
    for step in samples.steps:
        for item in step.shown:
            record = {
                "stage": samples.stage,
                "label": item.label,
                **asdict(item.sample),
                "truncated": item.sample.truncated,
            }
            # ASCII only: control characters and lone surrogates of a completion arrive as escapes, whatever the pipe.
            yield json.dumps(record, allow_nan=False)
