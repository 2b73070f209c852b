"""Rows of files -> games: posttrain's own layout, and those of LMArena, AlpacaEval and Arena-Hard.

    games, unjudged = read_games("votes.jsonl")

own         `prompt`, `model_a`, `model_b`, `winner`: the side, the policy's name or `tie`; or `score`, the points of A.
            `response_a` and `response_b`, if there, make length and style known
LMArena     the same with `conversation_a`, `conversation_b`; or `winner_model_a`, `winner_model_b`, `winner_tie`
AlpacaEval  `instruction`, `output_1`, `generator_1`, `output_2`, `generator_2`, `preference`: 1 to 2, how far output 2
            is preferred; 0 and 1.5 are ties
Arena-Hard  `games` (two, in both orders), `model`, `baseline`, `uid` or `question_id`; a clear `A>>B` is three games

A row without a verdict (null) is no game: it is counted, and said. Every other row that cannot be read is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.sources.files import open_sources
from posttrain.data.sources.source import Broken
from posttrain.errors import RowError
from posttrain.evaluate.ratings.games import Game
from posttrain.types import RowRef

Row = Mapping[str, Any]
BASELINE = "baseline"
"""The other side of Arena-Hard's games where a file does not name it."""
CLEAR_WINS = 3.0
"""Games that Arena-Hard's `A>>B` counts as."""

_OWN = '{"prompt": "2 + 2?", "model_a": "start", "model_b": "dpo", "winner": "model_b"}'
_WORDS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5, "both_bad": 0.5, "bothbad": 0.5}
_SIDES = {"a": 1.0, "b": 0.0}
_VERDICTS = {
    "A>B": (1.0, 1.0),
    "B<A": (1.0, 1.0),
    "A>>B": (1.0, CLEAR_WINS),
    "B<<A": (1.0, CLEAR_WINS),
    "A=B": (0.5, 1.0),
    "B=A": (0.5, 1.0),
    "B>A": (0.0, 1.0),
    "A<B": (0.0, 1.0),
    "B>>A": (0.0, CLEAR_WINS),
    "A<<B": (0.0, CLEAR_WINS),
}
"""Arena-Hard's verdicts: points of A, and the games that they count as."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout("own", needs=("model_a", "model_b"), games=_own)"""

    name: str
    needs: tuple[str, ...]
    """Keys by which it is told."""
    games: Callable[[Row, RowRef], list[Game]]
    """The games of a row, none where it has no verdict. Raises RowError."""


@dataclass(frozen=True, slots=True)
class GamesRead:
    """GamesRead(games=[Game(...)], rows=120, unjudged=3, layouts=("own",))"""

    games: list[Game]
    rows: int
    unjudged: int
    """Verdicts that are missing: rows, or games of Arena-Hard's rows."""
    layouts: tuple[str, ...]


def read_games(data: Any) -> GamesRead:
    """The games of files, or of rows in memory.

    Args:
        data: what `pt.read` takes: a path, a pattern, rows, or a list of these.

    Raises:
        SourceError: a file cannot be read.
        RowError: a row is in no known layout, or its verdict cannot be read.
    """
    games: list[Game] = []
    found: dict[str, None] = {}
    rows = unjudged = 0
    for row, ref in _rows(data):
        layout = layout_of(row, ref)
        found[layout.name] = None
        own = layout.games(row, ref)
        games += own
        rows += 1
        unjudged += (2 if layout.name == "Arena-Hard" else 1) - len(own)
    return GamesRead(games, rows, unjudged, tuple(found))


def _rows(data: Any) -> Iterator[tuple[Row, RowRef]]:
    for source in open_sources(data):
        for number, value, _ in source.rows():
            ref = RowRef(source.name, number)
            if isinstance(value, Broken):
                raise value.error
            if not isinstance(value, Mapping):
                raise _bad(ref, "the row is no object", found=value, expected="an object", remedy="correct the row")
            yield value, ref


def layout_of(row: Row, ref: RowRef) -> Layout:
    """The first layout whose keys the row has."""
    for layout in LAYOUTS:
        if all(key in row for key in layout.needs):
            return layout
    raise RowError(
        "the row is in no layout of games",
        reason="unknown_format",
        where=ref,
        found=f"the keys {', '.join(map(str, list(row)[:12]))}" if row else "an empty object",
        expected="; or ".join(f"{', '.join(layout.needs)} ({layout.name})" for layout in LAYOUTS),
        example=_OWN,
        remedy="rename the keys to those of a layout (docs/ratings.md)",
    )


# ---------------------------------------------------------------- own, and LMArena


def _sided(row: Row, ref: RowRef) -> list[Game]:
    points = _points(row, ref)
    if points is None:
        return []
    sides = [_side(row, ref, side) for side in ("a", "b")]
    asked = row.get("prompt", row.get("conversation_a", row.get("question_id")))
    prompt = _prompt(asked, ref, "prompt")
    (name_a, response_a), (name_b, response_b) = sides
    weight = row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise _bad(ref, "`weight` is no number", found=weight, expected="above 0", remedy="leave `weight` out")
    return [Game(prompt, name_a, name_b, points, ref, response_a, response_b, float(weight))]


def _side(row: Row, ref: RowRef, side: str) -> tuple[str, str | None]:
    name = row[f"model_{side}"]
    if not isinstance(name, str) or not name.strip():
        raise _bad(
            ref, f"`model_{side}` is no name", found=name, expected="the name of a policy", remedy="write the name"
        )
    key = next((key for key in (f"response_{side}", f"conversation_{side}") if row.get(key) is not None), None)
    return name, None if key is None else _answer(row[key], ref, key)


def _points(row: Row, ref: RowRef) -> float | None:
    if "winner_model_a" in row:
        return _of_flags(row, ref)
    if "winner" not in row:
        score = row["score"]
        if score is None:
            return None
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise _bad(
                ref, "`score` is no share", found=score, expected="0 to 1, the points of `model_a`", remedy="correct it"
            )
        return float(score)
    winner = row["winner"]
    if winner is None or winner == "":
        return None
    names = {row["model_a"]: 1.0, row["model_b"]: 0.0}
    word = winner.strip() if isinstance(winner, str) else winner
    # A name says more than a letter: policies may be called a and b, in any order.
    for known, key in ((_WORDS, str(word).lower()), (names, word), (_SIDES, str(word).lower())):
        if isinstance(word, str) and key in known:
            return known[key]
    raise _bad(
        ref,
        "`winner` names neither side",
        found=winner,
        expected=f"model_a, model_b, tie, {row['model_a']!r} or {row['model_b']!r}; null where nobody judged",
        remedy="write one of these; a share of points goes into `score`",
    )


def _of_flags(row: Row, ref: RowRef) -> float | None:
    flags = [row.get(f"winner_{which}") for which in ("model_a", "tie", "model_b")]
    if all(flag is None for flag in flags):
        return None
    if not all(flag in (0, 1) for flag in flags) or flags.count(1) != 1:
        raise _bad(
            ref,
            "`winner_model_a`, `winner_tie` and `winner_model_b` name no winner",
            found=flags,
            expected="1 in one of the three and 0 in the others",
            remedy="correct the row",
        )
    return (1.0, 0.5, 0.0)[flags.index(1)]


# ---------------------------------------------------------------- AlpacaEval


def _alpaca_eval(row: Row, ref: RowRef) -> list[Game]:
    preference = row["preference"]
    if preference is None or preference != preference:  # NaN, as pandas writes it
        return []
    is_number = isinstance(preference, int | float) and not isinstance(preference, bool)
    if not is_number or not (preference == 0 or 1 <= preference <= 2):
        raise _bad(
            ref,
            "`preference` is no preference",
            found=preference,
            expected="1 (output 1) to 2 (output 2); 0 or 1.5 for a tie, null where nobody judged",
            remedy="correct the row",
        )
    points = 0.5 if preference == 0 else 2.0 - float(preference)
    names = [row.get(f"generator_{side}") for side in (1, 2)]
    for side, name in zip((1, 2), names, strict=True):
        if not isinstance(name, str) or not name:
            raise _bad(
                ref, f"`generator_{side}` is no name", found=name, expected="the policy's name", remedy="write the name"
            )
    texts = [_answer(row[f"output_{side}"], ref, f"output_{side}") for side in (1, 2)]
    prompt = _prompt(row["instruction"], ref, "instruction")
    return [Game(prompt, str(names[0]), str(names[1]), points, ref, texts[0], texts[1])]


# ---------------------------------------------------------------- Arena-Hard


def _arena_hard(row: Row, ref: RowRef) -> list[Game]:
    """Two games: the baseline is A in the first, the model in the second."""
    model, baseline = row["model"], row.get("baseline", BASELINE)
    for key, name in (("model", model), ("baseline", baseline)):
        if not isinstance(name, str) or not name:
            raise _bad(ref, f"`{key}` is no name", found=name, expected="the policy's name", remedy="write the name")
    prompt = _prompt(row.get("uid", row.get("question_id")), ref, "uid")
    played = row["games"]
    if not isinstance(played, list) or len(played) != 2:
        raise _bad(
            ref,
            "`games` is no pair of games",
            found=played,
            expected="a list of two, in both orders",
            remedy="judge both",
        )
    games = []
    for sides, game in zip(((baseline, model), (model, baseline)), played, strict=True):
        verdict = game.get("score") if isinstance(game, Mapping) else None
        if verdict is None:
            continue
        if verdict not in _VERDICTS:
            raise _bad(
                ref, "a game's `score` is no verdict", found=verdict, expected=", ".join(_VERDICTS), remedy="correct it"
            )
        points, weight = _VERDICTS[verdict]
        games.append(Game(prompt, *sides, points, ref, weight=weight))
    return games


# ---------------------------------------------------------------- texts


def _prompt(value: Any, ref: RowRef, key: str) -> str:
    """What games are drawn by: a text, turns, or an id."""
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
        return str(value)
    if isinstance(value, list) and value:
        # Of a conversation, what was asked of both sides: the user's turns.
        asked = [turn for turn in value if not isinstance(turn, Mapping) or turn.get("role") != "assistant"]
        return json.dumps(asked, ensure_ascii=False, sort_keys=True)
    raise _bad(
        ref, f"`{key}` is no prompt", found=value, expected="a text, turns, or an id", remedy=f"add the row's `{key}`"
    )


def _answer(value: Any, ref: RowRef, key: str) -> str:
    """A text, or the assistant's turns of a conversation."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, Mapping) and turn.get("role") == "assistant"]
        contents = [turn.get("content") for turn in turns] if turns else value
        texts = [text for text in contents if isinstance(text, str)]
        if texts and len(texts) == len(contents):
            return "\n\n".join(texts)
    raise _bad(
        ref, f"`{key}` is no answer", found=value, expected="a text, or turns with the assistant's", remedy="correct it"
    )


def _bad(ref: RowRef, problem: str, *, found: object, expected: str, remedy: str) -> RowError:
    return RowError(problem, reason="bad_label", where=ref, found=repr(found)[:200], expected=expected, remedy=remedy)


LAYOUTS: Sequence[Layout] = (
    Layout("Arena-Hard", ("games", "model"), _arena_hard),
    Layout("AlpacaEval", ("instruction", "output_1", "output_2", "preference"), _alpaca_eval),
    Layout("LMArena", ("model_a", "model_b", "winner_model_a"), _sided),
    Layout("own", ("model_a", "model_b", "winner"), _sided),
    Layout("own", ("model_a", "model_b", "score"), _sided),
)
"""The first whose keys a row has."""
