"""Pairs that models make, worked by hand: which answers meet, which verdicts count, what a revision becomes."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.config.pairs import BestWorst, Critique, Degraded, Judged, Pairs
from posttrain.config.principles import FLAWS, PRINCIPLES
from posttrain.data.origin import origin_of
from posttrain.inference.solution import Node
from posttrain.rollout.engine import FinishReason
from posttrain.synthesis.attempts import Attempt
from posttrain.synthesis.pairs.best_worst import pair_best_and_worst
from posttrain.synthesis.pairs.critique import place_of, revise_answers
from posttrain.synthesis.pairs.degraded import spoil_answers
from posttrain.synthesis.pairs.judged import decide, judge_meetings, meetings
from posttrain.synthesis.pairs.made import Made
from posttrain.synthesis.teacher import Ask, Drawing, Reply
from posttrain.types import Message, RowRef, Task
from tests.synthesis import ScriptedTeacher

REWARDS = {"kind": "rewards", "rewards": [{"kind": "math"}]}
TASK = Task((Message("user", "What is 3 + 4?"),), "7", RowRef("sums.jsonl", 3))


def attempt(text: str, score: float | None = None, reason: str | None = None, number: int = 0) -> Attempt:
    node = Node(number, "answer", (), TASK.prompt, (1,), (), (2,), (0.0,), FinishReason.STOP_TOKEN, text, text, True)
    node.facts = {"temperature": 0.7}
    return Attempt(node, score, reason)


def sides(made: Made) -> list[tuple[str, str]]:
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in made.rows]


# ---------------------------------------------------------------- best and worst


def best_worst(attempts: list[Attempt], **given: Any) -> Made:
    made = Made()
    settings = BestWorst(scorer=REWARDS, **given)
    pair_best_and_worst(made, TASK, attempts, settings, model="embedded", seed=17)
    return made


SCORED = [attempt("a", 0.5), attempt("b", 1.0), attempt("c", 0.0), attempt("d", 1.0), attempt("e", 0.0)]


def test_the_best_meets_the_worst_of_equal_scores_the_first_draws() -> None:
    made = best_worst(SCORED)
    assert sides(made) == [("b", "c")] and not made.skipped
    [row] = made.rows
    assert (row["score_chosen"], row["score_rejected"]) == (1.0, 0.0)
    origin = origin_of(row)
    assert origin is not None and origin.maker == "pairs/best_worst" and origin.model == "embedded"
    assert origin.source == "sums.jsonl, row 3" and origin.details["attempts"] == [2, 3] and origin.seed == 17
    assert origin.scores == {"chosen": 1.0, "rejected": 0.0}


def test_further_pairs_come_by_their_difference_and_never_of_equal_scores() -> None:
    assert sides(best_worst(SCORED, pairs_per_prompt=3)) == [("b", "c"), ("b", "e"), ("d", "c")]
    every = sides(best_worst(SCORED, pairs_per_prompt=None))
    assert len(every) == 8 and ("b", "d") not in every and ("a", "c") in every
    assert every[:4] == [("b", "c"), ("b", "e"), ("d", "c"), ("d", "e")]


def test_a_margin_leaves_out_what_differs_by_less() -> None:
    assert len(best_worst(SCORED, pairs_per_prompt=None, margin=0.6).rows) == 4
    made = best_worst([attempt("a", 0.5), attempt("b", 0.6)], margin=0.2)
    assert not made.rows and made.reasons == {"small_margin": 1}


@pytest.mark.parametrize(
    ("attempts", "reasons"),
    [
        ([attempt("7", 1.0), attempt("7 ", 1.0)], {"same_text": 1}),
        ([attempt("7", 1.0), attempt("8", 1.0)], {"same_score": 1}),
        ([attempt("7", 1.0), attempt("8", reason="cut")], {"cut": 1, "one_answer": 1}),
        (
            [attempt("", reason="empty"), attempt("8", reason="not_judged")],
            {"empty": 1, "not_judged": 1, "one_answer": 1},
        ),
    ],
)
def test_what_makes_no_pair_is_counted_by_its_reason(attempts: list[Attempt], reasons: dict[str, int]) -> None:
    made = best_worst(attempts)
    assert not made.rows and made.reasons == reasons
    assert {line["reason"] for line in made.dropped()} == set(reasons)


# ---------------------------------------------------------------- judged


@pytest.mark.parametrize(
    ("forth", "back", "decision"),
    [
        ("[[A]]", "[[B]]", True),
        ("[[B]]", "[[A]]", False),
        ("[[A]]", "[[A]]", "disagreed"),  # the judge leans to the first answer
        ("[[B]]", "[[B]]", "disagreed"),
        ("[[A]]", "[[C]]", "disagreed"),
        ("[[C]]", "[[C]]", "tie"),
        ("It is [[A]], I think", "[[B]]", "no_verdict"),
        ("", "[[B]]", "no_verdict"),
    ],
)
def test_only_verdicts_that_agree_in_both_orders_count(forth: str, back: str, decision: bool | str) -> None:
    assert decide(Reply(forth), Reply(back)) == decision


def test_a_verdict_of_a_reply_that_was_cut_or_failed_is_none() -> None:
    assert decide(Reply("[[A]]", ended=False), Reply("[[B]]")) == "no_verdict"
    assert decide(Reply("[[A]]", error="gone"), Reply("[[B]]")) == "no_verdict"


def prefers(*words: str):
    """A judge that likes the answer with the first of these words, whatever the order."""

    def judge(ask: Ask) -> str:
        text = ask.messages[-1].content or ""
        first, _, second = text.partition("<answer_b")
        for word in words:
            if (word in first) != (word in second):
                return "Because.\n[[A]]" if word in first else "Because.\n[[B]]"
        return "[[C]]"

    return ScriptedTeacher(judge, name="judge")


def test_answers_meet_by_twos_and_the_judge_sees_both_orders() -> None:
    made = Made()
    drawn = [
        attempt("good one"),
        attempt("bad one"),
        attempt("bad one"),
        attempt("x", reason="cut"),
        attempt("fine"),
        attempt("poor"),
    ]
    due = meetings(made, TASK, drawn)
    assert [(one.first.text, one.second.text) for one in due] == [("good one", "bad one"), ("fine", "poor")]
    judge = prefers("good", "poor")
    judge_meetings(made, due, judge, drawing=Drawing(temperature=0.0), policy="embedded", standard="kindness")
    assert sides(made) == [("good one", "bad one"), ("poor", "fine")] and made.reasons == {"cut": 1}
    assert len(judge.asked) == 4 and all("kindness" in (ask.messages[0].content or "") for ask in judge.asked)
    forth, back = (ask.messages[-1].content or "" for ask in judge.asked[:2])
    assert forth.index("good one") < forth.index("bad one") and back.index("bad one") < back.index("good one")
    assert made.rows[0]["votes"] == [2, 0]
    origin = origin_of(made.rows[0])
    assert origin is not None and origin.model == "embedded" and origin.details["judge"] == "judge"
    assert len(origin.details["verdicts"]) == 2


def test_a_judge_that_goes_by_the_order_makes_no_pair() -> None:
    made = Made()
    due = meetings(made, TASK, [attempt("one"), attempt("two")])
    judge_meetings(made, due, ScriptedTeacher(lambda ask: "[[A]]"), drawing=Drawing(), policy="embedded")
    assert not made.rows and made.reasons == {"disagreed": 1}


# ---------------------------------------------------------------- critique


def critic(ask: Ask) -> str:
    text = ask.messages[-1].content or ""
    if "Do not rewrite it" in text:
        return "It is too blunt."
    answer = text.partition("<answer_")[2].partition(">\n")[2].partition("\n</answer")[0]
    return answer if answer.startswith("fixed") else f"{answer}, please"


def revised(answers: list[str], teacher: ScriptedTeacher, principles: list[str] | None = None, rounds: int = 1) -> Made:
    made = Made()
    revise_answers(
        made,
        [(TASK, text) for text in answers],
        teacher,
        principles or list(PRINCIPLES),
        rounds=rounds,
        drawing=Drawing(max_new_tokens=64),
        seed=0,
        wrote=lambda place: {"model": "embedded", "seed": place},
    )
    return made


def test_the_revision_is_chosen_and_the_answer_rejected() -> None:
    teacher = ScriptedTeacher(critic, name="critic")
    made = revised(["Go", "fixed"], teacher, ["Be kind."])
    assert sides(made) == [("Go, please", "Go")] and made.reasons == {"unchanged": 1}
    origin = origin_of(made.rows[0])
    assert origin is not None and (origin.maker, origin.model, origin.seed) == ("pairs/critique", "embedded", 0)
    assert origin.details["critiques"] == [{"principle": "Be kind.", "critique": "It is too blunt."}]
    asked = [ask.messages[-1].content or "" for ask in teacher.asked]
    assert all("Be kind." in text for text in asked) and "It is too blunt." in asked[2]


def test_each_round_goes_on_from_the_last_revision_by_another_principle() -> None:
    made = revised(["Go"], ScriptedTeacher(critic), rounds=3)
    assert sides(made) == [("Go, please, please, please", "Go")]
    origin = origin_of(made.rows[0])
    assert origin is not None
    used = [entry["principle"] for entry in origin.details["critiques"]]
    assert len(set(used)) == 3 and set(used) <= set(PRINCIPLES)


def test_a_round_that_fails_leaves_the_revision_before_it() -> None:
    def first_round_alone(ask: Ask) -> str | Reply:
        text = ask.messages[-1].content or ""
        return Reply("", error="gone") if "Do not rewrite it" in text and "please" in text else critic(ask)

    assert sides(revised(["Go"], ScriptedTeacher(first_round_alone), rounds=2)) == [("Go, please", "Go")]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [(Reply("Half a", ended=False), "cut_revision"), (Reply(" "), "no_revision"), (Reply("a\0b"), "bad_character")],
)
def test_a_revision_that_is_none_makes_no_pair(reply: Reply, reason: str) -> None:
    teacher = ScriptedTeacher(
        lambda ask: critic(ask) if "Do not rewrite" in (ask.messages[-1].content or "") else reply
    )
    made = revised(["Go"], teacher)
    assert not made.rows and made.reasons == {reason: 1}


def test_the_seed_says_which_principle_and_no_other_row_does() -> None:
    def used(made: Made) -> list[str]:
        return [row["origin"]["details"]["critiques"][0]["principle"] for row in made.rows]

    both = used(revised(["One", "Two"], ScriptedTeacher(critic)))
    assert used(revised(["fixed", "Two"], ScriptedTeacher(critic))) == both[1:]
    assert len({place_of(5, number, 12) for number in range(12)}) == 12  # none twice before each came once
    assert place_of(9, 3, 1) == 0


# ---------------------------------------------------------------- degraded


def test_the_spoilt_answer_is_rejected_and_says_its_flaw() -> None:
    made = Made()
    writer = ScriptedTeacher(lambda ask: "Find out yourself.", name="writer")
    answers = [(TASK, "It is 7."), (Task(TASK.prompt, None, RowRef("sums.jsonl", 4)), "Find  out yourself.")]
    spoil_answers(made, answers, writer, {"rude": FLAWS["rude"]}, drawing=Drawing(), seed=0, wrote=lambda place: {})
    assert sides(made) == [("It is 7.", "Find out yourself.")] and made.reasons == {"same_text": 1}
    origin = origin_of(made.rows[0])
    assert origin is not None and origin.maker == "pairs/degraded" and origin.details["flaw"] == "rude"
    assert origin.details["writer"] == "writer" and FLAWS["rude"] in (writer.asked[0].messages[-1].content or "")


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        ({"kind": "best_worst", "scorer": REWARDS, "samples": 1}, "needs two answers"),
        ({"kind": "best_worst"}, "scorer"),
        ({"kind": "best_worst", "scorer": REWARDS, "margin": -1}, "margin"),
        ({"kind": "judged", "judge": "policy", "samples": 1}, "samples"),
        ({"kind": "judged"}, "judge"),
        ({"kind": "critique", "principles": ["Be kind."], "principles_file": "p.txt"}, "both say"),
        ({"kind": "critique", "rounds": 0}, "rounds"),
        ({"kind": "degraded", "flaws": ["too_lang"]}, "too_lang"),
        ({"kind": "degraded", "flaws": []}, "no flaw"),
        ({"kind": "degraded", "own_flaws": {"rude": "It is rude."}}, "known already"),
        ({"kind": "worst"}, "kind"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: dict[str, Any], problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        Pairs(name="made", make=make)


def test_a_kind_alone_may_stand_for_the_group() -> None:
    assert isinstance(Pairs(name="made", make="critique").make, Critique)
    made = Pairs(name="made", make={"kind": "degraded", "flaws": "rude", "own_flaws": {"shouting": "It shouts."}}).make
    assert isinstance(made, Degraded) and list(made.texts) == ["rude", "shouting"]
    assert Judged(judge="policy").ladder == ((0.7, 2),)
