"""The command line from outside: it starts fast, it helps, and it ends with the right code and words."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from posttrain.cli import boundary
from posttrain.cli.app import VERBS, app
from posttrain.cli.boundary import again, guarded
from posttrain.errors import ConfigError

HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "pydantic")
HELP = """
import sys
from posttrain.cli import main
sys.argv = ["posttrain", "--help"]
try:
    main()
except SystemExit as stop:
    assert stop.code == 0
"""
LIMIT_SECONDS = 1.0


def fresh_process(code: str, tries: int = 3) -> tuple[float, str, set[str]]:
    """(best time of a few, output, heavy packages that were loaded) of a new interpreter."""
    script = f"{code}\nimport sys\nprint('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    best, output = float("inf"), ""
    for _ in range(tries):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        best, output = min(best, time.perf_counter() - started), done.stdout
        if best < LIMIT_SECONDS:
            break
    return best, output, set(output.split("LOADED")[-1].split())


@pytest.mark.parametrize("code", [HELP, "import posttrain"], ids=["help", "import"])
def test_starts_under_a_second_without_torch(code: str) -> None:
    seconds, _, loaded = fresh_process(code)
    assert loaded == set()
    assert seconds < LIMIT_SECONDS


def test_help_names_every_verb() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for verb in (*VERBS, "models"):
        assert verb in result.output


@pytest.mark.parametrize("verb", [*([name] for name in VERBS), ["models", "list"], ["models", "pull"]], ids=" ".join)
def test_every_verb_has_help(verb: list[str]) -> None:
    result = CliRunner().invoke(app, [*verb, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_a_wrong_option_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["run", "recipe.yaml", "--frehs"])
    assert result.exit_code == 2
    assert "--frehs" in result.stderr


def test_a_mistake_in_a_recipe_is_refused_before_torch_work(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: embedded\nstages:\n  - {method: sft, data: sft.jsonl, max_promt_length: 3}\n")
    result = CliRunner().invoke(app, ["run", str(recipe)])
    assert result.exit_code == 2
    assert "max_promt_length" in result.stderr
    assert "max_length" in result.stderr
    assert "line 3" in result.stderr
    assert result.stdout == ""


def test_a_missing_recipe_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "identity.yaml").write_text("")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "identiy.yaml")])
    assert result.exit_code == 2
    assert "identity.yaml" in result.stderr.replace("\n", "")


# ---------------------------------------------------------------- the boundary


def ends_with(error: BaseException) -> tuple[int, str]:
    def verb() -> None:
        raise error

    one = typer.Typer()
    one.command()(guarded(verb))
    result = CliRunner().invoke(one, [])
    return result.exit_code, result.stderr


def test_a_refusal_ends_with_2_and_its_words() -> None:
    code, words = ends_with(ConfigError("a problem", where="x.yaml, line 3", found="[b]", remedy="do this"))
    assert code == 2
    assert words == "x.yaml, line 3: a problem\n  found:    [b]\n  remedy:   do this\n"


def test_a_fault_ends_with_1_and_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, words = ends_with(ZeroDivisionError("by zero"))
    assert code == 1
    assert "unexpected ZeroDivisionError: by zero" in words
    (path,) = tmp_path.glob("posttrain-traceback-*.txt")
    assert str(path) in words.replace("\n", "")
    assert "raise error" in path.read_text()


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary.sys, "argv", ["/usr/bin/posttrain", "run", "my recipe.yaml", "--fresh"])
    code, words = ends_with(KeyboardInterrupt("a checkpoint is in runs/mine/dpo"))
    assert code == 130
    assert "a checkpoint is in runs/mine/dpo" in words
    assert "posttrain run 'my recipe.yaml'\n" in words


def test_going_on_never_begins_anew() -> None:
    assert again(["posttrain", "run", "r.yaml", "--fresh", "seed=3"]) == "posttrain run r.yaml seed=3"


@pytest.mark.parametrize("code", [0, 1])
def test_a_verb_may_end_with_its_own_code(code: int) -> None:
    assert ends_with(typer.Exit(code))[0] == code
