"""`inspect-ai` by its provider for OpenAI-compatible servers: small tasks, asked whole and as streams, and marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import Server
from tests.ecosystem.conftest import Direct

pytestmark = pytest.mark.ecosystem

QUESTIONS = ("What is 3 plus 4?", "What is 10 minus 2?", "Who are you?")


def run(folder: Path, server: Server, task: Any, **settings: Any) -> Any:
    """The log of an evaluation that succeeded."""
    import inspect_ai
    from inspect_ai.model import GenerateConfig, get_model

    arguments = {name: settings.pop(name) for name in ("stream",) if name in settings}
    model = get_model(
        f"openai-api/posttrain/{server.model}",
        base_url=f"{server.url}/v1",
        api_key="none",
        config=GenerateConfig(max_retries=0, **settings),
        **arguments,
    )
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(folder), display="none")
    assert log.status == "success", log.error
    return log


def questions(*, target: str = "", **parts: Any) -> Any:
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    rows = MemoryDataset([Sample(input=question, target=target) for question in QUESTIONS])
    return Task(dataset=rows, **{"solver": generate(), "scorer": includes(), **parts})


def answers(log: Any) -> list[str]:
    return [sample.output.completion for sample in sorted(log.samples, key=lambda sample: sample.id)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_task_gets_the_models_answers(server: Server, direct: Direct, tmp_path: Path, stream: bool) -> None:
    wanted = [direct.greedy(direct.chat_ids(question), 12) for question in QUESTIONS]
    log = run(tmp_path, server, questions(target=wanted[0]), temperature=0.0, max_tokens=12, stream=stream)
    assert answers(log) == wanted
    share = sum(wanted[0].casefold() in answer.casefold() for answer in wanted) / len(wanted)
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(share)
    (usage,) = log.stats.model_usage.values()
    assert usage.input_tokens == sum(len(direct.chat_ids(question)) for question in QUESTIONS)
    assert usage.output_tokens > 0


def test_a_limit_is_called_a_limit(server: Server, tmp_path: Path) -> None:
    log = run(tmp_path, server, questions(), temperature=0.0, max_tokens=1)
    assert {sample.output.stop_reason for sample in log.samples} == {"max_tokens"}


def test_choices_and_logprobs_are_read(server: Server, direct: Direct, tmp_path: Path) -> None:
    settings = {"num_choices": 3, "seed": 4, "max_tokens": 8, "logprobs": True, "top_logprobs": 2, "stop_seqs": ["zq"]}
    log = run(tmp_path, server, questions(), **settings)
    for sample in log.samples:
        completions = direct.complete(direct.chat_ids(sample.input), n=3, seed=4, max_tokens=8)
        assert [choice.message.text for choice in sample.output.choices] == [direct.text(one) for one in completions]
        for choice in sample.output.choices:
            assert choice.logprobs is not None
            assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_logprobs_of_the_prompt_are_read(server: Server, direct: Direct, tmp_path: Path) -> None:
    log = run(tmp_path, server, questions(), max_tokens=2, temperature=0.0, prompt_logprobs=1)
    for sample in log.samples:
        ids = direct.chat_ids(sample.input)
        given = [token.logprob for token in sample.output.choices[0].prompt_logprobs.content]
        assert given == pytest.approx(direct.engine.score(ids[:1], ids[1:]), abs=1e-4)


def test_a_prompt_too_long_is_the_models_length(server: Server, tmp_path: Path) -> None:
    """By the error's code: any other would fail the evaluation, and not only the sample."""
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.solver import generate

    task = Task(dataset=MemoryDataset([Sample(input="on and on, " * 400)]), solver=generate())
    log = run(tmp_path, server, task, max_tokens=8)
    assert log.samples[0].output.stop_reason == "model_length"


def test_a_tool_is_called_and_its_result_read(scripted: Server, tmp_path: Path) -> None:
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate, use_tools
    from inspect_ai.tool import tool

    @tool
    def add() -> Any:
        async def execute(a: int, b: int) -> str:
            """Adds two numbers.

            Args:
                a: The first number.
                b: The second number.
            """
            return str(a + b)

        return execute

    rows = MemoryDataset([Sample(input="What is 17 and 25?", target="The sum is 42.")])
    log = run(
        tmp_path,
        scripted,
        Task(dataset=rows, solver=[use_tools(add()), generate()], scorer=includes()),
        temperature=0.0,
    )
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert [message.role for message in log.samples[0].messages] == ["user", "assistant", "tool", "assistant"]
