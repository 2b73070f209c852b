"""Which language a text is in: by its script, and among languages in Latin letters by their commonest words.

Small and dependency-free, good enough to notice that a model has changed its language; a sentence of two words in Latin
letters may stay undecided.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from posttrain.config.rewards import LANGUAGES
from posttrain.errors import RewardError
from posttrain.rewards.text import missing
from posttrain.types import Message, Task

_SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
    "HANGUL": "ko",
    "CYRILLIC": "ru",
    "GREEK": "el",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "THAI": "th",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
}
_OF_SCRIPT = {"mr": "hi", "ne": "hi", "bg": "ru", "uk": "ru", "fa": "ar", "ur": "ar"}
"""Languages that share a script with one above and are told from it by script alone: taken for one another."""

COMMON = {
    "en": "a the of and to in is that it for was you with are this be on not have as at by from or but they which an",
    "de": "der die das und ist nicht ein eine zu den mit von auf für sich des dem es ich im auch wird sind als wie aus",
    "fr": "le la les et est des une un du que qui dans pour pas sur ce il avec au plus par je sont nous vous cette ne",
    "es": "el la los las y es que un una en de del por con para no se su al como más pero sus este está son muy",
    "it": "il la di che e è un una per non sono con del della le gli nel alla anche più come si lo questo i dei molto",
    "pt": "o a os as e é que um uma de do da em no na para com não por mais se dos como mas ao são você também muito",
    "nl": "de het een en van is dat in niet op te zijn met voor die er aan ook als maar om bij naar dit wordt ik je",
    "pl": "i w nie na się z do to że jest jak o po za od ale przez dla są tym co może tylko być ich oraz jego",
    "sv": "och att det som en på är av för den till med inte har ett de om var jag kan så men vi från eller",
    "da": "og at det som en på er af for den til med ikke har et de om var jeg kan så men vi fra eller der",
    "no": "og å det som en på er av for den til med ikke har et de om var jeg kan så men vi fra eller",
    "fi": "ja on ei se että oli hän mutta ovat myös kun niin tai voi joka tämä ole sen kuin olla mitä",
    "tr": "ve bir bu da de için ile çok olarak daha gibi ne var ama olan kadar sonra değil en her mi",
    "id": "yang dan di itu dengan untuk tidak ini dari dalam akan pada adalah juga ke karena bisa ada saya atau",
    "vi": "và của là có không được một các cho trong với những này đã người khi để từ đến về",
    "cs": "a se na je v že to s z do o i ale jako pro by jsem za po jsou které tak už jeho může",
    "ro": "și în de la a cu pe nu că este un o mai din care pentru sunt ca dar fi se au",
    "hu": "a az és hogy nem is egy van meg de ez ha csak már volt mint még vagy el kell",
}
"""The commonest words of each language in Latin letters."""

_BY_WORD: dict[str, list[str]] = {}
for _language, _text in COMMON.items():
    for _word in _text.split():
        _BY_WORD.setdefault(_word, []).append(_language)

_PUBLISHED = (
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl pt ro "
    "ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw"
)
_NOT_PROSE = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\[a-zA-Z]+|https?://\S+|<[^<>\n]{0,200}>", re.DOTALL
)
_SEGMENT = re.compile(r"[^\n.!?。！？]+")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def detect(text: str) -> str | None:
    """The language of most of the text as a code of two letters; None where there is too little to tell."""
    weights: Counter[str] = Counter()
    for language, letters in _segments(text):
        if language is not None:
            weights[language] += letters
    return weights.most_common(1)[0][0] if weights else None


def share(text: str, language: str) -> float | None:
    """The share of the text's letters that stand in sentences of the language; None where there are none.

    Code, formulas and addresses do not count, and neither do sentences in Latin letters that could be any language:
    counted for the one that is asked for, English without its commonest words would pass for Finnish.

    Raises:
        ValueError: a language that is not known here, which every text would miss.
    """
    if language not in LANGUAGES:
        raise ValueError(f"the language {language!r} cannot be told; known are {', '.join(sorted(LANGUAGES))}")
    wanted = _OF_SCRIPT.get(language, language)
    total = right = 0
    for spoken, letters in _segments(text):
        if spoken is not None:
            total += letters
            right += letters * (spoken == wanted)
    return right / total if total else None


PUBLISHED = frozenset(_PUBLISHED.split())
"""The languages that langdetect tells apart."""


def published_language(text: str, wanted: str) -> str | None:
    """The language that langdetect finds, which IFEval's authors ask; None where it finds none (no letters).

    Seeded: it draws at random, and the same text would get other answers. Much text says no more than its first
    10,000 characters.

    Raises:
        MissingExtraError: langdetect is not installed.
        ValueError: it does not know the language that is wanted, so that no text could be in it.
    """
    if wanted not in PUBLISHED:
        raise ValueError(f"langdetect does not know the language {wanted!r}; it knows {', '.join(sorted(PUBLISHED))}")
    try:
        import langdetect
    except ImportError:
        raise missing("langdetect", "instructions") from None
    # Its own global: without it the same response would be right in one step and wrong in the next.
    langdetect.DetectorFactory.seed = 0
    try:
        return str(langdetect.detect(text[:10_000]))
    except langdetect.LangDetectException:
        return None


def language(prompt: Sequence[Message], completion: str, task: Task, *, language: str | None = None) -> float | None:
    """How much of the response is in the language, 0 to 1: the recipe's, the row's `language`, or the prompt's own."""
    wanted = language or task.metadata.get("language")
    if wanted is None:
        wanted = detect("\n".join(message.content or "" for message in prompt if message.role == "user"))
        if wanted not in LANGUAGES:  # no language, or a mixture of scripts
            return None
    if wanted not in LANGUAGES:
        raise RewardError(
            f"the language {wanted!r} of the row cannot be told",
            where=task.row,
            expected=f"one of {', '.join(sorted(LANGUAGES))}",
            remedy="correct the row's `language`, or leave this reward away",
        )
    return share(completion, str(wanted))


def _segments(text: str) -> list[tuple[str | None, int]]:
    """The language and the letters of each sentence."""
    segments = []
    for segment in _SEGMENT.findall(_NOT_PROSE.sub(" ", text)):
        letters = [letter for letter in segment if letter.isalpha()]
        if letters:
            segments.append((_of_segment(segment, letters), len(letters)))
    return segments


def _of_segment(segment: str, letters: Sequence[str]) -> str | None:
    scripts = Counter(_script(letter) for letter in letters)
    if scripts["ja"] and scripts["ja"] + scripts["zh"] > len(letters) / 2:
        return "ja"  # Japanese is written with Chinese characters too
    script, count = scripts.most_common(1)[0]
    # Neither language: a response that mixes two scripts is what this reward is to notice.
    if count <= len(letters) / 2:
        return "mixed"
    if script != "latin":
        return script
    votes: Counter[str] = Counter()
    for word in _WORD.findall(segment.lower()):
        for language in _BY_WORD.get(word, ()):
            votes[language] += 1
    ranked = votes.most_common(2)
    # A draw says nothing: Danish and Norwegian share most of these words.
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _script(letter: str) -> str:
    if letter.isascii():
        return "latin"
    name = unicodedata.name(letter, "")
    first = name.split(" ")[0].split("-")[0]
    return _SCRIPTS.get(first, "latin" if first == "LATIN" else "other")
