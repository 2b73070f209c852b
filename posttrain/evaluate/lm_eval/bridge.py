"""lm-eval's `LM` over a model that is in memory: log-likelihoods by token trees, answers by posttrain's engine.

    import lm_eval
    results = lm_eval.simple_evaluate(model=bridge_lm(asked, progress), tasks=["arc_easy"])

What becomes of a text is lm-eval's own `hf` backend's way, so that both give the same numbers (a test holds them to
1e-4): how context and continuation are split into ids, the beginning token, the windows of rolling likelihoods, the cut
of long contexts on the left, where answers stop. Deviations:

1. Answers also end at the stop tokens that the model was trained to end its turns with; `hf` does that where the
   folder's generation_config.json names them, which for exports of posttrain is the same.
2. A chat template that refuses the system message is an error; `hf` drops the message with a warning.
3. A model with learned positions (GPT-2) reads one token less of a text that is cut: our passes hold the last token of
   a continuation too, and there is no position for it.
4. An option of sampling that we do not know is an error; `hf` hands it to transformers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from posttrain.errors import ConfigError
from posttrain.evaluate.asking import EvaluatedModel
from posttrain.evaluate.lm_eval.likelihood import Continuations, ContinuationScorer
from posttrain.evaluate.lm_eval.tasks import LENGTHS, require_options
from posttrain.rollout.text import cut_at_stop
from posttrain.runs.progress import Progress
from posttrain.sampling import SamplingDistribution
from posttrain.types import Message, Role

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
else:
    # Its own class comes in with `bridge_lm`: this module is loaded where lm-eval is not installed, too.
    TemplateLM = object

LONGEST_ANSWER = 256
"""Tokens, where a task says nothing: lm-eval's own default."""
DEFAULT_POSITIONS = 2_048
Encoded = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), ids of the context, ids of the continuation), as `TemplateLM.loglikelihood` makes them."""


def bridge_lm(asked: EvaluatedModel, progress: Progress | None = None) -> Any:
    """lm-eval's `TemplateLM` over the model: bridge_lm(EvaluatedModel.of(model, tokenizer), Progress())."""
    from lm_eval.api import model

    return type("BridgeLM", (Bridge, model.TemplateLM), {})(asked, progress)


class Bridge(TemplateLM):
    """What lm-eval asks of a model; made by `bridge_lm`."""

    def __init__(self, asked: EvaluatedModel, progress: Progress | None = None):
        super().__init__()
        self.asked = asked
        self.tokenizer = asked.encoder.tokenizer
        self._progress = progress or Progress()
        self._scorer = ContinuationScorer(asked.model)
        config: Any = asked.model.config
        self._config = config.get_text_config()

    # ------------------------------------------------------------ what lm-eval asks of the model

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        begins = self.tokenizer.bos_token_id
        return self.eot_token_id if begins is None else int(begins)

    @property
    def max_length(self) -> int:
        known = (getattr(self._config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
        return int(next((number for number in known if number is not None), DEFAULT_POSITIONS))

    @property
    def _room(self) -> int:
        """Tokens of a context and its continuation together; as in `hf`, the last is only predicted."""
        # Rotary positions go on after the last one that was trained; of learned ones there is no further.
        return self.max_length + (1 if getattr(self._config, "rope_parameters", None) else 0)

    @property
    def max_gen_toks(self) -> int:
        return LONGEST_ANSWER

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text. What the tokenizer adds by itself is added, but no second beginning token."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return [int(number) for number in self.tokenizer.encode(string, **options)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's template writes it: the one that it was trained with.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        template = self.asked.encoder.template
        messages = [template.plain(Message(cast(Role, turn["role"]), turn["content"])) for turn in chat_history]
        if add_generation_prompt:
            return template.prompt(messages)
        # lm-eval asks for this where an answer begins with given words: the last turn stays open.
        *before, last = messages
        return template.prompt(before) + str(last["content"])

    # ------------------------------------------------------------ likelihoods

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-prob, whether greedy decoding would say it) of each request's continuation."""
        # A progress of our own is shown.
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded | tuple[None, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-prob, whether greedy decoding would say it) of each continuation."""
        places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        continuations: list[tuple[int, ...]] = []
        cut = 0
        for number, (texts, context, continuation) in enumerate(requests):
            self._require_room(texts, context, continuation)
            whole = tuple(context + continuation)[-self._room :]
            cut += len(whole) < len(context) + len(continuation)
            continuations.append(whole[len(whole) - len(continuation) :])
            places[whole[: len(whole) - len(continuation)]].append(number)
        self._say_cut(cut, len(requests), self._room)
        asked = [
            Continuations(context, tuple(continuations[number] for number in own)) for context, own in places.items()
        ]
        with self._progress.phase("lm-eval: likelihoods", total=len(requests), unit="continuations") as phase:
            scored = self._scorer.score(asked, lambda count, tokens: phase.advance(count, tokens=tokens))
            # What other ranks scored.
            phase.advance(len(requests) - phase.done)
        found: dict[int, tuple[float, bool]] = {}
        for own, likelihoods in zip(places.values(), scored, strict=True):
            found |= {number: (one.logprob, one.is_greedy) for number, one in zip(own, likelihoods, strict=True)}
        return [found[number] for number in range(len(requests))]

    def _say_cut(self, cut: int, count: int, room: int) -> None:
        if cut:
            self._progress.say(
                f"lm-eval: {cut:,} of {count:,} contexts are longer than the {room:,} tokens that the model has for "
                "them, and lose their beginning as in lm-eval: few-shot examples and instructions stand there"
            )

    def _require_room(self, texts: tuple[str, str] | None, context: list[int], continuation: list[int]) -> None:
        if context and continuation and len(continuation) < self._room:
            return
        raise ConfigError(
            "a continuation of a task cannot be scored",
            found=f"{len(continuation):,} tokens after a context of {len(context):,}"
            + (f": {texts[1][:60]!r}" if texts else ""),
            expected=f"1 to {self._room - 1:,} tokens, the model's positions",
            remedy="correct the task's `doc_to_choice` or `doc_to_target`, or evaluate a model with more positions",
        )

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-prob of each whole text, in windows that do not overlap but for one token."""
        from lm_eval import utils

        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            (text,) = request.args
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._room - 1,
                context_len=1,
            )
            own = [(None, *utils.make_disjoint_window(window)) for window in rolling]
            windows += own
            counts.append(len(own))
        scored = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scored)[0] for _ in range(count)) for count in counts]

    # ------------------------------------------------------------ answers

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says, cut before the first of the task's `until` strings."""
        by_options: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            by_options[repr(sorted(request.args[1].items(), key=repr))].append(number)
        answers: dict[int, str] = {}
        for own in by_options.values():
            options = requests[own[0]].args[1]
            task = str(getattr(requests[own[0]], "task_name", None) or "a task")
            drawn, until = self._drawing(options, task)
            room = self.max_length - drawn.max_new_tokens
            if room <= 0:
                raise ConfigError(
                    f"{task} wants answers as long as the model's whole context",
                    found=f"max_gen_toks: {drawn.max_new_tokens:,}, the model has {self.max_length:,} positions",
                    expected="room for the question",
                    remedy="set a smaller `max_gen_toks` in the task's `generation_kwargs`",
                )
            whole = [self.tok_encode(requests[number].args[0]) for number in own]
            self._say_cut(sum(len(prompt) > room for prompt in whole), len(own), room)
            prompts = [prompt[-room:] for prompt in whole]
            with self._progress.phase(f"lm-eval: {task}", total=len(own), unit="answers") as phase:
                groups = self.asked.engine.generate(prompts, drawn)
                phase.advance(len(own), tokens=sum(len(completion.ids) for (completion,) in groups))
            for number, (completion,) in zip(own, groups, strict=True):
                text = self.tokenizer.decode(list(completion.answer_ids), skip_special_tokens=True)
                answers[number] = cut_at_stop(text, until)
        return [answers[number] for number in range(len(requests))]

    def _drawing(self, options: Mapping[str, Any], task: str) -> tuple[SamplingDistribution, tuple[str, ...]]:
        """How a task's answers are drawn, and the texts that end them.

        Raises:
            ConfigError: an option that we do not know, or beams.
        """
        require_options(options, task)
        given = options.get("until") or []
        until = tuple(text for text in ([given] if isinstance(given, str) else given) if text)
        longest = next((options[name] for name in LENGTHS if options.get(name) is not None), LONGEST_ANSWER)
        temperature = float(options.get("temperature") or 0.0)
        samples = options.get("do_sample", temperature > 0)
        drawn = SamplingDistribution(
            # `do_sample: true` alone draws at transformers' temperature of 1.
            temperature=(temperature or 1.0) if samples else 0.0,
            top_k=(options.get("top_k") or None) if samples else None,
            top_p=float(options.get("top_p", 1.0)) if samples else 1.0,
            min_p=float(options.get("min_p") or 0.0) if samples else 0.0,
            repetition_penalty=float(options.get("repetition_penalty", 1.0)),
            max_new_tokens=int(longest),
            stop=until,
            stop_ids=self.asked.encoder.stop_ids | {self.eot_token_id},
            seed=self.asked.seed,
        )
        return drawn, until
