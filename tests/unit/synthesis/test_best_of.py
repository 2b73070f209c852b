"""Which of a prompt's answers become rows: worked by hand."""

from __future__ import annotations

import pytest

from posttrain.config.best_of import BestOf
from posttrain.data.origin import origin_of
from posttrain.inference.scorers import ABSTAINED
from posttrain.inference.solution import Node, Solution, Spent, Stopped
from posttrain.rollout.engine import FinishReason
from posttrain.synthesis.attempts import Attempt, attempts_of
from posttrain.synthesis.best_of import Yield, choose, equations_of, rows_of, same_as, yield_of
from posttrain.types import Message, RowRef, Task

MATHS = {"kind": "rewards", "rewards": [{"kind": "math"}]}
TASK = Task((Message("user", "3 + 4?"),), "7", RowRef("sums.jsonl", 3))


def node(number: int, text: str, *, ended: bool = True, **scores: float) -> Node:
    finish = FinishReason.STOP_TOKEN if ended else FinishReason.LENGTH
    made = Node(number, "answer", (), TASK.prompt, (1,), (), (2, 3), (0.0, 0.0), finish, text, text, ended)
    made.scores, made.facts = dict(scores), {"temperature": 0.7}
    return made


def tried(*answers: tuple[str, float | None] | Node) -> list[Attempt]:
    """Attempts of (text, score), or of whole nodes."""
    nodes = [
        answer if isinstance(answer, Node) else node(at, answer[0], rewards=answer[1])  # type: ignore[arg-type]
        for at, answer in enumerate(answers)
    ]
    solution = Solution("best_of", TASK, "", None, tuple(nodes), Spent(), Stopped.DONE)
    return attempts_of(solution, settings().scorer)


def settings(**given) -> BestOf:
    return BestOf(**{"name": "tried", "scorer": MATHS, **given})


def test_best_is_the_highest_score_and_of_equal_ones_the_first() -> None:
    chosen = choose(TASK, tried(("a", 0.2), ("b", 0.9), ("c", 0.9), ("d", 0.1)), settings())
    assert chosen.kept == (1,) and chosen.right is None and chosen.without is None
    assert chosen.reasons == ("not_best", None, "not_best", "not_best")


def test_all_right_keeps_one_of_each_list_of_equations() -> None:
    answers = tried(
        ("3 + 4 = 7. The answer is 7.", 1.0),
        ("Sure: 3+4 = 7, so 7.", 1.0),  # the same equation in other words
        ("4 + 3 = 7. The answer is 7.", 1.0),  # another way to work it
        ("The answer is 8.", 0.0),
        ("It is 7.", 1.0),
        ("It  is 7.", 1.0),  # the same text
    )
    chosen = choose(TASK, answers, settings(keep="all_right", least_score=1.0))
    assert chosen.kept == (0, 2, 4) and chosen.right == 5
    assert chosen.reasons == (None, "same", None, "low_score", None, "same")
    by_text = choose(TASK, answers, settings(keep="all_right", least_score=1.0, distinct="text"))
    assert by_text.kept == (0, 1, 2, 4)


def test_up_to_keeps_the_highest_scores() -> None:
    answers = tried(("a", 0.6), ("b", 0.9), ("c", 0.7), ("d", 0.4))
    chosen = choose(TASK, answers, settings(keep="all_right", least_score=0.5, up_to=2))
    assert chosen.kept == (1, 2) and chosen.right == 3
    assert chosen.reasons == ("over_limit", None, None, "low_score")


def test_what_can_make_no_row_is_neither_right_nor_kept() -> None:
    answers = tried(
        node(0, "3 + 4 = 7", ended=False, rewards=1.0),  # cut: a demonstration would teach to stop there
        node(1, "  ", rewards=1.0),
        node(2, "7\0", rewards=1.0),
        node(3, "7", rewards=ABSTAINED),
        node(4, "seven"),
    )
    assert [attempt.reason for attempt in answers] == ["cut", "empty", "bad_character", "not_judged", "not_judged"]
    chosen = choose(TASK, answers, settings(least_score=1.0))
    assert chosen.kept == () and chosen.right == 0 and chosen.without == "never_right"
    assert choose(TASK, answers, settings()).without == "nothing_fit"


def test_equations_are_read_without_blanks_and_in_their_order() -> None:
    assert equations_of("39 + 40 = 79, 79 + 2 = 81. The answer is 81.") == ("39+40=79", "79+2=81")
    assert equations_of("He pays $1,200 x 2 = $2,400.") == ("1200x2=2400",)
    assert equations_of("The answer is 81, or x = 81.") == ()
    assert same_as("So  it is\n81.") == ("So it is 81.",)


def test_pass_rates_of_a_round_by_hand() -> None:
    """Four prompts, two answers each: 2, 1, 0, 0 right. pass@1 = (1 + 1/2 + 0 + 0) / 4, pass@2 = 2/4."""
    rounds = [
        choose(TASK, tried(("3 + 4 = 7", first), ("7", second)), settings(keep="all_right", least_score=1.0))
        for first, second in ((1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    ]
    found = yield_of(rounds)
    assert isinstance(found, Yield)
    assert [(k, score.value, score.n) for k, score in found.passed] == [(1, 0.375, 4), (2, 0.5, 4)]
    assert all(score.low < score.value < score.high for _, score in found.passed)
    assert (found.prompts, found.answers, found.rows, found.right, found.never_right) == (4, 8, 3, 3, 2)
    assert found.skipped == {"low_score": 5} and found.without == {"never_right": 2}
    assert "pass@1 38 % [" in str(found) and "2 prompts had none" in str(found)


def test_each_row_says_where_it_comes_from() -> None:
    stage = settings(keep="all_right", least_score=1.0, samples=2)
    chosen = choose(TASK, tried(("8", 0.0), ("3 + 4 = 7", 1.0)), stage)
    [row] = rows_of(chosen, stage, model="runs/mine/sft/model", seed=17)
    assert [turn["content"] for turn in row["messages"]] == ["3 + 4?", "3 + 4 = 7"]  # type: ignore[attr-defined]
    origin = origin_of(row)
    assert origin is not None and (origin.maker, origin.model, origin.seed) == ("best_of", "runs/mine/sft/model", 17)
    assert origin.source == "sums.jsonl, row 3" and origin.scores == {"rewards": 1.0}
    assert origin.sampling == {"temperature": 0.7, "max_new_tokens": 512}
    assert origin.details == {"attempt": 2, "of": 2, "right": 1}


def test_a_ladder_shares_the_samples_out_in_turn() -> None:
    assert settings(samples=5, temperatures=(0.7, 1.0)).ladder == ((0.7, 3), (1.0, 2))
    assert settings(samples=4).ladder == ((0.7, 4),)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"keep": "all_right"}, "from which score on"),
        ({"up_to": 2}, "keeps one answer"),
        ({"least_score": 0.0, "scorer": "logprob"}, "does not say which answers are right"),
        ({"temperatures": [0.7], "sampling": {"temperature": 0.9}}, "both say"),
        ({"samples": 2, "temperatures": [0.7, 0.8, 0.9]}, "fewer answers than temperatures"),
        ({"sampling": {"temperature": 0}}, "the same answer each time"),
        ({"samples": 3, "temperatures": [0.0, 0.7]}, "the same answer each time"),
        ({"samples": 2, "temperatures": [-1.0, 0.7]}, "below 0"),
        ({"gate": "perhaps"}, "gate"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict, problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        settings(**given)
