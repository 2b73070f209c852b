"""The served engine against a fake server: what is sent, what is refused, and what happens when the server dies."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, EngineError
from posttrain.rollout.engine import Completion, FinishReason, Request, Versions
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.rollout.vllm_server import VLLMServer
from posttrain.sampling import SamplingDistribution
from tests.fake_vllm import FakeServer
from tests.fixtures import tiny_model

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
PLAIN = SamplingDistribution(temperature=0.7, max_new_tokens=6, stop_ids=frozenset({3, 5, 7}), seed=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    tiny_model(max_position_embeddings=64).save_pretrained(path)
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[FakeServer]:
    with FakeServer(folder) as running:
        yield running


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(max_position_embeddings=64)


def engine_of(server: FakeServer, tmp_path: Path, **options: Any) -> ServedEngine:
    return ServedEngine(server.url, folder=tmp_path, **{"patience": 0.5, "timeout": 30.0, **options})


def test_every_field_is_sent(server: FakeServer, tmp_path: Path) -> None:
    engine = engine_of(server, tmp_path)
    engine.generate(PROMPTS[:1], replace(PLAIN, top_k=5, repetition_penalty=1.1), completions_per_prompt=3)
    sent = server.bodies("/v1/completions")[-1]
    seed = sent.pop("seed")
    assert 0 <= seed < 2**62
    assert sent.pop("cache_salt").endswith("-0")  # of the weights' version
    assert sent == {
        "model": "tiny",
        "prompt": [1, 2, 3],
        "n": 3,
        "max_tokens": 6,
        "min_tokens": 0,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "stop_token_ids": [3, 5, 7],
        "ignore_eos": True,
        "logprobs": 0,
        "add_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "echo": False,
        "stream": False,
    }


def test_distributions_that_vllm_draws_otherwise_are_refused(server: FakeServer, tmp_path: Path) -> None:
    engine = engine_of(server, tmp_path)
    with pytest.raises(ConfigError, match="min_p before top_p"):
        engine.generate(PROMPTS, replace(PLAIN, top_p=0.9, min_p=0.1))
    with pytest.raises(ConfigError, match="low a temperature"):
        engine.generate(PROMPTS, replace(PLAIN, temperature=0.001))
    assert not server.requests


def test_more_stop_strings_than_a_server_takes_are_refused(server: FakeServer, tmp_path: Path) -> None:
    engine, many = engine_of(server, tmp_path), replace(PLAIN, stop=("a", "b", "c", "d", "e"))
    with pytest.raises(ConfigError, match="at most four stop strings"):
        engine.generate(PROMPTS, many)
    with pytest.raises(ConfigError, match="at most four stop strings"):
        asyncio.run(engine.generate_one(Request(PROMPTS[0], many)))
    assert not server.requests


def test_a_server_that_reports_raw_log_probs_is_refused(folder: Path, tmp_path: Path) -> None:
    with FakeServer(folder, logprobs_mode="raw_logprobs") as server:
        with pytest.raises(ConfigError, match="another distribution") as refused:
            engine_of(server, tmp_path).generate(PROMPTS, PLAIN)
        assert "--logprobs-mode processed_logprobs" in str(refused.value)


def test_the_server_s_own_words_reach_the_user(server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="refuses the request") as refused:
        engine_of(server, tmp_path).generate([[1] * 64], PLAIN)
    assert "maximum context length is 64" in str(refused.value)
    with pytest.raises(ConfigError, match="serves another model") as refused:
        engine_of(server, tmp_path, served_name="other").generate(PROMPTS, PLAIN)
    assert "correct `served_name`" in str(refused.value)
    # Of a model that was taken away meanwhile vLLM says 404, as of an endpoint that it does not have.
    engine = engine_of(server, tmp_path)
    engine.generate(PROMPTS, PLAIN)
    server.name = "another"
    with pytest.raises(ConfigError, match="serves another model") as refused:
        engine.generate(PROMPTS, PLAIN)
    assert "does not exist" in str(refused.value)


def test_a_completion_ends_at_the_model_s_last_position(server: FakeServer, tmp_path: Path) -> None:
    sampling = replace(PLAIN, stop_ids=frozenset())
    ((completion,),) = engine_of(server, tmp_path).generate([[1] * 60], sampling)
    assert (len(completion.ids), completion.finish) == (4, FinishReason.LENGTH)


# ---------------------------------------------------------------- connections


def test_a_server_that_is_not_there_yet_is_waited_for(folder: Path, tmp_path: Path) -> None:
    with FakeServer(folder) as first:
        port = first.port
    late = FakeServer(folder, port=port)
    timer = threading.Timer(0.3, late.__enter__)
    engine = ServedEngine(f"http://127.0.0.1:{port}/v1/", folder=tmp_path, patience=10.0)
    timer.start()
    try:
        assert len(engine.generate(PROMPTS, PLAIN)) == 3
    finally:
        timer.join()
        late.stop()


def test_nobody_there_is_an_error_with_url_and_remedy(tmp_path: Path, folder: Path) -> None:
    with FakeServer(folder) as gone:
        pass
    with pytest.raises(EngineError, match="cannot be reached") as failed:
        engine_of(gone, tmp_path).generate(PROMPTS, PLAIN)
    assert gone.url in str(failed.value)
    assert "vllm serve" in str(failed.value)


@pytest.mark.parametrize("fault", ["drop", "busy"])
def test_a_hiccup_is_tried_again(server: FakeServer, tmp_path: Path, fault: str) -> None:
    engine = engine_of(server, tmp_path, patience=5.0)
    expected = engine.generate(PROMPTS, PLAIN)
    setattr(server, fault, 2)
    assert engine.generate(PROMPTS, PLAIN) == expected


def test_a_server_that_dies_in_the_middle_is_an_error(folder: Path, tmp_path: Path) -> None:
    with FakeServer(folder) as server:
        engine = engine_of(server, tmp_path)
        engine.generate(PROMPTS, PLAIN)
        server.dies_after = 1
        began = time.monotonic()
        with pytest.raises(EngineError, match="cannot be reached"):
            engine.generate(PROMPTS, PLAIN)
        assert time.monotonic() - began < 5


def test_an_error_of_the_engine_is_not_repeated(server: FakeServer, tmp_path: Path) -> None:
    engine = engine_of(server, tmp_path, patience=30.0)
    engine.generate(PROMPTS[:1], PLAIN)
    server.engine.asleep = {"weights"}
    before = len(server.requests)
    with pytest.raises(EngineError, match="the engine failed") as failed:
        engine.generate(PROMPTS[:1], PLAIN)
    assert "asleep" in str(failed.value)
    assert len(server.requests) == before + 1


# ---------------------------------------------------------------- answers that make no sense


def _choice(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def mangle(answer: dict[str, Any]) -> dict[str, Any]:
        change(answer["choices"][0])
        return answer

    return mangle


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no JSON": lambda answer: "<html>It works!</html>",
    "no object": lambda answer: [1, 2],
    "no choices": lambda answer: {"object": "text_completion"},
    "a choice too few": lambda answer: {"choices": answer["choices"][1:]},
    "numbers that are missing": _choice(lambda choice: choice.pop("index")),
    "no ids": _choice(lambda choice: choice.pop("token_ids")),
    "another prompt": _choice(lambda choice: choice.update(prompt_token_ids=[0, *choice["prompt_token_ids"]])),
    "no log-probs": _choice(lambda choice: choice.update(logprobs=None)),
    "a log-prob too few": _choice(lambda choice: choice["logprobs"]["token_logprobs"].pop()),
    "a log-prob that is null": _choice(lambda choice: choice["logprobs"].update(token_logprobs=[None] * 6)),
    "a log-prob above 0": _choice(lambda choice: choice["logprobs"].update(token_logprobs=[0.5] * 6)),
    "a log-prob of minus infinity": _choice(lambda choice: choice["logprobs"].update(token_logprobs=[-9999.0] * 6)),
    "an id that is text": _choice(lambda choice: choice.update(token_ids=["hello"] * 6)),
    "an unknown reason": _choice(lambda choice: choice.update(finish_reason="error")),
    "a stop at no stop token": _choice(lambda choice: choice.update(finish_reason="stop")),
    "a stop at another's string": _choice(lambda choice: choice.update(finish_reason="stop", stop_reason="Q:")),
    "tokens after the stop token": _choice(lambda choice: choice.update(token_ids=[90, 3, 90, 90, 90, 90])),
    "too many tokens": _choice(
        lambda choice: choice.update(token_ids=[90] * 7, logprobs={"token_logprobs": [-1.0] * 7})
    ),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_answer_is_named(server: FakeServer, tmp_path: Path, fault: str) -> None:
    engine = engine_of(server, tmp_path)
    # A stop token that is never drawn: six tokens, cut by the limit.
    sampling = replace(PLAIN, stop_ids=frozenset({3}), top_k=1)
    (group,) = engine.generate([[5, 6, 7]], sampling, completions_per_prompt=2)
    assert [len(completion.ids) for completion in group] == [6, 6]
    server.mangle = MALFORMED[fault]
    with pytest.raises(EngineError) as failed:
        engine.generate([[5, 6, 7]], sampling, completions_per_prompt=2)
    assert server.url in str(failed.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_logprobs": None}, "fewer than 2 alternatives"),
        ({"top_logprobs": [{"token_id:9": -1.0}] * 6}, "fewer than 2 alternatives"),
        ({"top_logprobs": [{"a": -1.0, "b": -2.0}] * 6}, "not named by their ids"),
    ],
    ids=["none", "too few", "by their texts"],
)
def test_alternatives_that_make_no_sense_are_named(
    server: FakeServer, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    engine = engine_of(server, tmp_path)
    request = Request([5, 6, 7], SamplingDistribution(max_new_tokens=6), alternatives=2)
    assert len(asyncio.run(engine.generate_one(request)).alternatives) == 6
    server.mangle = _choice(lambda choice: choice["logprobs"].update(change))
    with pytest.raises(EngineError, match=words) as failed:
        asyncio.run(engine.generate_one(request))
    assert server.url in str(failed.value)


def test_scores_that_make_no_sense_are_named(server: FakeServer, tmp_path: Path) -> None:
    engine = engine_of(server, tmp_path)
    engine.score([1, 2], [3, 4])
    server.mangle = _choice(lambda choice: choice["prompt_logprobs"].pop())
    with pytest.raises(EngineError, match="each prompt token"):
        engine.score([1, 2], [3, 4])
    server.mangle = _choice(lambda choice: choice.update(prompt_logprobs=[None, {"9": {}}, {"9": {}}, {"9": {}}]))
    with pytest.raises(EngineError, match="own tokens"):
        engine.score([1, 2], [3, 4])


# ---------------------------------------------------------------- abort, sleep, weights


def test_aborted_completions_come_back_as_far_as_they_came(server: FakeServer, tmp_path: Path) -> None:
    engine = engine_of(server, tmp_path, requests=1)
    engine.generate(PROMPTS, PLAIN)
    sampled = server.engine._draw

    def draw_and_abort(*given: Any) -> tuple[int, float]:
        engine._aborted.set()
        server.engine.abort.set()  # what /pause?mode=abort does to requests in flight
        return sampled(*given)

    server.engine._draw = draw_and_abort  # type: ignore[method-assign]
    groups = engine.generate(PROMPTS, replace(PLAIN, stop_ids=frozenset()))
    assert [completion.finish for (completion,) in groups] == [FinishReason.ABORTED] * 3
    assert [len(completion.ids) for (completion,) in groups] == [1, 0, 0]
    assert all(len(completion.ids) == len(completion.logprobs) for (completion,) in groups)


@pytest.mark.parametrize("older", [False, True])
def test_an_abort_ends_what_the_server_has_and_lets_it_go_on(server: FakeServer, tmp_path: Path, older: bool) -> None:
    server.labels = not older
    engine = engine_of(server, tmp_path)
    engine.generate(PROMPTS, PLAIN)
    engine.abort()
    paths = [path for path, _ in server.requests]
    assert paths[-2:] == ["/pause", "/resume"] if older else paths[-1] == "/abort_requests"
    assert all(completion.finish is not FinishReason.ABORTED for (completion,) in engine.generate(PROMPTS, PLAIN))


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_and_wake(server: FakeServer, tmp_path: Path, level: int) -> None:
    model = tiny_model(max_position_embeddings=64)
    engine = engine_of(server, tmp_path)
    expected = [[c.ids for c in group] for group in engine.generate(PROMPTS, PLAIN)]
    engine.sleep(level)
    with pytest.raises(EngineError, match=f"sleeps .level {level}."):
        engine.generate(PROMPTS, PLAIN)
    if level == 2:
        with pytest.raises(ConfigError, match="dropped its weights"):
            engine.wake()
        engine.update_weights(model, 1)
    else:
        engine.wake()
    assert [[c.ids for c in group] for group in engine.generate(PROMPTS, PLAIN)] == expected


def test_weights_are_written_beside_and_the_last_ones_removed(server: FakeServer, tmp_path: Path) -> None:
    engine, model = engine_of(server, tmp_path), tiny_model(max_position_embeddings=64)
    engine.update_weights(model, 1)
    engine.update_weights(model, 2)
    (root,) = tmp_path.iterdir()
    assert [path.name for path in root.iterdir()] == ["version-2"]
    steps = [path for path, _ in server.requests]
    second = steps[steps.index("/resume") + 1 :]
    assert second == ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
    engine.close()
    assert not list(tmp_path.iterdir())


def test_after_a_failed_update_nothing_is_sampled(server: FakeServer, tmp_path: Path) -> None:
    engine, model = engine_of(server, tmp_path), tiny_model(max_position_embeddings=64)
    engine.update_weights(model, 1)

    def fail(weights_path: str) -> None:
        raise RuntimeError("CUDA out of memory")

    server.engine.reload_weights = fail  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="the engine failed") as failed:
        engine.update_weights(model, 2)
    assert "CUDA out of memory" in str(failed.value)
    with pytest.raises(EngineError, match="did not take the weights of policy version 2"):
        engine.generate(PROMPTS, PLAIN)
    del server.engine.reload_weights
    engine.update_weights(model, 3)
    assert engine.generate(PROMPTS, PLAIN)[0][0].versions == (3, 3)


def test_a_server_without_development_endpoints_is_named(server: FakeServer, tmp_path: Path) -> None:
    engine = engine_of(server, tmp_path)
    with pytest.raises(ConfigError, match="does not have this endpoint") as refused:
        engine.server.post("/no_such_endpoint")
    assert "VLLM_SERVER_DEV_MODE=1" in str(refused.value)


@pytest.mark.parametrize("labels", [True, False])
def test_a_restarted_server_is_not_sampled_from_unawares(folder: Path, tmp_path: Path, labels: bool) -> None:
    """It would answer at once, with the weights that it was started with."""
    model = tiny_model(max_position_embeddings=64, seed=1)
    with FakeServer(folder, labels=labels) as first:
        engine = ServedEngine(first.url, folder=tmp_path, patience=5.0)
        engine.update_weights(model, 1)
        expected = [[c.ids for c in group] for group in engine.generate(PROMPTS, PLAIN)]
        first.dies_after = 1
        first._thread.join(0)
        second: list[FakeServer] = []

        def restart() -> None:
            first._thread.join()
            second.append(FakeServer(folder, port=first.port, labels=labels).__enter__())

        restarter = threading.Thread(target=restart)
        restarter.start()
        try:
            with pytest.raises(EngineError, match="may hold other weights" if labels else "cannot be reached|no label"):
                engine.generate(PROMPTS, PLAIN)
            restarter.join()
            engine.update_weights(model, 2)
            assert [[c.ids for c in group] for group in engine.generate(PROMPTS, PLAIN)] == expected
        finally:
            restarter.join()
            second[0].stop()


def test_weights_that_somebody_else_pushed_are_noticed(server: FakeServer, tmp_path: Path) -> None:
    engine = engine_of(server, tmp_path)
    engine.update_weights(tiny_model(max_position_embeddings=64), 1)
    engine_of(server, tmp_path).update_weights(tiny_model(max_position_embeddings=64, seed=3), 1)
    with pytest.raises(EngineError, match="may hold other weights"):
        engine.generate(PROMPTS, PLAIN)


# ---------------------------------------------------------------- requests one by one


def held(server: FakeServer) -> tuple[threading.Event, threading.Event]:
    """(a completion was asked for, let it be answered)."""
    asked, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert go_on.wait(10)

    server.on_completion = wait
    return asked, go_on


@pytest.mark.parametrize("how", ["cancel", "abort"])
def test_a_request_that_is_given_up_closes_its_connection(server: FakeServer, how: str) -> None:
    """By which a server knows to stop sampling for it; it is neither asked again nor counted as a broken one."""
    engine = ServedEngine(server.url, patience=5.0)
    engine.generate(PROMPTS, PLAIN)
    lost, asked_before = engine.server.lost, len(server.bodies("/v1/completions"))
    asked, go_on = held(server)
    request = Request(PROMPTS[0], PLAIN)

    async def ask() -> Completion | None:
        task = asyncio.create_task(engine.generate_one(request))
        await asyncio.to_thread(asked.wait, 10)
        if how == "abort":
            engine.abort(request)
            return await task
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return None

    completion = asyncio.run(ask())
    go_on.set()
    server.on_completion = None
    if completion is not None:
        assert (completion.ids, completion.finish) == ((), FinishReason.ABORTED)
    deadline = time.monotonic() + 10
    while server.hung_up < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.hung_up == 1
    assert engine.in_flight == 0 and engine.server.lost == lost
    assert len(server.bodies("/v1/completions")) == asked_before + 1


def test_as_many_requests_are_in_flight_as_were_allowed(server: FakeServer) -> None:
    engine = ServedEngine(server.url, patience=5.0, requests=2)
    engine.generate(PROMPTS, PLAIN)
    asked_before = len(server.bodies("/v1/completions"))
    asked, go_on = held(server)

    async def ask() -> list[Completion]:
        requests = [engine.generate_one(Request(prompt, PLAIN)) for prompt in [*PROMPTS, *PROMPTS]]
        tasks = [asyncio.create_task(request) for request in requests]
        await asyncio.to_thread(asked.wait, 10)
        await asyncio.sleep(0.1)
        assert len(server.bodies("/v1/completions")) == asked_before + 2
        go_on.set()
        return await asyncio.gather(*tasks)

    answers = asyncio.run(ask())
    expected = [group[0].ids for group in engine.generate(PROMPTS, PLAIN)]
    assert [answer.ids for answer in answers] == expected * 2
    engine.close()


def test_one_bad_answer_is_the_error_of_its_request_alone(server: FakeServer) -> None:
    engine = ServedEngine(server.url, patience=5.0)
    expected = [group[0].ids for group in engine.generate(PROMPTS, PLAIN)]
    mangled: list[int] = []

    def spoil_the_first(answer: dict[str, Any]) -> dict[str, Any]:
        if answer["choices"][0]["prompt_token_ids"] == list(PROMPTS[0]):
            mangled.append(1)
            answer["choices"][0]["token_ids"] = None
        return answer

    server.mangle = spoil_the_first

    async def ask() -> list[Completion | BaseException]:
        requests = [engine.generate_one(Request(prompt, PLAIN)) for prompt in PROMPTS]
        return await asyncio.gather(*requests, return_exceptions=True)

    bad, *answers = asyncio.run(ask())
    server.mangle = None
    assert mangled == [1] and isinstance(bad, EngineError)
    assert [answer.ids for answer in answers] == expected[1:]  # type: ignore[union-attr]


def test_a_request_waits_for_weights_that_are_being_pushed(server: FakeServer, model: Any, tmp_path: Path) -> None:
    """It is neither refused nor answered by half a model, and the label that is on its way is no other's."""
    engine = ServedEngine(server.url, folder=tmp_path / "weights", patience=5.0)
    engine.update_weights(model, 1)
    engine.generate(PROMPTS, PLAIN)
    begun, go_on = threading.Event(), threading.Event()
    reload_weights = server.engine.reload_weights

    def slow(weights_path: str) -> None:
        begun.set()
        assert go_on.wait(10)
        reload_weights(weights_path)

    server.engine.reload_weights = slow  # type: ignore[method-assign]

    async def ask() -> Completion:
        pushing = asyncio.create_task(asyncio.to_thread(engine.update_weights, model, 2))
        await asyncio.to_thread(begun.wait, 10)
        task = asyncio.create_task(engine.generate_one(Request(PROMPTS[0], PLAIN)))
        await asyncio.sleep(0.1)
        assert not task.done()
        go_on.set()
        await pushing
        return await task

    assert asyncio.run(ask()).versions == Versions(2, 2)


def test_a_completion_names_the_versions_between_which_it_was_sampled(
    server: FakeServer, model: Any, tmp_path: Path
) -> None:
    engine = ServedEngine(server.url, folder=tmp_path / "weights", patience=5.0)
    engine.update_weights(model, 1)
    engine.generate(PROMPTS, PLAIN)
    asked, go_on = held(server)

    async def ask() -> Completion:
        task = asyncio.create_task(engine.generate_one(Request(PROMPTS[0], PLAIN)))
        await asyncio.to_thread(asked.wait, 10)
        await asyncio.to_thread(engine.update_weights, model, 2)
        go_on.set()
        return await task

    assert asyncio.run(ask()).versions == Versions(oldest=1, newest=2)


# ---------------------------------------------------------------- redirects


def test_a_redirect_is_followed_under_the_same_call() -> None:
    """`urllib` makes a plain request of a redirect, which knew no call: an AttributeError came up from inside."""

    class Moved(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.send_response(307)
                self.send_header("Location", "/behind/v1/models")
                self.end_headers()
                return
            body = b'{"data": [{"id": "model"}]}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Moved) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            answer = VLLMServer(f"http://127.0.0.1:{server.server_port}", patience=0.0).get("/v1/models")
        finally:
            server.shutdown()
    assert answer == {"data": [{"id": "model"}]}
