"""What was tried, as a tree that a person reads.

question: What is 17 + 25?
|- 0  answer  logprob -0.31  12 tokens  "17 + 25 is 42."   <- chosen
`- 1  answer  logprob -0.74  11 tokens  "It is 43."
best_of_n: done, 2 draws, 23 tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from posttrain.inference.solution import Node, Solution

WIDTH = 120
SHORTEST = 24
"""Characters of a node's text that are shown however deep it stands."""


def tree_lines(solution: Solution, *, width: int = WIDTH) -> list[str]:
    """The lines of a solution's tree; texts are cut to the width, with "..." where something is left out.

    A node with several parents stands below the first; the others are named.
    """
    below: dict[int | None, list[Node]] = {}
    for node in solution.nodes:
        below.setdefault(node.parents[0] if node.parents else None, []).append(node)
    question = next((m.content or "" for m in reversed(solution.task.prompt) if m.role == "user"), "")
    lines = [_cut(f"question: {_flat(question)}", width)]
    lines += _branch(below, None, "", solution.chosen, width)
    spent = solution.spent
    scored = f", {spent.scored:,} tokens scored" if spent.scored else ""
    facts = "".join(f", {name} {_number(value)}" for name, value in solution.facts.items())
    lines.append(
        f"{solution.strategy}: {solution.stopped}, {spent.requests:,} draws, {spent.sampled:,} tokens{scored}{facts}"
    )
    # Not cut: they say which documents were read and which were not.
    lines += [f"  {note}" for note in solution.notes]
    return lines


def _branch(
    below: dict[int | None, list[Node]], parent: int | None, indent: str, chosen: int | None, width: int
) -> Iterator[str]:
    nodes: Sequence[Node] = below.get(parent, ())
    for place, node in enumerate(nodes):
        last = place == len(nodes) - 1
        yield _line(node, indent + ("└─ " if last else "├─ "), node.number == chosen, width)
        yield from _branch(below, node.number, indent + ("   " if last else "│  "), chosen, width)


def _line(node: Node, indent: str, is_chosen: bool, width: int) -> str:
    numbers = [f"{name} {_number(value)}" for name, value in (node.scores | node.facts).items()]
    others = f"from {', '.join(map(str, node.parents))}" if len(node.parents) > 1 else ""
    cut = "" if node.ended or node.kind == "step" else "cut"
    note = "" if is_chosen and node.note == "chosen" else node.note  # said by the mark
    parts = [str(node.number), node.kind, others, *numbers, f"{len(node.ids)} tokens", cut, note]
    head = indent + "  ".join(part for part in parts if part)
    mark = "   <- chosen" if is_chosen else ""
    room = max(SHORTEST, width - len(head) - len(mark) - 4)
    return f'{head}  "{_cut(_flat(node.text), room)}"{mark}'


def _flat(text: str) -> str:
    """On one line, as it would be written in a program."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.3g}"
