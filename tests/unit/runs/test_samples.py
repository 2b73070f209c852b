"""`posttrain samples` and what is behind it: which completions are shown, of which file, and what torn lines do."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import pytest
from typer.testing import CliRunner

import posttrain
from posttrain.cli.app import app
from posttrain.cli.sample_text import parse_steps, visible
from posttrain.errors import ConfigError, SourceError, UnknownKeyError
from posttrain.runs.records.sampled import ExaminationLine, RolloutLine
from posttrain.runs.sample_log import Sample, SampleLog
from posttrain.runs.samples import Choice, numbers_said, pick, samples, spread
from tests.fake_online import OnlinePlan, write_lines, write_online_run


def line(step: int = 1, reward: float | None = 0.0, **changes: object) -> dict[str, object]:
    number = changes.get("number", 0)
    return {
        "step": step,
        "version": step - 1,
        "row": f"tasks.jsonl, row {number}",
        "prompt": "2 + 2?",
        "answer": "4",
        "completion": "4",
        "number": 0,
        "finish": "stop_token",
        "reward": reward,
        "parts": {"math": reward},
        "ids": [5, 6],
        "mask": [True, True],
        "sampler_logprobs": [-1.0, -3.0],
        "advantages": [0.5, 1.5],
        **changes,
    }


def stage(tmp_path: Path, lines: list[dict[str, object]], name: str = "rollouts.jsonl") -> Path:
    folder = tmp_path / "run" / "grpo"
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / name, lines)  # type: ignore[arg-type]
    return folder


def sampled(content: dict[str, object]) -> Sample:
    return Sample.of_rollout(RolloutLine.from_json(content))


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["samples", *arguments])
    return result.exit_code, result.stdout, result.stderr


# ---------------------------------------------------------------- a line


def test_a_line_becomes_a_sample_with_means_over_its_tokens() -> None:
    one = sampled(line(step=3, reward=0.25, old_logprobs=[-1.0, -2.9], finish="length"))
    assert (one.step, one.version, one.reward, one.tokens, one.trained, one.truncated) == (3, 2, 0.25, 2, True, True)
    assert one.advantage == 1.0 and one.logprob == -2.0
    assert one.ratio is not None
    assert one.ratio.mean == pytest.approx((1 + math.exp(0.1)) / 2)  # trainer over sampler, token by token
    assert one.ratio.largest == pytest.approx(math.exp(0.1))


def test_the_furthest_ratio_may_be_below_one() -> None:
    one = sampled(line(old_logprobs=[-0.9, -5.0]))
    assert one.ratio is not None and one.ratio.largest == pytest.approx(math.exp(-2.0))


def test_without_the_trainers_log_probs_there_is_no_ratio() -> None:
    assert sampled(line()).ratio is None
    assert sampled(line(old_logprobs=[-1.0])).ratio is None


def test_values_of_another_type_count_as_missing() -> None:
    one = sampled({"step": 1, "reward": "high", "parts": [1], "ids": None, "mask": 3, "advantages": [None, True]})
    assert (one.reward, one.parts, one.tokens, one.trained, one.advantage) == (None, {}, None, None, None)


def test_a_held_out_answer_has_its_score_as_reward() -> None:
    one = Sample.of_examination(
        ExaminationLine.from_json(
            {"step": 0, "row": "tasks.jsonl, row 3", "score": 0.75, "completion": "x", "finish": "empty"}
        )
    )
    assert one.reward == 0.75 and one.prompt == "" and one.trained is None


# ---------------------------------------------------------------- a file


def test_steps_are_counted_in_their_order(tmp_path: Path) -> None:
    path = stage(tmp_path, [line(2), line(2), line(1), line(10)]) / "rollouts.jsonl"
    log = SampleLog(path)
    assert list(log.steps.items()) == [(1, 1), (2, 2), (10, 1)]
    assert [one.step for one in log.read()] == [1, 2, 2, 10]
    assert log.notes == []


def test_steps_may_lie_between_each_other(tmp_path: Path) -> None:
    path = stage(tmp_path, [line(1, 0.1), line(2, 0.2), line(1, 0.3)]) / "rollouts.jsonl"
    assert [one.reward for one in SampleLog(path).read([1])] == [0.1, 0.3]


def test_lines_of_other_writers_are_read_too(tmp_path: Path) -> None:
    folder = stage(tmp_path, [])
    (folder / "rollouts.jsonl").write_text('{"reward": 1, "step": 4}\n\n  { "step" : 5 }\n')
    assert SampleLog(folder / "rollouts.jsonl").steps == {4: 1, 5: 1}


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    path = stage(tmp_path, [line(1), line(2)]) / "rollouts.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 3, "version": 2, "completion": "it is \xc3')
    log = SampleLog(path)
    assert log.steps == {1: 1, 2: 1}
    assert len(log.notes) == 1 and "torn" in log.notes[0]


def test_a_whole_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path = stage(tmp_path, [line(1), line(2)]) / "rollouts.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert SampleLog(path).steps == {1: 1, 2: 1} and SampleLog(path).notes == []


def test_a_broken_line_in_the_middle_is_counted_once(tmp_path: Path) -> None:
    path = stage(tmp_path, [line(1)]) / "rollouts.jsonl"
    path.write_text(path.read_text() + '{"step": 1, "reward": \n' + "nonsense\n" + json.dumps(line(1, 1.0)) + "\n")
    log = SampleLog(path)
    assert [one.reward for one in log.read()] == [0.0, 1.0]
    assert [one.reward for one in log.read([1])] == [0.0, 1.0]
    assert log.notes == ["2 lines are no readable JSON and were dropped"]


def test_a_file_that_grows_while_it_is_read_shows_what_was_there(tmp_path: Path) -> None:
    path = stage(tmp_path, [line(1), line(2)]) / "rollouts.jsonl"
    log = SampleLog(path)
    path.write_text(path.read_text() + json.dumps(line(2, 9.0)) + "\n")
    assert [one.reward for one in log.read([2])] == [0.0]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    folder = stage(tmp_path, [])
    wide = line(completion="x" * 40_000)
    with (folder / "rollouts.jsonl").open("w") as file:
        for number in range(600):
            file.write(json.dumps(wide | {"step": 1 + number // 100, "number": number, "reward": number % 7}) + "\n")
    size = (folder / "rollouts.jsonl").stat().st_size
    tracemalloc.start()
    found = samples(folder, best=2, worst=2, random=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(step.shown) for step in found.steps] == [6] * 4
    assert size > 23_000_000 and peak < size / 5


# ---------------------------------------------------------------- which samples


def test_best_and_worst_are_those(tmp_path: Path) -> None:
    rewards = [0.3, 0.9, None, -1.0, 0.5, 0.9]
    folder = stage(tmp_path, [line(1, reward, number=n) for n, reward in enumerate(rewards)])
    (step,) = samples(folder, best=2, worst=2, random=0).steps
    shown = [(one.label, one.sample.reward) for one in step.shown]
    assert shown == [("best", 0.9), ("best", 0.9), ("worst", -1.0), ("worst", 0.3)]
    assert (step.completions, step.judged) == (6, 5)
    assert step.reward == pytest.approx((0.3 + 0.9 - 1.0 + 0.5 + 0.9) / 5)


def test_a_completion_is_shown_once(tmp_path: Path) -> None:
    folder = stage(tmp_path, [line(1, 1.0, number=0), line(1, 1.0, number=1)])
    (step,) = samples(folder, best=1, worst=1, random=1).steps
    assert [one.label for one in step.shown] == ["best", "worst"]
    assert len({one.sample.number for one in step.shown}) == 2


def test_unjudged_completions_are_drawn_and_never_ranked(tmp_path: Path) -> None:
    folder = stage(tmp_path, [line(1, None, number=n) for n in range(3)])
    (step,) = samples(folder).steps
    assert [one.label for one in step.shown] == ["random"] and step.reward is None


def test_the_seed_decides_and_equal_seeds_agree(tmp_path: Path) -> None:
    folder = stage(tmp_path, [line(1, 1.0, number=n) for n in range(50)])

    def drawn(seed: int) -> list[int | None]:
        (step,) = samples(folder, best=0, worst=0, random=5, seed=seed).steps
        return [one.sample.number for one in step.shown]

    assert drawn(3) == drawn(3)
    assert len({tuple(drawn(seed)) for seed in range(8)}) > 4
    firsts = {samples(folder, best=1, worst=0, random=0, seed=s).steps[0].shown[0].sample.number for s in range(12)}
    assert len(firsts) > 4  # among equals not always the first


def test_random_is_uniform(tmp_path: Path) -> None:
    """Each of 10 is drawn about as often: 400 seeds, expected 40 each, five standard deviations are 30."""
    path = stage(tmp_path, [line(1, float(n), number=n) for n in range(10)]) / "rollouts.jsonl"
    found = list(SampleLog(path).read())
    counts = [0] * 10
    for seed in range(400):
        (one,) = pick(1, found, Choice(best=0, worst=0, random=1, seed=seed)).shown
        counts[one.sample.number or 0] += 1
    assert all(10 < count < 70 for count in counts)


def test_a_part_ranks(tmp_path: Path) -> None:
    lines = [line(1, 1.0, parts={"math": 1.0, "format": 0.0}), line(1, 0.5, parts={"math": 0.0, "format": 1.0})]
    folder = stage(tmp_path, lines)
    (step,) = samples(folder, part="format", best=1, worst=0, random=0).steps
    assert step.shown[0].sample.reward == 0.5
    with pytest.raises(UnknownKeyError) as refused:
        samples(folder, part="fromat")
    assert "--part format" in refused.value.remedy and "math, format" in str(refused.value.expected)


def test_a_prompt_is_found_wherever_it_was_asked(tmp_path: Path) -> None:
    lines = [line(step, prompt="Name a FRUIT." if step in (3, 7) else "2 + 2?") for step in range(1, 12)]
    folder = stage(tmp_path, lines)
    found = samples(folder, prompt="a fruit")
    assert [step.step for step in found.steps] == [3, 7]
    assert all("FRUIT" in one.sample.prompt for step in found.steps for one in step.shown)
    with pytest.raises(ConfigError, match="no prompt contains 'vegetable'") as everywhere:
        samples(folder, prompt="vegetable")
    assert everywhere.value.found == "11 completions in steps 1-11"
    assert "--step" not in everywhere.value.remedy
    with pytest.raises(ConfigError, match="no prompt contains") as in_a_step:
        samples(folder, prompt="fruit", steps=[2])
    assert in_a_step.value.found == "1 completions in steps 2" and "leave --step" in in_a_step.value.remedy


def test_steps_are_spread_over_the_run() -> None:
    assert spread(list(range(1, 31)), 4) == [1, 11, 20, 30]
    assert spread([1, 2], 4) == [1, 2] and spread([], 4) == [] and spread([1, 2, 3], 1) == [3]
    assert numbers_said([1, 2, 3, 5, 10]) == "1-3, 5, 10"
    assert numbers_said(list(range(0, 200, 10)), most=4) == "0, 10, 20, ..., 190"


# ---------------------------------------------------------------- refusals


def test_an_unknown_step_names_the_nearest(tmp_path: Path) -> None:
    folder = stage(tmp_path, [line(step) for step in (1, 2, 3, 20)])
    with pytest.raises(UnknownKeyError) as refused:
        samples(folder, steps=[2, 17])
    assert (
        "no step 17" in str(refused.value) and "1-3, 20" in str(refused.value) and "--step 20" in refused.value.remedy
    )


def test_an_unknown_stage_names_the_nearest(tmp_path: Path) -> None:
    run = stage(tmp_path, [line()]).parent
    (run / "sft").mkdir()
    with pytest.raises(UnknownKeyError, match="no stage 'grop'") as refused:
        samples(run, stage="grop")
    assert "--stage grpo" in refused.value.remedy
    with pytest.raises(UnknownKeyError, match="stage 'sft' sampled nothing"):
        samples(run, stage="sft")


def test_a_run_without_rollouts_is_told(tmp_path: Path) -> None:
    (tmp_path / "run" / "sft").mkdir(parents=True)
    (tmp_path / "run" / "sft" / "stage.json").write_text("{}")
    for folder in (tmp_path / "run", tmp_path / "run" / "sft"):
        with pytest.raises(SourceError, match="nothing was sampled here") as refused:
            samples(folder)
        assert "sft" in str(refused.value.found)
    with pytest.raises(SourceError, match="no held-out task was asked"):
        samples(stage(tmp_path, [line()]), held_out=True)


def test_a_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    stage(tmp_path, [line()])
    with pytest.raises(SourceError) as refused:
        samples(tmp_path / "rnu")
    assert "did you mean" in refused.value.remedy and refused.value.remedy.endswith("run`?")


def test_an_empty_or_wholly_torn_file_says_wait(tmp_path: Path) -> None:
    folder = stage(tmp_path, [])
    for content in ("", '{"step": 1, "vers'):
        (folder / "rollouts.jsonl").write_text(content)
        with pytest.raises(SourceError, match="no whole line yet") as refused:
            samples(folder)
        assert "wait" in refused.value.remedy


def test_asking_for_nothing_is_refused(tmp_path: Path) -> None:
    folder = stage(tmp_path, [line()])
    for counts in ((0, 0, 0), (-1, 2, 0)):
        with pytest.raises(ConfigError, match="nothing is asked for"):
            samples(folder, best=counts[0], worst=counts[1], random=counts[2])


def test_the_last_stage_that_sampled_is_shown_and_the_others_named(tmp_path: Path) -> None:
    run = write_online_run(tmp_path / "run")
    (run / "again").mkdir()
    write_lines(run / "again" / "rollouts.jsonl", [line()])  # type: ignore[list-item]
    entries = [{"name": "again"}, {"name": "grpo"}]
    (run / "run.json").write_text(json.dumps({"stages": entries}))
    found = samples(run)
    assert found.stage == "grpo" and found.others == ("again",)
    (run / "run.json").write_text(json.dumps({"stages": entries[::-1]}))
    assert samples(run).stage == "again"


# ---------------------------------------------------------------- the verb


def test_the_verb_shows_everything_that_is_known(tmp_path: Path) -> None:
    run = write_online_run(tmp_path / "run", OnlinePlan(parts=True))
    code, out, _ = call(str(run), "--step", "3", "--best", "1")
    assert code == 0
    for said in (
        "step 3: 16 completions, mean reward",
        "best",
        "(math 1, length 0.",
        "tasks.jsonl, row",
        "by the weights after step 2",
        "| What is ",
        "gold",
        "| It is",
        "mean advantage +0.5",
        "mean log-prob -0.5",
        "trainer/sampler 1.1052",
    ):
        assert said in out, said
    assert "worst" not in out and "/data/" not in out


def test_a_few_steps_are_shown_where_none_is_named(tmp_path: Path) -> None:
    run = write_online_run(tmp_path / "run")
    code, out, _ = call(str(run / "grpo"))
    assert code == 0 and "shown: 1, 5, 8, 12" in out
    assert [out.count(f"\n  {label}  ") for label in ("best", "worst", "random")] == [4, 4, 4]


def test_held_out_answers(tmp_path: Path) -> None:
    run = write_online_run(tmp_path / "run")
    code, out, _ = call(str(run), "--held-out", "--steps", "0,12", "--worst", "2")
    assert code == 0 and "step 0: 20 completions" in out and "| What is" in out


def test_a_terminal_is_safe_from_what_a_model_says(tmp_path: Path) -> None:
    nasty = "a\x1b[2Jb\rc\x9bd\u202ee\nsecond\ud800\x00"
    folder = stage(tmp_path, [line(completion=nasty, prompt="p\x07", answer="\x1b]0;x", row="r\x1b, row 1")])
    code, out, _ = call(str(folder))
    assert code == 0
    assert "| a\\x1b[2Jb\\rc\\x9bd\\u202ee" in out and "| second\\ud800\\x00" in out
    assert not any(character in out for character in "\x1b\r\x9b\u202e\x07\x00")
    assert visible("👩\u200d🚀 é\t") == "👩\u200d🚀 é\\t"


def test_the_ends_of_completions_are_told(tmp_path: Path) -> None:
    lines = [line(1, 1.0, finish="length"), line(1, 0.0, finish="empty", completion="", mask=[False, False])]
    code, out, _ = call(str(stage(tmp_path, lines)), "--best", "1", "--worst", "1")
    assert code == 0
    assert "CUT at the limit, 2 tokens" in out and "50.0% cut at the limit" in out
    assert "(nothing)" in out and "did not train" in out


def test_a_long_completion_is_cut_and_json_has_all(tmp_path: Path) -> None:
    folder = stage(tmp_path, [line(completion="y" * 5000)])
    _, out, _ = call(str(folder))
    assert "3,000 more characters" in out and "y" * 2001 not in out
    _, out, _ = call(str(folder), "--json")
    assert json.loads(out.splitlines()[0])["completion"] == "y" * 5000


def test_json_is_one_object_a_line_with_every_figure(tmp_path: Path) -> None:
    nasty = 'q"\n\x1b\u2028\ud800'
    lines = [line(1, 1.0, completion=nasty, old_logprobs=[-1.0, -3.0]), line(1, 0.0), line(2, None)]
    code, out, err = call(str(stage(tmp_path, lines)), "--json")
    records = [json.loads(text) for text in out.splitlines()]
    assert code == 0 and err == ""
    assert [(one["step"], one["label"]) for one in records] == [(1, "best"), (1, "worst"), (2, "random")]
    assert records[0]["completion"] == nasty and records[0]["ratio"] == {"mean": 1.0, "largest": 1.0}
    assert records[0]["stage"] == "grpo" and records[0]["truncated"] is False and records[2]["reward"] is None
    assert out.isascii()


def test_a_torn_line_is_said_beside_the_samples(tmp_path: Path) -> None:
    folder = stage(tmp_path, [line()])
    with (folder / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 2, "ver')
    code, out, err = call(str(folder), "--json")
    assert code == 0 and len(out.splitlines()) == 1 and "torn" in err


@pytest.mark.parametrize("text", ["x", "3-1", "1,,2", "", "-4", "1-999999999", "1.5"])
def test_wrong_steps_are_refused(tmp_path: Path, text: str) -> None:
    code, _, err = call(str(stage(tmp_path, [line()])), f"--steps={text}")
    assert code == 2 and "these are no steps" in err


def test_steps_are_numbers_and_ranges() -> None:
    assert parse_steps("1, 10,20 - 22") == [1, 10, 20, 21, 22] and parse_steps(None) is None


def test_step_and_steps_together_are_refused(tmp_path: Path) -> None:
    code, _, err = call(str(stage(tmp_path, [line()])), "--step", "1", "--steps", "2")
    assert code == 2 and "write one of them" in err


def test_refusals_end_with_2(tmp_path: Path) -> None:
    code, out, err = call(str(tmp_path / "nowhere"))
    assert code == 2 and out == "" and "there is no such folder" in err


def test_it_is_public() -> None:
    assert posttrain.samples is samples
