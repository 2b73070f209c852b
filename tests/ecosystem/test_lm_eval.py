"""`lm-eval` through its own entry: log-likelihoods, rolling ones, generations and chats, of a task written here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import Server
from tests.ecosystem.conftest import EMBEDDED, Direct

pytestmark = pytest.mark.ecosystem

NATS = 1e-4
"""Of a whole continuation, between lm-eval's number and ours."""
ROWS = [
    {"question": "What is 3 plus 4?", "choices": ["7", "8", "12"], "answer": 0},
    {"question": "What is 10 minus 2?", "choices": ["3", "8"], "answer": 1},
    {"question": "Who are you?", "choices": ["I am Pia.", "A lion"], "answer": 0},
    {"question": "A story about a lion:", "choices": ["The home of a lion is a den.", "The rain"], "answer": 0},
    {"question": "Say hello.", "choices": ["Hello.", "Grüße", "你好"], "answer": 0},
]
CHOOSE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}
ROLL = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}
GENERATE = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "metric_list": [{"metric": "exact_match"}],
    "generation_kwargs": {"until": ["zq", "\n\n"], "do_sample": False, "max_gen_toks": 12},
}


def evaluate(
    folder: Path, task: dict[str, Any], model: str, arguments: dict[str, Any], **options: Any
) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` gives for one task, written here and read from disk."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    settings = {
        "task": "local_task",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        **task,
    }
    (folder / "local_task.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    results = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["local_task"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        **options,
    )
    assert results is not None
    return results


def samples(results: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(results["samples"]["local_task"], key=lambda sample: sample["doc_id"])


def completions_at(server: Server, **more: Any) -> dict[str, Any]:
    return {
        "base_url": f"{server.url}/v1/completions",
        "model": server.model,
        "tokenizer_backend": "huggingface",
        "tokenizer": str(EMBEDDED),
        "max_length": 512,
        "max_retries": 1,
        **more,
    }


def own_loglikelihood(direct: Direct, context: str, continuation: str) -> tuple[float, bool]:
    """The same by the package's one door to a model, and whether greedy sampling would say it."""
    ids = direct.tokenizer(context, add_special_tokens=False)["input_ids"]
    whole = direct.tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    assert whole[: len(ids)] == ids
    said = whole[len(ids) :]
    (greedy,) = direct.complete(ids, temperature=0.0, max_tokens=len(said))
    return sum(_policy_logprobs(direct, ids, said)), list(greedy.ids) == said


def _policy_logprobs(direct: Direct, prompt: Sequence[int], said: Sequence[int]) -> list[float]:
    import torch

    from posttrain.data.trees import collate
    from posttrain.models.tree.logprobs import Policy
    from tests.fixtures import make_tree

    with torch.no_grad():
        given = Policy(direct.engine.model).forward(collate([make_tree(prompt, said)]))
    return [float(value) for value in given.logprobs_N]


@pytest.mark.parametrize(
    "more",
    [{}, {"batch_size": 3}, {"num_concurrent": 4}, {"tokenized_requests": False, "add_bos_token": True}],
    ids=["one by one", "in batches", "at once", "as text"],
)
def test_loglikelihoods_are_ours(server: Server, direct: Direct, tmp_path: Path, more: dict[str, Any]) -> None:
    results = evaluate(tmp_path, CHOOSE, "local-completions", completions_at(server, **more))
    for row, sample in zip(ROWS, samples(results), strict=True):
        context = ("<|bos|>" if "add_bos_token" in more else "") + str(row["question"])
        for choice, (given, greedy) in zip(row["choices"], sample["filtered_resps"], strict=True):
            wanted, own_greedy = own_loglikelihood(direct, context, f" {choice}")
            assert float(given) == pytest.approx(wanted, abs=NATS), (row, choice)
            assert greedy is own_greedy


def test_the_servers_own_tokenizer_serves(server: Server, direct: Direct, tmp_path: Path) -> None:
    """lm-eval's default: it asks the server for its tokenizer, and needs no folder."""
    arguments = {"base_url": f"{server.url}/v1/completions", "model": server.model, "max_length": 512, "max_retries": 1}
    results = evaluate(tmp_path, CHOOSE, "local-completions", arguments)
    (given, _) = samples(results)[0]["filtered_resps"][0]
    assert float(given) == pytest.approx(own_loglikelihood(direct, "What is 3 plus 4?", " 7")[0], abs=NATS)


def test_rolling_loglikelihoods_are_ours(server: Server, direct: Direct, tmp_path: Path) -> None:
    results = evaluate(tmp_path, ROLL, "local-completions", completions_at(server))
    for row, sample in zip(ROWS, samples(results), strict=True):
        ids = direct.tokenizer(row["question"], add_special_tokens=False)["input_ids"]
        wanted = sum(_policy_logprobs(direct, [direct.tokenizer.bos_token_id], ids))
        (given,) = sample["filtered_resps"]
        assert float(given if not isinstance(given, (list, tuple)) else given[0]) == pytest.approx(wanted, abs=NATS)


@pytest.mark.parametrize("more", [{}, {"num_concurrent": 4}], ids=["one by one", "at once"])
def test_generations_are_ours(server: Server, direct: Direct, tmp_path: Path, more: dict[str, Any]) -> None:
    results = evaluate(tmp_path, GENERATE, "local-completions", completions_at(server, **more))
    for row, sample in zip(ROWS, samples(results), strict=True):
        ids = direct.tokenizer(row["question"], add_special_tokens=False)["input_ids"]
        assert sample["filtered_resps"] == [direct.greedy(ids, 12)]


def test_chats_are_ours(server: Server, direct: Direct, tmp_path: Path) -> None:
    arguments = {"base_url": f"{server.url}/v1/chat/completions", "model": server.model, "max_retries": 1}
    results = evaluate(tmp_path, GENERATE, "local-chat-completions", arguments, apply_chat_template=True)
    for row, sample in zip(ROWS, samples(results), strict=True):
        assert sample["filtered_resps"] == [direct.greedy(direct.chat_ids(str(row["question"])), 12)]
    assert "exact_match,none" in results["results"]["local_task"]
