"""What a suite of win rates writes beside the answers: the games that were judged, and those that wait for a vote.

    evaluations/<suite>.games.jsonl     {"prompt", "model_a", "model_b", "score", "response_a", "response_b"}
    evaluations/<suite>.ballot.jsonl    the same with "winner": null, for people to fill in

Both are rows that `posttrain rate` reads. A judge's pair is two games, one for each order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from posttrain.data.write import write_jsonl
from posttrain.evaluate.suites.win_rate_judges import Outcome, Pair
from posttrain.runs.folder import answers_path
from posttrain.runs.records.ratings import BallotLine, GameLine


def games_path(folder: Path, suite: str) -> Path:
    return answers_path(folder, suite).with_suffix(".games.jsonl")


def ballot_path(folder: Path, suite: str) -> Path:
    return answers_path(folder, suite).with_suffix(".ballot.jsonl")


def write_games(
    out: Path,
    suite: str,
    names: tuple[str, str],
    pairs: Sequence[Pair],
    outcomes: Sequence[Outcome],
    *,
    is_ballot: bool,
) -> None:
    """Writes what was judged, and where people judge what was not.

    Args:
        names: of the model whose answers these are, and of the start.
    """
    judged = [pair for pair in zip(pairs, outcomes, strict=True) if pair[1].points is not None]
    write_jsonl(
        games_path(out, suite), (line.to_json() for pair, found in judged for line in _lines(pair, found, names))
    )
    if is_ballot:
        open_ = dict.fromkeys(pair for pair, found in zip(pairs, outcomes, strict=True) if found.points is None)
        write_jsonl(ballot_path(out, suite), (_ballot(pair, names).to_json() for pair in open_))


def _lines(pair: Pair, found: Outcome, names: tuple[str, str]) -> Iterator[GameLine]:
    own, start = names
    forth, back = found.orders or (found.points, None)
    assert forth is not None
    yield GameLine(pair.prompt, own, start, forth, pair.answer, pair.other)
    if back is not None:
        yield GameLine(pair.prompt, start, own, 1 - back, pair.other, pair.answer)


def _ballot(pair: Pair, names: tuple[str, str]) -> BallotLine:
    """A row to vote on. Which side comes first hangs on the texts alone: by chance, and the same in every run."""
    content = "\0".join((pair.prompt, pair.answer, pair.other)).encode(errors="surrogatepass")
    own, start = names
    if hashlib.sha256(content).digest()[0] % 2:
        return BallotLine(pair.prompt, start, own, None, pair.other, pair.answer)
    return BallotLine(pair.prompt, own, start, None, pair.answer, pair.other)
