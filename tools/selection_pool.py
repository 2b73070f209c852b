"""recipes/data/mixed_pool.jsonl, rows as a careless collection has them:
`python -m tools.selection_pool > recipes/data/mixed_pool.jsonl`.

To the embedded model's demonstrations come the faults that people meet, each under its name in the column `fault`,
which nothing trains on and no step of the recipe reads. Two of them a selection can see in a row or its neighbours
(`copy`, `cut`), one by its being unlike the task (`chatter`), and one only who can add (`wrong_sum`).
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from tools.embedded import arithmetic, facts
from tools.embedded.chat import demonstrations
from tools.embedded.text import SUM_QUESTIONS

COPIED, COPIES = 25, 20
"""So many rows stand in the pool so many more times: a page that was crawled again and again."""
CUT = 350
CHATTER = 250
WRONG_SUMS = 240
SMALL_TALK = (
    "ok", "anyway", "yes yes", "and then", "no way", "you know", "well", "as I said", "what a day", "never mind",
    "so many people there", "we had a lot of it", "it was late", "and that was that", "I do not know",
)  # fmt: skip

Row = dict[str, Any]


def pool(seed: int = 11) -> list[Row]:
    """2,999 rows in random order."""
    rng = random.Random(seed)
    good = [{**row, "fault": None} for row in demonstrations()]
    copied = [{**row, "fault": "copy"} for row in rng.sample(good, COPIED) for _ in range(COPIES)]
    cut = [_cut(row, rng) for row in rng.sample([row for row in good if len(_answer(row).split()) > 4], CUT)]
    rows = [*good, *copied, *cut, *(_chatter(rng) for _ in range(CHATTER)), *(_wrong(rng) for _ in range(WRONG_SUMS))]
    rng.shuffle(rows)
    return rows


def _answer(row: Row) -> str:
    return str(row["messages"][-1]["content"])


def _row(prompt: str, answer: str, fault: str) -> Row:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "fault": fault}


def _cut(row: Row, rng: random.Random) -> Row:
    """Its answer ends somewhere in the middle, as at a limit of tokens."""
    words = _answer(row).split()
    kept = " ".join(words[: rng.randint(2, len(words) - 2)])
    return _row(row["messages"][0]["content"], kept.rstrip(".,!?"), "cut")


def _chatter(rng: random.Random) -> Row:
    """What people say to each other: neither is a question asked nor one answered."""

    def said(parts: int) -> str:
        words = [rng.choice((rng.choice(SMALL_TALK), rng.choice(facts.NAMES))) for _ in range(parts)]
        return f"{', '.join(words)}."

    return _row(said(rng.randint(2, 4)), said(rng.randint(3, 9)), "chatter")


def _wrong(rng: random.Random) -> Row:
    problem = arithmetic.draw(rng, held_out=False, kind=rng.choice(("pair", "triple")))
    wrong = max(0, problem.result + rng.choice((-20, -10, -3, -2, -1, 1, 2, 3, 10, 20)))
    if wrong == problem.result:  # 0 cannot become smaller
        wrong += 1
    return _row(rng.choice(SUM_QUESTIONS).format(problem.text()), f"The answer is {wrong}.", "wrong_sum")


if __name__ == "__main__":
    sys.stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in pool())
