"""Commands in other tools' words are answered with the command that does it here."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.cli.app import VERBS, app
from posttrain.cli.usage import ARGUMENTS, OTHER_VERBS

RECIPE = "schema: 1\nmodel: embedded\nstages:\n- {method: sft, data: a.jsonl}\n- {method: dpo, data: a.jsonl}\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "mine.yaml"], "write `posttrain run mine.yaml`"),
        (["sft"], "write `posttrain run RECIPE`"),
        (["dpo", "--model", "x"], "write `posttrain run RECIPE`"),
        (["infer", "embedded"], "write `posttrain generate embedded`"),
        (["evaluate"], "write `posttrain eval MODEL --retention`"),
        (["diff"], "write `posttrain compare A B --prompts FILE`"),
        (["fuse"], "write `posttrain merge ADAPTER OUT`"),
        (["mine.yaml", "seed=1"], "write `posttrain run mine.yaml seed=1`"),
        (["rnu"], "did you mean `posttrain run`?"),
        (["xyzzy"], "see `posttrain --help`"),
        (["--dpo.beta=1"], "write `posttrain run RECIPE dpo.beta=1`"),
        (["run", "mine.yaml", "--dpo.beta=1"], "write `dpo.beta=1`"),
        (["run", "mine.yaml", "--dpo.beta", "1"], "write `dpo.beta=1`"),
        (["run", "mine.yaml", "--epochs", "3"], "write `sft.epochs=3`"),
        (["check", "mine.yaml", "--beta", "0.3"], "write `dpo.beta=0.3`"),
        (["run", "mine.yaml", "--seed", "3"], "write `seed=3`"),
        (["run", "mine.yaml", "--save-steps", "3"], "write `sft.checkpoint.every_steps`"),
        (["run", "mine.yaml", "--deepspeed", "zero.json"], "write `sft.compute.mesh`"),
        (["run"], "write `posttrain run quickstart`, or `posttrain run mine.yaml`"),
        (["run", "a.jsonl"], "`posttrain new chat --data a.jsonl` writes a recipe for it"),
        (["compare", "embedded", "embedded"], "`posttrain compare --help` shows what it takes"),
        (["models", "lst"], "did you mean `posttrain models list`?"),
        (["models", "show"], "see `posttrain models --help`"),
        (["models", "pull"], "posttrain models pull: missing argument `NAME`"),
        (["models", "list", "--all"], "posttrain models list: there is no option `--all`"),
        (["generate", "embedded", "--temperature", "abc"], "see `posttrain generate --help`"),
        (["generate", "embedded", "--temprature", "1"], "there is no option `--temprature`"),
    ],
    ids=" ".join,
)
def test_what_to_write_is_said(command: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
    assert "remedy:" in result.output


def test_every_verb_that_is_proposed_exists_and_none_is_hidden_by_a_proposal() -> None:
    assert {*OTHER_VERBS} == {*ARGUMENTS} <= {*VERBS, "models"}


def test_no_verb_shows_the_help() -> None:
    assert "quickstart" in CliRunner().invoke(app, []).output
