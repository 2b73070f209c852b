"""Each check of the audit against planted faults, plain and subtle, and against clean rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.auditing import AUDIT_CHECKS, AuditFinding, audit
from posttrain.auditing.balance import recommended_weights
from posttrain.auditing.marks import SCRIPT_NAMES, ends_mid_sentence, script_of
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef
from tests.audit_rows import (
    changed,
    clean_demonstrations,
    clean_feedback,
    clean_lists,
    clean_pairs,
    pair,
    renumbered,
    text,
    texts,
    with_responses,
)

CLEAN = clean_pairs()


def found(rows: Sequence[Example], check: str) -> list[AuditFinding]:
    return list(audit(list(rows), checks=[check]))


def only(rows: Sequence[Example], check: str) -> AuditFinding:
    findings = found(rows, check)
    assert len(findings) == 1, findings
    return findings[0]


def numbers(finding: AuditFinding) -> set[int]:
    return {ref.row for ref in finding.rows}


# ---------------------------------------------------------------- silence


@pytest.mark.parametrize(
    "rows",
    [CLEAN, clean_pairs(400, seed=11), clean_lists(), clean_feedback(), clean_demonstrations()],
    ids=["pairs", "other pairs", "lists", "feedback", "demonstrations"],
)
def test_clean_rows_are_silent(rows: list[Example]) -> None:
    report = audit(rows, held_out=clean_pairs(50, seed=99), against=["embedded"])
    assert list(report) == []
    assert len(report.ran) >= 12


def test_few_rows_are_no_evidence() -> None:
    longer = [with_responses(one, (f"{texts(one)[1]} {texts(one)[0]}", texts(one)[1])) for one in CLEAN[:20]]
    assert found(longer, "length_bias") == []
    assert found(longer, "first_tokens") == []


# ---------------------------------------------------------------- trivial pairs, empty sides


def test_identical_sides_are_found_by_row() -> None:
    rows = changed(CLEAN, 0.05, lambda chosen, rejected: (chosen, chosen))
    finding = only(rows, "trivial_pairs")
    assert numbers(finding) == {one.row.row for one in rows if texts(one)[0] == texts(one)[1]}
    assert finding.severity == "warning"


@pytest.mark.parametrize(
    "same",
    [
        lambda t: t.upper(),
        lambda t: t.replace(". ", ".\n\n").rstrip(".") + "!",
        lambda t: f"  {t}\n",
        lambda t: t.replace(" the ", " **the** ") + "*",
    ],
    ids=["case", "punctuation", "blanks", "bold"],
)
def test_sides_that_differ_in_nothing_that_is_said(same: Callable[[str], str]) -> None:
    rows = list(CLEAN)
    rows[40] = with_responses(rows[40], (texts(rows[40])[0], same(texts(rows[40])[0])))
    finding = only(rows, "trivial_pairs")
    assert numbers(finding) == {41}
    assert finding.evidence["kind"] == "same_words"


def test_signs_of_sums_and_code_are_a_difference() -> None:
    rows = list(CLEAN)
    rows[3] = with_responses(rows[3], ("The result is 5 - 3.", "The result is 5 + 3."))
    rows[4] = with_responses(rows[4], ("if x < 0: return", "if x > 0: return"))
    assert found(rows, "trivial_pairs") == []


def test_a_changed_word_in_a_long_answer_is_near_identical() -> None:
    long = " ".join(texts(one)[0] for one in CLEAN[:8])
    rows = changed(CLEAN, 0.1, lambda chosen, rejected: (long, long.replace("bridge", "tunnel", 1) + " Indeed."))
    finding = only(rows, "trivial_pairs")
    assert finding.evidence["kind"] == "near_identical"
    assert finding.severity == "warning"


def test_mostly_identical_sides_are_an_error() -> None:
    rows = changed(CLEAN, 0.7, lambda chosen, rejected: (chosen, chosen))
    assert only(rows, "trivial_pairs").severity == "error"


def test_empty_sides() -> None:
    rows = list(CLEAN)
    rows[7] = with_responses(rows[7], ("", "A good answer."))
    rows[9] = with_responses(rows[9], (" \n\t", "Another."))
    rows[11] = with_responses(rows[11], ("...", "A third."))
    empty, signs = found(rows, "empty_sides")
    assert (numbers(empty), numbers(signs)) == ({8, 10}, {12})
    assert (empty.severity, signs.severity) == ("warning", "note")


# ---------------------------------------------------------------- length


def lengthened(share: float) -> list[Comparison]:
    random_ = random.Random(5)
    return changed(CLEAN, share, lambda chosen, rejected: (f"{rejected} {text(random_)}", rejected))


def test_longer_wins_is_a_warning_with_its_share() -> None:
    finding = only(lengthened(0.6), "length_bias")
    assert finding.severity == "warning"
    assert 0.74 < finding.share < 0.86  # 0.6 + 0.4 / 2
    low, high = finding.evidence["interval"]
    assert low < finding.share < high
    assert abs(finding.evidence["longer_wins_accuracy"] - finding.share) < 0.01
    assert finding.evidence["length_fit_accuracy"] > 0.65


def test_shorter_wins_is_found_too() -> None:
    rows = changed(CLEAN, 0.6, lambda chosen, rejected: (rejected, f"{rejected} {chosen}"))
    finding = only(rows, "length_bias")
    assert finding.share < 0.3 and "shorter" in finding.message


def test_middling_lengths_that_win_are_found_though_longer_wins_half_of_the_time() -> None:
    random_ = random.Random(3)

    def middling(chosen: str, rejected: str) -> tuple[str, str]:
        words = chosen.split() * 3
        extreme = 6 if random_.random() < 0.5 else 60
        return " ".join(words[:24]), " ".join((rejected.split() * 8)[:extreme])

    finding = only(changed(CLEAN, 0.9, middling), "length_bias")
    assert 0.4 < finding.share < 0.6
    assert finding.evidence["length_fit_accuracy"] > 0.8
    assert finding.severity == "warning"


# ---------------------------------------------------------------- shortcuts


def test_an_opening_phrase_is_named() -> None:
    rows = changed(CLEAN, 0.5, lambda chosen, rejected: (chosen, f"Sure, I can help with that! {rejected}"))
    finding = only(rows, "first_tokens")
    assert finding.severity == "warning"
    assert any("sure" in entry["phrase"] and entry["predicts"] == "rejected" for entry in finding.evidence["phrases"])
    assert 0.68 < finding.share < 0.82  # 0.5 + 0.5 / 2


def test_several_openings_that_share_no_first_token() -> None:
    openings = ["Great question.", "What a lovely idea:", "Happy to help here.", "I love this one."]
    random_ = random.Random(1)
    rows = changed(CLEAN, 0.4, lambda chosen, rejected: (f"{random_.choice(openings)} {chosen}", rejected))
    finding = only(rows, "first_tokens")
    assert {entry["predicts"] for entry in finding.evidence["phrases"][:4]} == {"chosen"}


def test_a_closing_offer_and_a_missing_full_stop() -> None:
    offers = changed(CLEAN, 0.4, lambda chosen, rejected: (chosen, f"{rejected} Let me know if you need more!"))
    assert only(offers, "last_tokens").severity == "warning"
    bare = changed(CLEAN, 0.5, lambda chosen, rejected: (chosen.rstrip("."), rejected))
    assert only(bare, "last_tokens").share > 0.65


def test_lists_and_bold_are_formatting() -> None:
    bullets = changed(CLEAN, 0.5, lambda chosen, rejected: ("- " + chosen.replace(". ", ".\n- "), rejected))
    finding = only(bullets, "formatting")
    assert finding.evidence["shares"]["bulleted list"]["chosen"] > 0.4
    more_bold = changed(
        CLEAN, 0.8, lambda chosen, rejected: (f"**a** **b** **c** {chosen}", f"**a** {rejected}")
    )  # both sides have it: only how often tells
    assert "bold" in only(more_bold, "formatting").message or only(more_bold, "formatting").share > 0.7


def test_words_anywhere_in_the_answer() -> None:
    def hedged(chosen: str, rejected: str) -> tuple[str, str]:
        words = rejected.split()
        words.insert(len(words) // 2, "delve into the rich tapestry")
        return chosen, " ".join(words)

    finding = only(changed(CLEAN, 0.9, hedged), "bag_of_words")
    assert finding.severity == "warning"
    assert {"delve", "tapestry"} & {word for entry in finding.evidence["phrases"] for word in entry["phrase"].split()}
    rare = changed(CLEAN, 0.55, hedged)
    assert only(rare, "bag_of_words").severity == "note"


# ---------------------------------------------------------------- artefacts


@pytest.mark.parametrize(
    "token", ["<|im_end|>", "</s>", "<|eot_id|>", "[INST]", "<end_of_turn>", "<\uff5cend\u2581of\u2581sentence\uff5c>"]
)
def test_one_special_token_is_a_note(token: str) -> None:
    rows = list(CLEAN)
    rows[5] = with_responses(rows[5], (texts(rows[5])[0] + token, texts(rows[5])[1]))
    finding = only(rows, "special_tokens")
    assert (numbers(finding), finding.severity) == ({6}, "note")


def test_special_tokens_on_every_chosen_side_are_an_error() -> None:
    rows = changed(CLEAN, 1.0, lambda chosen, rejected: (f"{chosen}<|im_end|>", rejected))
    finding = only(rows, "special_tokens")
    assert finding.severity == "error"
    assert finding.evidence["found"] == ["<|im_end|>"]
    one_in_twenty = changed(CLEAN, 0.05, lambda chosen, rejected: (f"{chosen}<|im_end|>", rejected))
    assert only(one_in_twenty, "special_tokens").severity == "warning"


def test_role_markers_at_the_beginning_and_a_turn_that_goes_on() -> None:
    every = changed(CLEAN, 1.0, lambda chosen, rejected: (f"Assistant: {chosen}", f"Assistant: {rejected}"))
    assert only(every, "role_markers").severity == "error"
    rows = list(CLEAN)
    rows[2] = with_responses(rows[2], (texts(rows[2])[0] + "\n\nHuman: And then?", texts(rows[2])[1]))
    rows[3] = with_responses(rows[3], ("The user: a person. An assistant helps.", texts(rows[3])[1]))  # no marker
    finding = only(rows, "role_markers")
    assert (numbers(finding), finding.severity) == ({3}, "note")


def test_a_blank_on_one_side_alone() -> None:
    finding = only(changed(CLEAN, 0.3, lambda chosen, rejected: (f" {chosen}", rejected)), "white_space")
    assert finding.severity == "warning" and finding.evidence["rejected_share"] == 0
    newline = only(changed(CLEAN, 0.04, lambda chosen, rejected: (chosen, f"{rejected}\n")), "white_space")
    assert newline.severity == "note"
    both = changed(CLEAN, 1.0, lambda chosen, rejected: (f" {chosen}", f" {rejected}"))
    assert found(both, "white_space") == []


def test_tags_and_fences_without_a_partner() -> None:
    think = only(changed(CLEAN, 0.05, lambda chosen, rejected: (f"<think>Hm. {chosen}", rejected)), "unbalanced_marks")
    assert think.severity == "warning"
    closed = changed(CLEAN, 0.5, lambda chosen, rejected: (f"<think>Hm.</think>{chosen}", f"```py\nx\n```\n{rejected}"))
    assert found(closed, "unbalanced_marks") == []
    fence = only(changed(CLEAN, 0.05, lambda c, r: (c, f"{r}\n```python\nprint(1)")), "unbalanced_marks")
    assert "code fence" in fence.message


def test_answers_that_stop_in_the_middle() -> None:
    long = [with_responses(one, (" ".join([texts(one)[0]] * 4), " ".join([texts(one)[1]] * 4))) for one in CLEAN]
    assert found(long, "truncation") == []
    cut = changed(long, 0.2, lambda chosen, rejected: (chosen, rejected[: -len(rejected) // 5].rstrip(" .,")))
    finding = only(cut, "truncation")
    assert finding.severity == "warning" and finding.evidence["chosen_share"] == 0
    said = changed(long, 0.05, lambda chosen, rejected: (f"{chosen} [truncated]", rejected))
    assert only(said, "truncation").share > 0.03


def test_lists_and_verse_are_not_cut() -> None:
    assert ends_mid_sentence("It goes on and on, " * 20 + "until the sentence has no end but the one that the sampler")
    assert not ends_mid_sentence(
        "Here is a list of what you need for the day, in full:\n" + "- a loaf of bread from the baker\n" * 12
    )
    assert not ends_mid_sentence("Paris")
    assert not ends_mid_sentence("It goes on and on. " * 20 + "\n\nKind regards,\nPia")


def test_refusals_by_side() -> None:
    refuse = "I'm sorry, but I can't help with that request."
    finding = only(changed(CLEAN, 0.2, lambda chosen, rejected: (chosen, refuse)), "refusals")
    assert finding.severity == "warning" and finding.evidence["chosen_share"] == 0
    note = only(
        changed(CLEAN, 0.04, lambda chosen, rejected: (f"As an AI language model, I cannot do so. {chosen}", rejected)),
        "refusals",
    )
    assert note.severity == "note"
    kind = changed(CLEAN, 0.3, lambda chosen, rejected: ("I am sorry to hear that. Rest well.", "I can't believe it!"))
    assert found(kind, "refusals") == []
    always = [Demonstration((Message("user", "Hi?"), Message("assistant", refuse)), RowRef("s", n)) for n in range(60)]
    assert only(always, "refusals").share == 1.0


# ---------------------------------------------------------------- encoding and languages


def test_mojibake_and_lost_characters() -> None:
    broken = changed(
        CLEAN, 0.05, lambda chosen, rejected: (chosen + " It\u00e2\u20ac\u2122s a caf\u00c3\u00a9.", rejected)
    )
    finding = only(broken, "encoding")
    assert finding.severity == "warning" and "mojibake" in finding.message
    rows = list(CLEAN)
    rows[8] = with_responses(rows[8], ("It cost 5 \ufffd.", "It cost 5 \u20ac."))
    rows[9] = with_responses(rows[9], ("A zero\u200bwidth space.", "None."))
    lost, stray = found(rows, "encoding")
    assert (numbers(lost), numbers(stray)) == ({9}, {10})


def test_good_accents_are_no_mojibake() -> None:
    good = [
        "Stra\u00dfe, \u00c4rger, caf\u00e9 na\u00efve \u2014 \u201cso\u201d",
        "\u00c5ngstr\u00f6m \u00c2ge \u00c3o",
        "\U0001f469\u200d\U0001f4bb wrote it",
        "\u041f\u0440\u0438\u0432\u0435\u0442",
    ]
    rows = changed(CLEAN, 1.0, lambda chosen, rejected: (f"{chosen} {good[len(chosen) % 4]}", rejected))
    assert found(rows, "encoding") == []


def test_one_side_in_another_language() -> None:
    german = "Das ist nicht die Frage, und ich bin auch nicht der Mann, der sie mit einem Wort l\u00f6sen wird."
    finding = only(changed(CLEAN, 0.1, lambda chosen, rejected: (chosen, german)), "languages")
    assert finding.severity == "warning" and finding.evidence["languages"]["German"] > 20
    chinese = changed(
        CLEAN, 0.05, lambda chosen, rejected: ("\u8fd9\u662f\u4e00\u4e2a\u5f88\u597d\u7684\u95ee\u9898\u3002", rejected)
    )
    assert only(chinese, "languages").evidence["chosen_share"] > 0.02


def test_scripts() -> None:
    said = [
        "Hello",
        "\u4f60\u597d hello",
        "\u3053\u308c\u306f\u65e5\u672c\u8a9e\u3067\u3059",
        "\u041f\u0440\u0438\u0432\u0435\u0442",
        "12 + 3",
    ]
    assert [SCRIPT_NAMES[script_of(one)] for one in said] == ["Latin", "Chinese", "Japanese", "Cyrillic", "none"]


# ---------------------------------------------------------------- duplicates


def test_exact_copies_are_named_and_the_first_is_not() -> None:
    rows = renumbered([*CLEAN[:100], *CLEAN[10:20]])
    finding = only(rows, "duplicates")
    assert numbers(finding) == set(range(101, 111)) and finding.severity == "warning"
    swapped = [with_responses(one, texts(one)[::-1]) for one in CLEAN[10:20]]
    assert found(renumbered([*CLEAN[:100], *swapped]), "duplicates") == []  # the opposite verdict is no copy


def test_copies_with_a_word_changed() -> None:
    almost = [
        with_responses(one, (texts(one)[0].replace(" the ", " that ", 1), texts(one)[1] + " Indeed."))
        for one in CLEAN[:30]
        if len(texts(one)[0].split()) > 40
    ]
    finding = only(renumbered([*CLEAN[:100], *almost]), "near_duplicates")
    assert numbers(finding) == set(range(101, 101 + len(almost)))
    assert finding.evidence["examples"][0]["repeats"].startswith("pairs.jsonl, row ")
    assert found([*CLEAN[:100]], "near_duplicates") == []


def test_rows_that_are_held_out_too() -> None:
    held = clean_pairs(40, seed=50)
    same_prompt = [with_responses(one, texts(other)) for one, other in zip(held[:5], CLEAN[300:305], strict=True)]
    rows = renumbered([*CLEAN[:100], *same_prompt])
    report = audit(rows, held_out=held, checks=["split_overlap"])
    (finding,) = report
    assert numbers(finding) == {101, 102, 103, 104, 105}
    assert finding.evidence["held_out_share"] == 5 / 40
    near = [replace(held[0], prompt=(Message("user", (held[0].prompt[0].content or "") + " Please."),))]
    (close,) = audit(renumbered([*CLEAN[:100], *near]), held_out=held, checks=["split_overlap"])
    assert numbers(close) == {101} and "near" in close.message


# ---------------------------------------------------------------- verdicts


def opposite(one: Comparison) -> Comparison:
    return with_responses(one, texts(one)[::-1])


def test_a_pair_with_both_winners() -> None:
    rows = renumbered([*CLEAN[:100], opposite(CLEAN[3]), replace(CLEAN[4], winner=1)])
    finding = only(rows, "contradictions")
    assert numbers(finding) == {4, 101, 5, 102}
    assert finding.severity == "warning" and finding.evidence["cancelled_share"] == pytest.approx(4 / 102)


def test_rows_that_cancel_out_are_an_error() -> None:
    rows = renumbered([*CLEAN[:60], *map(opposite, CLEAN[:40])])
    assert only(rows, "contradictions").severity == "error"  # 80 of 100 cancel
    votes = renumbered([*CLEAN[:60], *CLEAN[:60], *map(opposite, CLEAN[:20])])  # two against one: 40 of 140
    assert only(votes, "contradictions").severity == "warning"


def test_circles() -> None:
    a, b, c = (text(random.Random(n)) for n in range(3))
    circle = [pair("Which?", *two, 1) for two in ((a, b), (b, c), (c, a))]
    finding = only(renumbered([*CLEAN[:50], *circle]), "cycles")
    assert numbers(finding) == {51, 52, 53}
    straight = [pair("Which?", *two, 1) for two in ((a, b), (b, c), (a, c))]
    assert found(renumbered([*CLEAN[:50], *straight]), "cycles") == []


def test_a_circle_between_a_list_and_a_pair() -> None:
    a, b, c = (text(random.Random(n)) for n in range(3))
    ranked = Comparison(
        (Message("user", "Which?"),), tuple((Message("assistant", t),) for t in (a, b, c)), 0, RowRef("p", 9), (0, 1, 2)
    )
    assert numbers(only([*CLEAN[:50], ranked, pair("Which?", c, a, 60)], "cycles")) == {9, 60}


def voted(share_of_majority: float, count: int = 80) -> list[Comparison]:
    random_ = random.Random(8)
    rows = []
    for one in CLEAN[:count]:
        votes = sum(random_.random() < share_of_majority for _ in range(5))
        rows.append(replace(one, votes=(max(votes, 5 - votes), min(votes, 5 - votes))))
    return rows


def test_votes_by_chance_and_votes_that_agree() -> None:
    chance = only(voted(0.5), "disagreement")
    assert chance.severity == "warning" and chance.evidence["alpha"] < 0.2
    assert only(voted(0.85), "disagreement").severity == "note"
    assert found(voted(0.99), "disagreement") == []


def test_rows_as_votes() -> None:
    rows = renumbered([*CLEAN[:40], *map(opposite, CLEAN[:20]), *CLEAN[20:40]])
    finding = only(rows, "disagreement")
    assert finding.evidence["units"] == 40 and finding.evidence["contested_share"] == 0.5


# ---------------------------------------------------------------- feedback


def labelled(good: int, bad: int) -> list[Feedback]:
    rows = clean_feedback(good + bad)
    return [replace(one, good=number < good) for number, one in enumerate(rows)]


def test_weights_for_unbalanced_labels() -> None:
    finding = only(labelled(40, 360), "label_balance")
    assert finding.severity == "warning"
    assert finding.evidence["desirable_weight"] == pytest.approx(9.0) and finding.evidence["undesirable_weight"] == 1.0
    slight = only(labelled(170, 230), "label_balance")
    assert slight.severity == "note"
    assert found(labelled(220, 180), "label_balance") == []
    assert only(labelled(100, 0), "label_balance").severity == "warning"


@pytest.mark.parametrize(("good", "bad"), [(1, 9), (90, 10), (100, 100), (120, 100), (3, 1)])
def test_weights_are_inside_the_range(good: int, bad: int) -> None:
    desirable, undesirable = recommended_weights(good, bad)
    assert 1 - 1e-9 <= desirable * good / (undesirable * bad) <= 4 / 3 + 1e-9
    assert min(desirable, undesirable) == 1.0


def test_shortcuts_in_feedback() -> None:
    rows = [
        replace(one, response=(Message("assistant", f"Certainly! {one.response[0].content}"),)) if one.good else one
        for one in clean_feedback()
    ]
    assert only(rows, "first_tokens").share > 0.9


def test_every_check_is_named_in_a_test() -> None:
    tests = Path(__file__).parent.glob("test_audit_*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in tests)
    assert [name for name in AUDIT_CHECKS if f'"{name}"' not in source] == []
