"""The formats as a literal table: which keys a row has, what it becomes, and one right example of each.

The order is the order of detection: where several fit, the first counts. A new format is a function from a row to an
example and one entry here.
"""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.data.dialogues import holds_stored_turns
from posttrain.data.formats import comparisons, demonstrations, judged, llama_factory, stepwise
from posttrain.data.formats.columns import Row, present
from posttrain.data.formats.format import KIND_NAMES, ExampleKind, Format, either
from posttrain.data.formats.layouts import PUBLISHED
from posttrain.data.texts import stored
from posttrain.types import Comparison, Demonstration, Feedback, StepwiseFeedback, Task

__all__ = ["COLUMNS", "FORMATS", "KIND_NAMES", "ExampleKind", "Format", "either"]


def _says_role(row: Row) -> bool:
    messages = row.get("messages")
    # Exporters to CSV write a list of turns as text; told apart by its first turn all the same.
    turns = stored(messages if messages is not None else row.get(present(row, demonstrations.CONVERSATIONS)))
    first = turns[0] if isinstance(turns, list | tuple) and turns else None
    keys = first if isinstance(first, Mapping) else ()
    # The dialect decides, not the column's name: both names hold both dialects in the wild.
    return "role" in keys or ("from" not in keys and messages is not None)


def _has_dialogue_texts(row: Row) -> bool:
    # With a prompt of its own, `chosen` is an answer, which may quote a dialogue.
    if row.get("prompt") is not None or row.get("conversations") is not None:
        return False
    chosen = row.get("chosen")
    return isinstance(chosen, str) and not holds_stored_turns(chosen)


def _has_prompt_or_turns(row: Row) -> bool:
    return not _has_dialogue_texts(row)


# Also the spellings of other tools: such a row would be read as a prompt, and its answers lost as metadata.
_ANSWERS = frozenset(
    {
        *("chosen", "rejected", "response_1", "response_2", "overall_response", "response", "responses"),
        *("completion", "completions", "output", "target", "reply", "messages", "conversations", "instruction"),
        *("response_0", "response_j", "response_k", "chosen_messages", "rejected_messages"),
    }
)


def _has_no_answers(row: Row) -> bool:
    """Not a row of another format that has lost a column, which would otherwise pass for a bare prompt."""
    return _ANSWERS.isdisjoint(row)


# What a row of bare text has beside it is about the text: with one of these it is a row of another kind that has lost
# a column, and would train as text.
_NOT_BESIDE_TEXT = (
    *_ANSWERS,
    *(
        "prompt",
        "question",
        "answer",
        "input",
        "label",
        "kto_tag",
        "labels",
        "query",
        "conversation",
        "turns",
        "history",
    ),
    *("role", "from", "parent_id", "message_id", "question_id", "history", "image", "audio", "video"),
)


def _is_bare_text(row: Row) -> bool:
    return isinstance(row.get("text"), str) and all(row.get(name) is None for name in _NOT_BESIDE_TEXT)


_USER = {"role": "user", "content": "2 + 2?"}
_RIGHT = {"role": "assistant", "content": "4"}
_WRONG = {"role": "assistant", "content": "5"}

_ROWS = (
    # Known by keys or forms of values that no other row has.
    *PUBLISHED,
    # First the formats with the most special keys: those of `preference` or `prompts` are among the keys of nearly all.
    Format(
        "align_anything",
        Comparison,
        ("question|prompt", "response_1", "response_2", "overall_response"),
        ("system", "tools", "margin"),
        comparisons.align_anything,
        {"question": "2 + 2?", "response_1": "4", "response_2": "5", "overall_response": 1},
        "two responses, and the number of the better one",
    ),
    Format(
        "ultrafeedback_binarized",
        Comparison,
        ("chosen", "rejected", "score_chosen", "score_rejected"),
        ("prompt", "system", "tools", "margin"),
        comparisons.preference,
        {
            "prompt": "2 + 2?",
            "chosen": [_USER, _RIGHT],
            "rejected": [_USER, _WRONG],
            "score_chosen": 9.0,
            "score_rejected": 2.0,
        },
        "two whole conversations and their scores",
    ),
    Format(
        "orca_dpo_pairs",
        Comparison,
        ("question", "chosen", "rejected"),
        ("system", "tools", "margin", "votes"),
        comparisons.preference,
        {"system": "Be brief.", "question": "2 + 2?", "chosen": "4", "rejected": "The answer is 5."},
        "a system prompt, a question and two responses",
    ),
    Format(
        "ranked",
        Comparison,
        ("prompt|question", "responses", "scores|ranking|votes"),
        ("system", "tools"),
        comparisons.ranked,
        {"prompt": "2 + 2?", "responses": ["5", "4", "I do not know."], "ranking": [1, 2, 0]},
        "a prompt, K responses, and their scores, votes or order (indices from 0, best first)",
    ),
    Format(
        "alpaca_preference",
        Comparison,
        ("instruction", "chosen", "rejected"),
        ("input", "history", "system", "tools", "margin", "votes"),
        llama_factory.alpaca_preference,
        {"instruction": "Add the numbers.", "input": "2, 2", "chosen": "4", "rejected": "5"},
        "an instruction, perhaps with an input, and two responses, as LLaMA-Factory has them",
        llama_factory.has_instruction_only,
    ),
    Format(
        "hh_rlhf",
        Comparison,
        ("chosen", "rejected"),
        ("system",),
        comparisons.hh_rlhf,
        {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5"},
        "two dialogues as texts, with a common beginning",
        _has_dialogue_texts,
    ),
    Format(
        "preference",
        Comparison,
        ("chosen", "rejected"),
        ("prompt", "conversations", "system", "tools", "margin", "votes", "score_chosen", "score_rejected"),
        comparisons.preference,
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        "a prompt, a better and a worse response, as strings or turns; "
        "the prompt may be left out where both sides are whole conversations",
        _has_prompt_or_turns,
    ),
    Format(
        "stepwise",
        StepwiseFeedback,
        ("prompt|question", "completions", "labels"),
        ("system", "tools"),
        stepwise.stepwise,
        {"prompt": "2 + 3 * 4?", "completions": ["3 * 4 = 12", "2 + 12 = 15"], "labels": [True, False]},
        "a response in steps, and whether each of them is right (true, false, a probability, or null)",
    ),
    Format(
        "prm800k",
        StepwiseFeedback,
        ("question", "label"),
        (*stepwise.PRM800K_NOTES, "system"),
        stepwise.prm800k,
        {
            "question": {"problem": "2 + 3 * 4?"},
            "label": {
                "steps": [
                    {"completions": [{"text": "3 * 4 = 12", "rating": 1}], "chosen_completion": 0},
                    {"completions": [{"text": "2 + 12 = 15", "rating": -1}], "chosen_completion": None},
                ]
            },
        },
        "PRM800K as published: the problem, and the steps with their ratings (1, 0, -1)",
        stepwise.is_prm800k,
    ),
    Format(
        "math_shepherd",
        StepwiseFeedback,
        ("input", "label"),
        ("task", "system"),
        stepwise.math_shepherd,
        {
            "input": "2 + 3 * 4? Step 1: 3 * 4 = 12 ки\nStep 2: 2 + 12 = 15 ки",
            "label": "2 + 3 * 4? Step 1: 3 * 4 = 12 +\nStep 2: 2 + 12 = 15 -",
        },
        "Math-Shepherd as published: a text with a mark after each step, and the same with + or - in its place",
        stepwise.is_math_shepherd,
    ),
    Format(
        "feedback",
        Feedback,
        ("prompt|question", "completion", "label"),
        ("system", "tools"),
        judged.feedback,
        {"prompt": "2 + 2?", "completion": "4", "label": True},
        "one response that somebody called good (true) or bad (false)",
    ),
    Format(
        # Before `alpaca`, which would imitate the answers that were called bad.
        "alpaca_feedback",
        Feedback,
        ("instruction", "output", "kto_tag|label"),
        ("input", "history", "system", "tools"),
        llama_factory.alpaca_feedback,
        {"instruction": "Add the numbers.", "input": "2, 2", "output": "4", "kto_tag": True},
        "an Alpaca row that somebody called good (true) or bad (false)",
        llama_factory.judges_conversation,
    ),
    Format(
        "conversation_feedback",
        Feedback,
        ("messages|conversations", "kto_tag|label"),
        ("system", "tools"),
        llama_factory.conversation_feedback,
        {"messages": [_USER, _RIGHT], "kto_tag": True},
        "a conversation whose last answer somebody called good (true) or bad (false)",
        llama_factory.judges_conversation,
    ),
    Format(
        "prompt_completion",
        Demonstration,
        ("prompt|question", "completion"),
        ("system", "tools"),
        demonstrations.prompt_completion,
        {"prompt": "2 + 2?", "completion": "4"},
        "a prompt and its completion, as strings or turns; only the completion trains",
    ),
    Format(
        "alpaca",
        Demonstration,
        ("instruction", "output"),
        ("input", "history", "system", "tools"),
        demonstrations.alpaca,
        {"instruction": "Add the numbers.", "input": "2, 2", "output": "4"},
        "an instruction, perhaps with an input, and the output",
    ),
    Format(
        "chat",
        Demonstration,
        ("messages|conversations|conversation",),
        ("system", "tools"),
        demonstrations.chat,
        {"messages": [_USER, _RIGHT]},
        "a list of turns with `role` and `content`",
        _says_role,
    ),
    Format(
        "sharegpt",
        Demonstration,
        ("conversations|messages|conversation",),
        ("system", "tools"),
        demonstrations.sharegpt,
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        "a list of turns with `from` and `value`",
    ),
    Format(
        "task",
        Task,
        ("prompt|question", "answer"),
        ("system", "tools"),
        judged.task,
        {"question": "What is 17 + 25?", "answer": "42", "level": 2},
        "a prompt and the answer that a verifier checks; other columns become metadata",
    ),
    Format(
        # Nearly every row has a prompt.
        "prompts",
        Task,
        ("prompt|question",),
        ("system", "tools"),
        judged.task,
        {"prompt": "What is 17 + 25?"},
        "prompts without an answer; other columns become metadata",
        _has_no_answers,
    ),
    Format(
        # Behind `prompts`: text beside a prompt belongs to it.
        "text",
        Demonstration,
        ("text",),
        (),
        demonstrations.text,
        {"text": "The fjord is deep and cold."},
        "bare text, all of which trains, as in pretraining; for `template: raw`",
        _is_bare_text,
    ),
)

# In the order of detection (dicts keep it).
FORMATS: dict[str, Format] = {entry.name: entry for entry in _ROWS}

COLUMNS = frozenset(
    name for entry in _ROWS if not entry.published for key in (*entry.keys, *entry.optional) for name in key.split("|")
)
"""Every column that `columns` may map to: those of the formats that are no published layout."""
