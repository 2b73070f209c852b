"""Judgements that contradict one another: pairs with two winners, circles, and judges who disagree.

Checks of `checks.py`. All start from the same table, `_wins`: for each pair of responses to a prompt, the rows in which
either won. `fix.py` resolves contradictions by the majority of that table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from posttrain.auditing.finding import AuditFinding, AuditSeverity, excerpt, percent, rows_text
from posttrain.auditing.statistics import krippendorff_alpha
from posttrain.auditing.subject import Subject
from posttrain.intervals import wilson

CANCELLED = 0.5
"""Where at least this share of the rows cancel one another out, nothing is left to learn: an error."""
ACCEPTABLE, POOR = 0.667, 0.2
"""Krippendorff's alpha: "tentative conclusions" need 0.667 (Krippendorff 2004, p. 241). InstructGPT's and other
preference judgements lie near 0.4; below 0.2 the labels are mostly chance."""
FEWEST_UNITS = 30


def contradictions(subject: Subject) -> list[AuditFinding]:
    """The same two responses to the same prompt, once with the one and once with the other as winner."""
    wins = _wins(subject)
    cancelled = 0
    rows: list[int] = []
    examples: list[dict[str, str]] = []
    for votes in wins.values():
        if votes[0] and votes[1]:
            # Each vote of the minority takes one of the majority with it: their gradients point in opposite directions.
            cancelled += 2 * min(len(votes[0]), len(votes[1]))
            rows += [*votes[0], *votes[1]]
            if len(examples) < 3:
                examples.append(_contradiction(subject, votes))
    if not rows:
        return []
    corpus = subject.corpus
    share = len(set(rows)) / len(corpus)
    cancelled_share = cancelled / max(1, sum(len(a) + len(b) for a, b in wins.values()))
    severity: AuditSeverity = "error" if cancelled_share >= CANCELLED else "warning" if share >= 0.01 else "note"
    message = f"{rows_text(len(set(rows)))} ({percent(share)}) judge a pair that another row judges the other way round"
    remedy = (
        "keep the majority's verdict where there are several judges, else drop both; `--fix` keeps the "
        "majority's and drops what is level"
    )
    evidence = {"cancelled_share": cancelled_share, "examples": examples}
    return [AuditFinding("contradictions", severity, message, share, corpus.refs(rows), evidence, remedy)]


Votes = tuple[list[int], list[int]]


def _wins(subject: Subject) -> dict[tuple[int, int, int], Votes]:
    """(prompt, smaller response, larger response) -> (rows in which the smaller won, rows in which the larger won).

    Responses are hashes of their text. Of a ranked list only neighbours are compared: the order of the others follows.
    """
    rows_by_winner: dict[tuple[int, int, int], Votes] = defaultdict(lambda: ([], []))
    for row, prompt, ordered in _orders(subject):
        for better, worse in pairwise(ordered):
            low, high = min(better, worse), max(better, worse)
            if low != high:  # a pair of equal texts has no winner; `trivial_pairs` reports it
                rows_by_winner[prompt, low, high][0 if better == low else 1].append(row)
    return rows_by_winner


def _orders(subject: Subject) -> Iterator[tuple[int, int, list[int]]]:
    """(row, prompt's key, keys of its responses from best to worst)."""
    corpus = subject.corpus
    # Sorted by row, then by place: afterwards the slice of a row lists its responses from best to worst.
    order = np.lexsort((corpus.place_S, corpus.row_S))
    keys = corpus.key_S[order].tolist()
    firsts = corpus.first_R.tolist()
    for row, prompt in enumerate(corpus.prompt_key_R.tolist()):
        yield row, prompt, keys[firsts[row] : firsts[row + 1]]


def level_or_outvoted(subject: Subject) -> dict[int, str]:
    """Rows of contradictions that a cleaned copy leaves out, with the reason; rows in no contradiction are kept."""
    dropped: dict[int, str] = {}
    for first, second in _wins(subject).values():
        if not first or not second:
            continue
        if len(first) == len(second):
            dropped.update({row: "as many rows say the opposite" for row in (*first, *second)})
        else:
            dropped.update({row: "more rows say the opposite" for row in min(first, second, key=len)})
    return dropped


def _contradiction(subject: Subject, votes: Votes) -> dict[str, str]:
    corpus = subject.corpus
    row, opposite = votes[0][0], votes[1][0]
    return {
        "row": str(corpus.ref(row)),
        "against": str(corpus.ref(opposite)),
        "prompt": excerpt(corpus.prompts[row]),
        "chosen": excerpt(corpus.responses[int(corpus.sides.chosen_P[row])]),
    }


# ---------------------------------------------------------------- circles


def cycles(subject: Subject) -> list[AuditFinding]:
    """A is better than B, B than C, and C than A, among the responses to one prompt."""
    edges: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    rows_of_edge: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for row, prompt, ordered in _orders(subject):
        for better, worse in pairwise(ordered):
            edges[prompt][better].add(worse)
            rows_of_edge[prompt, better, worse].append(row)
    rows: set[int] = set()
    circles = 0
    for prompt, graph in edges.items():
        # Three winners make the smallest circle, and most prompts have fewer: the search for parts is quadratic.
        for part in _circles(graph) if len(graph) >= 3 else ():
            circles += 1
            for edge in ((prompt, better, worse) for better in part for worse in graph[better] & part):
                rows.update(rows_of_edge[edge])
    if not rows:
        return []
    share = len(rows) / len(subject.corpus)
    message = f"{circles:,} prompts have responses that beat one another in a circle ({rows_text(len(rows))})"
    remedy = (
        "rank such responses together (one list a prompt), or drop the rows of the circle: no reward can satisfy all"
    )
    severity: AuditSeverity = "warning" if share >= 0.01 else "note"
    return [AuditFinding("cycles", severity, message, share, subject.corpus.refs(rows), {"circles": circles}, remedy)]


def _circles(graph: dict[int, set[int]]) -> Iterator[set[int]]:
    """Strongly connected parts of three and more responses; two make a contradiction, which has its own check."""
    reach = {node: _reachable(graph, node) for node in graph}
    seen: set[int] = set()
    for node in graph:
        if node in seen or node not in reach[node]:  # a response that never leads back to itself is in no circle
            continue
        part = {other for other in reach[node] if node in reach.get(other, ())}
        seen |= part
        if len(part) >= 3:
            yield part


def _reachable(graph: dict[int, set[int]], start: int) -> set[int]:
    reached: set[int] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += graph.get(node, ())
    return reached


# ---------------------------------------------------------------- judges


def disagreement(subject: Subject) -> list[AuditFinding]:
    """Krippendorff's alpha over votes, and over pairs that several rows judge."""
    counts, rows = _vote_counts(subject)
    if len(counts) < FEWEST_UNITS:
        return []
    alpha = krippendorff_alpha(counts)
    if not alpha < ACCEPTABLE:  # written so that NaN, where alpha is undefined, is no finding either
        return []
    split = counts.min(axis=1) > 0
    corpus = subject.corpus
    share = float(split.mean())
    severity: AuditSeverity = "warning" if alpha < POOR else "note"
    message = f"the judges disagree: Krippendorff's alpha is {alpha:.2f} over {len(counts):,} comparisons"
    remedy = (
        "drop or weight down comparisons without a clear majority, use label smoothing (cdpo, or robust with the share "
        "of wrong labels), and look at the guidelines where alpha is near 0"
    )
    contested = [row for row, is_split in zip(rows, split, strict=True) if is_split]
    evidence = {"alpha": alpha, "units": len(counts), "contested_share": share}
    return [AuditFinding("disagreement", severity, message, share, corpus.refs(contested), evidence, remedy)]


def _vote_counts(subject: Subject) -> tuple[np.ndarray, list[int]]:
    """Votes for the two responses of each comparison, [U, 2], with a row of each.

    The columns are in the order of the responses' hashes: a file that names the winner first would otherwise look as if
    all judges preferred the first place, and agreement by chance would be overestimated.
    """
    corpus = subject.corpus
    counts: list[tuple[int, int]] = []
    rows: list[int] = []
    sides = corpus.sides
    has_votes = (corpus.vote_S[sides.chosen_P] >= 0) & (corpus.vote_S[sides.rejected_P] >= 0)
    for pair in np.flatnonzero(has_votes).tolist():
        two = (int(sides.chosen_P[pair]), int(sides.rejected_P[pair]))
        low, high = sorted(two, key=lambda index: int(corpus.key_S[index]))
        counts.append((int(corpus.vote_S[low]), int(corpus.vote_S[high])))
        rows.append(int(sides.row_P[pair]))
    # Without votes in the rows, several rows that judge the same pair are the votes.
    if not counts:
        for first, second in _wins(subject).values():
            if len(first) + len(second) >= 2:
                counts.append((len(first), len(second)))
                rows.append((first or second)[0])
    return np.array(counts, dtype=np.int64).reshape(-1, 2), rows


def annotators(subject: Subject) -> list[AuditFinding]:
    """Judges who agree with the others far less than the others agree among themselves."""
    if subject.annotator_R is None:
        return []
    agreed: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    rows_of: dict[str, list[int]] = defaultdict(list)
    for votes in _wins(subject).values():
        for row, side in [*((row, 0) for row in votes[0]), *((row, 1) for row in votes[1])]:
            judge = subject.annotator_R[row]
            rows_of[judge].append(row)
            # The judge's own vote is not counted, and where the others are level there is no majority to agree with.
            agree, oppose = len(votes[side]) - 1, len(votes[1 - side])
            if agree != oppose:
                agreed[judge][0] += agree > oppose
                agreed[judge][1] += 1
    all_agreements, all_judgements = (sum(entry[place] for entry in agreed.values()) for place in (0, 1))
    findings = []
    for judge, (agreeing, count) in sorted(agreed.items()):
        others = (all_agreements - agreeing) / max(1.0, all_judgements - count)
        # The interval's upper end, since a judge with few shared pairs would often be far off by chance.
        interval = wilson(agreeing, count)
        if count >= FEWEST_UNITS / 3 and interval[1] < others - 0.1:
            findings.append(_annotator_finding(subject, judge, rows_of[judge], agreeing / count, interval, others))
    return findings


def _annotator_finding(
    subject: Subject, judge: str, rows: list[int], share: float, interval: tuple[float, float], others: float
) -> AuditFinding:
    evidence: dict[str, Any] = {"annotator": judge, "agreement": share, "interval": list(interval), "others": others}
    return AuditFinding(
        "annotators",
        "warning",
        f"annotator {judge!r} agrees with the majority of the others in {percent(share)} of shared pairs; "
        f"the others in {percent(others)}",
        len(rows) / len(subject.corpus),
        subject.corpus.refs(rows),
        evidence,
        "look at some of these judgements (swapped buttons? another guideline?) and leave them out if they are wrong",
    )
