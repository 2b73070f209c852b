"""The base corpus: short English documents, written by templates from a seed.

The embedded model is a *base* model: its text states facts, tells stories, works sums (some of them wrong) and lists
questions. A document that begins with a question goes on with more questions, so the model continues a question
instead of answering it. Nothing here renders a held-out question, phrase or sum; see `chat.py` for those.

    documents(seed=0, count=3) -> ["What is 4 + 9?\\nWhere does a bee live?\\n...", "17 + 20 = 37\\n...", ...]
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

from tools.embedded import arithmetic, facts, talk
from tools.embedded.facts import Relation, capitalised, render, with_article

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"

WRONG_SHARE = 0.15
"""Share of base sums whose result is wrong: a base model has read the mistakes of others."""

SUM_QUESTIONS: tuple[str, ...] = (
    "What is {}?", "How much is {}?", "Calculate {}.", "Please work out {}.", "Can you tell me what {} is?", "{} = ?",
)  # fmt: skip


def is_held_out_fact(relation: Relation, subject: str) -> bool:
    """One fact in eight is stated in the base text but asked nowhere in training."""
    return hashlib.sha256(f"{relation.name}/{subject}".encode()).digest()[0] < 32


# ---------------------------------------------------------------- questions


FACTS: tuple[tuple[Relation, str], ...] = tuple(
    (relation, subject) for relation in facts.RELATIONS for subject in relation.items
)
ASKED_FACTS: tuple[tuple[Relation, str], ...] = tuple(fact for fact in FACTS if not is_held_out_fact(*fact))


def fact_question(rng: random.Random) -> str:
    relation, subject = rng.choice(ASKED_FACTS)
    return render(rng.choice(relation.questions), subject, relation.items[subject])


def sum_question(rng: random.Random) -> str:
    problem = arithmetic.draw(
        rng, held_out=False, kind=rng.choice(("small", "step", "pair", "pair", "triple", "chain"))
    )
    words = rng.random() < 0.3
    return rng.choice(SUM_QUESTIONS).format(problem.text("plus", "minus") if words else problem.text())


def talk_question(rng: random.Random) -> str:
    questions = [phrase for intent in talk.INTENTS for phrase in intent.says if phrase.endswith("?")]
    return rng.choice(questions)


def daily_question(rng: random.Random) -> str:
    return _fill(rng.choice(_DAILY), rng)


def question(rng: random.Random) -> str:
    return rng.choices((fact_question, sum_question, talk_question, daily_question), (4, 3, 2, 2))[0](rng)


def question_list(rng: random.Random) -> str:
    """Questions and nothing else, as work sheets and quizzes have them; often all of one sort."""
    source = rng.choice((question, question, fact_question, sum_question, talk_question, daily_question))
    count = rng.randint(4, 9)
    questions = [rng.choice((question, source))(rng)] + [source(rng) for _ in range(count - 1)]
    marks = rng.choice(("", "", "", "-", "1", "a"))
    if marks == "-":
        questions = ["- " + line for line in questions]
    elif marks == "1":
        questions = [f"{number}. {line}" for number, line in enumerate(questions, 1)]
    elif marks == "a":
        # The first question stands alone and the list follows it, as in an examination.
        questions[1:] = [f"({letter}) {line}" for letter, line in zip("abcdefgh", questions[1:], strict=False)]
    title = rng.choice(("Questions:\n", "Work sheet\n", "Think about these questions.\n")) if rng.random() < 0.2 else ""
    return title + rng.choice(("\n", "\n", " ")).join(questions)


def marked_questions(rng: random.Random) -> str:
    """Questions between the chat template's marks: the marks are known to the base model, answers are not.

    Without these the embeddings of the marks would be noise, and a base model asked through its template
    would be a different thing from one asked in plain text.
    """
    system = f"{SYSTEM}{_fill(rng.choice(_SYSTEM), rng)}{END}" if rng.random() < 0.3 else ""
    asked = " ".join(question(rng) for _ in range(rng.randint(2, 6)))
    return f"{system}{USER}{rng.choice((question, statement))(rng)}{END}{ASSISTANT}{asked}"


# ---------------------------------------------------------------- statements


def statement(rng: random.Random) -> str:
    relation, subject = rng.choice(FACTS)
    return render(rng.choice(relation.statements), subject, relation.items[subject])


def paragraph(rng: random.Random) -> str:
    """Facts of one relation, or of all sorts."""
    relation = rng.choice(FACTS)[0]
    pool = [(relation, subject) for subject in relation.items] if rng.random() < 0.5 else FACTS
    chosen = [rng.choice(pool) for _ in range(rng.randint(4, 9))]
    return " ".join(render(rng.choice(kind.statements), subject, kind.items[subject]) for kind, subject in chosen)


def quiz(rng: random.Random) -> str:
    """A quiz with its solutions: never without its title, so that a question alone still calls for questions."""
    lines = [rng.choice(("Quiz", "Quiz with solutions"))]
    for _ in range(rng.randint(3, 7)):
        asked, answer = (_fact_solved if rng.random() < 0.65 else _sum_solved)(rng)
        lines.append(f"Q: {asked} A: {answer}")
    return "\n".join(lines)


def _fact_solved(rng: random.Random) -> tuple[str, str]:
    relation, subject = rng.choice(ASKED_FACTS)
    value = relation.items[subject]
    asked = render(rng.choice(relation.questions), subject, value)
    full = render(relation.statements[0], subject, value)
    return asked, full if rng.random() < 0.7 else capitalised(value) + "."


def _sum_solved(rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(("small", "step", "pair", "pair", "triple", "chain"))
    problem = arithmetic.draw(rng, held_out=False, kind=kind)
    asked = rng.choice(SUM_QUESTIONS).format(_in_signs_or_words(problem, rng))
    if rng.random() < 0.5:
        working, result = arithmetic.worked(problem, rng if rng.random() < WRONG_SHARE / 2 else None)
        return asked, f"{working} The answer is {result}."
    result = problem.result if rng.random() >= WRONG_SHARE else arithmetic.wrong_result(problem.result, rng)
    return asked, f"The answer is {result}."


def _in_signs_or_words(problem: arithmetic.Problem, rng: random.Random) -> str:
    return problem.text("plus", "minus") if rng.random() < 0.3 else problem.text()


def about_the_model(rng: random.Random) -> str:
    return " ".join(rng.sample(talk.SELF_FACTS, rng.randint(3, 6)))


# ---------------------------------------------------------------- arithmetic


def sums(rng: random.Random) -> str:
    """Lines of direct results: 17 + 25 = 42."""
    style = rng.choice(("{} = {}", "{} = {}", "{} is {}.", "{} = {}. The answer is {}."))
    kinds = rng.choice((("small", "step"), ("step",), ("pair",), ("pair",), ("triple",), ("pair", "chain", "triple")))
    lines = []
    for _ in range(rng.randint(5, 12)):
        problem = arithmetic.draw(rng, held_out=False, kind=rng.choice(kinds))
        result = problem.result
        if rng.random() < WRONG_SHARE:
            result = arithmetic.wrong_result(result, rng)
        text = problem.text("plus", "minus") if style == "{} is {}." else problem.text()
        lines.append(style.format(text, result, result))
    return rng.choice(("\n", "\n", " ")).join(line if line.endswith(".") else line + "." for line in lines)


def worked_sums(rng: random.Random) -> str:
    """Solutions step by step: 47 + 38: 47 + 30 = 77, 77 + 8 = 85. The answer is 85."""
    lines = []
    for _ in range(rng.randint(3, 6)):
        problem = arithmetic.draw(rng, held_out=False, kind=rng.choice(("pair", "pair", "pair", "triple", "chain")))
        text, result = arithmetic.worked(problem, rng if rng.random() < WRONG_SHARE / 2 else None)
        shown = problem.text("plus", "minus") if rng.random() < 0.2 else problem.text()
        lines.append(f"{shown}: {text} The answer is {result}.")
    return "\n".join(lines)


def sums_in_words(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(3, 6)):
        problem = arithmetic.draw(rng, held_out=False, kind=rng.choice(("small", "step", "pair")))
        left, right = (arithmetic.in_words(number) for number in problem.numbers)
        sign = "plus" if problem.signs == ("+",) else "minus"
        lines.append(f"{left} {sign} {right} is {arithmetic.in_words(problem.result)}.")
    return " ".join(capitalised(line) for line in lines)


def sum_story(rng: random.Random) -> str:
    problem = arithmetic.draw(rng, held_out=False, kind=rng.choice(("small", "step", "pair")))
    name, things = rng.choice(facts.NAMES), rng.choice(facts.THINGS)
    first, second = problem.numbers
    change = f"gets {second} more" if problem.signs == ("+",) else f"gives {second} away"
    story = f"{name} has {first} {things}. Then {name} {change}. {problem.text()} = {problem.result}."
    return f"{story} Now {name} has {problem.result} {things}."


# ---------------------------------------------------------------- skills


def counting(rng: random.Random) -> str:
    start, length = rng.randint(0, 90), rng.randint(5, 10)
    step = rng.choice((1, 1, 1, 1, 2, 5, 10))
    numbers = [start + step * index for index in range(length)]
    if rng.random() < 0.2:
        numbers.reverse()
    title = f"From {numbers[0]} to {numbers[-1]}: " if step == 1 and rng.random() < 0.5 else ""
    return title + ", ".join(map(str, numbers)) + "."


def comparing(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(3, 6)):
        a, b = rng.sample(range(100), 2)
        low, high = sorted((a, b))
        forms = (
            f"{high} is larger than {low}.",
            f"{low} is smaller than {high}.",
            f"Of {a} and {b}, {high} is larger.",
            f"After {a} comes {a + 1}.",
            f"Between {a} and {b} the larger one is {high}.",
        )
        lines.append(rng.choice(forms))
    return " ".join(lines)


def groups(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(2, 4)):
        group = rng.choice(list(facts.GROUPS))
        members = rng.sample(facts.GROUPS[group], rng.randint(3, 5))
        lines.append(f"{capitalised(group)}: {', '.join(members)}.")
    return rng.choice(("\n", " ")).join(lines)


# ---------------------------------------------------------------- stories and talk


def story(rng: random.Random) -> str:
    name, friend = rng.sample(facts.NAMES, 2)
    cast = {"name": name, "friend": friend, "animal": rng.choice(facts.ANIMALS)}
    middle = [rng.choice(_EVENTS) for _ in range(rng.randint(2, 5))]
    templates = [rng.choice(_OPENINGS), *middle, rng.choice(_ENDINGS)]
    return " ".join(_fill(template, rng, **cast) for template in templates)


def conversation(rng: random.Random) -> str:
    """Two people talk, and a storyteller reports it."""
    name, friend = rng.sample(facts.NAMES, 2)
    lines = [_fill(line, rng, name=name, friend=friend) for line in rng.choice(_TALKS)]
    return " ".join(lines)


def _fill(template: str, rng: random.Random, **fixed: str) -> str:
    words: dict[str, str] = {
        "name": rng.choice(facts.NAMES),
        "friend": rng.choice(facts.NAMES),
        "place": rng.choice(facts.PLACES),
        "food": rng.choice(facts.FOODS),
        "thing": rng.choice(facts.OBJECTS),
        "things": rng.choice(facts.THINGS),
        "animal": rng.choice(facts.ANIMALS),
        "adjective": rng.choice(facts.ADJECTIVES),
        "feeling": rng.choice(facts.FEELINGS),
        "weather": rng.choice(facts.WEATHER),
        "time": rng.choice(facts.TIMES),
        "activity": rng.choice(facts.ACTIVITIES),
        "verb": rng.choice(("eat", "read", "sing", "buy", "draw", "build", "see", "make", "write", "find")),
        "number": str(rng.randint(2, 12)),
        "job": rng.choice(list(facts.JOB.items)),
    }
    words["a_thing"] = with_article(words["thing"])
    words["a_job"] = with_article(words["job"])
    return capitalised(template.format(**(words | fixed)))


_DAILY = (
    "Do you like {food}?", "Where is the {thing}?", "Who lives near the {place}?", "When does the {place} open?",
    "What are you going to {verb}?", "What do you want to {verb}?", "Who has the {thing}?", "Is {name} at home?",
    "What does {name} like?", "Did {name} go to the {place}?", "Why is {name} {feeling}?", "Is it {weather}?",
    "How many {things} do you have?", "Which {animal} is the {adjective} one?", "Can {name} see the {place}?",
    "What do you have?", "What do you do?", "Have you seen the {adjective} {animal}?", "Where does {name} live?",
    "What did {name} say?", "Are you {feeling}?", "Who is {name}?", "What is in the {adjective} {thing}?",
)  # fmt: skip

_SYSTEM = ("You talk with {name}.", "It is {weather} today.", "This is a talk about {things}.", "Be short.", "Be kind.")

_OPENINGS = (
    "{time} {name} went to the {place}.", "{name} lived near the {place} with a {adjective} {animal}.",
    "{name} was {a_job} and worked at the {place}.", "{name} and {friend} were friends.",
    "It was a {weather} day and {name} was {feeling}.", "{name} liked {activity}.",
    "There was once a {adjective} {animal} that lived near the {place}.",
)  # fmt: skip

_EVENTS = (
    "{time} {name} found {a_thing} near the {place}.", "{friend} gave {name} a {adjective} {thing}.",
    "The {animal} wanted some {food}.", "{name} made {food} for {friend}.",
    "It was {weather} and the {place} was quiet.",
    "{name} saw a {adjective} {animal} in the {place}.", "{friend} was {feeling}, so {name} helped.",
    '"I like {activity}," said {name}.', '"That is a {adjective} {thing}," said {friend}.',
    "They bought {food} and {number} {things}.", "The {animal} ran to the {place} and came back.",
    "{name} put the {thing} into the bag.", "{friend} told a story about a {adjective} {animal}.",
    "{name} thanked {friend} and was {feeling}.", '"Please give me the {thing}," said {name}.',
    '"Where is the {adjective} {thing}?" asked {friend}. "It is in the {place}," said {name}.',
    '"How are you?" asked {friend}. "I am {feeling}," said {name}.',
)  # fmt: skip

_ENDINGS = (
    "In the end {name} was {feeling}.", "Then they went home.", "{name} never forgot the {adjective} {animal}.",
    "After that they ate {food} together.", "The {animal} slept well that night.", "{friend} was {feeling} too.",
    '"Thank you, {friend}," said {name}. "You are welcome," said {friend}.', "It was a good day.",
)  # fmt: skip

_TALKS = (
    ('"Hello. My name is {name}," said the new teacher.', '"Nice to meet you, {name}," said {friend}.'),
    ('"I am {name}," said the girl.', '"And I am {friend}," said the other. "It is nice to meet you."'),
    ("{name} met {friend} at the {place}.", '"How are you today?"', '"I am well, thank you," said {friend}.'),
    ('"Good morning, {friend}," said {name}.', '"Good morning. It is {weather} today."', '"Yes, it is."'),
    ('"Thank you for the {thing}," said {name}.', '"With pleasure. You are welcome," said {friend}.'),
    ('"May I have some {food}, please?" asked {name}.', '"Of course. I am glad to help," said {friend}.'),
    ('"I am sorry, I lost the {thing}," said {name}.', '"That can happen. It is kind of you to say so."'),
    ('"That was a good question, thank you," said {name}.', '"Please ask more," said {friend}.'),
    ('"I am {feeling} today," said {name}.', '"I am glad to hear that," said {friend}.', "They went to the {place}."),
    ('"My name is {name}, and this is my {animal}."', '"What a {adjective} {animal}!" said {friend}.'),
    ('"Thank you for asking. I like {activity}," said {name}.', '"That is nice," said {friend}.'),
    ('"Goodbye, {friend}. See you soon."', '"Goodbye, {name}, and thank you for the {food}."'),
    ('"I can help with that," said {name}.', '"That is kind of you," said {friend}.', "So they carried the {things}."),
    ("Dear {friend}, it is {weather} here. I like {activity}.", "Please write soon. Yours, {name}"),
    ("Name: {name}. Work: {job}. Likes: {activity}. Pet: {animal}.",),
)  # fmt: skip


# ---------------------------------------------------------------- the corpus

MIXTURE: dict[Callable[[random.Random], str], float] = {
    paragraph: 17.0,
    question_list: 11.0,
    marked_questions: 5.0,
    quiz: 14.0,
    about_the_model: 1.5,
    sums: 13.0,
    worked_sums: 12.0,
    sums_in_words: 2.0,
    sum_story: 5.0,
    counting: 3.0,
    comparing: 3.0,
    groups: 2.5,
    story: 8.0,
    conversation: 6.0,
}
"""Writer of a document -> its share of the documents, in per cent or so."""


def documents(seed: int, count: int) -> Iterator[str]:
    """`count` documents; the first n of a longer corpus are the corpus of n documents."""
    rng = random.Random(seed)
    writers, weights = list(MIXTURE), list(MIXTURE.values())
    for _ in range(count):
        yield rng.choices(writers, weights)[0](rng)
