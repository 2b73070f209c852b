"""Labels of steps from a tree of tries: rows that train a process reward model, without anybody who reads steps.

    rows = step_labels(solution, by_score("rewards", above=0.5), mark="\\n\\n")
    # [StepwiseFeedback(prompt, steps=("3 * 4 = 12", "2 + 12 = 14"), labels=(0.75, 1.0), row=...)]

    soft   label(s) = share of the whole answers that go on from s which are right
    hard   label(s) = 1 if any of them is right, else 0

Wang et al. 2023, arXiv:2312.08935 (Math-Shepherd), section 3.3: there N answers are written to their end from each step
of a solution; here they are those that a tree search wrote anyway (`mcts`, with rollouts or without; `prm_beam`).

Deviations
 1. The number of answers after a step is what the search made of it, and not the same N for all: `least` asks for more.
 2. A search looks at good states more often, so a soft label leans towards the better half of what the model would do;
    with `exploration` high, or labels that are hard, less so.
 3. Steps within an answer that was written to its end in one go have been tried once; they have no label, but for the
    last one, which is right or wrong as the answer is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from posttrain.errors import ConfigError
from posttrain.inference.solution import Node, Solution
from posttrain.types import StepwiseFeedback

Right = Callable[[Node], bool | None]
"""(a whole answer's node) -> whether the answer is right; None where nobody can tell, so that it does not count."""


def by_score(scorer: str = "rewards", *, above: float = 0.5) -> Right:
    """Right are answers with a higher score; None for those that the search drew and never judged.

    Args:
        scorer: what the score is called in `Node.scores`: `rewards`, `reward` (a model's), `logprob`, `self`.
    """

    def right(node: Node) -> bool | None:
        return node.scores[scorer] > above if scorer in node.scores else None

    return right


def step_labels(
    solution: Solution,
    right: Right,
    *,
    mark: str = "\n\n",
    kind: Literal["soft", "hard"] = "soft",
    least: int = 1,
    once: bool = False,
) -> list[StepwiseFeedback]:
    """A row for each different whole answer of the tree, its steps labelled by the answers that go on from them.

    Args:
        solution: of a strategy over steps.
        right: whether a whole answer is right: by its score, or by a verifier of yours.
        mark: what parted the steps, which the rows' steps are without.
        least: whole answers that a step must have after it for a label.
        once: a step that several answers share is labelled in the first of them alone, so that it trains once.

    Raises:
        ConfigError: `mark` is empty, `kind` or `least` is none that there is.
    """
    _require_known(mark, kind, least)
    verdicts = {node.number: right(node) for node in solution.nodes if _is_whole(node)}
    after: dict[int, list[bool]] = {}
    for number, verdict in verdicts.items():
        if verdict is not None:
            for node in solution.path(number):
                after.setdefault(node.number, []).append(verdict)

    labelled: set[int] = set()
    rows: dict[tuple[str, ...], StepwiseFeedback] = {}
    for number, verdict in verdicts.items():
        path = solution.path(number)
        labels: dict[int, float] = {}
        for node in path[:-1]:
            tries = after.get(node.number, [])
            if len(tries) >= least and not (once and node.number in labelled):
                labels[node.number] = float(any(tries)) if kind == "hard" else sum(tries) / len(tries)
        steps, values = _steps(path, labels, mark)
        if steps and verdict is not None:
            values[-1] = float(verdict)
        # Answers that several draws gave count as often in the labels, and are one row.
        if tuple(steps) not in rows and any(value is not None for value in values):
            labelled |= labels.keys()
            task = solution.task
            rows[tuple(steps)] = StepwiseFeedback(task.prompt, tuple(steps), tuple(values), task.row, task.tools)
    return list(rows.values())


def _is_whole(node: Node) -> bool:
    """An answer that came to its end, or to its longest length; lookahead and replies about answers are none."""
    return node.kind == "answer" and not node.open


def _steps(path: list[Node], labels: dict[int, float], mark: str) -> tuple[list[str], list[float | None]]:
    """The answer's steps by the mark, each with the label of the node that ends with it."""
    whole = path[-1].answer
    steps: list[str] = []
    values: list[float | None] = []
    at = 0
    for piece in whole.split(mark):
        end = min(at + len(piece) + len(mark), len(whole))
        if piece.strip():
            # By length and not by count: a node of N tokens may hold several steps, or end within one.
            ended = [node.number for node in path[:-1] if at + len(piece) < len(node.answer) <= end]
            steps.append(piece.strip())
            values.append(labels.get(ended[-1]) if ended else None)
        at = end
    return steps, values


def _require_known(mark: str, kind: str, least: int) -> None:
    if not mark:
        raise ConfigError(
            "labels of steps need the text that parts steps",
            found="mark: ''",
            expected="a text",
            remedy='pass the `step` of the strategy, such as mark="\\n\\n"',
        )
    if kind not in ("soft", "hard"):
        raise ConfigError(
            "there is no such kind of step label",
            found=repr(kind),
            expected="soft or hard",
            remedy='pass kind="soft" (shares) or kind="hard" (whether any)',
        )
    if least < 1:
        raise ConfigError(
            "a label needs at least one answer",
            found=f"least: {least}",
            expected="1 or more",
            remedy="pass least=1",
        )
