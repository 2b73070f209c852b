"""Verifiers that read the response as text: equal, alike, a pattern, JSON of a schema, tags in their places.

What a response thinks aloud is not its answer: all but the tag rewards look at what follows `</think>`.
"""

from __future__ import annotations

import difflib
import heapq
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from posttrain.errors import MissingExtraError, RewardError
from posttrain.rewards import bounded
from posttrain.types import Message, Task

Prompt = Sequence[Message]


def after_thoughts(completion: str) -> str:
    """What follows the response's thoughts; nothing, if it never stops thinking."""
    # The last closing tag: a thought may quote `</think>`, and what follows a quoted one is no answer.
    _, closed, after = completion.rpartition("</think>")
    return after if closed else "" if "<think>" in completion else completion


def answer_of(completion: str, tag: str | None = None) -> str:
    """What the response answers: the text after its thoughts, or the content of its last `<tag>` there.

    A response that never stops thinking, or lacks the tag, answers nothing.
    """
    answer = after_thoughts(completion)
    if tag is None:
        return answer.strip()
    return _last_tagged(answer, f"<{tag}>", f"</{tag}>").strip()


def _last_tagged(text: str, opening: str, closing: str) -> str:
    """What stands in the last pair of tags, in one pass: a pattern searches to the end from each opening."""
    content, start = "", text.find(opening)
    while start >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        content, start = text[start + len(opening) : end], text.find(opening, end + len(closing))
    return content


def gold(task: Task, tag: str | None = None) -> str | None:
    """The response that the row's own answer makes."""
    if task.answer is None or tag is None:
        return task.answer
    return f"<{tag}>{task.answer}</{tag}>"


def exact(
    prompt: Prompt, completion: str, task: Task, *, tag: str | None = None, ignore_case: bool = False
) -> float | None:
    """1 where the answer is the row's answer, runs of blanks aside; abstains where the row has none."""
    if task.answer is None:
        return None
    left, right = (" ".join(text.split()) for text in (answer_of(completion, tag), task.answer))
    return float(left.casefold() == right.casefold() if ignore_case else left == right)


def fuzzy(
    prompt: Prompt,
    completion: str,
    task: Task,
    *,
    tag: str | None = None,
    measure: Literal["words", "characters"] = "words",
    at_least: float = 0.0,
) -> float | None:
    """How alike the answer and the row's answer are, 0 to 1; 0 below `at_least`; abstains where the row has none.

    Args:
        measure: `words`: F1 over words without case, punctuation and articles (Rajpurkar et al. 2016, section 6.1);
            `characters`: Ratcliff and Obershelp's ratio of matching characters.
    """
    if task.answer is None:
        return None
    answer = answer_of(completion, tag)
    if measure == "words":
        score = _f1(_words(answer), _words(task.answer))
    else:
        score = _alike(answer.casefold(), task.answer.casefold())
    return score if score >= at_least else 0.0


MOST_WORK = 5 << 19
"""Pairs of equal letters, or as much work of another kind, that one score may cost: a fifth of a second. The search is
cubic in the worst case, and a policy may repeat a letter eight thousand times. Of a stretch that would be too much only
its equal ends count as alike."""


def _alike(one: str, other: str) -> float:
    """Twice the matching characters by all characters; the same for (a, b) and (b, a), which difflib's own is not."""
    # difflib starts from one side and its ratio depends on which, so the sides are put in a fixed order.
    left, right = sorted((one, other), key=lambda text: (len(text), text))
    total = len(left) + len(right)
    return 2 * _matching(left, right) / total if total else 1.0


def _matching(left: str, right: str) -> int:
    """The characters in `SequenceMatcher.get_matching_blocks`, long stretches first, as far as the work allows."""
    matched, work = 0, 0
    stretches = [(-len(left), 0, len(left), 0, len(right))]
    while stretches:
        _, start, end, other_start, other_end = heapq.heappop(stretches)
        one, other = left[start:end], right[other_start:other_end]
        cost, search = _cheapest(one, other)
        if work + cost > MOST_WORK:
            matched += _equal_ends(one, other)
            continue
        work += cost
        at, other_at, size = search(one, other)
        if not size:
            continue
        matched += size
        at, other_at = at + start, other_at + other_start
        for stretch in ((start, at, other_start, other_at), (at + size, end, other_at + size, other_end)):
            if stretch[0] < stretch[1] and stretch[2] < stretch[3]:
                heapq.heappush(stretches, (stretch[0] - stretch[1], *stretch))
    return matched


Search = Callable[[str, str], tuple[int, int, int]]
"""(a, b) -> where their longest common piece begins in a, where in b, and its length: of several the first in a, and of
these the first in b, as difflib chooses."""


def _cheapest(one: str, other: str) -> tuple[int, Search]:
    """The work of the search that costs less, in pairs of equal letters (some 80 ns each)."""
    letters, others = Counter(one), Counter(other)
    # Measured: a letter that is counted and looked up costs as much as 4 pairs, the first of its kind 12 more, a state
    # of the automaton 25, and a letter that is led through it 5.
    by_pairs = sum(count * others[letter] for letter, count in letters.items())
    by_pairs += 4 * (len(one) + len(other)) + 12 * len(others)
    by_states = 25 * len(one) + 5 * len(other) + 4 * len(others)
    return (by_pairs, _longest_by_pairs) if by_pairs <= by_states else (by_states, _longest_by_states)


def _longest_by_pairs(one: str, other: str) -> tuple[int, int, int]:
    match = difflib.SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
    return match.a, match.b, match.size


def _longest_by_states(one: str, other: str) -> tuple[int, int, int]:
    """In linear time: the other text is led through the suffix automaton of the one (Blumer et al. 1985)."""
    ends, links, lengths, steps = _suffix_automaton(one)
    best = (0, 0, 0)
    state = size = 0
    for place, letter in enumerate(other):
        while state and letter not in steps[state]:
            state = links[state]
            size = lengths[state]
        if letter not in steps[state]:
            continue
        state, size = steps[state][letter], size + 1
        at = ends[state] - size + 1
        # Of equal ones the first in `one`; that it is the first in `other` too is the order in which they are met.
        if size > best[2] or (size == best[2] and at < best[0]):
            best = (at, place - size + 1, size)
    return best


def _suffix_automaton(text: str) -> tuple[list[int], list[int], list[int], list[dict[str, int]]]:
    """Of each state: where its pieces end first, its suffix link, the length of its longest piece, its transitions."""
    ends, links, lengths, steps = [-1], [-1], [0], [dict[str, int]()]
    last = 0
    for place, letter in enumerate(text):
        made = len(steps)
        ends.append(place)
        lengths.append(lengths[last] + 1)
        links.append(0)
        steps.append({})
        state = last
        while state >= 0 and letter not in steps[state]:
            steps[state][letter] = made
            state = links[state]
        if state >= 0:
            target = steps[state][letter]
            if lengths[target] == lengths[state] + 1:
                links[made] = target
            else:
                # `target` stands for longer pieces too, which end at other places: it is split.
                split = len(steps)
                ends.append(ends[target])
                lengths.append(lengths[state] + 1)
                links.append(links[target])
                steps.append(dict(steps[target]))
                while state >= 0 and steps[state].get(letter) == target:
                    steps[state][letter] = split
                    state = links[state]
                links[target] = links[made] = split
        last = made
    return ends, links, lengths, steps


def _equal_ends(one: str, other: str) -> int:
    before = _equal_start(one, other)
    return before + _equal_start(one[before:][::-1], other[before:][::-1])


def _equal_start(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _words(text: str) -> list[str]:
    # SQuAD's normalisation; F1 against published figures needs exactly these steps.
    return [word for word in text.casefold().translate(_PUNCTUATION).split() if word not in ("a", "an", "the")]


def _f1(left: Sequence[str], right: Sequence[str]) -> float:
    if not left or not right:
        return float(left == right)
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right))


def regex(
    prompt: Prompt,
    completion: str,
    task: Task,
    *,
    pattern: str | None = None,
    ignore_case: bool = False,
    whole: bool = False,
    absent: bool = False,
) -> float | None:
    """1 where the pattern occurs in the response: the recipe's, or the row's own `pattern`; abstains without either.

    0, and a warning, where the search takes longer than `bounded.SECONDS` of computing.

    Args:
        whole: the pattern has to match the response from its start to its end.
        absent: 1 where it does not occur.

    Raises:
        RewardError: the row's `pattern` is no regular expression.
    """
    wanted = task.metadata.get("pattern") if pattern is None else pattern
    if wanted is None:
        return None
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    try:
        occurs = bounded.count(str(wanted), completion, flags=flags, whole=whole) > 0
    except bounded.TooSlowError as error:
        # Neither "occurs" nor "absent" is earned by a response on which nobody can say which it is.
        bounded.say_zero("regex", task, f"the pattern {str(wanted)[:80]!r}: {error}", completion)
        return 0.0
    except re.error as error:
        raise RewardError(
            "the row's `pattern` is no regular expression",
            where=task.row,
            found=f"{wanted} ({error})",
            remedy="correct the row: put a backslash before ( ) [ ] . * + ? that are meant as they stand",
        ) from None
    return float(occurs != absent)


# ---------------------------------------------------------------- JSON

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL)


def json_schema(
    prompt: Prompt, completion: str, task: Task, *, schema: Mapping[str, Any] | None = None
) -> float | None:
    """1 where the answer is JSON that fits the schema: the recipe's, the row's `schema`, or none, which takes any JSON.

    A fenced block stands for the answer if there is exactly one.
    """
    answer = answer_of(completion)
    fenced = _FENCED.findall(answer)
    text = fenced[0] if len(fenced) == 1 else answer
    try:
        # NaN and Infinity are Python's extension; another parser would refuse the answer that earned the reward.
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return 0.0
    wanted = task.metadata.get("schema") if schema is None else schema
    if wanted is None:
        return 1.0
    try:
        wanted = wanted if isinstance(wanted, str) else json.dumps(wanted)
        return float(_fits(text, _sound_schema(wanted), task))
    except bounded.TooSlowError as error:
        bounded.say_zero("json_schema", task, f"the schema: {error}", completion)
        return 0.0
    except (ValueError, TypeError) as error:
        raise RewardError(
            "the schema is no JSON schema", where=task.row, found=error, remedy="correct the schema"
        ) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _fits(text: str, schema: str, task: Task) -> bool:
    """Whether JSON fits a schema, asked of a process: a schema may hold patterns, and lead to itself without end."""
    reply = bounded.Allowance().ask("fits", "jsonschema", text=text, schema=schema)
    if isinstance(reply, bool):
        return reply
    raise RewardError(
        "the schema leads to what is not there",
        where=task.row,
        found=reply["refused"],
        remedy="correct its $ref; a schema from the network has to stand in the schema itself, under `$defs`",
    )


@lru_cache(maxsize=256)
def _sound_schema(text: str) -> str:
    """The text of a JSON schema, if it is one; raises ValueError with what is wrong."""
    try:
        import jsonschema
    except ImportError:
        raise missing("jsonschema", "json_schema") from None
    schema = json.loads(text)
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(error.message) from None
    return text


def missing(package: str, kind: str) -> MissingExtraError:
    return MissingExtraError(
        f"the reward `{kind}` needs the package {package}", remedy="install it: `pip install 'posttrain[rl]'`"
    )


# ---------------------------------------------------------------- tags


def think_tags(
    prompt: Prompt, completion: str, task: Task, *, opened: bool = False, partial: bool = False
) -> float | None:
    """1 where thoughts stand in one pair of <think> tags, and an answer follows.

    Args:
        opened: the chat template already writes `<think>`, so that the response must not.
        partial: the share of the four conditions that hold: opened once, closed once, starts with its thoughts, goes
            on after them.
    """
    opens, closes = completion.count("<think>"), completion.count("</think>")
    thoughts, _, after = completion.partition("</think>")
    held = [
        opens == (0 if opened else 1),
        closes == 1,
        bool(thoughts.strip()) if opened else completion.lstrip().startswith("<think>"),
        bool(after.strip()) and closes == 1,
    ]
    return sum(held) / len(held) if partial else float(all(held))


def tags(
    prompt: Prompt, completion: str, task: Task, *, tags: Sequence[str] = ("think", "answer"), partial: bool = False
) -> float | None:
    """1 where the response is these tags, each once, in this order, none empty, with nothing but blanks around them.

    Args:
        partial: otherwise the share of the tags that occur once, opened and closed.
    """
    parts = r"\s*".join(rf"<{re.escape(tag)}>\s*(?=\S)(?!</)(.*?)</{re.escape(tag)}>" for tag in tags)
    once = [completion.count(f"<{tag}>") == 1 and completion.count(f"</{tag}>") == 1 for tag in tags]
    if all(once) and re.fullmatch(rf"\s*{parts}\s*", completion, re.DOTALL):
        return 1.0
    # the order or what stands around the tags is wrong, so that not everything can be right
    return sum(once) / (len(once) + 1) if partial else 0.0
