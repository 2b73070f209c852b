"""The nearest name, and the place of a fault in a user's own code."""

from __future__ import annotations

from posttrain.errors import nearest, place_of


def test_a_name_in_other_letters_is_near() -> None:
    assert nearest("SFT", ["sft", "dpo"]) == "sft"
    assert nearest("learning_Rate", ["learning_rate", "rows_per_step"]) == "learning_rate"
    assert nearest("data.jsonl", ["Data.jsonl", "other.csv"]) == "Data.jsonl"
    assert nearest("nope", ["sft", "dpo"]) is None


def test_the_place_of_a_fault_is_a_line_of_the_functions_own_file() -> None:
    def fails() -> None:
        "a".encode("no such encoding")

    try:
        fails()
    except LookupError as error:
        assert "test_errors.py" in place_of(error, caller="elsewhere.py") and "in fails" in place_of(error, caller="x")
        assert place_of(error, caller=__file__) == "", "none but the caller's lines ran"
