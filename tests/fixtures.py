"""Tiny models, tokenizers and token trees for the tests; nothing here needs a network or more than a second.

model = tiny_model("gemma2", vocab=97, dtype=torch.float64)     # two random layers, eval mode
tokenizer = byte_tokenizer(template="CHATML")                   # 256 bytes and the specials that CHATML writes
trees = random_trees(8, vocab=97, branches=2, seed=3)           # eight pairs
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from posttrain.types import Branch, Demonstration, Message, RowRef, TokenTree
from tests.chat_templates import (  # re-exported: tests import them from here
    BOS_IN_TEMPLATE,
    CHATML,
    CHATML_DEFAULT_SYSTEM,
    CHATML_TOKENS,
    GEMMA_LIKE,
    LLAMA3_LIKE,
    MISTRAL_LIKE,
    NO_BOS,
    NO_GENERATION_PROMPT,
    NO_SYSTEM,
    NO_TERMINATOR,
    PHI3_LIKE,
    ROLE_TOKENS,
    TEMPLATE_TOKENS,
    TEMPLATES,
    THINK_DROPPED,
    THINK_PREFILL,
    THINK_PREFILL_VERBATIM,
    TOOLS,
    TURN_END,
)

__all__ = [
    "ARCHITECTURES",
    "BOS_IN_TEMPLATE",
    "CHATML",
    "CHATML_DEFAULT_SYSTEM",
    "CHATML_TOKENS",
    "GEMMA_LIKE",
    "LLAMA3_LIKE",
    "MISTRAL_LIKE",
    "NO_BOS",
    "NO_GENERATION_PROMPT",
    "NO_SYSTEM",
    "NO_TERMINATOR",
    "PHI3_LIKE",
    "ROLE_TOKENS",
    "SLIDING_WINDOW",
    "TEMPLATES",
    "TEMPLATE_TOKENS",
    "THINK_DROPPED",
    "THINK_PREFILL",
    "THINK_PREFILL_VERBATIM",
    "TOOLS",
    "TURN_END",
    "bpe_tokenizer",
    "byte_tokenizer",
    "chat",
    "demonstration",
    "make_tree",
    "random_trees",
    "tiny_model",
]

SLIDING_WINDOW = 8

# ---------------------------------------------------------------- models

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}
_ALTERNATING = {"sliding_window": SLIDING_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, _GROUPED),
    "qwen2": (Qwen2Config, {**_COMMON, "num_key_value_heads": 2, "use_sliding_window": False}),
    "qwen3": (Qwen3Config, {**_GROUPED, "use_sliding_window": False}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        {**_GROUPED, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "gemma2": (
        Gemma2Config,
        # Caps low enough to bend the scores of a random model: a path that forgets them is caught.
        {**_GROUPED, **_ALTERNATING, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (Gemma3TextConfig, {**_GROUPED, **_ALTERNATING}),
    "mistral": (MistralConfig, {**_GROUPED, "sliding_window": SLIDING_WINDOW}),
    "phi3": (Phi3Config, {**_COMMON, "num_key_value_heads": 2}),
    "olmo2": (Olmo2Config, {**_COMMON, "num_key_value_heads": 2}),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gpt_neox": (GPTNeoXConfig, _COMMON),
}
_NO_DROPOUT: dict[str, dict[str, float]] = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}

ARCHITECTURES: tuple[str, ...] = tuple(_CONFIGS)


def tiny_model(
    arch: str = "llama", vocab: int = 97, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A random causal LM of two layers in eval mode, built from its config class; the global seed is left alone.

    Weights vary enough that every token's output depends visibly on every token it may see: a leak of attention
    shows as a difference around 1e-2, far above rounding. `overrides` go to the config (`tie_word_embeddings=True`,
    `attn_implementation="eager"`, `attention_dropout=0.1`, `eos_token_id=2`, ...).
    """
    config_class, settings = _CONFIGS[arch]
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    settings = {**settings, **_NO_DROPOUT.get(arch, {}), **tokens, **overrides}
    config = config_class(vocab_size=vocab, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim >= 2:
                    parameter.copy_(noise * 0.2)
                else:
                    parameter.add_(noise * 0.1)
    if arch == "qwen3_moe":
        model.set_experts_implementation("eager")  # the grouped matrix product of torch knows no float64
    return model.to(dtype).eval()


# ---------------------------------------------------------------- tokenizers


def byte_tokenizer(
    template: str | None = None,
    *,
    bos: str | None = "<s>",
    eos: str | None = "</s>",
    pad: str | None = "<pad>",
    specials: Sequence[str] = (),
    ids: Mapping[str, int] | None = None,
    pad_is_eos: bool = False,
    add_bos: bool = False,
    merges: Sequence[tuple[str, str]] = (),
) -> PreTrainedTokenizerFast:
    """One token per byte after the special tokens; `merges` makes it a BPE.

    template: a name in TEMPLATES (its special tokens are added) or template text; None leaves the tokenizer without.
    ids: puts a special token at an id of your choice: ids={"<turn_end>": 106, "</s>": 1}; the rest fill the gaps
         in the order pad, bos, eos, specials, bytes.
    pad_is_eos: pad shares the eos token, as in SmolLM2, GPT-2 and many others.
    add_bos: the tokenizer writes BOS by itself (add_special_tokens=True), as Llama's do.
    merges: pairs of byte-level symbols, e.g. [("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo")]; a space is "Ġ".
    """
    text = TEMPLATES.get(template, template) if template is not None else None
    wanted = [token for token in (None if pad_is_eos else pad, bos, eos) if token is not None]
    wanted += list(TEMPLATE_TOKENS.get(template or "", ()))
    special_tokens = list(dict.fromkeys([*wanted, *specials]))
    regular = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    vocabulary = _place([*special_tokens, *regular], ids or {})
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(merges))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    if add_bos and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos if pad_is_eos else pad,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = text
    return fast


def bpe_tokenizer(
    merges: Sequence[tuple[str, str]] = (("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo")),
    template: str | None = None,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with chosen merges; by default it knows "he", "ll", "llo" and "hello"."""
    return byte_tokenizer(template, merges=merges, **options)


def _place(tokens: Sequence[str], ids: Mapping[str, int]) -> dict[str, int]:
    """Ids for all tokens: the chosen ones where they were put, the others in order in the places left."""
    taken = set(ids.values())
    free = (number for number in range(len(tokens) + len(ids)) if number not in taken)
    vocabulary = {token: ids[token] if token in ids else next(free) for token in tokens}
    assert len(set(vocabulary.values())) == len(tokens)
    return vocabulary


# ---------------------------------------------------------------- conversations and trees


def chat(*turns: str, system: str | None = None) -> tuple[Message, ...]:
    """Messages that alternate user, assistant, user, ...: chat("Hi", "Hello.", system="Be kind.")."""
    start = (Message("system", system),) if system is not None else ()
    return start + tuple(Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns))


def demonstration(*turns: str, system: str | None = None, row: int = 1) -> Demonstration:
    """demonstration("Hi", "Hello.") as row 1 of "test.jsonl"."""
    return Demonstration(chat(*turns, system=system), RowRef("test.jsonl", row))


def make_tree(
    prompt: Sequence[int],
    *branches: Sequence[int] | tuple[Sequence[int], Sequence[bool]],
    margin: float | None = None,
    label: bool | None = None,
    scores: tuple[float, ...] | None = None,
    row: int = 1,
) -> TokenTree:
    """A tree from plain lists: make_tree([1, 70, 71], [52, 2], ([53, 54, 2], [True, False, True]))."""
    built = []
    for branch in branches:
        ids, mask = branch if isinstance(branch, tuple) else (branch, [True] * len(branch))
        built.append(Branch(np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=bool)))
    content = (
        list(prompt),
        [(branch.ids.tolist(), branch.loss_mask.tolist()) for branch in built],
        margin,
        label,
        scores,
    )
    key = hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()
    return TokenTree(
        np.asarray(prompt, dtype=np.int32), tuple(built), key, RowRef("test.jsonl", row), margin, label, scores
    )


def random_trees(
    count: int = 6,
    *,
    vocab: int = 97,
    seed: int = 0,
    branches: int | tuple[int, int] = (1, 3),
    prompt_tokens: tuple[int, int] = (1, 14),
    branch_tokens: tuple[int, int] = (1, 12),
    mask_probability: float = 1.0,
    margins: bool = False,
) -> list[TokenTree]:
    """Trees of random ids; bounds are inclusive, and long enough to cross SLIDING_WINDOW.

    branches: how many each has, or the bounds of how many (2 for pairs).
    mask_probability: the chance that a branch token trains; every branch keeps at least one.
    """
    rng = np.random.default_rng(seed)
    low, high = (branches, branches) if isinstance(branches, int) else branches
    trees = []
    for index in range(count):
        prompt = rng.integers(0, vocab, rng.integers(prompt_tokens[0], prompt_tokens[1] + 1)).tolist()
        sides = []
        for _ in range(int(rng.integers(low, high + 1))):
            length = int(rng.integers(branch_tokens[0], branch_tokens[1] + 1))
            mask = rng.random(length) < mask_probability
            mask[int(rng.integers(0, length))] = True
            sides.append((rng.integers(0, vocab, length).tolist(), mask.tolist()))
        margin = float(rng.random()) if margins else None
        trees.append(make_tree(prompt, *sides, margin=margin, row=index + 1))
    return trees
