"""Given texts: windows in which each token is scored once, perplexities as a slow loop has them, and the start's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.text_suites import TextPerplexitySuite
from posttrain.data import read
from posttrain.errors import ConfigError, ResumeError, RowError
from posttrain.evaluate.asking import EvaluatedModel
from posttrain.evaluate.runner import evaluate_suites
from posttrain.evaluate.suites import load_suite
from posttrain.evaluate.texts import text_windows, texts_of, window_of
from posttrain.runs.files import read_jsonl
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer("CHATML")
TEXTS = ["A lion sleeps in the sun.", "Rain.", "Grüße aus dem Tal, wo der Fluss entspringt!"]


def model(seed: int = 0) -> torch.nn.Module:
    return tiny_model(vocab=len(TOKENIZER), seed=seed)


@pytest.mark.parametrize(("length", "window", "stride"), [(1, 8, 4), (7, 8, 4), (8, 8, 4), (31, 8, 4), (20, 5, 1)])
def test_every_token_is_scored_once_and_after_context(length: int, window: int, stride: int) -> None:
    ids = list(range(100, 100 + length))
    windows = text_windows(ids, 1, window, stride)
    assert [token for _, scored in windows for token in scored] == ids
    assert windows[0][0] == (1,)
    at = len(windows[0][1])
    for context, scored in windows[1:]:
        assert len(context) + len(scored) <= window and 1 <= len(scored) <= stride
        assert list(context) == ids[at - len(context) : at]
        assert len(context) >= window - stride
        at += len(scored)


def slow_nats(scored: torch.nn.Module, text: str, window: int, stride: int) -> float:
    """Token by token: each from the context that its window gives it."""
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    total = 0.0
    for place, token in enumerate(ids):
        if place < window - 1:
            context = [TOKENIZER.bos_token_id, *ids[:place]]
        else:
            number = (place - (window - 1)) // stride
            end = min(window - 1 + (number + 1) * stride, len(ids))
            context = ids[max(0, end - window) : place]
        with torch.no_grad():
            logits = scored(input_ids=torch.tensor([context])).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, dim=-1)[token])
    return total


def suite(tmp_path: Path, texts: list[str] = TEXTS, **changes: int) -> TextPerplexitySuite:
    path = tmp_path / f"texts{len(texts)}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TextPerplexitySuite(name="texts", kind="text_perplexity", texts=str(path), **changes)


def test_figures_are_those_of_a_slow_loop(tmp_path: Path) -> None:
    asked = EvaluatedModel.of(model(), TOKENIZER)
    found = evaluate_suites(asked, [load_suite(suite(tmp_path, window=12, stride=5))], tmp_path / "start")["texts"]
    nats = [slow_nats(model(), text, 12, 5) for text in TEXTS]
    tokens = [len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    assert found["text_perplexity"].value == pytest.approx(math.exp(sum(nats) / sum(tokens)), rel=1e-5)
    n_bytes, n_words = sum(len(text.encode()) for text in TEXTS), sum(len(text.split()) for text in TEXTS)
    assert found["bits_per_byte"].value == pytest.approx(sum(nats) / n_bytes / math.log(2), rel=1e-5)
    assert found["word_perplexity"].value == pytest.approx(math.exp(sum(nats) / n_words), rel=1e-5)
    assert found["text_perplexity_change"].value == 0 and found["text_perplexity"].n == 3
    lines = read_jsonl(tmp_path / "start" / "evaluations" / "texts.jsonl")
    assert [line["by_metric"]["text_perplexity"][0] for line in lines] == pytest.approx(nats, rel=1e-5)

    later = evaluate_suites(
        EvaluatedModel.of(model(1), TOKENIZER),
        [load_suite(suite(tmp_path, window=12, stride=5))],
        tmp_path / "sft",
        baseline=tmp_path / "start",
    )["texts"]
    change = later["text_perplexity"].value / found["text_perplexity"].value - 1
    assert later["text_perplexity_change"].value == pytest.approx(change)
    with pytest.raises(ResumeError, match="asked other questions"):
        evaluate_suites(
            EvaluatedModel.of(model(1), TOKENIZER),
            [load_suite(suite(tmp_path, TEXTS[:2], window=12, stride=5))],
            tmp_path / "dpo",
            baseline=tmp_path / "start",
        )


def test_windows_that_do_not_fit(tmp_path: Path) -> None:
    tiny: Any = model()
    positions = tiny.config.max_position_embeddings
    assert window_of(tiny, None, None) == (min(2048, positions), min(2048, positions) // 2)
    with pytest.raises(ConfigError, match="longer than what the model can read"):
        window_of(tiny, positions + 1, None)
    with pytest.raises(ConfigError, match="without context"):
        window_of(tiny, 8, 8)
    with pytest.raises(ConfigError, match="without context"):
        suite(tmp_path, window=8, stride=9)


def test_rows_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Hi", "answer": "Hello"}\n')
    with pytest.raises(RowError, match="no text to score") as refused:
        texts_of([*read(str(path))])
    assert "rows.jsonl" in str(refused.value)
