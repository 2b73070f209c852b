"""posttrain: post-training of language models.

    import posttrain as pt

    pairs = pt.read("pairs.jsonl")                               # Examples; a bad row is a named error
    policy = pt.load("smollm2-135m-instruct", adapter=pt.LoRA(rank=16))
    run = pt.train(pt.DPO(beta=0.1, learning_rate=2e-4), policy, pairs, out="runs/mine")
    run.report                                                   # runs/mine/report.html

Names are loaded when they are first used: importing the package imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.auditing import audit
    from posttrain.config import (
        DPO,
        GRPO,
        IA3,
        OFT,
        PPO,
        SFT,
        AdaLoRA,
        Bottleneck,
        ConditionalSFT,
        Continue,
        Data,
        LoRA,
        Mix,
        Objective,
        Online,
        Preference,
        PrefixTuning,
        PromptTuning,
        PTuning,
        QLoRA,
        Recipe,
        Reward,
        load_recipe,
    )
    from posttrain.config.strategies import (
        DVTS,
        MCTS,
        AdaptiveConsistency,
        BestOfN,
        BudgetForcing,
        ChainOfThought,
        CritiqueBy,
        DeepConf,
        EarlyStoppingConsistency,
        FewShot,
        GraphOfThoughts,
        LikeliestAnswer,
        ParticleFilter,
        PRMBeam,
        Retrieval,
        SelfConsistency,
        SelfRefine,
        SelfVerification,
        TreeOfThoughts,
    )
    from posttrain.curation.pipeline import select
    from posttrain.curation.selection import Selection
    from posttrain.data.dataset import EncodedDataset
    from posttrain.data.encode import Encoder
    from posttrain.data.encoder_settings import EncoderSettings
    from posttrain.data.read import read
    from posttrain.data.store import encode
    from posttrain.errors import PosttrainError
    from posttrain.evaluate.ratings.rate import rate
    from posttrain.inference.run import solve
    from posttrain.inference.solution import Solution
    from posttrain.losses.custom import objective
    from posttrain.models.merging.call import merge
    from posttrain.models.reward.scoring import RewardModel, load_reward
    from posttrain.models.tree.logprobs import Policy
    from posttrain.planning.plan import plan
    from posttrain.report import write_report
    from posttrain.runs.samples import samples
    from posttrain.sweeps.sweep import Sweep, sweep
    from posttrain.synthesis.distil import distil
    from posttrain.training.making import make
    from posttrain.training.pipeline import check_recipe, run_recipe
    from posttrain.training.run_result import Run
    from posttrain.training.session import load, train

_HOMES = {
    "AdaLoRA": "posttrain.config",
    "AdaptiveConsistency": "posttrain.config.strategies",
    "BestOfN": "posttrain.config.strategies",
    "Bottleneck": "posttrain.config",
    "BudgetForcing": "posttrain.config.strategies",
    "ChainOfThought": "posttrain.config.strategies",
    "ConditionalSFT": "posttrain.config",
    "Continue": "posttrain.config",
    "CritiqueBy": "posttrain.config.strategies",
    "DPO": "posttrain.config",
    "DVTS": "posttrain.config.strategies",
    "Data": "posttrain.config",
    "DeepConf": "posttrain.config.strategies",
    "EarlyStoppingConsistency": "posttrain.config.strategies",
    "EncodedDataset": "posttrain.data.dataset",
    "Encoder": "posttrain.data.encode",
    "EncoderSettings": "posttrain.data.encoder_settings",
    "FewShot": "posttrain.config.strategies",
    "GRPO": "posttrain.config",
    "GraphOfThoughts": "posttrain.config.strategies",
    "IA3": "posttrain.config",
    "LikeliestAnswer": "posttrain.config.strategies",
    "LoRA": "posttrain.config",
    "MCTS": "posttrain.config.strategies",
    "Mix": "posttrain.config",
    "OFT": "posttrain.config",
    "Objective": "posttrain.config",
    "Online": "posttrain.config",
    "PPO": "posttrain.config",
    "PRMBeam": "posttrain.config.strategies",
    "PTuning": "posttrain.config",
    "ParticleFilter": "posttrain.config.strategies",
    "Policy": "posttrain.models.tree.logprobs",
    "PosttrainError": "posttrain.errors",
    "Preference": "posttrain.config",
    "PrefixTuning": "posttrain.config",
    "PromptTuning": "posttrain.config",
    "QLoRA": "posttrain.config",
    "Recipe": "posttrain.config",
    "Retrieval": "posttrain.config.strategies",
    "Reward": "posttrain.config",
    "RewardModel": "posttrain.models.reward.scoring",
    "Run": "posttrain.training.run_result",
    "SFT": "posttrain.config",
    "Selection": "posttrain.curation.selection",
    "SelfConsistency": "posttrain.config.strategies",
    "SelfRefine": "posttrain.config.strategies",
    "SelfVerification": "posttrain.config.strategies",
    "Solution": "posttrain.inference.solution",
    "Sweep": "posttrain.sweeps.sweep",
    "TreeOfThoughts": "posttrain.config.strategies",
    "audit": "posttrain.auditing",
    "check_recipe": "posttrain.training.pipeline",
    "distil": "posttrain.synthesis.distil",
    "encode": "posttrain.data.store",
    "load": "posttrain.training.session",
    "load_recipe": "posttrain.config",
    "load_reward": "posttrain.models.reward.scoring",
    "make": "posttrain.training.making",
    "merge": "posttrain.models.merging.call",
    "objective": "posttrain.losses.custom",
    "plan": "posttrain.planning.plan",
    "rate": "posttrain.evaluate.ratings.rate",
    "read": "posttrain.data.read",
    "run_recipe": "posttrain.training.pipeline",
    "samples": "posttrain.runs.samples",
    "select": "posttrain.curation.pipeline",
    "solve": "posttrain.inference.run",
    "sweep": "posttrain.sweeps.sweep",
    "train": "posttrain.training.session",
    "write_report": "posttrain.report",
}
"""Public name -> module that holds it."""

__all__ = [
    "DPO",
    "DVTS",
    "GRPO",
    "IA3",
    "MCTS",
    "OFT",
    "PPO",
    "SFT",
    "AdaLoRA",
    "AdaptiveConsistency",
    "BestOfN",
    "Bottleneck",
    "BudgetForcing",
    "ChainOfThought",
    "ConditionalSFT",
    "Continue",
    "CritiqueBy",
    "Data",
    "DeepConf",
    "EarlyStoppingConsistency",
    "EncodedDataset",
    "Encoder",
    "EncoderSettings",
    "FewShot",
    "GraphOfThoughts",
    "LikeliestAnswer",
    "LoRA",
    "Mix",
    "Objective",
    "Online",
    "PRMBeam",
    "PTuning",
    "ParticleFilter",
    "Policy",
    "PosttrainError",
    "Preference",
    "PrefixTuning",
    "PromptTuning",
    "QLoRA",
    "Recipe",
    "Retrieval",
    "Reward",
    "RewardModel",
    "Run",
    "Selection",
    "SelfConsistency",
    "SelfRefine",
    "SelfVerification",
    "Solution",
    "Sweep",
    "TreeOfThoughts",
    "audit",
    "check_recipe",
    "distil",
    "encode",
    "load",
    "load_recipe",
    "load_reward",
    "make",
    "merge",
    "objective",
    "plan",
    "rate",
    "read",
    "run_recipe",
    "samples",
    "select",
    "solve",
    "sweep",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'posttrain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
