"""The benchmark's own arithmetic: rows, ids, FLOPs, medians. Nothing is timed here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import floor, text
from benchmarks.against_trl import Comparison, Task, compare, table
from benchmarks.loss_cases import CASES, sides
from benchmarks.memory_plan import CASES as MEMORY_CASES
from benchmarks.memory_plan import LIMIT, Measured, Watch, rows_of
from benchmarks.memory_plan import table as memory_table
from benchmarks.ours import train
from benchmarks.record import ROOT, Record, peak_rss, read_rows
from benchmarks.scaling import fill
from benchmarks.trees import demonstration_trees, pair_trees
from benchmarks.trl_losses import compare as compare_losses
from benchmarks.trl_losses import ours, out_nll
from benchmarks.trl_losses import table as loss_table
from posttrain.models.reference import LiveReference
from posttrain.models.tree.logprobs import Policy
from posttrain.training.objectives import algorithm
from tests.fixtures import byte_tokenizer, make_tree, random_trees, tiny_model

TASK = Task("dpo", batch=4, steps=3, speed=3.0, memory=0.35)


def record(who: str, seconds: list[float], losses: list[float], peak: int) -> Record:
    return Record(who, tuple(seconds), tuple(losses), loaded_bytes=1, peak_bytes=peak)


# ---------------------------------------------------------------- rows


def test_rows_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    assert text.rows(5, seed=1) == text.rows(5, seed=1) != text.rows(5, seed=2)
    assert text.rows(3, seed=1) == text.rows(5, seed=1)[:3]
    text.write(tmp_path / "rows.jsonl", 3, seed=1)
    assert read_rows(tmp_path / "rows.jsonl") == text.rows(3, seed=1)


def test_row_lengths_are_those_of_preference_data() -> None:
    rows = text.rows(200)
    for column, median in (("prompt", 110), ("chosen", 90), ("rejected", 90)):
        lengths = sorted(len(row[column].split()) for row in rows)
        assert median * 0.8 < lengths[100] < median * 1.25
        assert lengths[0] >= 8
        assert lengths[-1] <= 700


def test_pair_trees_hold_what_the_template_renders() -> None:
    tokenizer = byte_tokenizer(template="CHATML")
    row = {"prompt": "2+2?", "chosen": "4", "rejected": "5, I think"}
    (tree,) = pair_trees([row], tokenizer, 1000)
    for branch, answer in zip(tree.branches, ("4", "5, I think"), strict=True):
        messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        assert [*tree.prompt_ids, *branch.ids] == whole
        assert branch.loss_mask.all()
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2+2?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert tree.prompt_ids.tolist() == asked
    (alone,) = demonstration_trees([row], tokenizer, 1000)
    assert alone.branches[0].ids.tolist() == tree.branches[0].ids.tolist()


def test_long_rows_are_cut_at_the_end_and_full_prompts_left_out() -> None:
    tokenizer = byte_tokenizer(template="CHATML")
    row = {"prompt": "2+2?", "chosen": "4" * 50, "rejected": "5"}
    (whole,) = pair_trees([row], tokenizer, 1000)
    prompt = len(whole.prompt_ids)
    (cut,) = pair_trees([row], tokenizer, prompt + 10)
    assert cut.branches[0].ids.tolist() == whole.branches[0].ids[:10].tolist()
    assert cut.branches[1].ids.tolist() == whole.branches[1].ids.tolist()[:10]
    assert pair_trees([row], tokenizer, prompt) == []


def test_fill_goes_around_the_pool() -> None:
    pool = random_trees(3, vocab=50, branches=2, seed=0)
    sizes = [tree.num_tokens for tree in pool]
    assert fill(pool, sum(sizes) + 1) == [*pool, pool[0]]
    assert fill(pool, sizes[0]) == pool[:1]
    with pytest.raises(ValueError, match="empty"):
        fill([], 1)


# ---------------------------------------------------------------- the floor


def test_flops_by_hand() -> None:
    architecture = floor.Architecture((floor.Shape(3, 2, 5),), floor.Shape(7, 2, 1), attention_width=4)
    work = floor.Work(tokens=10, trained=6, pairs=20, reference=False)
    # 3 passes of 2 FLOPs: 30 weights x 10 tokens and 14 weights x 6 tokens; attention 6 products of 2 x 4 x 20
    assert floor.flops(architecture, work) == 3 * 2 * (30 * 10 + 14 * 6) + 6 * 2 * 4 * 20
    with_reference = floor.Work(10, 6, 20, reference=True)
    assert floor.flops(architecture, with_reference) == 4 * 2 * (30 * 10 + 14 * 6) + 8 * 2 * 4 * 20


def test_floor_seconds_is_flops_over_the_rate_where_all_rates_are_equal() -> None:
    architecture = floor.Architecture((floor.Shape(3, 2, 5),), floor.Shape(7, 2, 1), attention_width=4)
    rates = floor.Rates({(n, 2, product): 100.0 for n in (3, 7) for product in floor.PRODUCTS})
    for reference in (False, True):
        work = floor.Work(10, 6, 20, reference)
        assert floor.floor_seconds(architecture, work, rates) == pytest.approx(floor.flops(architecture, work) / 100)


def test_a_slow_product_raises_the_floor_by_its_own_share() -> None:
    architecture = floor.Architecture((), floor.Shape(7, 2, 1), attention_width=0)
    rates = {(7, 2, product): 100.0 for product in floor.PRODUCTS}
    work = floor.Work(10, 6, 0, reference=False)
    slower = floor.Rates(rates | {(7, 2, floor.WEIGHT_GRADIENT): 50.0})
    gap = floor.floor_seconds(architecture, work, slower) - floor.floor_seconds(architecture, work, floor.Rates(rates))
    assert gap == pytest.approx(2 * 14 * 6 / 100)


def test_visible_pairs_are_those_of_the_tree() -> None:
    tree = make_tree([1, 2, 3], [4, 5], [6])
    # the prompt's 1+2+3; each branch token sees 3 prompt tokens and itself with those before it
    assert floor.visible_pairs(tree) == 6 + (3 * 2 + 3) + (3 * 1 + 1)


def test_architecture_of_a_model() -> None:
    model = tiny_model("llama", vocab=97)
    architecture = floor.read_architecture(Policy(model))
    assert architecture.head == floor.Shape(97, 32, 1)
    assert architecture.attention_width == 2 * 4 * 8
    layers = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(shape.weights for shape in architecture.linear) == sum(m.weight.numel() for m in layers)


def test_rates_are_measured_for_every_product() -> None:
    architecture = floor.Architecture((floor.Shape(8, 4, 2),), floor.Shape(16, 4, 1), attention_width=8)
    rates = floor.measure_rates(architecture, tokens=4)
    assert set(rates.per_second) == {(n, 4, product) for n in (8, 16) for product in floor.PRODUCTS}
    assert all(rate > 0 for rate in rates.per_second.values())
    assert "16x4" in floor.table(architecture, rates)


# ---------------------------------------------------------------- records and the table


def test_the_first_step_does_not_count() -> None:
    assert record("trl", [9.0, 2.0, 4.0, 3.0], [], 1).seconds == 3.0
    assert record("trl", [9.0], [], 1).seconds == 9.0


def test_a_record_survives_the_way_through_the_other_process(capsys: pytest.CaptureFixture[str]) -> None:
    sent = record("trl", [2.0, 1.0], [0.7, 0.6], 5)
    print("a line that some library prints")
    sent.emit()
    assert Record.parse(capsys.readouterr().out) == sent


def test_compare_takes_medians_of_rounds_and_the_largest_peak() -> None:
    peer = [record("trl", [9, s], [0.7, 0.5], peak) for s, peak in ((30.0, 100), (50.0, 120), (40.0, 110))]
    ours = [record("posttrain", [9, s], [0.7, 0.5 + gap], 30) for s, gap in ((10.0, 0.0), (12.0, 0.002), (11.0, 0.0))]
    found = compare(TASK, peer, ours, floor_seconds=8.8)
    assert (found.peer_seconds, found.our_seconds) == (40.0, 11.0)
    assert found.speed == pytest.approx(40 / 11)
    assert found.memory == 30 / 120
    assert found.floor_share == pytest.approx(0.8)
    assert found.loss_gap == pytest.approx(0.002)
    assert found.first_losses == (0.7, 0.7)


def test_compare_refuses_runs_of_different_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare(TASK, [record("trl", [1], [0.7, 0.6], 1)], [record("posttrain", [1], [0.7], 1)], None)


def test_table_shows_the_ratios() -> None:
    found = Comparison(TASK, 45.1, 14.2, int(14.1e9), int(4.6e9), 1, 1, 1e-5, (0.7, 0.7), floor_seconds=11.5)
    row = table([found]).splitlines()[1].split()
    assert row == [
        "dpo",
        "45.10",
        "14.20",
        "3.18",
        ">=3.0",
        "14.10",
        "4.60",
        "0.33",
        "<=0.35",
        "81%",
        ">=80%",
        "1.0e-05",
    ]


def test_peak_memory_grows_with_what_is_touched() -> None:
    code = "from benchmarks.record import peak_rss; a = peak_rss(); b = b'x' * 50_000_000; print(a, peak_rss())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 40_000_000 < after - before < 80_000_000
    assert before < peak_rss()  # this process holds torch; that one must not have inherited its size


def test_the_peer_reads_only_what_its_environment_has() -> None:
    """`text` and `record` run where neither posttrain nor torch is; the options name what TRL must share with us."""
    code = "import sys, benchmarks.text, benchmarks.record, benchmarks.settings; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"posttrain", "torch", "transformers", "numpy"}


# ---------------------------------------------------------------- our side


def test_our_step_begins_at_the_identity_and_trains() -> None:
    policy = Policy(tiny_model("llama", vocab=97))
    trees = random_trees(6, vocab=97, branches=2, seed=3)
    found = train(
        policy,
        LiveReference(policy),
        algorithm("dpo", {"beta": 0.1}),
        trees,
        batch=2,
        steps=3,
        tokens_per_microbatch=None,
    )
    assert found.losses[0] == pytest.approx(0.693147, abs=1e-6)
    assert len(found.step_seconds) == len(found.losses) == 3
    assert found.tokens == tuple(sum(t.num_tokens for t in trees[i : i + 2]) for i in (0, 2, 4))
    assert found.peak_bytes >= found.loaded_bytes > 0


def test_our_step_refuses_too_few_rows() -> None:
    policy = Policy(tiny_model("llama", vocab=97))
    with pytest.raises(ValueError, match="need 8 rows, 6 are there"):
        train(policy, None, algorithm("sft"), random_trees(6, vocab=97), batch=4, steps=2, tokens_per_microbatch=64)


# ---------------------------------------------------------------- losses


def test_the_loss_comparison_finds_a_difference() -> None:
    """Our side against itself agrees; a loss or a gradient that is a little off does not."""
    given = sides(pairs=3)
    for case in CASES:
        out, rows = ours(case, given)
        loss = out.loss - out_nll(rows) if case.trainer == "orpo" else out.loss
        slopes = torch.autograd.grad(loss, rows, allow_unused=True)
        gradient = [
            [0.0] * len(row) if slope is None else slope.tolist() for slope, row in zip(slopes, rows, strict=True)
        ]
        right = {"loss": float(loss.detach()), "gradient": gradient}
        assert compare_losses(case, given, right).agrees, case.name
        assert not compare_losses(case, given, {**right, "loss": right["loss"] * 1.0001}).agrees
        moved = [[value * 1.001 for value in row] for row in gradient]
        assert not compare_losses(case, given, {**right, "gradient": moved}).agrees
    differing = compare_losses(CASES[0], given, {"loss": 1.0, "gradient": [[1.0] * len(row) for row in given.policy]})
    assert "DIFFERS" in loss_table([differing])


# ---------------------------------------------------------------- the memory plan


def test_a_plan_that_is_off_is_seen() -> None:
    """The plan is held against the larger of the two peaks: that of the checks, and that of the steps."""
    good = Measured("full sft", 5_100_000_000, 3_000_000_000, 5_000_000_000, {})
    silent = Measured("full sft", 2_500_000_000, 5_720_000_000, 5_000_000_000, {})
    assert good.off == pytest.approx(0.02) and silent.off == pytest.approx(-0.563, abs=1e-3)
    assert abs(good.off) <= LIMIT < abs(silent.off)
    assert "+2%" in memory_table([good]) and "-56%" in memory_table([silent])
    assert len(MEMORY_CASES) >= 5 and all(rows_of(case) for case in MEMORY_CASES)


def test_a_watch_keeps_the_peak_of_each_stretch() -> None:
    with Watch() as watch:
        watch.stretch("small")
        time.sleep(0.03)
        watch.stretch("large")
        block = np.ones(30_000_000)
        time.sleep(0.03)
        assert block[0] == 1
    assert watch.peaks["large"] - watch.peaks["small"] > 150_000_000
