"""Rows that one core encodes in a second: `python -m benchmarks.encoding [--rows 4000] [--rounds 3] [--profile]`.

Chats of one to four exchanges with a system message, as the words of people's conversations are long; with the model
that comes with the package (CHATML-like, one token a few letters) and with a template that keeps no earlier thoughts,
so that each turn is proven apart. The digest is of all ids and masks: two versions with the same one encode the same.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import pstats
import random
import statistics
import time
from collections.abc import Sequence

from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.models import load
from posttrain.types import Demonstration, Example, Message, RowRef

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "you",
    "that",
    "he",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "his",
    "they",
    "be",
    "at",
    "one",
    "have",
    "this",
    "from",
    "or",
    "had",
    "by",
    "hot",
    "but",
    "some",
    "what",
    "there",
    "we",
    "can",
    "out",
    "other",
    "were",
    "all",
    "your",
    "when",
    "up",
    "use",
    "word",
    "how",
    "said",
    "an",
    "each",
    "she",
    "which",
    "do",
    "their",
    "time",
    "if",
    "will",
    "way",
    "about",
    "many",
]
THINKING = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip() }}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def text(stream: random.Random, words: int) -> str:
    return " ".join(stream.choice(WORDS) for _ in range(words)).capitalize() + "."


def chats(count: int, seed: int = 0) -> list[Example]:
    """Conversations of one to four exchanges, 10 to 60 words a turn; every one is another."""
    stream = random.Random(seed)
    rows: list[Example] = []
    for index in range(count):
        turns = [Message("system", "You are a helpful assistant.")]
        for _ in range(stream.choice((1, 1, 2, 4))):
            turns.append(Message("user", text(stream, stream.randint(10, 40))))
            turns.append(Message("assistant", text(stream, stream.randint(10, 60))))
        rows.append(Demonstration(tuple(turns), row=RowRef("chats", index + 1)))
    return rows


def encode(encoder: Encoder, rows: Sequence[Example]) -> str:
    """All of it, and a digest of the ids and masks."""
    digest = hashlib.sha256()
    for row in rows:
        for tree in encoder.example(row).trees:
            digest.update(tree.key.encode())
    return digest.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--model", default="embedded")
    arguments = parser.parse_args()
    tokenizer = load(arguments.model).tokenizer
    rows = chats(arguments.rows)
    for name, template in (("its own", None), ("thinking", THINKING)):
        if template is not None:
            tokenizer.chat_template = template
        seconds = []
        for _ in range(arguments.rounds):
            encoder = Encoder(tokenizer, EncoderSettings(template="chat", max_length=4096))
            begin = time.process_time()
            digest = encode(encoder, rows)
            seconds.append(time.process_time() - begin)
        rate = len(rows) / statistics.median(seconds)
        print(f"{name:<10}{rate:8,.0f} rows/s of CPU time   ids and masks {digest}")
        if arguments.profile:
            profiler = cProfile.Profile()
            profiler.runcall(encode, Encoder(tokenizer, EncoderSettings(template="chat", max_length=4096)), rows)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
