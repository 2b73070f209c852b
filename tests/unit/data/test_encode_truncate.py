"""Truncation by policy: what stays, what goes, and how it is called."""

from __future__ import annotations

import pytest

from posttrain.data.encode import EncodedExample, Encoder
from posttrain.data.truncate import DROP_REASONS, TRUNCATION_REASONS, Draft, Fitted, Side, Truncation, fit_length
from tests.encoding import encoder_of, pair, path_ids, shown, trained_runs
from tests.fixtures import chat, demonstration

PROMPT = list(range(100, 106))


def side(length: int, *, stop: bool = True) -> Side:
    return Side(list(range(length)), [True] * length, (length - 1,) if stop else ())


def test_what_fits_is_left_alone() -> None:
    draft = Draft(PROMPT, (side(4), side(3)))
    for policy in ("drop", "keep_prompt_end", "cut_response", "per_side_budget"):
        assert fit_length(draft, 10, policy) == Fitted(draft)
        assert fit_length(draft, None, policy) == Fitted(draft)


@pytest.mark.parametrize(
    ("policy", "prompt", "sides", "reason"),
    [
        ("drop", 6, (20,), "too_long"),
        ("cut_response", 10, (20,), "prompt_too_long"),
        ("per_side_budget", 12, (2, 3), "prompt_too_long"),
        ("keep_prompt_end", 6, (10,), "response_too_long"),
        (
            "keep_prompt_end",
            6,
            (8,),
            "response_too_long",
        ),  # two tokens of prompt are less than the three that must stay
    ],
)
def test_what_cannot_fit_is_dropped_by_name(
    policy: Truncation, prompt: int, sides: tuple[int, ...], reason: str
) -> None:
    draft = Draft([9] * prompt, tuple(side(length) for length in sides))
    assert fit_length(draft, 10, policy, shortest_prompt=3) == Fitted(None, dropped=reason)
    assert reason in DROP_REASONS


def test_a_cut_response_has_no_stop_token() -> None:
    fitted = fit_length(Draft(PROMPT, (side(20),)), 10, "cut_response")
    assert fitted == Fitted(Draft(PROMPT, (Side([0, 1, 2, 3], [True] * 4, ()),)), truncated="response_cut")
    assert fitted.truncated in TRUNCATION_REASONS


@pytest.mark.parametrize(("head", "kept"), [(3, True), (4, False)])
def test_a_beginning_takes_half_of_the_room_at_most(head: int, kept: bool) -> None:
    """Six tokens of prompt fit: a beginning of three leaves three of its end, one of four would leave two."""
    prompt = list(range(100, 120))
    fitted = fit_length(Draft(prompt, (side(4),)), 10, "keep_prompt_end", heads=(prompt[:head], ()))
    assert fitted.draft is not None
    assert fitted.draft.prompt == (prompt[:head] + prompt[-3:] if kept else prompt[-6:])


def test_stops_are_counted_from_the_prompts_end() -> None:
    """Two answers, the second cut: one stop is left, at its place in the branch and not in the whole row."""
    encoder = encoder_of(settings={"truncation": "cut_response", "max_length": None})
    row = demonstration("Hi", "Hello.", "And?", "A long, long answer.")
    whole = encoder.example(row)
    assert whole.stop_tokens == (2,)
    cut = encoder_of(settings={"truncation": "cut_response", "max_length": len(path_ids(whole.trees[0])) - 5})
    assert cut.example(row).stop_tokens == (1,) and cut.example(row).truncated == ("response_cut",)


def test_one_token_of_the_prompt_may_be_all_that_stays() -> None:
    fitted = fit_length(Draft(PROMPT, (side(9),)), 10, "keep_prompt_end")
    assert fitted == Fitted(Draft([PROMPT[-1]], (side(9),)), truncated="prompt_cut")
    assert (
        fit_length(Draft(PROMPT, (side(10),)), 10, "keep_prompt_end", shortest_prompt=1).dropped == "response_too_long"
    )


def test_a_pair_with_one_side_cut_to_nothing_is_dropped() -> None:
    """What trains of the second side stands behind the cut: half a pair compares nothing."""
    late = Side(list(range(50, 70)), [False] * 10 + [True] * 10, (19,))
    assert fit_length(Draft(PROMPT, (side(20), late)), 12, "cut_response").dropped == "nothing_left_to_train"
    assert fit_length(Draft(PROMPT, (late, side(20))), 12, "cut_response").dropped == "nothing_left_to_train"


def test_a_stop_token_that_is_cut_off_is_not_counted() -> None:
    """The stop stands at the first place that goes: one off, and a row without a stop counts as one with it."""
    assert side(5).cut(4) == Side([0, 1, 2, 3], [True] * 4, ())
    assert side(5).cut(5) == side(5) == side(5).cut(9)
    assert Side([0, 1, 2], [True] * 3, (1, 2)).cut(2) == Side([0, 1], [True] * 2, (1,))


def test_the_cut_falls_back_to_the_last_token_that_trains() -> None:
    """Untrained tokens at the end of a sequence predict nothing that is wanted."""
    turns = Side(list(range(12)), [True] * 3 + [False] * 5 + [True] * 4, (2, 11))
    fitted = fit_length(Draft(PROMPT, (turns,)), 12, "cut_response")
    assert fitted.draft is not None
    assert fitted.draft.sides == (Side([0, 1, 2], [True] * 3, (2,)),)


def test_nothing_left_to_train() -> None:
    late = Side(list(range(12)), [False] * 10 + [True] * 2)
    assert fit_length(Draft(PROMPT, (late,)), 10, "cut_response").dropped == "nothing_left_to_train"
    assert fit_length(Draft(PROMPT, (Side([1], [False]),)), 10, "drop").dropped == "nothing_to_train"
    assert fit_length(Draft(PROMPT, (side(2), Side([], []))), None, "drop").dropped == "nothing_to_train"


def test_sides_that_the_cut_makes_equal_are_dropped() -> None:
    left, right = Side([1, 2, 3, 4, 5, 6], [True] * 6), Side([1, 2, 3, 4, 5, 7], [True] * 6)
    assert fit_length(Draft(PROMPT, (left, right)), 10, "per_side_budget").dropped == "identical_after_cut"
    assert fit_length(Draft(PROMPT, (left, left)), None, "per_side_budget").dropped == "identical_responses"


def test_the_prompts_end_and_a_head_that_fits() -> None:
    draft = Draft([1, *range(50, 69)], (side(4),))
    heads = [[1, 50, 51, 52], [1], []]
    kept = {
        length: fit_length(draft, length, "keep_prompt_end", heads=heads, shortest_prompt=2).draft
        for length in (12, 8, 6)
    }
    assert kept[12] is not None and kept[12].prompt == [1, 50, 51, 52, 65, 66, 67, 68]
    assert kept[8] is not None and kept[8].prompt == [1, 66, 67, 68]
    assert kept[6] is not None and kept[6].prompt == [67, 68]
    assert all(draft is not None and draft.longest == length for length, draft in kept.items())


# ---------------------------------------------------------------- through the encoder


def encoded(
    length: int, policy: str, *turns: str, system: str | None = None, template: str = "CHATML"
) -> tuple[Encoder, EncodedExample]:
    encoder = encoder_of(template, {"max_length": length, "truncation": policy})
    return encoder, encoder.example(demonstration(*turns, system=system))


def test_the_prompts_beginning_is_cut_and_its_system_turn_stays() -> None:
    encoder, result = encoded(60, "keep_prompt_end", "x" * 200, "answer", system="Be kind.")
    (tree,) = result.trees
    text = shown(encoder, tree)
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\nxxxx")
    assert text.endswith("x<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>")
    assert tree.num_tokens == 60 and result.truncated == ("prompt_cut",)


def test_the_prompts_beginning_is_cut_and_bos_stays() -> None:
    encoder, result = encoded(40, "keep_prompt_end", "x" * 200, "answer", template="BOS_IN_TEMPLATE")
    (tree,) = result.trees
    assert tree.prompt_ids[0] == encoder.bos_id and shown(encoder, tree).startswith("<s>xx")
    assert tree.num_tokens == 40


def test_a_question_must_remain() -> None:
    """The generation prompt alone would train an answer to nothing."""
    ask = len("<|im_start|>assistant\n") - len("<|im_start|>") + 1
    answer = len("answer") + 1
    _, kept = encoded(ask + 1 + answer, "keep_prompt_end", "x" * 200, "answer")
    assert [tree.num_tokens for tree in kept.trees] == [ask + 1 + answer]
    _, dropped = encoded(ask + answer, "keep_prompt_end", "x" * 200, "answer")
    assert [record.reason for record in dropped.dropped] == ["response_too_long"]
    assert dropped.dropped[0].message.endswith(f"max_length is {ask + answer}")


def test_a_conversation_is_cut_in_its_last_turn() -> None:
    encoder, result = encoded(70, "cut_response", "q1", "a1", "q2", "a long answer " * 9)
    (tree,) = result.trees
    first, second = trained_runs(encoder, tree)
    assert first == "a1<|im_end|>" and second.startswith("a long") and "<|im_end|>" not in second
    assert tree.num_tokens == 70 and result.stop_tokens == (1,) and result.truncated == ("response_cut",)


def test_each_tree_of_a_split_row_is_fitted_by_itself() -> None:
    encoder, result = encoded(30, "drop", "q1", "a1", "q2", "a2", template="NO_TERMINATOR")
    assert [trained_runs(encoder, tree) for tree in result.trees] == [[" a1</s>"]]
    assert [record.reason for record in result.dropped] == ["too_long"]


def test_both_sides_of_a_pair_keep_the_whole_prompt() -> None:
    encoder = encoder_of("CHATML", {"max_length": 40, "truncation": "per_side_budget"})
    tree = encoder.comparison(pair(chat("q"), "x" * 50, "no"))
    assert tree.prompt_ids.tolist() == encoder.prompt(chat("q"))
    assert len(path_ids(tree, 0)) == 40
    assert trained_runs(encoder, tree, 1) == ["no<|im_end|>"]
