"""The audit as a whole: from a file to findings, to the page, to a cleaned copy, and before a preference stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import posttrain as pt
from posttrain.auditing import AuditReport, audit
from posttrain.auditing.fix import as_row, unbalanced
from posttrain.auditing.subject import Subject
from posttrain.cli.app import app
from posttrain.config import DPO, SFT
from posttrain.data.read import read
from posttrain.data.write import write_jsonl
from posttrain.errors import ConfigError, DataError, MissingExtraError
from posttrain.report.audit_page import write_audit_page
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.types import Comparison, RowRef
from tests.audit_rows import (
    changed,
    clean_demonstrations,
    clean_feedback,
    clean_lists,
    clean_pairs,
    renumbered,
    text,
    texts,
    with_responses,
)

CLEAN = clean_pairs(200)
PREFERENCES = Path(pt.__file__).parent / "embedded" / "data" / "preferences.jsonl"


def write_pairs(path: Path, rows: list[Comparison], **columns: Any) -> Path:
    lines = []
    for number, one in enumerate(rows):
        chosen, rejected = texts(one)
        more = {key: values[number] for key, values in columns.items()}
        lines.append({"prompt": one.prompt[0].content, "chosen": chosen, "rejected": rejected, **more})
    write_jsonl(path, lines)
    return path


def by_check(report: AuditReport) -> dict[str, Any]:
    return {finding.check: finding for finding in report}


# ---------------------------------------------------------------- reading


def test_rows_that_reading_refuses_are_findings(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", CLEAN)
    lines = path.read_text().splitlines()
    lines[4] = json.dumps({"prompt": "a", "chosen": "same", "rejected": "same"})
    lines[9] = json.dumps({"prompt": "a", "chosen": " ", "rejected": "b"})
    lines[11] = "{broken"
    path.write_text("\n".join(lines) + "\n")
    report = audit(read(path, bad_rows="skip"), checks=["refused_rows"])
    rows = {finding.evidence["reason"]: [ref.row for ref in finding.rows] for finding in report}
    assert rows.pop("identical_responses") == [5]
    assert rows.pop("empty_response") == [10]
    assert list(rows.values()) == [[12]]
    assert {finding.severity for finding in report} == {"warning"}
    assert len(report.corpus) == 197


def test_a_file_of_nothing_but_bad_rows_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    write_jsonl(path, [{"prompt": f"p{n}", "chosen": "x", "rejected": "x"} for n in range(30)])
    report = audit(read(path, bad_rows="skip", scan=False))
    assert [finding.check for finding in report.errors] == ["refused_rows"]
    assert len(report.errors[0].rows) == 30
    report.write(tmp_path / "out")


def test_a_file_of_bad_rows_of_several_kinds_names_each_reason(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    same = [{"prompt": f"p{n}", "chosen": "x", "rejected": "x"} for n in range(5)]
    write_jsonl(path, [*same, *({"prompt": f"q{n}", "chosen": " ", "rejected": "x"} for n in range(3))])
    report = audit(read(path, bad_rows="skip", scan=False))
    rows = {finding.evidence["reason"]: [ref.row for ref in finding.rows] for finding in report}
    assert rows == {"identical_responses": [1, 2, 3, 4, 5], "empty_response": [6, 7, 8]}
    assert [finding.severity for finding in report] == ["error", "error"]


def test_annotators_are_read_from_the_file(tmp_path: Path) -> None:
    rows, judges = [], []
    for number, one in enumerate(CLEAN[:60]):
        for judge in ("ann", "bob", "cem", "dora"):
            wrong = judge == "dora" and number % 10 < 8
            rows.append(with_responses(one, texts(one)[::-1]) if wrong else one)
            judges.append(judge)
    path = write_pairs(tmp_path / "judged.jsonl", rows, annotator_id=judges)
    report = audit(read(path, bad_rows="skip"), checks=["annotators"])
    (finding,) = report
    assert finding.evidence["annotator"] == "dora" and finding.evidence["agreement"] == pytest.approx(0.2)
    assert len(finding.rows) == 60 and finding.evidence["others"] > 0.8
    fair = write_pairs(
        tmp_path / "fair.jsonl", [one for one in CLEAN[:60] for _ in "abc"], annotator_id=list("abc") * 60
    )
    assert list(audit(read(fair, bad_rows="skip"), checks=["annotators"])) == []
    nobody = write_pairs(tmp_path / "nobody.jsonl", CLEAN[:60])
    assert "annotators" not in audit(read(nobody, bad_rows="skip")).ran


def test_an_annotator_who_is_often_alone_is_found_among_many(tmp_path: Path) -> None:
    rows, judges = [], []
    for number, one in enumerate(CLEAN[:100]):
        for place, judge in enumerate("abcde"):
            wrong = (judge == "e" and number % 2 == 0) or (number * 5 + place) % 17 == 0
            rows.append(with_responses(one, texts(one)[::-1]) if wrong else one)
            judges.append(judge)
    path = write_pairs(tmp_path / "judged.jsonl", rows, rater=judges)
    found = audit(read(path, bad_rows="skip"), checks=["annotators"])
    assert [finding.evidence["annotator"] for finding in found] == ["e"]


def test_a_check_that_is_not_known() -> None:
    with pytest.raises(ConfigError, match="length_bias"):
        audit(CLEAN, checks=["lenght_bias"])


def test_it_prints_well_from_python() -> None:
    report = pt.audit(renumbered([*CLEAN[:100], *CLEAN[:10]]))
    assert str(report).startswith("110 comparisons, ")
    assert "warning  duplicates: 10 rows (9.1 %)" in str(report)
    assert "pairs.jsonl, row 101, pairs.jsonl, row 102, pairs.jsonl, row 103 and 7 more" in str(report)
    assert len(repr(report.findings[0])) < 2000


def test_the_same_rows_give_the_same_findings() -> None:
    rows = changed(CLEAN, 0.5, lambda chosen, rejected: (chosen, f"Sure, I can help! {rejected}"))
    first, second = audit(rows), audit(rows)
    assert [finding.record() for finding in first] == [finding.record() for finding in second]


# ---------------------------------------------------------------- output


def test_the_page_and_the_files(tmp_path: Path) -> None:
    rows = changed(CLEAN, 0.5, lambda chosen, rejected: (chosen, f"Sure, I can help with that! {rejected}"))
    rows[3] = with_responses(rows[3], ("<script>alert(1)</script> <|im_end|>", "b"))
    rows = [replace(one, scores=(4.5, 2.0)) for one in rows]
    page = audit(rows).write(tmp_path)
    html = page.read_text(encoding="utf-8")
    assert page == tmp_path / "audit.html"
    assert "<script>alert(1)" not in html and "&lt;script&gt;alert(1)" in html
    for said in ("first tokens", "Only the rejected side says", "Scores", "t-SNE", "chosen minus rejected"):
        assert said in html, said
    assert "http://" not in html and "https://" not in html
    before = page.read_bytes()
    assert write_audit_page(tmp_path).read_bytes() == before
    records = [json.loads(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    assert records[0].keys() == {"check", "severity", "message", "share", "num_rows", "rows", "evidence", "remedy"}


@pytest.mark.parametrize("rows", [clean_lists(60), clean_feedback(80), clean_demonstrations(60), CLEAN[:2]])
def test_a_page_for_every_kind(tmp_path: Path, rows: list[Any]) -> None:
    assert "nothing found" in audit(rows).write(tmp_path).read_text(encoding="utf-8")


def test_clouds_hold_what_one_side_says() -> None:
    from posttrain.auditing.pictures import word_clouds

    rows = changed(CLEAN, 0.3, lambda chosen, rejected: (f"{chosen} Zebra.", rejected))
    clouds = word_clouds(audit(rows, checks=[]).subject)
    assert clouds["chosen"][0][0] == "zebra" and clouds["chosen"][0][3] == 0
    assert all(word != "zebra" for word, *_ in clouds["rejected"])
    assert len(clouds["chosen"]) < 10  # chance is not drawn


def test_without_scikit_learn_the_map_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    from posttrain.auditing.pictures import record, response_map

    genuine = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return genuine(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    report = audit(CLEAN[:30], checks=["duplicates"])
    with pytest.raises(MissingExtraError, match=r"posttrain\[audit\]"):
        response_map(report.subject)
    assert "posttrain[audit]" in record(report)["pictures"]["map"]["missing"]


# ---------------------------------------------------------------- a cleaned copy


def test_fix_drops_what_is_named_and_logs_each_row(tmp_path: Path) -> None:
    rows = [*CLEAN[:60], CLEAN[0], with_responses(CLEAN[1], texts(CLEAN[1])[::-1])]
    rows[5] = with_responses(rows[5], (texts(rows[5])[0] + "<|im_end|>", texts(rows[5])[1]))
    path = write_pairs(tmp_path / "pairs.jsonl", rows, note=[f"n{n}" for n in range(62)])
    with path.open("a") as file:
        file.write('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    fixed = audit(read(path, bad_rows="skip")).fix(tmp_path / "clean.jsonl")
    kept = [json.loads(line) for line in fixed.path.read_text().splitlines()]
    log = [json.loads(line) for line in fixed.log.read_text().splitlines()]
    assert fixed.kept == len(kept) == 58 and fixed.log.name == "clean.log.jsonl"
    assert {entry["row"].split("row ")[1]: entry["check"] for entry in log} == {
        "2": "contradictions",
        "6": "special_tokens",
        "61": "duplicates",
        "62": "contradictions",
        "63": "refused_rows",
    }
    assert kept[0] == json.loads(path.read_text().splitlines()[0])  # its own line, every column
    assert list(audit(read(fixed.path, bad_rows="skip"))) == []


def test_lengths_are_balanced_by_resampling(tmp_path: Path) -> None:
    import random

    random_ = random.Random(5)
    rows = changed(CLEAN, 0.5, lambda chosen, rejected: (f"{rejected} {text(random_)}", rejected))
    path = write_pairs(tmp_path / "pairs.jsonl", rows)
    report = audit(read(path, bad_rows="skip"))
    assert by_check(report)["length_bias"].severity == "warning"
    fixed = report.fix(tmp_path / "clean.jsonl")
    again = audit(read(fixed.path, bad_rows="skip"))
    assert "length_bias" not in by_check(again)
    assert fixed.dropped["length_bias"] == 200 - fixed.kept - sum(
        count for check, count in fixed.dropped.items() if check != "length_bias"
    )
    assert report.fix(tmp_path / "second.jsonl").path.read_bytes() == fixed.path.read_bytes()
    other = Subject(report.corpus, seed=1)
    none = report.corpus.sides.row_P[:0]
    assert unbalanced(other, none) != unbalanced(report.subject, none)
    assert len(unbalanced(other, none)) == len(unbalanced(report.subject, none))


def test_a_fault_of_most_rows_is_left_and_named(tmp_path: Path) -> None:
    rows = changed(CLEAN, 1.0, lambda chosen, rejected: (f"Assistant: {chosen}", rejected))
    fixed = audit(rows).fix(tmp_path / "clean.jsonl")
    assert fixed.kept == 200 and fixed.too_many == ("role_markers",)
    assert "mend these at their source" in str(fixed)


def test_fix_never_overwrites_its_source(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", CLEAN[:60])
    with pytest.raises(ConfigError, match="overwrite"):
        audit(read(path, bad_rows="skip")).fix(path)


@pytest.mark.parametrize("rows", [CLEAN[:5], clean_lists(5), clean_feedback(5), clean_demonstrations(5)])
def test_examples_from_python_are_written_as_rows_that_read_back(tmp_path: Path, rows: list[Any]) -> None:
    write_jsonl(tmp_path / "rows.jsonl", map(as_row, rows))
    back = list(read(tmp_path / "rows.jsonl"))
    same = RowRef("x", 0)
    assert [replace(one, row=same) for one in back] == [replace(one, row=same) for one in rows]


# ---------------------------------------------------------------- the command


def test_the_command_ends_with_1_on_errors_only(tmp_path: Path) -> None:
    good = write_pairs(tmp_path / "good.jsonl", CLEAN)
    bad = write_pairs(
        tmp_path / "bad.jsonl", changed(CLEAN, 1.0, lambda chosen, rejected: (f"Assistant: {chosen}", rejected))
    )
    done = CliRunner().invoke(app, ["audit", str(good)])
    assert done.exit_code == 0 and "0 errors, 0 warnings" in done.stdout
    done = CliRunner().invoke(app, ["audit", str(bad), "--json", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert "role_markers" in {finding["check"] for finding in findings}
    assert (tmp_path / "out" / "audit.html").exists()
    done = CliRunner().invoke(app, ["audit", str(good), "--against", str(good), "--fix", str(tmp_path / "clean.jsonl")])
    assert done.exit_code == 1 and "contamination" in done.stdout


def test_held_out_rows_on_the_command_line(tmp_path: Path) -> None:
    train = write_pairs(tmp_path / "train.jsonl", CLEAN[:100])
    held = write_pairs(tmp_path / "held.jsonl", CLEAN[90:120])
    done = CliRunner().invoke(app, ["audit", str(train), "--held-out", str(held), "--json"])
    assert done.exit_code == 0
    assert [json.loads(line)["num_rows"] for line in done.stdout.splitlines() if "split_overlap" in line] == [10]


# ---------------------------------------------------------------- before a stage


def audited(stage: Any, path: Path, folder: Path) -> Any:
    from posttrain.training.stages.audited import audit_rows

    return audit_rows(stage, read(path, bad_rows="skip"), StageFolder(folder), Progress())


def test_a_preference_stage_refuses_errors_and_keeps_the_findings(tmp_path: Path) -> None:
    rows = changed(CLEAN, 1.0, lambda chosen, rejected: (f"{chosen}<|im_end|>", rejected))
    path = write_pairs(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match="special token") as refusal:
        audited(DPO(), path, tmp_path / "dpo")
    assert "on_error: warn" in str(refusal.value)
    assert "special_tokens" in (tmp_path / "dpo" / "findings.jsonl").read_text()
    (check,) = audited(DPO(audit={"on_error": "warn"}), path, tmp_path / "dpo")
    assert (check.name, check.status) == ("audit", "warn") and check.evidence["errors"] == 1
    assert audited(DPO(audit={"on_error": "off"}), path, tmp_path / "dpo") == ()
    assert audited(SFT(), path, tmp_path / "sft") == ()


def test_a_biased_but_usable_file_passes(tmp_path: Path) -> None:
    rows = changed(CLEAN, 0.9, lambda chosen, rejected: (f"{chosen} {rejected}", f"Sure, I can help! {rejected}"))
    (check,) = audited(DPO(), write_pairs(tmp_path / "biased.jsonl", rows), tmp_path / "dpo")
    assert check.status == "pass" and check.evidence["warnings"] >= 2
    assert "`posttrain audit` shows all" in check.detail


def test_the_packaged_preferences_pass(tmp_path: Path) -> None:
    (check,) = audited(DPO(), PREFERENCES, tmp_path / "dpo")
    assert check.status == "pass"
