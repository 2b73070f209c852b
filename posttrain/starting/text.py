"""The recipe as text: every setting with the reason for it, in the form of those in recipes/."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from posttrain.intervals import wilson
from posttrain.starting.names import pattern_of
from posttrain.starting.plan import MOST_ABOUT_ITSELF, Start

COLUMN = 38
"""Where the comments beside the settings begin."""
GOAL = 0.8
"""Share of the held-out questions that an identity recipe sets out to have answered with the name."""

TITLES = {
    "identity": "Give {model} the name {name}",
    "chat": "Teach {model} to answer as your conversations do",
    "dpo": "Teach {model} what your pairs prefer",
    "reward": "A reward model of your pairs, from {model}",
    "grpo": "Let {model} practise your tasks, rewarded for right answers",
}
STAGES = {"identity": "sft", "chat": "sft", "dpo": "dpo", "reward": "reward", "grpo": "grpo"}
"""The name of the stage that a recipe of each kind has."""


def recipe_text(start: Start) -> str:
    """The whole file."""
    parts = [_head(start), _evaluation(start), _stage(start)]
    return "\n".join("\n".join(part) for part in map(list, parts) if part) + "\n"


def commands(start: Start) -> list[tuple[str, str]]:
    """What to type next, each with what it does."""
    out = shlex.quote(str(start.out))
    model = shlex.quote(f"runs/{start.run_name}/{STAGES[start.kind]}/model")
    steps = f"{start.steps:,} steps" + (f", {start.time} if nothing else runs here" if start.time else "")
    use = {
        "reward": (f"posttrain score {model} {shlex.quote(start.data)}", "rewards of answers"),
        "identity": (f"posttrain generate {model}", "ask it who it is"),
    }.get(start.kind, (f"posttrain generate {model}", "talk to it"))
    lines = [
        (f"posttrain check {out}", "proves rows, masks and memory; trains nothing"),
        (f"posttrain run {out}", steps),
        use,
    ]
    if start.model.in_catalogue and not start.model.is_here:
        lines.insert(0, (f"posttrain models pull {start.model.name}", "once"))
    return lines


def advice(start: Start) -> list[str]:
    """What so many rows can and cannot do, in a sentence or two each."""
    count, kind = start.rows.count, start.kind
    said = []
    if start.rows.is_few:
        said.append(f"{count} rows are too few: {_few(kind)}")
    elif kind in ("dpo", "reward") and count < 500:
        right = start.held_out_rows - 1
        low, high = wilson(right, start.held_out_rows)
        said.append(
            f"{count} pairs show a manner (short, polite), not a judgement, and are hardly measured: {right} right of "
            f"{start.held_out_rows} held-out pairs may be {low:.0%} to {high:.0%} of all. Collect 500."
        )
    if kind == "identity":
        said.append(
            f"{start.says_name:.0%} of the answers say {start.name}. Expect it in most answers to the held-out "
            "questions; where the goal is missed, first add questions asked in other words, then epochs."
        )
        if start.others is not None:
            said.append(
                f"Rows about other things are in {start.others}: replace them with conversations of your own use, "
                "about half as many as rows about the name."
            )
        elif start.says_name > MOST_ABOUT_ITSELF:
            said.append(
                "Add about half as many rows about other things: trained on its name alone, a model says it unasked."
            )
    elif kind == "chat":
        said.append(
            "Watch the held-out loss: where it turns upwards, the rows are being learned by heart, and fewer epochs do."
        )
    elif kind == "grpo":
        said.append("Watch the held-out score, not the reward: only on tasks that do not train is it learning.")
    return said


def _few(kind: str) -> str:
    if kind == "identity":
        return "write 50 or more different questions about the name and the maker; copies of one question count once."
    if kind == "grpo":
        return "nothing can be held out, so nothing tells learning from luck. Write 200 tasks or more."
    if kind == "chat":
        return "the model learns a tone from them at most, and hardly a row can be spared. Write 100 or more."
    return "the model learns them by heart, and hardly a pair can be spared to measure with. Collect 200 or more."


# ---------------------------------------------------------------- the file


def _head(start: Start) -> Iterator[str]:
    names = {"model": start.model.name, "name": start.name}
    yield f"# {TITLES[start.kind].format(**names)}; from {start.rows.count:,} rows."
    yield "#"
    typed = commands(start)
    width = max(len(command) for command, _ in typed) + 4
    for command, does in typed:
        yield f"#     {command:<{width}}# {does}"
    yield "#"
    for sentence in advice(start):
        yield from _comment(sentence)
    yield from _comment(
        f"Written by `posttrain new {start.kind}`; its settings are those for so many rows ({start.choice.source}). "
        "docs/first-steps.md shows what others do."
    )
    yield ""
    yield "schema: 1"
    yield f"name: {quoted(start.run_name)}"
    yield _line(f"model: {quoted(start.model.name)}", "a catalogue name, a folder or a hub id", 0)
    yield _line("seed: 0", "", 0)
    yield ""


def _evaluation(start: Start) -> Iterator[str]:
    if start.kind in ("reward", "grpo"):  # measured on their own held-out rows
        return
    yield "evaluate:"
    yield "  suites:"
    if start.kind == "identity":
        assert start.name is not None and start.questions is not None
        pattern = quoted(pattern_of(start.name), always=True)
        yield _line("- name: identity", "does it say its name? none of these questions trains", 4)
        yield "      kind: match"
        yield _line(f"prompts: {quoted(start.questions)}", "add your own: the more, the surer the figure", 6)
        yield f"      pattern: {pattern}"
        yield _line(f"goal: {GOAL}", "the report says whether the run reached it", 6)
        yield "      sampling: {temperature: 0.0, max_new_tokens: 32}"
        yield _line("- name: leak", "questions of fact: does it speak of itself unasked?", 4)
        yield "      kind: match"
        yield "      prompts: package://heldout_facts.jsonl"
        yield "      limit: 20"
        yield f"      pattern: {pattern}"
        yield _line("wanted: false", "the fewer, the better", 6)
        yield "      sampling: {temperature: 0.0, max_new_tokens: 32}"
    yield _line("- name: drift", "how likely it finds its own former answers", 4)
    yield "      kind: perplexity"
    yield "      prompts: package://heldout_facts.jsonl"
    yield "      limit: 20"
    yield "      sampling: {temperature: 0.0, max_new_tokens: 32}"
    yield ""


def _stage(start: Start) -> Iterator[str]:
    choice, count = start.choice, start.rows.count
    name = STAGES[start.kind]
    method = "dpo_nll" if start.kind == "dpo" and count <= 5_000 else name
    yield "stages:"
    yield f"  - name: {name}"
    why = "DPO plus the chosen answer's own loss, which holds it up" if method == "dpo_nll" else ""
    yield _line(f"method: {method}", why)
    if start.others is None:
        yield _line(f"data: {quoted(start.data)}", f"{count:,} rows, format {start.rows.format}")
    else:
        yield "    data:"
        yield _line(f"- {quoted(start.data)}", f"{count:,} rows, format {start.rows.format}", 6)
        yield _line(f"- {quoted(start.others)}", "ordinary questions: without them it speaks of itself unasked", 6)
    held = f"{start.held_out_rows:,} rows measure and never train" if start.held_out_rows else "too few to spare any"
    yield _line(f"held_out: {choice.held_out:g}", held)
    if start.kind == "grpo":
        yield from _online(start)
    else:
        yield _line(f"epochs: {choice.epochs}", f"{start.steps:,} steps in all")
        yield _line(f"rows_per_step: {choice.rows_per_step}", "")
        yield _line(f"max_length: {start.max_length}", f"the longest row has about {start.rows.longest} tokens")
    if method in ("dpo", "dpo_nll"):
        yield _line("beta: 0.1", "how dearly the model pays for leaving its start")
    if start.adapter is not None:
        yield _line(f"adapter: {{rank: {start.adapter}}}", "LoRA: less to compute, less to forget")
    yield _line(f"learning_rate: {_rate(start.rate)}", _why_rate(start))
    yield "    schedule: {kind: cosine, warmup_ratio: 0.1}"
    if start.kind != "grpo" and start.held_out_rows:
        yield _line(f"log: {{held_out_every: {max(1, start.steps // 8)}}}", "eight points of the held-out loss")


def _online(start: Start) -> Iterator[str]:
    assert start.judge is not None
    long = 48 if start.model.is_tiny else 256
    yield "    rewards:"
    yield _line(f"- {start.judge.settings}", start.judge.says, 6)
    yield _line(f"steps: {start.steps}", "")
    yield _line(f"prompts_per_step: {start.choice.rows_per_step}", "")
    yield _line("completions_per_prompt: 8", "a group; what is better than its mean becomes likelier")
    yield _line(f"sampling: {{temperature: 1.0, max_new_tokens: {long}}}", "room for the working and the answer")
    yield _line("kl_beta: 0.04", "what it may cost to leave the start")
    every = max(1, start.steps // 4)
    # Of fewer than a hundred scores the best is mostly the luckiest.
    keep = "best" if start.held_out_rows >= 100 else "last"
    yield _line(f"examine: {{every_steps: {every}, keep: {keep}}}", "the held-out tasks, asked now and then")


def _why_rate(start: Start) -> str:
    if start.model.is_tiny:
        return "a tiny model, all weights: many times a large one's"
    if start.adapter is not None:
        return "of the adapter; all weights take a tenth of it"
    return "all weights train: with so many rows more fits than an adapter holds"


def _line(setting: str, comment: str, indent: int = 4) -> str:
    text = " " * indent + setting
    return (
        f"{text:<{COLUMN}}# {comment}"
        if comment and len(text) < COLUMN
        else f"{text}  # {comment}"
        if comment
        else text
    )


def _comment(sentence: str, width: int = 118) -> Iterator[str]:
    line = "#"
    for word in sentence.split():
        if len(line) + 1 + len(word) > width:
            yield line
            line = "#"
        line += f" {word}"
    yield line


def _rate(rate: float) -> str:
    """2e-4 as "2.0e-4": without the point YAML 1.1 reads a text."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def quoted(text: str, *, always: bool = False) -> str:
    """As YAML takes it for a text: bare where it is plainly one, else in quotes."""
    plain = text.replace("/", "").replace(".", "").replace("_", "").replace("-", "")
    if not always and plain.isascii() and plain.isalnum() and text[0].isalpha() and text.lower() not in _WORDS:
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return json.dumps(text)


_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
"""That YAML takes for something else than a text."""
