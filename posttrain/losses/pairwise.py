"""The offline preference family: a literal table over orthogonal choices.

    loss of a pair = weight * (preference_weight * link(r_w, r_l, margin) + nll_weight * extra)

    score   what the policy (and the reference) say about one response: one number (`scores.py`)
    reward  r = beta * score; the implicit reward that the metrics report (beta = 1 where a row has no beta)
    link    turns the rewards of a pair into a loss (`links.py`, as all that follows)
    margin  how far r_w has to be ahead, in reward units
    extra   a term that anchors the chosen response
    weight  how much a pair counts

The step's loss is the mean over its rows (`preference.py`); a ranked list is the mean over its pairs, best first, or
one term where the link takes a whole list. To add an objective, add a row to `PAIRWISE`; to add a choice, add one small
function. Recipes, command line and `training/objectives.py` read the table.

Notation as in `posttrain.types`: N trained tokens, B branches, P trees; w the chosen (winner), l the rejected side.

Deviations from the papers
 1. A branch without trained tokens has score 0 (its sums and means are 0): loss and gradients stay finite.
 2. Sequence log-ratios sum per-token differences instead of subtracting two long sums: at step 0 they are exactly
    0, and long responses do not lose digits in fp32.
 3. NLL terms are means over rows of the response's per-token mean (`rpo`: of its sum). The authors' code of ORPO, CPO
    and MPO, and TRL, take one mean over all tokens of a device's batch, which changes with the split into
    micro-batches. CPO's paper writes the sum; its published models used the mean. ORPO's NLL covers the response here
    and in the paper (y given x); in the authors' code (xfactlab/orpo, unless --disable_prompt_loss) and in TRL's
    ORPOTrainer it covers the prompt's tokens too, so published ORPO runs also trained on their prompts.
 4. ORPO's odds are taken no closer to certainty than 1 - p = machine epsilon, where they would be infinite.
 5. f'(u) of the f-divergences is shifted to f'(1) = 0, which cancels between two responses, and e^x in it (and in
    AlphaPO's reward) goes on as its tangent beyond x = 30.
 6. BCO's reward shift is the mean reward of the *step*, where the authors' code keeps a running mean over all steps:
    it needs no state, and follows the policy. TRL's `bco_pair` leaves it out.
    `beta_dpo` has a running mean as published; its own deviations are listed in `dynamic_beta.py`.
 7. AOT sorts the pairs of the *step*, whatever its split into micro-batches.
 8. WPO's weight of a pair is bounded by 1, as in the authors' code; the paper's Eq. 2 and TRL's `use_weighting` have
    no bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from posttrain.losses import dynamic_beta, links, scores
from posttrain.losses.links import Rewards
from posttrain.losses.parameters import Parameter, resolve
from posttrain.losses.responses import Coupling, Pairs, Parameters, Responses
from posttrain.losses.scores import Score

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairwiseRow:
    """One objective: PairwiseRow(scores.LOG_RATIO_SUM, links.logistic, {"beta": 0.1}, "where it is from")."""

    score: Score
    link: Callable[[Rewards, Parameters], Tensor]
    defaults: Mapping[str, float]
    """The row's parameters, all of them, with the values of `source`."""
    source: str
    margin: Callable[[Responses, Pairs, Parameters], Tensor | float] | None = None
    extra: Callable[[Responses, Pairs], Tensor] | None = None
    weight: Callable[[Responses, Pairs], Tensor] | None = None
    coupling: Coupling | None = None
    """What a pair has to know of its step; None for the many objectives whose pairs are on their own."""
    whole_list: bool = False
    """The link takes a tree's responses together, [P], rather than pair by pair, [Q]."""

    @property
    def needs_reference(self) -> bool:
        return self.score.needs_reference

    @property
    def needs_margins(self) -> bool:
        """Whether every pair has to carry its annotators' margin."""
        return self.margin is links.annotated_margin

    @property
    def needs_collision(self) -> bool:
        """Whether the policy has to give `log_collision_N` too."""
        return self.weight is links.on_policy_weight

    @property
    def remembers(self) -> bool:
        """Whether it keeps something from step to step, so that it is no term of a mix: one memory, one method."""
        return self.coupling is not None and self.coupling.memory is not None

    def resolve(self, given: Parameters, *, where: str = "pairwise objective") -> dict[str, float]:
        """The row's defaults with `given` over them, all checked: what `pairwise_loss` takes.

        PAIRWISE["cdpo"].resolve({"beta": 0.2}) == {"beta": 0.2, "label_smoothing": 0.1}

        Raises:
            UnknownKeyError: a parameter that the row does not have; says which rows do, and the nearest name.
            ConfigError: a value out of range.
        """
        return resolve(given, self.defaults, PARAMETERS, where=where, owners=owners())


PAIRWISE: Mapping[str, PairwiseRow] = MappingProxyType(
    {
        # loss = -log σ(β (Σ_t log π/π_ref (y_w) - Σ_t log π/π_ref (y_l))): the score is the sum, the link is -log σ.
        # examples/dpo.py writes it out in one flat loop, without this table.
        "dpo": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.logistic,
            {"beta": 0.1},
            "Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; beta of App. B",
        ),
        "cdpo": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.smoothed_logistic,
            {"beta": 0.1, "label_smoothing": 0.1},
            "Mitchell 2023, ericmitchell.ai/cdpo.pdf, Eq. 3; smoothing of the authors' README",
        ),
        "robust": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.debiased_logistic,
            {"beta": 0.1, "label_smoothing": 0.1},
            "Chowdhury et al. 2024, arXiv:2403.00409, the rDPO loss; beta of App. B, smoothing of Sec. 6",
        ),
        # The per-token mean is how the authors read their Eq. 17, and it is behind their results (trl#1265,
        # huggingface.co/blog/pref-tuning): the target 1/(2 beta) is a constant, so of a sum it would ask less per
        # token in a long response than in a short one.
        "ipo": PairwiseRow(
            scores.LOG_RATIO_MEAN,
            links.squared,
            {"beta": 0.1},
            "Azar et al. 2023, arXiv:2310.12036, Eq. 17 with the authors' per-token mean; beta (their tau) of TRL",
        ),
        "ipo_sum": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.squared,
            {"beta": 0.1},
            "Azar et al. 2023, arXiv:2310.12036, Eq. 17 as printed and as in the DPO authors' code",
        ),
        "hinge": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.hinge,
            {"beta": 0.1},
            "SLiC with a reference: hinge-norm of Liu et al. 2023 (RSO), arXiv:2309.06657; beta (their gamma) of TRL",
        ),
        "dpo_norm": PairwiseRow(
            scores.LOG_RATIO_MEAN,
            links.logistic,
            # A mean over tokens is as much smaller than the sum as the response is long, hence a beta 50 times that of
            # dpo.
            {"beta": 5.0},
            "Lambert et al. 2024 (Tulu 3), arXiv:2411.15124, length-normalized DPO; beta of the 8B recipe",
        ),
        "ld_dpo": PairwiseRow(
            scores.LOG_RATIO_WITHOUT_TAIL,
            links.logistic,
            {"beta": 0.1, "tail_weight": 0.5},
            "Liu et al. 2024, arXiv:2409.06411, LD-DPO; tail_weight is their alpha, 0.5 as a start, beta of DPO",
        ),
        "dpo_forward_kl": PairwiseRow(
            scores.FORWARD_KL,
            links.logistic,
            {"beta": 0.1},
            "Wang et al. 2023 (f-DPO), arXiv:2309.16240, forward KL of Table 1; beta of their experiments",
        ),
        "dpo_js": PairwiseRow(
            scores.JENSEN_SHANNON,
            links.logistic,
            {"beta": 0.1},
            "Wang et al. 2023 (f-DPO), arXiv:2309.16240, Jensen-Shannon of Table 1; beta of their experiments",
        ),
        "dpo_alpha": PairwiseRow(
            scores.ALPHA_DIVERGENCE,
            links.logistic,
            {"beta": 0.1, "divergence_alpha": 0.5},
            "Wang et al. 2023 (f-DPO), arXiv:2309.16240, alpha-divergence of Table 1; beta and alpha of theirs",
        ),
        "beta_dpo": PairwiseRow(
            scores.LOG_RATIO_SUM,
            dynamic_beta.rescaled_logistic,
            {"beta": 0.1, "gain": 0.6, "keep": 0.8, "momentum": 0.9},
            "Wu et al. 2024 (beta-DPO), arXiv:2407.08639, batch-level beta and filtering; values of the authors' code",
            weight=dynamic_beta.kept_weight,
            coupling=dynamic_beta.STEP_BETA,
        ),
        "dpo_nll": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.logistic,
            {"beta": 0.1, "nll_weight": 1.0},
            "Pang et al. 2024 (Iterative RPO), arXiv:2404.19733, Eq. 1; beta and alpha of their experiments",
            extra=links.nll_mean,
        ),
        "rpo": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.logistic,
            {"beta": 0.01, "nll_weight": 0.005 * 0.01},  # the paper's weight of the sum is eta * beta
            "Liu et al. 2024, arXiv:2405.16436, RPO (Algorithm 2); eta = 0.005 and beta of App. E.1",
            extra=links.nll_sum,
        ),
        "dpop": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.logistic,
            # As a margin the penalty stands inside the sigmoid, as in the paper: a pair that is far ahead no longer
            # feels it.
            {"beta": 0.3, "penalty": 50.0},
            "Pal et al. 2024 (Smaug), arXiv:2402.13228, the DPOP loss; beta and lambda of Sec. 5",
            margin=links.chosen_shortfall,
        ),
        "odpo": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.logistic,
            {"beta": 0.1, "margin_scale": 1.0},
            "Amini et al. 2024, arXiv:2402.10571, the ODPO loss; alpha of the authors' code, beta of DPO",
            margin=links.annotated_margin,
        ),
        "dpo_pl": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.plackett_luce,
            {"beta": 0.1},
            "Rafailov et al. 2023, arXiv:2305.18290, Eq. 20 (App. A.3), the Plackett-Luce ranking; beta of App. B",
            whole_list=True,
        ),
        "exo_pair": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.reverse_kl_to_labels,
            {"beta": 0.1, "label_epsilon": 0.001},
            "Ji et al. 2024 (EXO), arXiv:2402.00856, Eq. 16 for K = 2; epsilon and beta of App. B",
        ),
        "nca_pair": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.noise_contrastive,
            {"beta": 0.01},
            "Chen et al. 2024 (NCA), arXiv:2402.05369, the preference loss for K = 2; beta of App. C",
        ),
        "bco_pair": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.shifted_classifier,
            {"beta": 0.01},
            "Jung et al. 2024 (BCO), arXiv:2404.04656, the classifier with reward shift, on pairs; beta of App. C",
            coupling=links.STEP_MEAN,
        ),
        "sppo_hard": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.self_play_squared,
            {"beta": 0.001},
            "Wu et al. 2024 (SPPO), arXiv:2405.00675, Eq. 4.7 with P = 1 and 0; beta = 1/eta, eta = 1000 of Sec. 5",
        ),
        "apo_zero": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.anchored_up,
            {"beta": 0.1},
            "D'Oosterlinck et al. 2024 (APO), arXiv:2408.06266, Eq. 7; beta of Sec. 5.2",
        ),
        "apo_down": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.anchored_down,
            {"beta": 0.1},
            "D'Oosterlinck et al. 2024 (APO), arXiv:2408.06266, Eq. 8; beta of Sec. 5.2",
        ),
        "discopop": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.log_ratio_modulated,
            {"beta": 0.05, "tau": 0.05},
            "Lu et al. 2024 (DiscoPOP), arXiv:2406.08414, Eq. 5; beta of App. B.1, tau of App. E",
        ),
        "aot": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.logistic,
            {"beta": 0.01},
            "Melnyk et al. 2024 (AOT), arXiv:2406.05882, paired, logistic; beta of Figure 2",
            margin=links.rank_matched_margin,
            coupling=links.STEP_REFERENCE_RANKS,
        ),
        "aot_unpaired": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.rank_matched,
            {"beta": 0.01},
            "Melnyk et al. 2024 (AOT), arXiv:2406.05882, unpaired, logistic; beta of Figure 2",
            coupling=links.STEP_RANKS,
        ),
        "wpo": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.logistic,
            {"beta": 0.01},
            "Zhou et al. 2024 (WPO), arXiv:2406.11827, Eq. 2 with sampled alignment, on DPO; beta of Sec. 4",
            weight=links.on_policy_weight,
        ),
        "mpo": PairwiseRow(
            scores.LOG_RATIO_SUM,
            links.preference_and_quality,
            {"beta": 0.1, "quality_weight": 0.2, "nll_weight": 1.0},
            "Wang et al. 2024 (MPO), arXiv:2411.10442, Sec. 3.2; weights 0.8, 0.2 and 1 of Sec. 7, beta of DPO",
            extra=links.nll_mean,
            coupling=links.STEP_MEAN,
        ),
        "simpo": PairwiseRow(
            scores.LOGPROB_MEAN,
            links.logistic,
            {"beta": 2.0, "gamma": 1.0},
            "Meng et al. 2024, arXiv:2405.14734, Eq. 6; the authors' Llama-3-Base setting, gamma/beta = 0.5",
            margin=links.target_margin,
        ),
        "alphapo": PairwiseRow(
            scores.POWER_OF_MEAN,
            links.logistic,
            {"beta": 2.5, "gamma": 0.1, "alpha": 0.25},
            "Gupta et al. 2025 (AlphaPO), arXiv:2501.03884; Mistral-Instruct of Table 3",
            margin=links.target_margin,
        ),
        "cpo": PairwiseRow(
            scores.LOGPROB_SUM,
            links.logistic,
            {"beta": 0.1, "nll_weight": 1.0},
            # Without a reference it is the NLL that keeps the policy near the data.
            "Xu et al. 2024, arXiv:2401.08417, Sec. 3; beta of Sec. 4.2",
            extra=links.nll_mean,
        ),
        "cpo_simpo": PairwiseRow(
            scores.LOGPROB_MEAN,
            links.logistic,
            {"beta": 2.0, "gamma": 1.0, "nll_weight": 1.0},
            "SimPO (arXiv:2405.14734) with the NLL term of CPO (arXiv:2401.08417), each with its own values",
            margin=links.target_margin,
            extra=links.nll_mean,
        ),
        "orpo": PairwiseRow(
            scores.LOG_ODDS_OF_MEAN,
            links.logistic,
            # No beta: the paper takes the log-odds as they are, and its lambda weighs the whole preference term.
            {"preference_weight": 0.1},
            "Hong et al. 2024, arXiv:2403.07691, Eq. 6 and 7; lambda of Sec. 6.1 (Mistral)",
            extra=links.nll_mean,
        ),
    }
)

# ---------------------------------------------------------------- parameters

PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "beta": Parameter("scale of the implicit reward; larger holds the policy closer to its start", above=0.0),
        # At 0.5 labels say nothing, and `robust` would divide by 1 - 2 * 0.5.
        "label_smoothing": Parameter("share of labels believed to be flipped", at_least=0.0, below=0.5),
        "label_epsilon": Parameter("how far a label is from certain; 0 would be infinitely wrong", above=0, below=0.5),
        "gamma": Parameter("reward by which the chosen response has to be ahead", at_least=0.0),
        "alpha": Parameter("shape of AlphaPO's reward (1 - p^-alpha) / alpha; 0 is SimPO's log p"),
        # Its ends are rows of their own: towards 0 the score is that of dpo, at 1 that of dpo_forward_kl.
        "divergence_alpha": Parameter(
            "which divergence: near 0 reverse KL (mode-seeking), near 1 forward (mass-covering)", above=0.0, below=1.0
        ),
        "tail_weight": Parameter(
            "what a token beyond the shorter response's length counts; 1 is dpo", at_least=0.0, at_most=1.0
        ),
        # From 1 on, sigmoid(lead / tau) e^-lead no longer vanishes for a pair that is far behind.
        "tau": Parameter("log-ratio lead over which DiscoPOP turns from logistic to exponential", above=0.0, below=1.0),
        "margin_scale": Parameter("reward per unit of annotated margin (alpha in ODPO)", at_least=0.0),
        "penalty": Parameter("weight of what the chosen response lost since the start (lambda in DPOP)", at_least=0.0),
        "gain": Parameter("how much beta rises per nat that the step's gap is above the usual one", at_least=0.0),
        "keep": Parameter("share of a step's pairs that train; the others' gaps are unusual", above=0.0, at_most=1.0),
        "momentum": Parameter("how slowly the usual gap follows the steps'", at_least=0.0, below=1.0),
        "nll_weight": Parameter("weight of the chosen response's negative log-likelihood", at_least=0.0),
        "preference_weight": Parameter("weight of the preference term (lambda in ORPO, `beta` in TRL)", above=0.0),
        "quality_weight": Parameter(
            "share of the quality term; the preference term has the rest", at_least=0.0, at_most=1.0
        ),
    }
)


def owners() -> dict[str, list[str]]:
    """Which rows have a parameter: owners()["tail_weight"] == ["ld_dpo"]."""
    return {key: [name for name, row in PAIRWISE.items() if key in row.defaults] for key in PARAMETERS}
