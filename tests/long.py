"""Which tests `make test` leaves to `make test-long`, beside those that are marked in their file.

Chosen by their time (`pytest --durations=0`): of tests that ask one thing in many ways, or of many things, a few stay
that ask it once. What a pattern no longer meets is an error, so that a renamed test does not come back unseen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from functools import cache

PATTERNS = (
    # The package is copied and grown by one row, file and record; seconds for each, and nothing else changes it.
    "surface/test_new_loss.py::*",
    "surface/test_new_reward.py::*",
    "surface/test_new_stage_kind.py::*",
    "surface/test_new_suite.py::*",
    "surface/test_public_names.py::test_a_type_checker_knows_what_the_names_are",
    # Several processes: one of each kind stays, and every row of every table at two ranks.
    "invariance/test_ranks.py::test_in_fp32_to_its_rounding",
    "unit/training/test_checkpoint_ranks.py::test_dropout_goes_on_bit_for_bit",
    "unit/training/test_checkpoint_ranks.py::test_a_run_goes_on_with_other_ranks[[]4-shard4-4-*",
    "unit/training/test_checkpoint_ranks.py::test_a_run_goes_on_with_other_ranks[[]4-shard2-*",
    "unit/training/test_checkpoint_ranks.py::test_a_run_goes_on_with_other_ranks[[]2-shard1-*",
    "unit/training/test_checkpoint_ranks.py::test_a_run_goes_on_with_other_ranks[[]1-*",
    "unit/models/sharding/test_beside.py::test_steps_of_adamw_are_those_of_one_process[[][!2]*",
    "unit/models/sharding/test_beside.py::test_steps_of_adamw_are_those_of_one_process[[]2 x 2*",
    "unit/models/sharding/test_beside.py::test_references_values_and_divergences[[]2 x 2*",
    "unit/models/sharding/test_beside.py::test_whole_again*",
    "unit/models/sharding/test_mirror.py::test_completions_are_those_of_one_process[[][!2]*",
    "unit/models/sharding/test_mirror.py::test_completions_are_those_of_one_process[[]2 x 2*",
    "unit/models/sharding/test_gradients.py::test_so_does_every_family[[][!g]*",
    "unit/models/sharding/test_gradients.py::test_so_does_every_adapter[[][!l]*",
    "unit/models/folders/test_export_shared.py::test_adapters_are_folded_layer_by_layer[[]False-*",
    "unit/models/folders/test_export_shared.py::test_an_adapter_alone[[][!lb]*",
    "unit/launching/test_local.py::test_restarts_begin_again_with_the_cause",
    "unit/launching/test_local.py::test_a_signal_to_the_launcher_stops_all_between_two_steps*",
    "unit/launching/test_local.py::test_a_rank_that_differs_is_refused_with_both_values",
    # Servers that start, die and start again.
    "unit/rollout/test_vllm_launch.py::test_a_killed_server_is_started_again_with_the_current_weights",
    "unit/rollout/test_vllm_launch.py::test_servers_start_answer_and_end_with_all_that_they_started",
    "unit/training/rl/test_online_engines.py::test_a_stage_starts_its_servers_and_ends_them",
    "unit/training/rl/test_online_engines.py::test_servers_are_started_with_a_copy_where_*",
    "unit/synthesis/test_served_teacher.py::test_a_served_model_answers_as_the_model_itself",
    # Killed in one more phase, or one more kind of stage.
    "unit/training/test_interrupts.py::test_every_phase_of_a_command_closes_its_records[[]preflight*",
    "unit/training/test_interrupts.py::test_every_phase_of_a_command_closes_its_records[[]reading*",
    "unit/training/test_interrupts.py::test_every_phase_of_a_command_closes_its_records[[]encoding*",
    "unit/synthesis/test_journal.py::test_a_run_that_is_killed_asks_nothing_twice",
    "unit/training/stages/test_distil.py::test_a_run_that_is_killed_and_repeated_asks_nothing_twice",
    "unit/models/merging/test_stream.py::test_a_kill_in_the_middle_leaves_nothing_under_the_name",
    "unit/curation/test_pipeline.py::test_a_kill_costs_the_step_under_way",
    # Killed at its hardest moment; resumed bit for bit stays, in tests/contracts.
    "e2e/test_pipeline.py::test_kill_9_and_resume_equals_the_uninterrupted_run",
    "e2e/test_pipeline.py::test_a_changed_option_runs_its_stage_and_those_after_it",
    # Minutes of training for the figures that README and docs show; in a few steps it stays.
    "e2e/test_quickstart.py::test_[!i]*",
    # Whole recipes whose stages and suites have tests of their own.
    "e2e/test_budget.py::*",
    "e2e/test_reward_in_the_pipeline.py::*",
    "e2e/test_reward.py::test_every_kind_goes_through_a_whole_stage[[]both-*",
    "e2e/test_select_vs_random.py::*",
    "e2e/test_online_alarms.py::*",
    "e2e/test_online_learns.py::test_the_held_out_score_rises[[]ppo*",
    "e2e/test_merge_recipe.py::test_weights_are_chosen_by_a_suite_of_the_recipe",
    "e2e/test_merge_recipe.py::test_it_runs_again_only_when_a_model_has_changed",
    "unit/sweeps/test_sweep.py::test_an_early_stop_goes_on_with_the_best_and_its_run_is_an_uninterrupted_one",
    "unit/sweeps/test_sweep.py::test_the_same_command_runs_nothing_again_and_more_seeds_add_runs",
    "unit/evaluate/test_pass_at_k_suite.py::test_tasks_of_reasoning_gym",
    "unit/training/test_interrupts.py::test_a_signal_while_the_start_is_asked_ends_at_once_and_closes_the_records",
    # Every reward bears short texts in `make test`; the pattern that takes its time takes it for each of them.
    "unit/rewards/test_hostile_completions.py::test_every_reward_bears_long_texts*",
    "unit/rewards/test_hostile_completions.py::test_every_reward_bears_every_text[[]regex*",
    # Memory and time that are counted, and compared with what was measured.
    "unit/planning/test_trace.py::test_short_*",
    "unit/planning/test_trace.py::test_what_changes_the_memory_does",
    "unit/planning/test_trace.py::test_a_trace_is_what_the_allocator_handed_out[[]again-*",
    "unit/planning/test_plan.py::test_the_verb_shows_memory_and_time",
    "unit/planning/test_plan.py::test_decoding_is_bound_by_the_memory",
    "unit/planning/test_plan.py::test_references_by_kind",
    "unit/planning/test_plan.py::test_ppo_has_a_second_model_with_its_optimizer",
    "unit/benchmarks/test_benchmarks.py::test_a_watch_keeps_the_peak_of_each_stretch",
)
"""Below `tests/`, as `fnmatch` has them: `[[]` is a bracket."""


def pattern_of(node: str) -> str | None:
    """The pattern that a test's id meets: pattern_of("tests/e2e/test_budget.py::test_a") -> "e2e/test_budget.py::*"."""
    place = node.removeprefix("tests/")
    own = _of_files().get(place.partition("::")[0], ())
    return next((pattern for pattern in own if fnmatchcase(place, pattern)), None)


@cache
def _of_files() -> dict[str, list[str]]:
    """By file, since most of many thousand tests are in none of them."""
    found: dict[str, list[str]] = {}
    for pattern in PATTERNS:
        found.setdefault(pattern.partition("::")[0], []).append(pattern)
    return found


def unmet(nodes: Sequence[str], files: Collection[str]) -> list[str]:
    """Patterns that no test meets although its whole file was collected."""
    met = {pattern_of(node) for node in nodes}
    return [pattern for pattern in PATTERNS if pattern not in met and f"tests/{pattern.partition('::')[0]}" in files]
