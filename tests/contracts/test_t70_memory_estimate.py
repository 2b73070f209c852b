"""T70: the plan names its largest item, and running out of memory says where it went and what to do (trl#3678).

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posttrain.errors import MemoryLimitError
from posttrain.models.tree.logprobs import Policy
from posttrain.training.checks import memory
from posttrain.training.checks.memory import (
    HEAP_BLOCK,
    HEAP_SLACK,
    Item,
    MemoryPlan,
    Working,
    _fullest,
    _peak,
    activation_bytes_per_token,
    explain_out_of_memory,
    logits_item,
    plan,
    program_bytes,
    reached,
    working_memory,
)
from posttrain.training.checks.preflight import PROBE_LENGTH, probes, shortened
from posttrain.training.stages import prepare
from tests.fixtures import make_tree, random_trees, tiny_model
from tests.online import loop_of, save_start


def test_the_logits_of_two_rows() -> None:
    """2 x 256 x 151,665 x 2 bytes = 155.3 MB in bf16, twice that in fp32."""
    assert logits_item(2, 256, 151_665, 2).bytes == pytest.approx(155e6, rel=0.005)
    assert logits_item(2, 256, 151_665, 4).bytes == pytest.approx(310e6, rel=0.005)


def test_the_padded_path_pays_for_logits_and_the_tree_does_not() -> None:
    model = tiny_model("llama", vocab=50_000)
    settings = {"tokens_per_microbatch": 512, "activation_bytes_per_token": 1000.0, "live_reference": False}
    padded = plan(Policy(model, "padded"), **settings, padded=(2, 256))  # type: ignore[arg-type]
    assert padded.largest.name == "logits" and padded.largest.bytes == 2 * 256 * 50_000 * 4
    assert "largest: logits 0.10 GB (2 rows x 256 tokens x 50,000 ids x 4 bytes)" in padded.line()
    tree = plan(Policy(model, "tree"), **settings)  # type: ignore[arg-type]
    names = {item.name: item.bytes for item in tree.items}
    assert names["logits buffer"] < names["weights"] * 4 and "logits" not in names


def test_gradients_and_moments_are_those_of_what_trains() -> None:
    model = tiny_model("llama", vocab=97).requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    size = model.lm_head.weight.numel() * 4
    items = {
        item.name: item.bytes
        for item in plan(
            Policy(model), tokens_per_microbatch=1, activation_bytes_per_token=1, live_reference=True
        ).items
    }
    assert items["gradients"] == size and items["Adam moments"] == 2 * size
    assert items["reference"] == items["weights"] == sum(p.numel() for p in model.parameters()) * 4


def test_activations_are_measured_not_guessed() -> None:
    """Per token the figure must not depend on how many tokens there are, nor count the weights."""
    policy = Policy(tiny_model("llama", vocab=97))
    trees = random_trees(2, vocab=97, prompt_tokens=(60, 60), branch_tokens=(60, 60), branches=1)
    one = activation_bytes_per_token(policy, trees[0])
    weights = sum(p.numel() * 4 for p in policy.parameters())
    assert 1_000 < one < 40_000
    assert one * 120 > weights * 0.5  # saved tensors, not parameters
    policy.requires_grad_(False)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_running_out_says_where_it_went_and_what_to_do(error: Exception) -> None:
    planned = plan(
        Policy(tiny_model()), tokens_per_microbatch=512, activation_bytes_per_token=1e6, live_reference=False
    )
    with pytest.raises(MemoryLimitError) as refused, explain_out_of_memory(planned):
        raise error
    text = str(refused.value)
    assert "activations" in text and "512 tokens x 1.00 MB" in text
    first, second, third = (text.index(f"({n})") for n in (1, 2, 3))
    assert first < second < third
    assert "tokens_per_microbatch" in text[first:second] and "activation_checkpointing" in text[second:third]


def test_what_a_token_costs_at_the_worst_moment_is_measured() -> None:
    """Twice the batch, twice the bytes beyond the fixed part; no less than what autograd keeps."""
    policy = Policy(tiny_model("llama", vocab=97))
    trees = random_trees(4, vocab=97, prompt_tokens=(60, 60), branch_tokens=(60, 60), branches=1)
    first, second = working_memory(policy, trees[:1]), working_memory(policy, trees)
    assert second.per_token == pytest.approx(first.per_token, rel=0.1)
    kept = activation_bytes_per_token(policy, trees[0])
    assert kept <= first.per_token < 4 * kept
    assert first.fixed < 1_000_000


def test_the_padded_path_is_measured_with_its_logits() -> None:
    """At least log-softmax and its exponential are kept for each trained token, and a gradient as large joins them."""
    model = tiny_model("llama", vocab=20_000)
    trees = random_trees(1, vocab=20_000, prompt_tokens=(20, 20), branch_tokens=(60, 60), branches=1)
    padded, tree = (working_memory(Policy(model, path), trees) for path in ("padded", "tree"))
    assert padded.per_token > 3 * 20_000 * 4 * 60 / 80
    items = plan(
        Policy(model, "padded"),
        tokens_per_microbatch=100,
        activation_bytes_per_token=0,
        live_reference=False,
        working=padded,
        program=7_000_000,
    ).items
    found = {item.name: item.bytes for item in items}
    assert found["activations"] == int(100 * padded.per_token) and "logits" not in found
    assert found["program"] == 7_000_000 and found["working space"] == padded.fixed
    assert tree.per_token < padded.per_token + 1


def test_every_term_is_in_the_total() -> None:
    """Each item by itself: a plan that forgets one is too small by it, and no other figure would say so."""
    policy = Policy(tiny_model("llama", vocab=97))
    tree = random_trees(1, vocab=97, branches=2)[0]
    size = sum(p.numel() for p in policy.parameters()) * 4
    working = Working(1000.0, 3_000, token_blocks=(400.0, 600.0), fixed_blocks=(3_000,))
    settings = {"activation_bytes_per_token": 0.0, "live_reference": True, "largest": tree, "program": 5_000_000}
    planned = plan(policy, tokens_per_microbatch=500, working=working, **settings)  # type: ignore[arg-type]
    found = {item.name: item.bytes for item in planned.items}
    masks = found.pop("attention masks")
    assert masks > 0
    assert found == {
        "program": 5_000_000,
        "weights": size,
        "gradients": size,
        "Adam moments": 2 * size,
        "activations": 500_000,
        "working space": 3_000,
        "allocator": int(HEAP_SLACK * (500_000 + 3_000)),
        "reference": size,
    }
    assert planned.total_bytes == sum(found.values()) + masks


def test_what_the_checks_took_is_planned_too() -> None:
    """A small adapter's steps take less than the comparisons before them; the stage takes the larger of both."""
    cpu = torch.device("cpu")
    planned = plan(
        Policy(tiny_model()),
        tokens_per_microbatch=8,
        activation_bytes_per_token=0,
        live_reference=False,
        working=Working(10.0),
        program=1,
    )
    assert 0 < planned.reached_bytes <= reached(cpu) and planned.peak_bytes == planned.reached_bytes
    assert not replace(planned, available_bytes=planned.reached_bytes - 1).fits
    steps = MemoryPlan((Item("weights", 100),), available_bytes=90, reached_bytes=10)
    assert steps.peak_bytes == 100 and not steps.fits


def test_an_online_plan_counts_the_program_before_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked after the checks, the process had 75 MB more that the steps use again, and the plan was 18 % too high."""
    monkeypatch.setattr(prepare, "program_bytes", lambda device, loaded: 123_000)
    loop = loop_of(save_start(tmp_path / "start"), tmp_path / "stage", steps=1, held_out=0)
    loop.folder.close()
    assert loop.work.memory is not None
    assert {item.name: item.bytes for item in loop.work.memory.items}["program"] == 123_000


def test_a_model_that_is_there_is_none_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident", lambda device: 9_000_000)
    model = tiny_model("llama", vocab=97)
    size = sum(p.numel() for p in model.parameters()) * 4
    cpu = torch.device("cpu")
    assert (program_bytes(cpu), program_bytes(cpu, model)) == (9_000_000, 9_000_000 - size)


def test_large_blocks_leave_no_holes() -> None:
    """Rows that are twice as long make blocks that are given back when they are freed, and the heap keeps none."""
    working = Working(3e4, HEAP_BLOCK + 100, token_blocks=(1e4, 2e4), fixed_blocks=(100, HEAP_BLOCK))
    assert working.heap_bytes(1_000) == 30_000_100
    assert working.heap_bytes(2_000) == 20_000_100  # the blocks of 40 MB are none of the heap
    assert working.heap_bytes(4_000) == 100


def test_the_fullest_moment_and_its_blocks() -> None:
    assert _fullest([4, 8, -4, 2, 4, -8, -4]) == (14, {8: 1, 2: 1, 4: 1})
    assert _fullest([-6, 4, -4]) == (0, {})  # a block from before is given back
    assert _fullest([]) == (0, {})


def test_the_blocks_that_are_found_are_those_of_the_peak() -> None:
    """They add up to what the activations and the working space are planned as, whatever the number of tokens is."""
    policy = Policy(tiny_model("llama", vocab=97))
    trees = random_trees(2, vocab=97, prompt_tokens=(60, 60), branch_tokens=(60, 60), branches=1)
    working = working_memory(policy, trees)
    assert len(working.token_blocks) > 10
    assert working.heap_bytes(1_000) == pytest.approx(1_000 * working.per_token + working.fixed, rel=0.05)


def test_a_chunk_of_logits_is_no_cost_of_a_token() -> None:
    """A probe of half a chunk has half of its buffers: what they grow by was taken for what each token costs."""
    policy = Policy(tiny_model("llama", vocab=50_000))
    trees = random_trees(1, vocab=50_000, prompt_tokens=(20, 20), branch_tokens=(90, 90), branches=1)
    found = working_memory(policy, trees)
    true = _peak(policy, trees * 8)[0]
    assert found.per_token * 8 * trees[0].num_tokens + found.fixed == pytest.approx(true, rel=0.1)


def test_measuring_says_nothing_and_leaves_no_gradient(capfd: pytest.CaptureFixture[str]) -> None:
    policy = Policy(tiny_model("llama", vocab=97))
    working_memory(policy, random_trees(1, vocab=97, branches=2))
    assert all(p.grad is None for p in policy.parameters())
    assert capfd.readouterr() == ("", "")


def test_the_probes_are_short_whatever_the_rows_are() -> None:
    """Two rows of 2,048 tokens, padded, took more memory before step 1 than any step after it."""
    long = random_trees(3, vocab=97, prompt_tokens=(700, 700), branch_tokens=(900, 900), branches=2)
    for cut, whole in zip(probes(long), sorted(long, key=lambda tree: tree.num_tokens), strict=False):
        assert cut.num_tokens <= PROBE_LENGTH and cut.key != whole.key and cut.num_trained > 0
        assert (cut.prompt_ids == whole.prompt_ids[-len(cut.prompt_ids) :]).all()
        for branch, of in zip(cut.branches, whole.branches, strict=True):
            assert (branch.ids == of.ids[-len(branch.ids) :]).all() and branch.loss_mask.any()
    short = random_trees(3, vocab=97)
    assert [tree.key for tree in probes(short)] == [t.key for t in sorted(short, key=lambda tree: tree.num_tokens)[:2]]


def test_a_cut_row_ends_with_its_last_trained_token() -> None:
    mask = [False] * 300 + [True, False, True] + [False] * 200
    tree = replace(make_tree(list(range(400)), (list(range(503)), mask)), step_labels=(1.0, 0.0))
    cut = shortened(tree, 100)
    assert cut.num_tokens <= 100 and cut.branches[0].ids[-1] == 302 and cut.branches[0].loss_mask[-1]
    assert cut.step_labels == (1.0, 0.0)
    assert shortened(tree, 4).step_labels == (0.0,)


def test_other_errors_pass_untouched() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(None):
        raise RuntimeError("shapes do not match")
