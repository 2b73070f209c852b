"""A fake server that speaks the OpenAI interface of chat completions, for tests of teachers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Answer = Callable[[Body], tuple[int, Any] | str]
"""(request) -> (status, the reply as JSON), or a text for an answer that ended."""


def asked(body: Body) -> str:
    """The last turn's text."""
    return str(body["messages"][-1]["content"])


def reply_with(
    text: str | None, *, finish: str = "stop", prompt: int = 10, completion: int = 5, **message: Any
) -> Body:
    """What a server sends for an answer."""
    return {
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
    }


class TeacherServer:
    """Answers POSTs with what `answer` says; `seen` is every request, with its headers."""

    def __init__(self, answer: Answer = lambda body: f"answer to {asked(body)}"):
        self.answer: Answer = answer
        self.headers: dict[str, str] = {}
        self.seen: list[tuple[dict[str, str], Body]] = []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.seen.append((dict(self.headers), body))
                answer = outer.answer(body)
                status, reply = (200, reply_with(answer)) if isinstance(answer, str) else answer
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write((reply if isinstance(reply, str) else json.dumps(reply)).encode())

            def log_message(self, format: str, *args: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            # A client that was killed tears its connection: no matter of the test.
            def handle_error(self, request: Any, client_address: Any) -> None:
                return

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def questions(self) -> list[str]:
        return [asked(body) for _, body in self.seen]

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def __enter__(self) -> TeacherServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
