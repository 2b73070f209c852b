"""Which skills of its parents a merge kept: worked by hand, and over the folders of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.evaluate.merging.kept import kept_skill, skills_of_run, write_skills
from posttrain.runs.files import write_json
from posttrain.runs.folder import RunFolder, StageFolder, answers_path
from posttrain.runs.records.evaluation import AnswerLine, Figure, SuiteScores


def rights(right: int, of: int = 20) -> list[float]:
    return [1.0] * right + [0.0] * (of - right)


def test_the_share_of_the_gain_that_is_kept() -> None:
    # 2 of 20 before, 18 of the parent, 10 of the merge: (10 - 2) / (18 - 2).
    found = kept_skill("both", "sums", "accuracy", ("start", rights(2)), {"maths": rights(18)}, rights(10))
    assert found.parent == "maths" and found.kept is not None and found.difference is not None
    assert found.kept.value == 0.5 and found.kept.low < 0.5 < found.kept.high  # type: ignore[operator]
    assert found.difference.value == pytest.approx(-0.4)
    assert found.said.startswith("both kept a part of what maths had gained on sums: 50 % [")
    assert found.said.endswith("of it (start 10 %, maths 90 %, both 50 %; 20 prompts)")


def test_kept_and_lost_are_said_only_by_the_whole_interval() -> None:
    start, parent = ("start", rights(0)), {"maths": rights(20)}
    assert " kept what maths" in kept_skill("both", "sums", "accuracy", start, parent, rights(20)).said
    assert " lost what maths" in kept_skill("both", "sums", "accuracy", start, parent, rights(0)).said
    assert "kept a part" in kept_skill("both", "sums", "accuracy", start, parent, rights(19)).said


def test_no_share_of_a_gain_that_may_be_none() -> None:
    found = kept_skill("both", "sums", "accuracy", ("start", rights(9)), {"maths": rights(10)}, rights(2))
    assert found.parent is None and found.kept is None
    assert "no parent gained clearly on sums; the merge fell from start" in found.said


def test_the_parent_that_gained_most_is_the_measure() -> None:
    parents = {"maths": rights(10), "code": rights(20)}
    found = kept_skill("both", "sums", "accuracy", ("start", rights(0)), parents, rights(10))
    assert found.parent == "code" and found.kept is not None and found.kept.value == 0.5


def asked(folder: Path, metric: str, scores: list[float], prompts: str = "abcdefghijklmnopqrst") -> None:
    StageFolder(folder).write(SuiteScores({"sums": {metric: Figure(0.0)}}))
    lines = [AnswerLine(p, "x", None, s, 1, "stop_token").to_json() for p, s in zip(prompts, scores, strict=True)]
    path = answers_path(folder, "sums")
    path.parent.mkdir(parents=True, exist_ok=True)
    import json

    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_over_the_folders_of_a_run(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("start", "maths", "both")}
    for name, right in (("start", 0), ("maths", 20), ("both", 10)):
        asked(folders[name], "accuracy", rights(right))
    (skill,) = skills_of_run(folders, {"both": ("start", ["maths", "maths"])})
    assert (
        skill.kept is not None and skill.kept.value == 0.5 and skill.before == Figure(0.0, 0.0, skill.before.high, 20)
    )  # type: ignore[union-attr]
    write_json(tmp_path / "run.json", {"schema": 2, "stages": []})
    write_skills(tmp_path, [skill])
    assert RunFolder(tmp_path).merged_skills() == (skill,)
    # A suite that was asked with other prompts says nothing; neither does one that was not asked.
    asked(folders["maths"], "accuracy", rights(20), "ABCDEFGHIJKLMNOPQRST")
    assert skills_of_run(folders, {"both": ("start", ["maths"])}) == []
    assert skills_of_run(folders, {"gone": ("start", ["maths"])}) == []


def test_where_fewer_is_better_the_share_is_of_what_went(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("start", "maths", "both")}
    for name, filler in (("start", 20), ("maths", 0), ("both", 5)):
        asked(folders[name], "unwanted_match", rights(filler))
    (skill,) = skills_of_run(folders, {"both": ("start", ["maths"])})
    assert skill.kept is not None and skill.kept.value == 0.75 and skill.merged is not None
    assert skill.merged.value == 0.75  # the share without it
