"""What several processes agree on, share and raise together."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from posttrain.errors import DataError, NonFiniteError, PosttrainError, RankError
from posttrain.parallel.gradients import BUCKET_ELEMENTS, sum_gradients
from posttrain.parallel.shares import shares
from posttrain.parallel.world import ALONE, is_everywhere, world
from tests.ranks import RankFailed, ranks


def test_alone_every_operation_is_the_identity() -> None:
    here = world()
    assert here == ALONE and here.is_main and here.is_alone
    assert here.gather(3) == [3]
    assert here.agreed(lambda: 7) == 7
    assert here.spread(lambda item: item * 2, [1, 2]) == [2, 4]
    assert here.largest(5) == 5
    with pytest.raises(ZeroDivisionError), here.together("a division"):  # no other rank waits: the error as it is
        raise ZeroDivisionError


def meeting() -> tuple[Any, ...]:
    here = world()
    asked: list[int] = []
    agreed = here.agreed(lambda: asked.append(here.rank) or here.rank)  # type: ignore[func-returns-value]
    found = here.spread(lambda item: (item, here.rank), ["a", "b", "c", "d", "e"], cost=lambda item: ord(item))
    here.barrier()
    return here.rank, here.gather(here.rank), agreed, asked, found, here.largest(10 - here.rank)


def test_ranks_meet() -> None:
    for rank, outcome in enumerate(ranks(3).run(meeting)):
        own, gathered, agreed, asked, found, largest = outcome
        assert (own, gathered, agreed, largest) == (rank, [0, 1, 2], 0, 10)
        assert asked == ([0] if rank == 0 else [])
        assert [item for item, _ in found] == ["a", "b", "c", "d", "e"]
        # Largest first to the least loaded: e, d, c to 0, 1, 2; then b to the one with c, a to the one with d.
        assert [taker for _, taker in found] == [1, 2, 2, 1, 0]


def failing(rank: int, own: bool) -> Any:
    here = world()
    with here.together("a test"):
        if here.rank == rank:
            if own:
                raise NonFiniteError("step 3", remedy="none", tensors=["w"], rows=["x, row 1"])
            raise KeyError("nothing")
    return "went on"


def test_an_error_of_one_rank_is_raised_by_all() -> None:
    found = ranks(3).outcomes(failing, 1, True)
    assert [type(error) for error in found] == [NonFiniteError] * 3
    assert all(error.ranks == (1,) and error.tensors == ("w",) and is_everywhere(error) for error in found)
    found = ranks(2).outcomes(failing, 1, False)
    assert [type(error) for error in found] == [RankError] * 2
    for error in found:
        assert "rank 1 failed in a test: KeyError: 'nothing'" in str(error)
        assert 'raise KeyError("nothing")' in str(error.found)


def agreeing_on_an_error() -> Any:
    return world().agreed(refuse)


def refuse() -> None:
    raise DataError("no such file", remedy="write it")


def test_an_error_of_what_main_makes_is_raised_by_all() -> None:
    found = ranks(2).outcomes(agreeing_on_an_error)
    assert [type(error) for error in found] == [DataError] * 2
    assert all(error.problem == "no such file" and error.ranks == (0,) for error in found)


def spread_with_an_error() -> Any:
    def odd(item: int) -> int:
        if item == 3:
            raise PosttrainError("three", remedy="take another")
        return item

    return world().spread(odd, range(5))


def test_an_error_in_a_share_is_raised_by_all() -> None:
    assert [str(error) for error in ranks(2).outcomes(spread_with_an_error)] == ["three\n  remedy:   take another"] * 2


def test_the_pool_shows_the_stack_of_a_rank() -> None:
    with pytest.raises(RankFailed, match=r"rank 1:(.|\n)*KeyError"):
        ranks(2).run(failing, 1, False)


# ---------------------------------------------------------------- shares


def test_shares_are_balanced_by_hand() -> None:
    assert shares([5, 1, 4, 2], 2) == [[0, 1], [2, 3]]
    assert shares([], 3) == [[], [], []]
    assert shares([0, 0, 0, 0], 2) == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="at least one rank"):
        shares([1], 0)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_take_every_item_once_and_stay_within_the_bound(size: int) -> None:
    draw = random.Random(size)
    for _ in range(50):
        costs = [draw.randint(1, 30) for _ in range(draw.randint(1, 6))]
        taken = shares(costs, size)
        assert sorted(index for own in taken for index in own) == list(range(len(costs)))
        most = max(sum(costs[index] for index in own) for own in taken)
        best = min(
            max(sum(c for c, r in zip(costs, placed, strict=True) if r == rank) for rank in range(size))
            for placed in itertools.product(range(size), repeat=len(costs))
        )
        assert most <= (4 / 3) * best


# ---------------------------------------------------------------- gradients


def gradients_of(rank_parts: list[list[float | None]]) -> list[Any]:
    own = rank_parts[world().rank]
    parameters = [torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64)) for _ in own]
    for parameter, value in zip(parameters, own, strict=True):
        parameter.grad = None if value is None else torch.full_like(parameter, value).t().contiguous().t()
    frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    sum_gradients([*parameters, frozen], world())
    return [None if p.grad is None else p.grad.tolist() for p in [*parameters, frozen]]


def test_gradients_add_up_and_absent_ones_count_as_zero() -> None:
    parts: list[list[float | None]] = [[1.0, None, None], [2.0, 3.0, None]]
    for found in ranks(2).run(gradients_of, parts):
        assert found == [[[3.0, 3.0]] * 3, [[3.0, 3.0]] * 3, None, None]


def many_gradients() -> float:
    torch.manual_seed(world().rank)
    shapes = [(BUCKET_ELEMENTS // 2,), (BUCKET_ELEMENTS // 2, 1), (5,), (BUCKET_ELEMENTS + 3,), (2, 2)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for place, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(10 * place + world().rank))
    sum_gradients(parameters, world())
    return max(
        float((p.grad - (20 * place + 1)).abs().max()) for place, p in enumerate(parameters) if p.grad is not None
    )


def test_buckets_hold_every_gradient_once() -> None:
    assert ranks(2).run(many_gradients) == [0.0, 0.0]
