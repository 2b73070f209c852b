"""The rules of diversity: numbers by hand, brute force over all subsets, and the plain loops that fast ones replace."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from posttrain.config.diversity import DEITA, DPP, FacilityLocation, KCentre, SemDeDup
from posttrain.curation.diversity import facility_location as facility_location_module
from posttrain.curation.diversity import k_centre as k_centre_module
from posttrain.curation.diversity import vectors as vectors_module
from posttrain.curation.diversity.choose import choose
from posttrain.curation.diversity.facility_location import all_similarities, near_similarities
from posttrain.curation.diversity.vectors import content_order, kmeans, ranks, unit_length
from posttrain.errors import ConfigError, DataError
from posttrain.runs.progress import Progress


def drawn(count: int, dimensions: int = 6, seed: int = 0) -> np.ndarray:
    return unit_length(np.random.default_rng(seed).standard_normal((count, dimensions)))


def at_angles(*degrees: float) -> np.ndarray:
    """Points of a circle, whose cosines can be worked by hand."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


# ---------------------------------------------------------------- semantic duplicates


def test_semdedup_keeps_the_farthest_from_the_centre_by_hand():
    # One cluster, whose centre is at 32.5 degrees or so: 0, 10 and 20 are within 15 degrees of a neighbour, 100 is not.
    # In the order of distance from the centre: 100, 0, 10, 20. 10 is like 0; 20 is like 10, which went before it.
    features = at_angles(0, 10, 20, 100)
    chosen = choose(features, SemDeDup(kind="semdedup", threshold=math.cos(math.radians(15)), clusters=1))
    assert chosen.kept.tolist() == [0, 3] and chosen.removed.tolist() == [1, 2]
    assert set(chosen.reasons) == {"semantic_duplicate"} and chosen.nearest.tolist() == [0, 0]
    assert chosen.cosine == pytest.approx([math.cos(math.radians(10)), math.cos(math.radians(20))], abs=1e-6)

    nearest_first = choose(
        features, SemDeDup(kind="semdedup", threshold=math.cos(math.radians(15)), clusters=1, keep="easy")
    )
    assert nearest_first.kept.tolist() == [2, 3]
    by_score = SemDeDup(kind="semdedup", threshold=math.cos(math.radians(15)), clusters=1, keep="score")
    assert choose(features, by_score, scores=np.array([1.0, 9.0, 2.0, 0.0])).kept.tolist() == [1, 3]


def test_semdedup_of_large_clusters_is_that_of_small_blocks(monkeypatch):
    features = drawn(60, 3)
    settings = SemDeDup(kind="semdedup", threshold=0.9, clusters=2)
    whole = choose(features, settings)
    monkeypatch.setattr(vectors_module, "BLOCK_ELEMENTS", 100)
    assert choose(features, settings).kept.tolist() == whole.kept.tolist()


def test_semdedup_against_the_rule_written_out():
    features, threshold = drawn(80, 3), 0.9
    found = kmeans(features, 4, seed=7)
    gone = set()
    for members in found.members():
        order = sorted(members.tolist(), key=lambda row: (found.to_centre_R[row], row))
        for place, row in enumerate(order):
            if any(float(features[row] @ features[other]) > threshold for other in order[:place]):
                gone.add(row)
    chosen = choose(features, SemDeDup(kind="semdedup", threshold=threshold, clusters=4), seed=7)
    assert gone and set(chosen.removed.tolist()) == gone


def test_semdedup_cut_by_a_budget_says_how():
    chosen = choose(drawn(50), SemDeDup(kind="semdedup", threshold=0.99), budget=5)
    assert len(chosen.kept) == 5 and "drawn by seed" in chosen.notes[0] and chosen.reasons.count("over_budget") == 45
    other = choose(drawn(50), SemDeDup(kind="semdedup", threshold=0.99), budget=5, seed=1)
    assert other.kept.tolist() != chosen.kept.tolist()


# ---------------------------------------------------------------- k-centre


def plain_k_centre(features: np.ndarray, budget: int, weights: np.ndarray, first: int) -> list[int]:
    kept = [first]
    distances = np.linalg.norm(features.astype(np.float64)[:, None] - features.astype(np.float64)[None], axis=2)
    while len(kept) < budget:
        keys = weights * distances[:, kept].min(axis=1)
        keys[kept] = -1
        kept.append(int(keys.argmax()))
    return kept


@pytest.mark.parametrize("active", [2, 5, 8192])
def test_k_centre_is_the_plain_loop_however_few_candidates_are_kept_exact(monkeypatch, active):
    monkeypatch.setattr(k_centre_module, "ACTIVE", active)
    features = drawn(120)
    chosen = choose(features, KCentre(kind="k_centre"), budget=40)
    first = int((features @ features.mean(axis=0)).argmax())
    assert chosen.kept.tolist() == plain_k_centre(features, 40, np.ones(120), first)

    scores = np.random.default_rng(5).random(120)
    weighted = choose(features, KCentre(kind="k_centre", quality=2), scores=scores, budget=40)
    assert weighted.kept.tolist() == plain_k_centre(features, 40, ranks(scores, 120) ** 2, int(scores.argmax()))


def test_k_centre_leaves_no_row_farther_than_twice_the_best_choice():
    features = drawn(11, 3, seed=3)
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    best = min(distances[:, list(subset)].min(axis=1).max() for subset in itertools.combinations(range(11), 3))
    kept = choose(features, KCentre(kind="k_centre"), budget=3).kept
    assert distances[:, kept].min(axis=1).max() <= 2 * best + 1e-6


def test_k_centre_by_hand():
    # The mean is at 22 degrees: 30 comes first. Then 180, the farthest from it, then 5, which is 25 from 30.
    assert choose(at_angles(5, 10, 30, 180), KCentre(kind="k_centre"), budget=3).kept.tolist() == [2, 3, 0]


# ---------------------------------------------------------------- facility location


def coverage(features: np.ndarray, subset: tuple[int, ...]) -> float:
    return float(np.maximum(features @ features[list(subset)].T, 0).max(axis=1).sum())


@pytest.mark.parametrize("seed", range(6))
def test_facility_location_against_brute_force_on_eight_points(seed):
    features = drawn(8, 3, seed)
    kept = choose(features, FacilityLocation(kind="facility_location"), budget=3).kept.tolist()
    # The greedy choice, with every gain computed anew.
    greedy: list[int] = []
    for _ in range(3):
        greedy.append(max(set(range(8)) - set(greedy), key=lambda row: (coverage(features, (*greedy, row)), -row)))
    assert kept == greedy
    best = max(coverage(features, subset) for subset in itertools.combinations(range(8), 3))
    assert coverage(features, tuple(kept)) >= (1 - 1 / math.e) * best


def test_facility_location_by_hand():
    # Two clusters, of three and of two: the middle one of the three covers most, then one of the two.
    chosen = choose(at_angles(0, 5, 10, 180, 185), FacilityLocation(kind="facility_location"), budget=2)
    assert chosen.kept.tolist() == [1, 3]


def test_quality_is_added_to_what_a_row_covers():
    features = at_angles(0, 5, 10, 90, 95)
    scores = np.array([0.0, 0.0, 9.0, 0.0, 0.0])
    settings = FacilityLocation(kind="facility_location", quality=5)
    assert choose(features, settings, scores=scores, budget=1).kept.tolist() == [2]


def test_neighbours_are_exact_where_all_clusters_are_probed():
    features = drawn(60, 4)
    everything, near = all_similarities(features), near_similarities(features, 60, 60, seed=0)
    assert near.first_R.tolist() == everything.first_R.tolist() and near.row_E.tolist() == everything.row_E.tolist()
    assert near.value_E == pytest.approx(everything.value_E, abs=1e-6)


def test_near_similarities_are_symmetric_and_name_the_nearest():
    features = drawn(200, 4)
    near = near_similarities(features, 3, 4, seed=0)
    pairs = {(row, int(other)) for row in range(200) for other in near.row_E[near.first_R[row] : near.first_R[row + 1]]}
    assert all((other, row) in pairs for row, other in pairs) and all((row, row) in pairs for row in range(200))
    cosine = features @ features.T - 2 * np.eye(200)
    found = sum((row, int(cosine[row].argmax())) in pairs for row in range(200))
    assert found > 170  # an approximation: a few nearest rows lie in far-off clusters


def test_the_approximation_is_named():
    settings = FacilityLocation(kind="facility_location", exact_rows=10)
    (note,) = choose(drawn(30), settings, budget=3).notes
    assert "some 32 near ones" in note and "exact up to 10 rows" in note
    assert not choose(drawn(30), FacilityLocation(kind="facility_location"), budget=3).notes


# ---------------------------------------------------------------- determinantal point process


def log_volume(features: np.ndarray, subset: list[int], quality: np.ndarray, width: float | None) -> float:
    cosine = features[subset].astype(np.float64) @ features[subset].T
    np.fill_diagonal(cosine, 1)
    kernel = cosine if width is None else np.exp(-(1 - cosine) / width)
    return float(np.linalg.slogdet(np.diag(quality[subset]) @ kernel @ np.diag(quality[subset]))[1])


@pytest.mark.parametrize(("kernel", "width"), [("gaussian", 0.5), ("cosine", None)])
def test_dpp_is_the_greedy_choice_by_brute_force_log_determinants(kernel, width):
    features = drawn(25, 8)
    scores = np.random.default_rng(2).random(25)
    quality = np.exp(1.5 * ranks(scores, 25))
    greedy: list[int] = []
    for _ in range(6):
        others = [row for row in range(25) if row not in greedy]
        greedy.append(max(others, key=lambda row: log_volume(features, [*greedy, row], quality, width)))
    chosen = choose(features, DPP(kind="dpp", kernel=kernel, quality=1.5), scores=scores, budget=6)
    assert chosen.kept.tolist() == greedy


def test_dpp_by_hand_takes_the_orthogonal_row():
    # det of two unit vectors is the squared sine of their angle: 0 and 90 degrees beat 0 and 45.
    settings = DPP(kind="dpp", kernel="cosine", quality=3)
    chosen = choose(at_angles(0, 45, 90), settings, scores=np.array([9.0, 1.0, 1.0]), budget=2)
    assert chosen.kept.tolist() == [0, 2]


def test_dpp_ends_where_no_volume_is_left_and_says_so():
    chosen = choose(drawn(30, 3), DPP(kind="dpp", kernel="cosine"), budget=10)
    assert len(chosen.kept) == 3 and set(chosen.reasons) == {"no_volume_left"}
    assert "7 fewer than the budget of 10" in chosen.notes[0]


def test_dpp_refuses_what_memory_does_not_hold():
    from posttrain.curation.diversity.dpp import _require_memory

    with pytest.raises(ConfigError, match="holds a number for every two") as error:
        _require_memory(200_000, 20_000)
    assert error.value.found == "16.0 GB" and "2,684 or less" in error.value.remedy


# ---------------------------------------------------------------- DEITA


def test_deita_walks_down_the_scores_by_hand():
    # Best first: 40 degrees (kept), 0 (kept, 40 apart), 10 (10 from the kept 0: passed), 90 (kept).
    features = at_angles(0, 10, 40, 90)
    settings = DEITA(kind="deita", threshold=math.cos(math.radians(30)))
    chosen = choose(features, settings, scores=np.array([8.0, 7.0, 9.0, 1.0]))
    assert chosen.kept.tolist() == [2, 0, 3]
    (removal,) = chosen.removals()
    assert (removal.row, removal.reason, removal.nearest) == (1, "like_a_better_row", 0)
    assert removal.cosine == pytest.approx(math.cos(math.radians(10)), abs=1e-6)


def test_deita_over_many_blocks_is_the_plain_walk():
    features, scores = drawn(2500, 4), np.random.default_rng(1).random(2500)
    kept: list[int] = []
    for row in np.argsort(-scores).tolist():
        if len(kept) < 120 and (not kept or float((features[kept] @ features[row]).max()) < 0.95):
            kept.append(row)
    chosen = choose(features, DEITA(kind="deita", threshold=0.95), scores=scores, budget=120)
    assert chosen.kept.tolist() == kept and chosen.reasons.count("over_budget") > 0


def test_deita_needs_scores_and_counts_those_that_are_missing():
    with pytest.raises(ConfigError, match="walks down a score"):
        choose(drawn(5), DEITA(kind="deita"))
    chosen = choose(drawn(5, 6), DEITA(kind="deita", threshold=0.999), scores=np.array([1, np.nan, 3, 2, np.nan]))
    assert chosen.kept.tolist() == [2, 3, 0, 1, 4] and "2 rows have no score" in chosen.notes[0]


# ---------------------------------------------------------------- shared parts


def test_kmeans_does_not_depend_on_row_order():
    centres = at_angles(0, 90, 180)
    noise = 0.05 * np.random.default_rng(0).standard_normal((300, 2))
    features = unit_length(np.repeat(centres, 100, axis=0) + noise)
    order = np.random.default_rng(1).permutation(300)
    for seed in range(20):
        found, other = kmeans(features, 6, seed), kmeans(features[order], 6, seed)
        assert found.cluster_R[order].tolist() == other.cluster_R.tolist()
    own_centre = np.einsum("rd,rd->r", features, found.centres_CD[found.cluster_R])
    assert found.to_centre_R == pytest.approx(own_centre, abs=1e-5)


def test_a_draw_by_content_follows_the_rows_and_the_seed():
    features = drawn(100)
    order = np.random.default_rng(3).permutation(100)
    assert order[content_order(features[order], 0)].tolist() == content_order(features, 0).tolist()
    assert content_order(features, 1).tolist() != content_order(features, 0).tolist()


def test_ranks_of_equal_and_missing_scores():
    assert ranks(np.array([5.0, np.nan, 5.0, 1.0]), 4) == pytest.approx([1.0, 0.5, 1.0, 1 / 3])
    assert ranks(None, 2).tolist() == [1, 1]


def test_vectors_of_another_length_and_of_nan_are_refused():
    for wrong in (np.array([[3.0, 4.0]], np.float32), np.array([[np.nan, 1.0]], np.float32)):
        with pytest.raises(DataError, match="not of length 1"):
            choose(wrong, KCentre(kind="k_centre"), budget=1)
    assert unit_length(np.array([[3e30, 4e30], [0, 0]])).tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))


@pytest.mark.parametrize(
    "settings",
    [
        KCentre(kind="k_centre"),
        FacilityLocation(kind="facility_location"),
        FacilityLocation(kind="facility_location", exact_rows=100),
    ],
)
def test_long_rules_show_how_far_they_are_and_choose_the_same(settings, monkeypatch):
    monkeypatch.setattr(k_centre_module, "ACTIVE", 16)
    monkeypatch.setattr(facility_location_module, "STRIDE", 8)
    features = drawn(120)
    heard = Heard()
    shown = choose(features, settings, budget=30, progress=heard)
    assert shown.kept.tolist() == choose(features, settings, budget=30).kept.tolist()
    last = heard.phases[-1]
    assert (last.done, last.total) == (30, 30)
    moves = heard.moves[last.title]
    assert len(moves) >= 4 and max(moves) < 30  # not all of it at the end
    if len(heard.phases) == 2:
        assert (heard.phases[0].title, heard.phases[0].done) == ("diversify: near rows", 120)


class Heard(Progress):
    def __init__(self):
        super().__init__()
        self.phases, self.moves = [], {}

    def phase(self, title, total=None, unit="rows", done=0):
        phase = super().phase(title, total, unit, done)
        self.phases.append(phase)
        advance, moves = phase.advance, self.moves.setdefault(title, [])
        phase.advance = lambda count, **others: (moves.append(count), advance(count, **others))
        return phase
