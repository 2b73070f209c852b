"""Constraints that a program can check: IFEval's 25, by its names and arguments, so that its files run as they are.

Zhou et al. 2023, arXiv:2311.07911, table 1. Our own code, in two variants:

- `strict` decides as the authors' checkers do (google-research/instruction_following_eval), also where those surprise:
  keywords are regular expressions found inside other words ("mom" in "moment"), "don't" and "well-known" are two words
  each, a postscript may stand in the middle of a line, `[]` is a placeholder, *word* is not the first word `word`, a
  line of "-" alone is a bullet, and a text too short to tell its language is in every language.
- `own` reads the constraints as people do: whole words, "don't" as one word, a postscript at the beginning of a line,
  and so on (`instructions_own`).

Deviations of `strict` from the authors':

1. Sentences are split at . ! ? and line ends, without a trained splitter, and the tokens in which capital words are
   counted are made by a few rules instead of nltk's tokenizer: both need data that is not in any package.
2. langdetect's draws are seeded, so that a response gets the same score each time; the authors' are not.
3. A constraint that the row states wrongly is an error, not a failure of the model.

    {"prompt": "...", "instructions": [{"id": "keywords:frequency", "keyword": "a", "frequency": 2, ...}]}
    {"prompt": "...", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}         # IFEval's own files
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from posttrain.errors import RewardError, unknown
from posttrain.rewards import bounded
from posttrain.rewards.building import plain
from posttrain.rewards.instructions_own import OWN, Checker, compare
from posttrain.rewards.language import published_language
from posttrain.rewards.scorer import Scorer
from posttrain.rewards.text import answer_of
from posttrain.types import Message, Task

if TYPE_CHECKING:
    from posttrain.config.rewards import InstructionsReward


Variant = Literal["strict", "own"]


def instructions(
    prompt: Sequence[Message], completion: str, task: Task, *, partial: bool = True, variant: Variant = "strict"
) -> float | None:
    """The share of the row's constraints that the response meets; abstains where the row has none.

    Args:
        partial: False gives 1 only if it meets them all (IFEval's prompt-level accuracy).
        variant: `strict`: as the authors' checkers; `own`: as people read the constraints. See above.

    Raises:
        RewardError: the row names a constraint that there is not, or arguments that it does not take.
        MissingExtraError: `strict` on the language of a response needs langdetect.
    """
    wanted = constraints(task)
    if not wanted:
        return None
    answer = answer_of(completion)
    allowance = bounded.Allowance()
    met = [check(answer, name, arguments, task, variant, allowance) for name, arguments in wanted]
    return sum(met) / len(met) if partial else float(all(met))


def constraints(task: Task) -> list[tuple[str, dict[str, Any]]]:
    """The row's constraints: (name, arguments)."""
    metadata = task.metadata
    if "instructions" in metadata:
        # Copied: `id` is taken out below, and the row is asked again for every response.
        rows = [dict(row) for row in metadata["instructions"]]
        return [(str(row.pop("id", "")), row) for row in rows]
    names = metadata.get("instruction_id_list") or []
    given = metadata.get("kwargs") or [{}] * len(names)
    if len(given) != len(names):
        raise RewardError(
            "the row has another number of arguments than of constraints",
            where=task.row,
            found=f"{len(names)} in `instruction_id_list`, {len(given)} in `kwargs`",
            remedy="give each constraint its own group of arguments, {} if it takes none",
        )
    # `datasets` fills the arguments that a constraint does not have with null
    return [
        (n, {k: v for k, v in (arguments or {}).items() if v is not None})
        for n, arguments in zip(names, given, strict=True)
    ]


def check(
    answer: str,
    name: str,
    arguments: Mapping[str, Any],
    task: Task,
    variant: Variant = "strict",
    allowance: bounded.Allowance | None = None,
) -> bool:
    """Whether an answer meets one constraint; an empty answer meets none, as in IFEval.

    Args:
        allowance: time for the row's own patterns, shared by its constraints; one that takes longer is not met.
    """
    checker = (OWN if variant == "own" else {}).get(name) or CONSTRAINTS.get(name)
    if checker is None:
        otherwise = "docs/rewards.md lists them"
        raise unknown("constraint", name, CONSTRAINTS, error=RewardError, where=task.row, otherwise=otherwise)
    # Without the answer itself: what the error lists are the arguments that a row can give.
    known = [parameter for parameter in inspect.signature(checker).parameters if parameter not in ("answer", "count")]
    # Those that search for patterns of the row's own are given the search, which is bounded.
    given = {"count": _counter(allowance)} if "count" in inspect.signature(checker).parameters else {}
    try:
        inspect.signature(checker).bind(answer, **arguments, **given)
        # As IFEval does: an empty answer has no comma, and would otherwise meet every prohibition.
        return bool(answer.strip()) and checker(answer, **arguments, **given)
    except bounded.TooSlowError as error:
        bounded.say_zero("instructions", task, f"{name}: {error}", answer)
        return False
    except (TypeError, ValueError, re.error) as error:
        raise RewardError(
            f"the arguments of {name!r} are wrong",
            where=task.row,
            found=f"{dict(arguments)} ({error})",
            expected=f"{', '.join(known)}" if known else "none",
            remedy="correct the row",
        ) from None


Count = Callable[..., int]
"""count(pattern, text, flags=0, most=1): how often the pattern occurs, `most` times at most."""
MANY = 1 << 62


def _counter(allowance: bounded.Allowance | None) -> Count:
    return functools.partial(bounded.count, allowance=allowance)


# ---------------------------------------------------------------- words and letters


def _keywords(answer: str, keywords: Sequence[str], *, count: Count) -> bool:
    """Each is a regular expression, found in any case and inside other words."""
    return all(count(word, answer, flags=re.IGNORECASE) for word in keywords)


def _keyword_frequency(answer: str, keyword: str, frequency: int, relation: str, *, count: Count) -> bool:
    return compare(count(keyword.strip(), answer, flags=re.IGNORECASE, most=MANY), relation, frequency)


def _forbidden_words(answer: str, forbidden_words: Sequence[str], *, count: Count) -> bool:
    # Not escaped, as published: files of IFEval's kind hold patterns here.
    return not any(count(rf"\b{word}\b", answer, flags=re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    if len(letter) != 1:
        raise ValueError(f"{letter!r} is no letter")
    return compare(answer.lower().count(letter.lower()), let_relation, let_frequency)


def _language(answer: str, language: str) -> bool:
    """As langdetect says; a text without a letter, of which it says nothing, is in every language."""
    detected = published_language(answer, language)
    return detected is None or detected == language


def _number_words(answer: str, num_words: int, relation: str) -> bool:
    """Runs of letters, digits and _: "don't" and "well-known" are two."""
    return compare(len(re.findall(r"\w+", answer)), relation, num_words)


def _number_sentences(answer: str, num_sentences: int, relation: str) -> bool:
    pieces = re.split(r"(?<=[.!?])[\"')\]\u201d]*\s+|\n+", answer.strip())
    return compare(sum(bool(re.search(r"\w", piece)) for piece in pieces), relation, num_sentences)


_PUNCTUATION = re.compile(r"[^\w\s.'\u2019/=+\-]|--+|\.\.\.+")
_CLITIC = re.compile(r"(?i)(?:n't|['\u2019](?:s|m|d|ll|re|ve))$")


def _capital_word_frequency(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    """Tokens as a treebank has them: COVID-19 and A/B are one, DON'T is DO and N'T."""
    count = 0
    for word in _PUNCTUATION.sub(" ", answer).split():
        clitic = _CLITIC.search(word)
        parts = [word] if clitic is None else [word[: clitic.start()], clitic.group()]
        count += sum(part.isupper() for part in parts)
    return compare(count, capital_relation, capital_frequency)


def _capital(answer: str) -> bool:
    return answer.isupper() and _language(answer, "en")


def _lowercase(answer: str) -> bool:
    return answer.islower() and _language(answer, "en")


def _no_comma(answer: str) -> bool:
    return "," not in answer


# ---------------------------------------------------------------- parts


def _number_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Paragraphs stand between lines of `***`."""
    # As published: an empty first or last part is a divider at the edge, an empty one inside is a fault.
    parts = re.split(r"\s?\*\*\*\s?", answer)
    inner = parts[1:-1] if len(parts) > 2 else []
    if any(not part.strip() for part in inner):
        return False
    return sum(bool(part.strip()) for part in parts) == num_paragraphs


def _nth_paragraph_first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between two line ends; of an empty one between four, the number counts, and it has no word."""
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise ValueError(f"of {num_paragraphs} paragraphs, paragraph {nth_paragraph} is none")
    parts = answer.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if count != num_paragraphs or nth_paragraph > count or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _placeholders(answer: str, num_placeholders: int) -> bool:
    """From each [ to the next ] of its line, `[]` too."""
    count = 0
    for line in answer.split("\n"):
        place = line.find("[")
        while place >= 0:
            end = line.find("]", place)
            if end < 0:
                break
            count += 1
            place = line.find("[", end)
    return count >= num_placeholders


_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}


def _postscript(answer: str, postscript_marker: str, *, count: Count) -> bool:
    """Anywhere, in any case; the dots of the usual two markers are required, and a blank may follow each."""
    marker = postscript_marker.strip()
    if marker in _POSTSCRIPTS:
        return re.search(_POSTSCRIPTS[marker], answer.lower()) is not None
    return count(marker.lower(), answer.lower()) > 0


_STAR_BULLET = re.compile(r"^[^\S\n]*\*[^*].*$", re.MULTILINE)
_DASH_BULLET = re.compile(r"^[^\S\n]*-.*$", re.MULTILINE)


def _bullets(answer: str, num_bullets: int) -> bool:
    """Lines that begin with * (not **) or -; a rule of dashes and a line of - alone count."""
    return len(_STAR_BULLET.findall(answer)) + len(_DASH_BULLET.findall(answer)) == num_bullets


def _highlights(answer: str, num_highlights: int) -> bool:
    """Text between two stars of a line, and between two pairs of them."""
    single = sum(bool(text.strip()) for text in re.findall(r"\*([^\n*]*)\*", answer))
    double = sum(bool(text.strip()) for text in re.findall(r"\*\*([^\n*]*)\*\*", answer))
    return single + double >= num_highlights


def _sections(answer: str, section_spliter: str, num_sections: int, *, count: Count) -> bool:
    """The word, which is a regular expression, before a number."""
    word = section_spliter.strip()
    if bounded.is_quick(word):  # so is the whole: what follows the word gives nothing back
        return sum(1 for _ in re.finditer(rf"{word}\s?\d+", answer)) >= num_sections
    return count(rf"{word}\s?\d+", answer, most=MANY) >= num_sections


def _title(answer: str) -> bool:
    """<<a title>>; on a line the first << belongs to the last >>."""
    return any(title.lstrip("<").rstrip(">").strip() for title in _titles(answer))


def _titles(answer: str) -> list[str]:
    titles = []
    for line in answer.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and start + 2 < end:
            titles.append(line[start : end + 2])
    return titles


# In the authors' order: each is taken off once, so "```json" before the bare fence.
_FENCES = ("```json", "```Json", "```JSON", "```")


def _json(answer: str) -> bool:
    text = answer.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _one_of_three(answer: str) -> bool:
    return any(text in answer for text in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def _two_responses(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    if len(parts) > 2 and any(not part for part in parts[1:-1]):
        return False
    kept = [part for part in parts if part]
    return len(kept) == 2 and kept[0] != kept[1]


def _repeats_prompt(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


CONSTRAINTS: dict[str, Checker] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:number_words": _number_words,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": _one_of_three,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _capital,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _no_comma,
}
"""The authors' names and decisions: the variant `strict`."""


def build(settings: InstructionsReward, folder: Path | None) -> Scorer:
    """It verifies the rows that have constraints; of others it says nothing, whatever their answer is."""
    made = plain(instructions)(settings, folder)
    columns = ("instructions", "instruction_id_list")

    def gold(task: Task) -> str | None:
        return task.answer if any(task.metadata.get(column) for column in columns) else None

    needs = "constraints, in `instructions` or `instruction_id_list`"
    return Scorer(made.name, made.function, made.weight, gold, needs=needs)
