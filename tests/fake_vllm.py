"""Stands in for vLLM: a server that speaks its HTTP interface, and a module `vllm`, with a tiny model behind them.

    with FakeServer(folder) as server:
        engine = ServedEngine(server.url)

Sampling is written anew here, in the plainest way (a full forward for each token) and in vLLM's order (penalties,
temperature, min-p, top-k, top-p), so that it checks the engine and the record rather than repeats them. What
a request leaves out comes from the model folder's generation_config.json, as in a server that was started plainly.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def letters(ids: Sequence[int]) -> str:
    """The text of ids, as this vLLM's tokenizer has it: a character for each, from "!" on."""
    return "".join(chr(33 + number) for number in ids)


@dataclass
class Output:
    """One completion."""

    index: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None
    stop_reason: int | str | None = None
    likeliest: list[dict[int, float]] = field(default_factory=list)
    """As many as were asked for, and the sampled one."""


class FakeEngine:
    """The model, its prefix cache, and what RL asks of an engine."""

    def __init__(self, folder: Path, *, logprobs_mode: str = "processed_logprobs", generation_config: str = "auto"):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.mode = logprobs_mode
        self.defaults = dict(NEUTRAL)
        path = folder / "generation_config.json"
        if generation_config == "auto" and path.exists():
            told = json.loads(path.read_text())
            self.defaults |= {name: told[name] for name in NEUTRAL if told.get(name) is not None}
        self.prefixes: dict[tuple[Any, ...], torch.Tensor] = {}
        """First logits after each prompt and salt, as computed when it was first seen."""
        self.asleep: set[str] = set()
        self.label = "default"
        self.abort = threading.Event()
        self.noop_sync = False
        """The planted fault: weights are acknowledged and not loaded."""
        self.packs_tied_head = False
        """As vLLM 0.32 on a CPU does: of a tied pair, the projection's packed copy stays when weights are reloaded."""

    # ------------------------------------------------------------ sampling

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([list(ids)])).logits[0].float()

    def sample(self, prompt: Sequence[int], given: Mapping[str, Any]) -> list[Output]:
        asked, longest = self.accepted(prompt, given)
        return [list(self.steps(prompt, asked, index, longest))[-1] for index in range(asked["n"])]

    def accepted(self, prompt: Sequence[int], given: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """What is asked for with the folder's defaults, and the model's positions."""
        if self.asleep:
            raise RuntimeError("the engine is asleep")
        asked = {**self.defaults, **{name: value for name, value in given.items() if value is not None}}
        if asked["temperature"] == 0 and asked["n"] > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {asked['n']}.")
        if asked["min_p"] < 0 or not 0 < asked["top_p"] <= 1:
            raise ValueError("out of range")
        longest = self.model.config.max_position_embeddings
        if len(prompt) >= longest:
            raise ValueError(f"This model's maximum context length is {longest} tokens.")
        return asked, longest

    def steps(self, prompt: Sequence[int], asked: Mapping[str, Any], index: int, longest: int) -> Iterator[Output]:
        """A completion as it grows: one token more each time; the last has its `finish`."""
        output = Output(index)
        generator = torch.Generator().manual_seed((asked["seed"] or 0) + index)
        for _ in range(asked["max_tokens"]):
            if self.abort.is_set():
                output.finish = "abort"
                break
            logits = self._next(prompt, output.ids, asked.get("cache_salt"))
            chosen, told = self._draw(logits, prompt, output.ids, asked, generator)
            output.ids.append(chosen)
            output.logprobs.append(max(float(told[chosen]), -9999.0))
            top = [*told.topk(asked.get("logprobs") or 0).indices.tolist(), chosen]
            output.likeliest.append({number: float(told[number]) for number in top})
            if chosen in asked["stop_token_ids"]:
                output.finish, output.stop_reason = "stop", chosen
                break
            strings = [string for string in asked.get("stop") or [] if string in letters(output.ids)]
            if strings and asked.get("detokenize", True):
                output.finish, output.stop_reason = "stop", strings[0]
                break
            if len(prompt) + len(output.ids) >= longest:
                break
            if len(output.ids) < asked["max_tokens"]:
                yield output
        output.finish = output.finish or "length"
        yield output

    def _next(self, prompt: Sequence[int], answer: Sequence[int], salt: str | None) -> torch.Tensor:
        if answer:
            return self.logits([*prompt, *answer])[-1]
        return self.prefixes.setdefault((salt, *prompt), self.logits(prompt)[-1]).clone()

    def _draw(
        self,
        logits: torch.Tensor,
        prompt: Sequence[int],
        answer: list[int],
        asked: Mapping[str, Any],
        generator: torch.Generator,
    ) -> tuple[int, torch.Tensor]:
        raw = torch.log_softmax(logits, dim=-1)
        for number in {*prompt, *answer}:
            scale = asked["repetition_penalty"]
            logits[number] = logits[number] / scale if logits[number] > 0 else logits[number] * scale
        for number in set(answer):
            logits[number] -= asked["presence_penalty"] + asked["frequency_penalty"] * answer.count(number)
        if asked["temperature"] == 0:
            chosen = int(logits.argmax())
            processed = torch.log_softmax(logits, dim=-1)
        else:
            probs = torch.softmax(logits / asked["temperature"], dim=-1)
            probs = torch.where(probs < asked["min_p"] * probs.max(), 0.0, probs)
            order = probs.argsort(descending=True)
            if asked["top_k"] > 0:
                probs[order[asked["top_k"] :]] = 0.0
            probs = probs / probs.sum()
            before = probs[order].cumsum(0) - probs[order]
            probs[order[before >= asked["top_p"]]] = 0.0
            processed = (probs / probs.sum()).log()
            chosen = int(torch.multinomial(probs, 1, generator=generator))
        told = processed if self.mode == "processed_logprobs" else raw
        return chosen, told

    def prompt_logprobs(self, prompt: Sequence[int]) -> list[float | None]:
        logprobs = torch.log_softmax(self.logits(prompt)[:-1], dim=-1)
        return [None, *logprobs[range(len(prompt) - 1), list(prompt[1:])].tolist()]

    # ------------------------------------------------------------ weights

    def reload_weights(self, weights_path: str) -> None:
        if self.noop_sync:
            return
        fresh = AutoModelForCausalLM.from_pretrained(weights_path, dtype=torch.float32)
        head = self.model.get_output_embeddings()
        if self.packs_tied_head and self.model.config.tie_word_embeddings:
            packed = head.weight.detach().clone()
            head.weight = torch.nn.Parameter(packed)
            self.model.load_state_dict({**fresh.state_dict(), "lm_head.weight": packed.clone()})
            return
        self.model.load_state_dict(fresh.state_dict())

    def sleep(self, level: int) -> None:
        self.asleep = {"weights", "kv_cache"}
        if level == 2:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.zero_()

    def wake_up(self, tags: Sequence[str] | None = None) -> None:
        self.asleep -= set(tags or self.asleep)
        self.prefixes.clear()


# ---------------------------------------------------------------- over HTTP


class FakeServer:
    """vLLM's HTTP interface on a free port, with faults to plant."""

    def __init__(self, folder: Path, *, port: int = 0, labels: bool = True, name: str = "tiny", **options: Any):
        self.name = name
        self.engine = FakeEngine(folder, **options)
        self.folder = folder
        self.labels = labels
        """Whether it has /weight_info and /abort_requests, which older servers lack."""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._queries: list[tuple[str, dict[str, list[str]]]] = []
        self.mangle: Callable[[dict[str, Any]], Any] | None = None
        """Applied to each answer of /v1/completions before it is sent; text is sent as it is."""
        self.drop = 0
        """How many more connections are closed without an answer."""
        self.busy = 0
        """How many more requests are answered with 503."""
        self.dies_after: int | None = None
        """Requests of /v1/completions that are still answered; the next kills the server."""
        self.on_completion: Callable[[], None] | None = None
        self.keeps_cache = False
        """Whether a request holds a part of the cache, so that it is not emptied; vLLM answers 200 all the same."""
        self.hung_up = 0
        """Requests of /v1/completions whose client had closed the connection before its answer was there."""
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake._handle(self, {})

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                fake._handle(self, json.loads(self.rfile.read(length) or b"{}"))

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                pass

        self._http = Server(("127.0.0.1", port), Handler)
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, body in self.requests if asked == path]

    def queries(self, path: str) -> list[dict[str, list[str]]]:
        return [query for asked, query in self._queries if asked == path]

    # ------------------------------------------------------------ one request

    def _handle(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        url = urlsplit(handler.path)
        with self._lock:
            self.requests.append((url.path, body))
            self._queries.append((url.path, parse_qs(url.query)))
            if self._hangs_up(url.path):
                handler.close_connection = True
                handler.connection.shutdown(socket.SHUT_RDWR)
                return
            if self.busy:
                self.busy -= 1
                self._reply(handler, 503, {"error": {"message": "loading"}})
                return
        try:
            code, answer = self._answer(url.path, parse_qs(url.query), body)
        except ValueError as error:
            code, answer = 400, {"error": {"message": str(error)}}
        except RuntimeError as error:
            code, answer = 500, {"error": {"message": str(error)}}
        if url.path == "/v1/completions" and self.mangle is not None and code == 200:
            answer = self.mangle(answer)
        if url.path == "/v1/completions" and select.select([handler.connection], [], [], 0)[0]:
            with self._lock:
                self.hung_up += handler.connection.recv(1, socket.MSG_PEEK) == b""
        self._reply(handler, code, answer)

    def _hangs_up(self, path: str) -> bool:
        if self.drop:
            self.drop -= 1
            return True
        if path == "/v1/completions" and self.dies_after is not None:
            self.dies_after -= 1
            if self.dies_after < 0:
                threading.Thread(target=self._die, daemon=True).start()
                return True
        return False

    def _die(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    @staticmethod
    def _reply(handler: BaseHTTPRequestHandler, code: int, answer: Any) -> None:
        content = answer.encode() if isinstance(answer, str) else b"" if answer is None else json.dumps(answer).encode()
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _answer(self, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> tuple[int, Any]:
        engine = self.engine
        if path == "/v1/models":
            return 200, {"data": [{"id": self.name, "max_model_len": engine.model.config.max_position_embeddings}]}
        if path == "/health":
            return 200, None
        if path == "/abort_requests" and self.labels:
            engine.abort.set()
            with self._lock:  # what is in flight has ended
                engine.abort.clear()
            return 200, {"status": "aborted"}
        if path == "/v1/completions":
            if self.on_completion is not None:
                self.on_completion()
            with self._lock:
                return self._complete(body)
        if path == "/tokenize":  # a chat's prompt as vLLM builds it: by the folder's template and nothing else
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
            values = body.get("chat_template_kwargs") or {}
            ids = tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, tokenize=True, return_dict=False, **values
            )
            return 200, {"tokens": ids, "count": len(ids)}
        if path == "/weight_info" and self.labels:
            return 200, {"weight_version": engine.label}
        if path == "/update_weight_version" and self.labels:
            engine.label = body["new_version"]
            return 200, {"success": True}
        if path == "/collective_rpc":
            getattr(engine, body["method"])(**body["kwargs"])
            return 200, {"results": [None]}
        if path in ("/pause", "/resume"):
            (engine.abort.set if query.get("mode") == ["abort"] else engine.abort.clear)()
            return 200, {"status": path}
        if path == "/reset_prefix_cache":
            if not self.keeps_cache:
                engine.prefixes.clear()
            return 200, {"success": not self.keeps_cache}
        if path == "/sleep":
            engine.sleep(int(query["level"][0]))
            return 200, None
        if path == "/wake_up":
            engine.wake_up(query.get("tags"))
            return 200, None
        return 404, {"detail": "Not Found"}

    def _complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["model"] != self.name:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        prompt = body["prompt"]
        if len(body["stop"]) > 4:
            raise ValueError("List should have at most 4 items after validation")
        told, named = None, body.get("return_tokens_as_token_ids")
        if body.get("prompt_logprobs") is not None:
            values = self.engine.prompt_logprobs(prompt)
            told = [None if v is None else {str(i): {"logprob": v}} for i, v in zip(prompt, values, strict=True)]
        choices = [
            {
                "index": output.index,
                "text": "text that nobody reads",
                "token_ids": output.ids,
                "prompt_token_ids": prompt,
                "prompt_logprobs": told,
                "logprobs": {
                    "token_logprobs": output.logprobs,
                    "top_logprobs": [
                        {f"token_id:{number}" if named else letters([number]): value for number, value in place.items()}
                        for place in output.likeliest
                    ],
                },
                "finish_reason": output.finish,
                "stop_reason": output.stop_reason,
            }
            for output in self.engine.sample(prompt, body)
        ]
        return 200, {"object": "text_completion", "model": self.name, "choices": choices}


# ---------------------------------------------------------------- as a module


def as_output(output: Output) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        index=output.index,
        token_ids=tuple(output.ids),
        logprobs=[
            {other: types.SimpleNamespace(logprob=told) for other, told in place.items()}
            | {number: types.SimpleNamespace(logprob=value)}
            for number, value, place in zip(output.ids, output.logprobs, output.likeliest, strict=True)
        ],
        finish_reason=output.finish,
        stop_reason=output.stop_reason,
    )


class LLMEngine:
    """`vllm.LLMEngine`: requests that are stepped together, each of which may join and leave at any step."""

    def __init__(self, engine: FakeEngine):
        self.engine = engine
        self.running: dict[str, tuple[list[int], Iterator[Output]]] = {}

    def add_request(self, request_id: str, prompt: dict[str, Any], params: Any) -> None:
        ids = prompt["prompt_token_ids"]
        asked, longest = self.engine.accepted(ids, vars(params))
        self.running[request_id] = (ids, self.engine.steps(ids, asked, 0, longest))

    def abort_request(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.running.pop(request_id, None)

    def step(self) -> list[Any]:
        outputs = []
        for request_id, (ids, steps) in list(self.running.items()):
            output = next(steps)
            if output.finish is not None:
                del self.running[request_id]
            outputs.append(
                types.SimpleNamespace(
                    request_id=request_id,
                    prompt_token_ids=ids,
                    outputs=[as_output(output)],
                    finished=output.finish is not None,
                )
            )
        return outputs


def fake_module() -> types.ModuleType:
    """A module `vllm` with `LLM` and `SamplingParams`, for `sys.modules`."""

    class LLM:
        def __init__(self, model: str, **options: Any):
            self.options = options
            self.engine = FakeEngine(
                Path(model), logprobs_mode=options["logprobs_mode"], generation_config=options["generation_config"]
            )

            self.llm_engine = LLMEngine(self.engine)

        def generate(self, prompts: list[dict[str, Any]], parameters: list[Any], use_tqdm: bool) -> list[Any]:
            return [self._one(row["prompt_token_ids"], vars(p)) for row, p in zip(prompts, parameters, strict=True)]

        def _one(self, prompt: list[int], asked: dict[str, Any]) -> Any:
            outputs = [as_output(output) for output in self.engine.sample(prompt, asked)]
            told = None
            if asked.get("prompt_logprobs") is not None:
                values = self.engine.prompt_logprobs(prompt)
                told = [
                    None if v is None else {i: types.SimpleNamespace(logprob=v)}
                    for i, v in zip(prompt, values, strict=True)
                ]
            return types.SimpleNamespace(prompt_token_ids=prompt, outputs=outputs, prompt_logprobs=told)

        def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
            getattr(self.engine, method)(**kwargs)

        def sleep(self, level: int) -> None:
            self.engine.sleep(level)

        def wake_up(self, tags: list[str] | None = None) -> None:
            self.engine.wake_up(tags)

        def reset_prefix_cache(self) -> None:
            self.engine.prefixes.clear()

    class SamplingParams(types.SimpleNamespace):
        pass

    module = types.ModuleType("vllm")
    module.LLM = LLM  # type: ignore[attr-defined]
    module.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    return module
