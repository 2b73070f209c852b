"""docs/recipes.md, written from the records themselves: `python -m tools.recipe_reference > docs/recipes.md`."""

from __future__ import annotations

import inspect

from posttrain.config import online, scores, select, settings, suites
from posttrain.config.adapters import ADAPTERS, LoRA
from posttrain.config.attempts import AttemptSampling
from posttrain.config.base import LEARNING_RATES, PREFERENCE_RATE, RowStage, TrainingStage
from posttrain.config.best_of import BestOf
from posttrain.config.curriculum import PassRateCurriculum
from posttrain.config.custom import CustomStage
from posttrain.config.distil import Distil, DistilFilters
from posttrain.config.diversity import AnyDiversity
from posttrain.config.embeddings import AnyEmbedding
from posttrain.config.engines import ENGINES, LaunchSettings
from posttrain.config.explain import fields_of, records_in, tag_of
from posttrain.config.meanings import meaning_of
from posttrain.config.merge_measures import BarrierSettings, WeightSearch
from posttrain.config.merge_methods import MERGE_METHODS
from posttrain.config.merging import CheckpointAverage, Merge, MergeSettings, MergeSource
from posttrain.config.notify import Notify
from posttrain.config.online import GKD, ONLINE_STAGES, RFT, OnlineDPO, OnlineStage, PPOStage, SamplingStage
from posttrain.config.other_tools import NOT_HERE, OTHER_TOOLS, OTHER_TOOLS_ONLINE
from posttrain.config.pairs import AnyPairs, Pairs
from posttrain.config.prompts import AnyPromptKind, NewPrompts, PromptFilters, UserTurnSampling
from posttrain.config.reward_model import HEAD_KINDS, NORMALISE_KINDS, OBJECTIVE_KINDS, Length
from posttrain.config.rollout import ROLLOUTS
from posttrain.config.schema import Recipe
from posttrain.config.search import Search
from posttrain.config.stages import (
    PREFERENCES,
    SFT,
    ConditionalSFT,
    Correction,
    DistilSFT,
    Mix,
    MixTerm,
    PreferenceStage,
    ReferencedStage,
    Reward,
)
from posttrain.config.strategies import STRATEGY_KINDS
from posttrain.config.strategies import base as strategy_base
from posttrain.config.strategies.demonstrations import AnySimilarity, Demonstrations
from posttrain.config.teacher import AnyTeacher, Price, TeacherSampling
from posttrain.config.trackers import TRACKER_KINDS
from posttrain.config.varied import Filtered
from posttrain.losses.feedback import FEEDBACK, FeedbackRow
from posttrain.losses.pairwise import PAIRWISE, PairwiseRow
from tools.recipe_tables import cell, group, groups, kinds, plain, table, values

HEAD = """# Recipes

A recipe is a YAML file: a start model, what to ask the models, and a list of stages. This page is written from the
records in `posttrain/config/`, so it is complete; `posttrain check recipe.yaml` tells what a recipe would do.

```yaml
schema: 1
name: quickstart
model: embedded
evaluate:
  suites:
    - {name: identity, kind: match, prompts: heldout.jsonl, pattern: "\\\\bPia\\\\b"}
stages:
  - {method: sft, data: sft.jsonl, learning_rate: 2e-3, epochs: 2}
  - {method: dpo, data: pairs.jsonl, beta: 0.1, adapter: {rank: 16}}
```

- **Overrides.** `posttrain run recipe.yaml dpo.beta=0.2 seed=3 sft.compute.precision=fp32`: a stage's name or a key of
  the recipe, then the keys inside it. Values are YAML; items of a list are named by their `name`.
- **Names carry settings.** `name: mine-{dpo.beta}-{seed}` runs in `runs/mine-0.2-3` with `dpo.beta=0.2 seed=3`, so
  that each point of a sweep has a folder of its own. A word in braces is a key as an override has it; it is filled in
  after the overrides, with the value as it was typed, and signs that no folder should have become `-`.
- **Nothing finished is lost.** A finished stage whose settings, seeds, data or start changed runs again, and its
  earlier result is kept as `dpo.1`, `dpo.2`, ... in the run folder; the report shows them beside the present one.
  `--fresh` removes the current results alone.
- **Seeds.** `seed` starts every random stream but one: a held-out share is drawn from `split_seed`, so that runs of
  several seeds are measured on the same rows.
- **Paths** in a recipe are relative to its file, paths in an override to where the command runs: of data, models,
  prompts, templates, reward models and modules alike (`out` alone is relative to where the command runs). A model is
  a catalogue name, or else a folder that is there, or else a hub id; `./NAME` is always a path, and a folder of a
  recipe that is only where the command runs is refused. `package://NAME` is data that comes with posttrain. A missing
  file is refused, with the nearest name, before anything is loaded.
- **Unknown keys** are refused, with the nearest one. An option exists only where it is used: `gamma` is a key of simpo
  and of no other method.
- **YAML** is read by the 1.2 rules: `1e-5` is a number, `no` is text unless a key wants true or false, and a key that
  is written twice is refused.
- **Python** has the same records: `pt.SFT(learning_rate=2e-5)`, `pt.DPO(beta=0.1)`, `pt.Preference("simpo", gamma=1)`.
  `pt.train(stage, model, rows, out="runs/mine", seed=0, split_seed=0)` runs one. Stages of different names may share a
  folder and its report, which compares those that started from one model; the same call goes on after an interruption,
  and `fresh=True` begins its stage anew.
"""


def sampling_stages() -> list[str]:
    """The sections of the methods that train on what their policy samples."""
    return [
        "## Reinforcement learning: one method per row of the online table\n",
        "[rl.md](rl.md) says what a step is, [online.md](online.md) has the methods and their parameters, "
        "[rewards.md](rewards.md) the rewards. The keys of every stage that trains but `rows_per_step`, those of the "
        f"row, and:\n\n{samplers()}\n",
        table(OnlineStage, leave_out=tuple(fields_of(TrainingStage))),
        "Beside those, `ppo` has:\n",
        table(PPOStage, leave_out=tuple(fields_of(OnlineStage))),
        *group("sampling", online.RolloutSampling),
        *[part for kind in ENGINES for part in group(f"engine: {{kind: {tag_of(kind)}}}", kind, ("kind",))],
        *[part for kind in ROLLOUTS for part in group(f"rollout: {{mode: {tag_of(kind)}}}", kind, ("mode",))],
        *group("engine.launch", LaunchSettings),
        *group("curriculum: {kind: pass_rate}", PassRateCurriculum, ("kind",)),
        *group("choices", online.Choices),
        *group("examine", online.HeldOutTasks),
        *group("stop", online.Stop),
        *group("encoding", online.PromptEncoding),
        "## Pairs and demonstrations of its own: `method: online_dpo`, `method: rft`\n",
        f"{inspect.cleandoc(OnlineDPO.__doc__ or '')} The keys of reinforcement learning but `choices` and "
        "`kl_target`, and:\n",
        table(OnlineDPO, leave_out=tuple(fields_of(SamplingStage))),
        f"{inspect.cleandoc(RFT.__doc__ or '')} The same, and:\n",
        table(RFT, leave_out=tuple(fields_of(SamplingStage))),
        "## Distillation over the vocabulary: `method: gkd`\n",
        f"{inspect.cleandoc(GKD.__doc__ or '')} The keys of reinforcement learning but `choices` and `kl_target`, "
        "and:\n",
        table(GKD, leave_out=tuple(name for name in fields_of(SamplingStage) if name != "completions_per_prompt")),
    ]


def recipe_reference() -> str:
    """The page, from the records of `posttrain.config`; a test holds docs/recipes.md equal to it."""
    sft_keys = [name for name in fields_of(SFT) if name not in fields_of(RowStage)]
    parts = [
        HEAD,
        "## The recipe\n",
        table(Recipe),
        *group("notify", Notify),
        "## Stages that train\n",
        "Keys of `sft` and of every preference method.\n",
        table(RowStage, leave_out=("method",)),
        rates(),
        *groups(RowStage),
        *[
            part
            for name, kind in TRACKER_KINDS.items()
            for part in group(f"log: {{to: [{{kind: {name}}}]}}", kind, ("kind",))
        ],
        "## Supervised fine-tuning: `method: sft`\n",
        f"The keys above, and `{'`, `'.join(sft_keys)}`.\n",
        *group("encoding", settings.SFTEncoding),
        "## Preferences: one method per row of the tables\n",
        "The keys above, those of the row, `encoding` and `audit`; methods that compare the policy with its start have "
        "`reference`, too. The last three take feedback, the others comparisons.\n",
        preferences(),
        "Parameters:\n",
        parameters(),
        *group("encoding", settings.PairEncoding),
        *group("audit", settings.Audit),
        *group("reference", settings.ReferenceSettings),
        "## Several objectives at once: `method: mix`\n",
        f"{Mix.__doc__} The keys above, and:\n",
        table(Mix, leave_out=tuple(fields_of(ReferencedStage))),
        *group("losses", MixTerm),
        "## Objectives of your own: `method: custom_pairwise`, `method: custom_tokens`\n",
        f"{inspect.cleandoc(CustomStage.__doc__ or '')} `custom_pairwise` takes comparisons and has `encoding` and "
        "`audit` as preferences do; `custom_tokens` takes demonstrations, with the `encoding` of `sft`. The keys of "
        "every stage that trains, and:\n",
        table(CustomStage, leave_out=tuple(fields_of(RowStage))),
        "## Soft targets: `method: distil_sft`\n",
        f"{inspect.cleandoc(DistilSFT.__doc__ or '')} The keys of `sft`, and:\n",
        table(DistilSFT, leave_out=tuple(fields_of(SFT))),
        "## Feedback as imitation: `method: conditional_sft`\n",
        f"{inspect.cleandoc(ConditionalSFT.__doc__ or '')} The keys above, and:\n",
        table(ConditionalSFT, leave_out=tuple(fields_of(RowStage))),
        "## Reward models: `method: reward`\n",
        f"{inspect.cleandoc(Reward.__doc__ or '')}\n",
        "[reward-models.md](reward-models.md) says more. The keys above, and:\n",
        table(Reward, leave_out=tuple(fields_of(RowStage))),
        *reward_groups(),
        *sampling_stages(),
        "## Own mistakes as data: `method: correction`\n",
        f"{Correction.__doc__}\n",
        table(Correction, leave_out=("method",)),
        "## What a search finds as data: `method: search`\n",
        f"{inspect.cleandoc(Search.__doc__ or '')}\n",
        table(Search, leave_out=("method",)),
        "## Models into one: `method: merge`\n",
        *merges(),
        *selections(),
        *best_of_and_pairs(),
        *distilling(),
        *new_prompts(),
        "## Evaluation\n",
        *group("evaluate", suites.Evaluation),
        "Keys of every suite, by `kind`:\n",
        *[
            part
            for record in records_in(suites.AnySuite)
            for part in group(f"kind: {tag_of(record)}", record, ("kind",))
        ],
        *group("reward_model", suites.RewardModelOf),
        *group("judge", suites.ComparingJudge),
        *group("sampling", suites.Sampling),
        *strategies(),
        "## Names from other tools\n",
        names(),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def distilling() -> list[str]:
    """A teacher's answers as rows, and the teachers of every stage that has one."""
    return [
        "## A teacher's answers as data: `method: distil`\n",
        f"{inspect.cleandoc(Distil.__doc__ or '')} [synthesis.md](synthesis.md) says more.\n",
        table(Distil, leave_out=("method",)),
        *group("filters", DistilFilters),
        "Who is asked, by `kind`, which the keys themselves say; a name or a path alone is a model of this machine:\n",
        *[
            part
            for record in records_in(AnyTeacher)
            for part in group(f"teacher: {{kind: {tag_of(record)}}}", record, ("kind",))
        ],
        *group("price", Price),
        *group("sampling of a teacher", TeacherSampling),
    ]


def new_prompts() -> list[str]:
    """Prompts that models write; docs/synthesis.md shows the kinds at work."""
    return [
        "## Prompts that a model writes: `method: prompts`\n",
        f"{inspect.cleandoc(NewPrompts.__doc__ or '')} [synthesis.md](synthesis.md) says more.\n",
        table(NewPrompts, leave_out=("method",)),
        *[
            part
            for record in records_in(AnyPromptKind)
            for part in group(f"make: {{kind: {tag_of(record)}}}", record, ("kind",))
        ],
        *group("filters of prompts", PromptFilters),
        *group("sampling of a user's turns", UserTurnSampling),
    ]


def best_of_and_pairs() -> list[str]:
    """The stages that make rows of the policy's own answers; docs/synthesis.md shows them at work."""
    return [
        "## The policy's own best answers as data: `method: best_of`\n",
        f"{inspect.cleandoc(BestOf.__doc__ or '')}\n",
        table(BestOf, leave_out=("method",)),
        *group("sampling of attempts", AttemptSampling),
        "## Pairs that models make: `method: pairs`\n",
        f"{inspect.cleandoc(Pairs.__doc__ or '')}\n",
        table(Pairs, leave_out=("method",)),
        *[
            part
            for record in records_in(AnyPairs)
            for part in group(f"make: {{kind: {tag_of(record)}}}", record, ("kind",))
        ],
    ]


def strategies() -> list[str]:
    """Strategies of test-time compute, in suites of kind `budget` and in `method: search`."""
    shared = [name for name in fields_of(strategy_base.StrategySettings) if name != "kind"]
    for record in STRATEGY_KINDS.values():
        record.model_rebuild()  # those that wrap others say so only once they are built
    return [
        "## Strategies of test-time compute\n",
        "In `strategies` of a suite of kind `budget`, and as `strategy` of `method: search`. Keys of every strategy:\n",
        table(strategy_base.StrategySettings),
        *[
            part
            for kind, record in STRATEGY_KINDS.items()
            for part in group(f"strategy: {{kind: {kind}}}", record, ("kind", *shared))
        ],
        *group("sampling of a strategy", strategy_base.StrategySampling),
        *group("spend", strategy_base.Spending),
        *group("answers", strategy_base.AnswerEquality),
        *group("demonstrations", Demonstrations),
        *[
            part
            for record in records_in(AnySimilarity)
            for part in group(f"similarity: {{kind: {tag_of(record)}}}", record, ("kind",))
        ],
        "Who scores, by `kind`; a path alone is a reward model:\n",
        *[
            part
            for record in records_in(strategy_base.AnyScorer)
            for part in group(f"scorer: {{kind: {tag_of(record)}}}", record, ("kind",))
        ],
    ]


def selections() -> list[str]:
    """The stage that chooses rows, its steps and its scores."""
    own = tuple(fields_of(scores.ScoreSettings))
    return [
        "## Chosen rows as data: `method: select`\n",
        f"{inspect.cleandoc(select.Select.__doc__ or '')} [curation.md](curation.md) says more.\n",
        table(select.Select, leave_out=("method",)),
        *[
            part
            for kind, record in select.STEP_KINDS.items()
            for part in group(f"steps: {{kind: {kind}}}", record, ("kind",))
        ],
        *group("keep", select.Keep),
        "Keys of every score:\n",
        table(scores.ScoreSettings),
        *[
            part
            for kind, record in scores.SCORE_KINDS.items()
            for part in group(f"score: {{kind: {kind}}}", record, ("kind", *own))
        ],
        "The rules of `diversify`, by `kind`; a name alone stands for its defaults:\n",
        *kinds("method", AnyDiversity),
        "The embeddings that most of them compare rows by; a name alone stands for its defaults:\n",
        *kinds("embedding", AnyEmbedding),
    ]


def samplers() -> str:
    """The methods, in a line."""
    return "Methods: " + ", ".join(f"`{name}`" for name in ONLINE_STAGES) + "."


def merges() -> list[str]:
    """The stage that merges models: its groups, and the parameters of each method."""
    lines = ["| kind | models | base | each model has | the merge has | source |", "|---|---|---|---|---|---|"]
    for kind, row in MERGE_METHODS.items():
        least, most = row.models
        count = f"{least}" if least == most else f"{least} or more"
        columns = [
            ", ".join(
                f"`{name}: {plain(known.default)}`" if known.default is not None else f"`{name}`"
                for name, known in part
            )
            for part in (row.per_model.items(), row.options.items())
        ]
        lines.append(f"| `{kind}` | {count} | {row.base} | {' | '.join(columns)} | {cell(row.source)} |")
    both = {
        name: known for row in MERGE_METHODS.values() for name, known in (*row.per_model.items(), *row.options.items())
    }
    meanings = [
        f"| `{name}` | {cell(known.known.meaning)} |" for name, known in both.items() if name not in ("t", "normalize")
    ]
    return [
        f"{inspect.cleandoc(Merge.__doc__ or '')} [merging.md](merging.md) has the formulas.\n",
        table(Merge, leave_out=("method", "data")),
        *group("merge", MergeSettings),
        "Methods, by `kind`. What a model does not say itself, it takes from the same key beside `models`; methods "
        "that draw have `seed`, too.\n",
        "\n".join(lines) + "\n",
        "Parameters. `normalize` divides by the sum of the weights; where signs are elected, by those of the models "
        "that agree on the entry. `t` is a share of the second model in `slerp`, and a size in `nearswap`. A number "
        "may be a list, from the first layer to the last, or a list of filters.\n",
        "\n".join(["| parameter | meaning |", "|---|---|", *meanings]) + "\n",
        *group("filters", Filtered),
        *group("models", MergeSource),
        *group("checkpoints", CheckpointAverage),
        *group("search", WeightSearch),
        *group("barrier", BarrierSettings),
    ]


def reward_groups() -> list[str]:
    """The groups of a reward stage that come in several kinds, and those that do not."""
    parts = []
    for key, choices in (("objective", OBJECTIVE_KINDS), ("head", HEAD_KINDS), ("normalise", NORMALISE_KINDS)):
        for kind, record in choices.items():
            if len(fields_of(record)) > 1:
                parts += group(f"{key}, kind: {kind}", record, ("kind",))
    return [*parts, *group("length", Length)]


def preferences() -> str:
    lines = ["| method | parameters | reference | source |", "|---|---|---|---|"]
    rows: dict[str, PairwiseRow | FeedbackRow] = {**PAIRWISE, **FEEDBACK}
    for name, row in rows.items():
        given = ", ".join(f"`{key}: {value:g}`" for key, value in row.defaults.items())
        needs = "yes" if issubclass(PREFERENCES[name], ReferencedStage) else "no"
        lines.append(f"| `{name}` | {given} | {needs} | {cell(row.source)} |")
    return "\n".join(lines) + "\n"


def parameters() -> str:
    # A parameter means the same in every method that has it: one line each.
    known = {key: (stage, option) for stage in PREFERENCES.values() for key, option in fields_of(stage).items()}
    lines = ["| parameter | value | meaning |", "|---|---|---|"]
    for key, (stage, option) in known.items():
        if key not in fields_of(PreferenceStage) and key not in fields_of(ReferencedStage):
            lines.append(f"| `{key}` | {values(option)} | {cell(meaning_of(stage, key))} |")
    return "\n".join(lines) + "\n"


def rates() -> str:
    """The default learning rates; they stand in one table of their own."""
    lines = ["Default learning rates:\n", "| method | all weights | with LoRA | source |", "|---|---|---|---|"]
    for name, (rate, source) in {**LEARNING_RATES, "every other preference method": PREFERENCE_RATE}.items():
        label = f"`{name}`" if " " not in name else name
        lines.append(f"| {label} | {rate:g} | {rate * LoRA.RATE[0]:g} | {source} |")
    lines += ["", "With an adapter, the rate for all weights times:\n", "| kind | factor | source |", "|---|---|---|"]
    lines += [f"| `{kind}` | {record.RATE[0]:g} | {record.RATE[1]} |" for kind, record in ADAPTERS.items()]
    return "\n".join(lines) + "\n"


def names() -> str:
    lines = ["Keys of TRL, Axolotl, LLaMA-Factory, OpenRLHF and verl:\n", "| elsewhere | here |", "|---|---|"]
    for known in (OTHER_TOOLS, OTHER_TOOLS_ONLINE, NOT_HERE):
        for words in dict.fromkeys(known.values()):
            here, comma, remark = words.partition(",")
            said = f"none: {words}" if known is NOT_HERE else f"`{here}`{comma}{remark}"
            lines.append(f"| {', '.join(f'`{name}`' for name in known if known[name] == words)} | {said} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(recipe_reference(), end="")
