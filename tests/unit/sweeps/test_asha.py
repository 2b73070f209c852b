"""Successive halving on scores that are known: by hand, then against the paper's synchronous form."""

from __future__ import annotations

from posttrain.sweeps.asha import Halving, Step


def finished(halving: Halving, scores: list[float]) -> dict[int, int]:
    """Runs all steps at once; the deepest rung of each setting."""
    deepest: dict[int, int] = {}
    while (step := halving.next()) is not None:
        deepest[step.setting] = step.rung
        halving.reached(step.setting, step.rung, scores[step.setting])
    assert halving.is_over
    return deepest


def test_the_first_steps_by_hand() -> None:
    halving = Halving(rungs=3, keep=3, settings=9)
    assert [halving.share(rung) for rung in range(3)] == [1 / 9, 1 / 3, 1.0]
    for place, score in enumerate((0.1, 0.3)):
        assert halving.next() == Step(place, 0)
        halving.reached(place, 0, score)
    assert halving.next() == Step(2, 0)
    halving.reached(2, 0, 0.2)
    # Three are there, so the best of them goes on; it is setting 1.
    assert halving.next() == Step(1, 1)
    assert halving.next() == Step(3, 0)  # meanwhile another place begins the next setting
    halving.reached(1, 1, 0.9)
    halving.reached(3, 0, 0.5)
    # The best third of four is one, now setting 3: it is promoted, though setting 1 has gone on before.
    assert halving.next() == Step(3, 1)
    assert halving.next() == Step(4, 0)


def test_one_third_goes_on_when_the_settings_come_the_best_first() -> None:
    # In this order no early bird is overtaken, and asynchronous halving promotes what the synchronous one does.
    deepest = finished(Halving(rungs=3, keep=3, settings=9), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert [sum(rung >= least for rung in deepest.values()) for least in range(3)] == [9, 3, 1]
    assert deepest[0] == 2 and {setting for setting, rung in deepest.items() if rung >= 1} == {0, 1, 2}


def test_less_is_better_where_it_is_said_and_a_failure_is_never_promoted() -> None:
    scores = [0.1, 0.5, 0.9]
    assert finished(Halving(2, 3, 3, lower=False), scores)[2] == 1
    assert finished(Halving(2, 3, 3, lower=True), scores)[0] == 1
    halving = Halving(2, 2, 2)
    for place, score in ((0, None), (1, 0.2)):
        assert halving.next() == Step(place, 0)
        halving.reached(place, 0, score)
    assert halving.next() == Step(1, 1)
    halving.reached(1, 1, None)  # and its failure is not followed by all others
    assert halving.next() is None and halving.is_over


def test_with_fewer_settings_than_one_in_keep_the_best_still_finishes() -> None:
    assert finished(Halving(rungs=3, keep=4, settings=2), [0.2, 0.7]) == {0: 0, 1: 2}


def test_nothing_is_over_while_something_runs() -> None:
    halving = Halving(rungs=2, keep=2, settings=2)
    halving.next(), halving.next()
    assert halving.next() is None and not halving.is_over


def test_a_state_that_is_read_again_goes_on_as_the_first_would_have() -> None:
    scores = [0.3, 0.9, 0.5, 0.8, 0.1, 0.7]
    whole = Halving(rungs=3, keep=2, settings=6)
    steps = []
    while (step := whole.next()) is not None:
        steps.append(step)
        whole.reached(step.setting, step.rung, scores[step.setting])
    for cut in range(len(steps)):
        again = Halving(rungs=3, keep=2, settings=6)
        for step in steps[:cut]:
            again.reached(step.setting, step.rung, scores[step.setting])
        assert again.next() == steps[cut]
