"""What each line of the preflight proves: the words of `posttrain check --explain` and of docs/preflight.md.

EXPLAINED["leak"].proves        # by a check's name; tests hold that every check has a row
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Explanation:
    """Explanation("tree = padded", proves="...", matters="...", otherwise="...")."""

    title: str
    """As the line begins."""
    proves: str
    matters: str
    """What a run becomes in which it does not hold."""
    otherwise: str
    """What to do then."""


def _table(**rows: Explanation) -> Mapping[str, Explanation]:
    return MappingProxyType(rows)


EXPLAINED: Mapping[str, Explanation] = _table(
    weights=Explanation(
        "weights are finite",
        "No weight of the start is NaN or infinite.",
        "One such number is in every log-prob after it, and each later check would blame something else.",
        "Get the model again, or start from the stage before it.",
    ),
    data=Explanation(
        "data",
        "How many rows are kept, dropped and cut, by reason, and which share of their tokens trains.",
        "A run on a tenth of the rows, or on their prompts, has a loss like any other.",
        "Raise `max_length`, choose another `encoding.truncation`, or mend the rows that dropped.jsonl names.",
    ),
    columns=Explanation(
        "columns that nothing reads",
        "Every column of the file is either read or named here.",
        "A misspelt `chosen_score` is no error of the file; the run just goes on without it.",
        "Name the column (`columns: {margin: chosen_score}`), or leave it if it is meant for nobody.",
    ),
    files=Explanation(
        "files that were not read",
        "Which files of the folder or pattern were left out, such as those of another split.",
        "Test rows that train make every later figure a lie; training rows that are left out are missed by nobody.",
        "Name the files, or the `split`.",
    ),
    sources=Explanation(
        "sources of the mixture",
        "How many rows and tokens each source has, its share of the run, and how often the run goes through it.",
        "A source that is gone through too often is learned by heart; one that the run hardly comes to is not learned.",
        "Change its `weight` or `epochs`, or the stage's `steps` (docs/mixing.md).",
    ),
    keys=Explanation(
        "keys inside rows",
        "Keys of turns that are not known, with their counts.",
        "A flag such as `train: false` under another name would not be honoured.",
        "Rename the key (docs/data.md), or remove it.",
    ),
    tokens=Explanation(
        "new tokens",
        "Each token that the stage adds (`tokens`) stands in a row that trains.",
        "One that is misspelt keeps the row that it began with, and the text that was meant stays in pieces.",
        "Write it as the rows have it, or leave it out.",
    ),
    encoding=Explanation(
        "rows as rendered",
        "What trains is, for every row, what the model's own chat template writes, or a documented split of it.",
        "The model would learn a text that inference never shows it: a second <think>, a lost call, a doubled BOS.",
        "The line names a row and both texts; name another template, or mend the rows.",
    ),
    held_out_encoding=Explanation(
        "held-out rows as rendered",
        "The same of the rows that are measured and never train.",
        "A held-out loss on other texts than those of training says nothing about training.",
        "As for the training rows.",
    ),
    held_out=Explanation(
        "held-out rows",
        "How many rows are measured and never train, and that none of them is among the training rows.",
        "A row that does both makes the held-out loss fall whatever is learnt.",
        "Remove the rows from one side; `posttrain audit` finds near copies too.",
    ),
    audit=Explanation(
        "data audit",
        "The cheap checks of preferences: duplicates, contradictions, circles, disagreement, label balance.",
        "A shortcut in the pairs is learnt before anything else is.",
        "`posttrain audit FILE` has the rows and the remedies; `audit: {on_error: warn}` trains in spite of them.",
    ),
    stop_token=Explanation(
        "stop token",
        "The share of answers whose last token ends an answer and trains.",
        "A model that never trains on it does not learn to stop, and talks until the limit.",
        "Use a template that ends turns with one token; raise `max_length` where answers were cut.",
    ),
    stops=Explanation(
        "ends inside answers",
        "No answer goes on after a token at which generation stops.",
        "Rollouts would end in the middle of what was trained.",
        "Take the token out of the start's `eos_token_id`, or look at the rows.",
    ),
    bos=Explanation(
        "one BOS",
        "Rows begin with the beginning token at most once, and no answer begins with it.",
        "Two are a prompt that the model has never seen; one inside an answer is learnt as part of it.",
        "Leave it out of the text: the template writes it.",
    ),
    repeat=Explanation(
        "two equal calls",
        "Two calls on the same rows give the same log-probs and gradients, with dropout off.",
        "Noise would stand in every log-ratio, and look like a reference that is another model.",
        "Set the probability of the named module to 0 in the model's config.json.",
    ),
    tree=Explanation(
        "tree = padded",
        "The fast path, which computes a shared prompt once and pads nothing, gives the log-probs and gradients of "
        "ordinary padded rows, on rows of this run.",
        "Wrong masks or positions make log-probs that are a little off everywhere; nothing else would notice.",
        "Nothing: a model that the tree cannot serve runs padded, which is slower and as right.",
    ),
    leak=Explanation(
        "no leak between branches",
        "Changing one answer moves neither log-probs nor gradient of another answer to the same prompt.",
        "The margin of a pair would be fiction: the chosen answer would be read with the rejected one in view.",
        "`compute: {logprobs: padded}`.",
    ),
    objective=Explanation(
        "objective of one's own",
        "A function of the user's own gives finite losses and gradients where training begins and half a nat from it, "
        "and rows one by one have the gradient that they have together.",
        "A loss that looks at the other rows of its batch trains something else for every size of micro-batch.",
        "Bound what overflows; make each loss of its own pair or token alone (docs/extending.md).",
    ),
    identity=Explanation(
        "policy = reference at step 0",
        "Before the first update the loss has the value that it must have there (DPO: ln 2, margin 0); of a stage that "
        "samples, the engine's log-probs are the trainer's.",
        "Another reference, or another sampler, is another objective than the one in the recipe.",
        "`--fresh`, so that the reference is computed again; for a sampler the same precision on both sides.",
    ),
    gradient=Explanation(
        "gradients",
        "How many parameters train, and that each of them gets a gradient from the objective itself.",
        "A frozen or forgotten layer, an adapter that nothing reaches, or a loss without a slope trains nothing, and "
        "its curve looks healthy.",
        "Check which tokens train, the adapter's `targets`, and the objective's choices.",
    ),
    router=Explanation(
        "experts",
        "How evenly a mixture of experts spreads the tokens, and whether the balancing loss is on.",
        "Experts that get no token stop learning.",
        "`router_aux_loss_coef`.",
    ),
    gold=Explanation(
        "verifiers accept the rows' own answers",
        "Each verifier gives full marks to the answer that its own row names.",
        "A verifier that refuses the right answer teaches the model to avoid it.",
        "Name the column of the answer, mend the rows, or choose another reward.",
    ),
    memory=Explanation(
        "memory",
        "What a step needs, item by item, against what is free; activations are measured on rows of this run.",
        "A run that dies at its longest row dies hours later.",
        "Lower `compute.tokens_per_microbatch`, `compute: {activation_checkpointing: true}`, or an adapter.",
    ),
    mode=Explanation(
        "fast preflight, no preflight",
        "That `preflight: fast` or `off` was asked for, and what was not proven because of it.",
        "A run that was not proven is an experiment, and its report says so.",
        "Run once with `preflight: full` before a result counts.",
    ),
)
