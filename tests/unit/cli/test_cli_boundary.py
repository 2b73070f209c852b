"""What the command line says when it is stopped."""

from __future__ import annotations

import pytest

from posttrain.cli.boundary import again


@pytest.mark.parametrize("key", [["--api-key", "secret"], ["--api-key=secret"]])
def test_the_command_to_go_on_with_shows_no_key(key):
    said = again(["/bin/posttrain", "serve", "embedded", *key, "--port", "8000"])
    assert "secret" not in said and "KEY" in said and said.endswith("--port 8000")


def test_the_command_to_go_on_with_does_not_start_anew():
    assert again(["posttrain", "run", "a b.yaml", "--fresh"]) == "posttrain run 'a b.yaml'"
