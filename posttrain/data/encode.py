"""The one encoder: messages to ids and loss masks.

Training, rollout, reward models, evaluation and export all come here, so that the same messages give the same ids
everywhere. What it guarantees:

1. The context of every trained turn is, id for id, what `Encoder.prompt` (and so inference) builds for that turn.
   Where the template rewrites earlier turns, as thinking templates do, a conversation becomes several trees, one
   for each context that inference really sees.
2. A token trains because of where it stands in the rendered conversation, never because of its id. A pad token
   that is also the eos token, or an eos inside a prompt, changes nothing.
3. Every trained answer ends with exactly one stop token, found by rendering; the stop tokens are `stop_ids`.
4. Nothing is dropped or cut without a reason and a count.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from posttrain.arguments import checked_instance, wrong_argument
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.given import Conversation, as_messages
from posttrain.data.round_trip import RoundTrip, require_written
from posttrain.data.templates.clock import deterministic_rendering
from posttrain.data.templates.drafts import Drafter, RowFindings
from posttrain.data.templates.stops import resolve_stop_ids
from posttrain.data.templates.template import DOCUMENTED_SPLITS, ChatTemplate, PlainMessage, first_difference
from posttrain.data.tokens import Tokens
from posttrain.data.tree_key import make_tree
from posttrain.data.truncate import DROP_REASONS, Draft, fit_length
from posttrain.errors import EncodingError, RowError, TemplateError
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, StepwiseFeedback, Task, TokenTree

ENCODER_VERSION = 2
"""Part of every cache key; grows whenever the same messages would give other ids or masks."""

_SHOWN_PROMPTS = 3
"""Prompts that an error names."""

FINDINGS = {
    "special_tokens_in_text": "a text holds the name of a special token, which becomes that token, as at inference",
    "split_turns": "the template rewrites earlier turns, so that each trained turn is a tree of its own",
    "altered_text": "the template shows a turn's text in other words than the row",
    **DOCUMENTED_SPLITS,
    "foreign_thoughts": "a content has <think> thoughts, which the template writes as plain text although it has marks "
    "of its own for thoughts: give them as `reasoning_content`",
    "hidden_calls": "a tool call of an earlier turn is not whole in the context that the template renders",
    "hidden_tools": "the template shows the calls of tools and not their schemas",
    "lost_text": "the tokenizer cannot write some characters of the row: they train as <unk>, or not at all",
    "altered_by_tokenizer": "the tokenizer changes the text (case, accents, white space), and loses none of it",
    "mark_in_step": "a step holds the mark that ends steps: an answer without a list of steps would be cut there",
}
"""What is worth knowing about a row that is kept."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A tree that is dropped: Dropped("too_long", "1,310 tokens, max_length is 1,024")."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """What one row became: its trees, and everything that has to be counted."""

    trees: tuple[TokenTree, ...]
    stop_tokens: tuple[int, ...] = ()
    """For each tree, how many of its trained tokens end an answer."""
    dropped: tuple[Dropped, ...] = ()
    truncated: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    round_trip: RoundTrip = field(default_factory=RoundTrip)
    """Characters of the row's texts, and how many of them its ids cannot give back."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt's ids, and what is worth knowing about it: EncodedPrompt([1, 70, 71], ("altered_text",), trip)."""

    ids: list[int]
    findings: tuple[str, ...]
    round_trip: RoundTrip


class Encoder:
    """Messages to ids, for one tokenizer.

    encoder = Encoder(tokenizer, EncoderSettings(max_length=512))
    encoder.prompt([Message("user", "Hi")])           # the ids that training, rollout and evaluation share
    encoder.demonstration(row)[0].branches[0].ids     # the answer and its stop token
    encoder.stop_ids                                  # where generation stops: frozenset({2})

    Raises:
        TemplateError: the template cannot serve; the error says why and what else to use.
    """

    def __init__(self, tokenizer: Any, settings: EncoderSettings | None = None):
        self.tokenizer = tokenizer
        if settings is not None:
            checked_instance(
                "settings",
                settings,
                EncoderSettings,
                expected="pt.EncoderSettings(...), or None",
                remedy="write `pt.Encoder(tokenizer, pt.EncoderSettings(max_length=1024))`",
            )
        self.settings = settings or EncoderSettings()
        self.tokens = Tokens(tokenizer)
        self.template = ChatTemplate(
            self.tokens, self.settings.template, self.settings.template_kwargs, self.settings.date
        )
        # Values and day as they were resolved: a copy in a worker process may be made after midnight.
        self.settings = replace(self.settings, template_kwargs=self.template.kwargs, date=self.template.date)
        self.stop_ids, notes = resolve_stop_ids(self.template, self.settings.stop_ids)
        self.template.notes += notes
        self._drafter = Drafter(self.tokens, self.template, self.settings, self.stop_ids)
        self.version = self._version()
        self._shortest_prompt = self._generation_prompt_length() + 1  # and a token of the question at least

    def __reduce__(self) -> tuple[type[Encoder], tuple[Any, EncoderSettings]]:
        return Encoder, (self.tokenizer, self.settings)

    def checked_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> EncodedPrompt:
        """`prompt`, with what there is to say of it; raises the same."""
        findings = RowFindings(self._drafter.special_findings(messages))
        ids = self._drafter.prompt(messages, tools, findings)
        return EncodedPrompt(ids, tuple(findings.names), findings.round_trip)

    @property
    def bos_id(self) -> int | None:
        """The tokenizer's beginning token; in some (SmolLM2) it is also the mark of every turn."""
        return self.tokens.bos_id

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the template, one sentence each; empty for most."""
        return tuple(self.template.notes)

    @property
    def chat_template(self) -> Any:
        """The template in use, to be saved with the model so that serving builds the same ids."""
        return self.template.source

    # ------------------------------------------------------------ the public ways in

    def prompt(self, messages: Conversation, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The ids that the model continues: the conversation and the generation prompt.

        Args:
            messages: turns, as `Message`s or as objects with `role` and `content`; a text is a user's turn.

        Raises:
            TemplateError: the template refuses or hides the messages.
            EncodingError: a text holds a special token's name and the settings refuse that.
            ConfigError: what was passed is no conversation.
        """
        messages = as_messages(messages)
        self._drafter.special_findings(messages)
        return self._drafter.prompt(messages, tools)

    def demonstration(self, row: Demonstration) -> list[TokenTree]:
        """One tree; several where the template rewrites history.

        Raises:
            RowError: nothing is left of the row; its `reason` is one of `truncate.DROP_REASONS`.
            EncodingError: the row cannot be encoded faithfully.
        """
        return list(self._require_trees(row))

    def comparison(self, row: Comparison) -> TokenTree:
        """One tree whose branches are the responses, best first; raises as `demonstration` does."""
        return self._require_trees(row)[0]

    def feedback(self, row: Feedback) -> TokenTree:
        """One tree with one branch, whose label says whether the response is good."""
        return self._require_trees(row)[0]

    def example(self, row: Example) -> EncodedExample:
        """Any row, with what was dropped, cut or found on the way.

        Raises:
            EncodingError: the row cannot be encoded faithfully; it names the row.
        """
        try:
            return self._example(row)
        except EncodingError as error:  # templates and tokenizers know no rows
            if error.where is None:
                error.where = row.row
            raise

    def decode_marked(self, tree: TokenTree, branch: int = 0) -> list[tuple[str, bool]]:
        """The prompt and one branch as pieces of text: [("<|im_start|>user...", False), ("Hello.<|im_end|>", True)]."""
        ids = tree.prompt_ids.tolist()
        mask = [False] * len(ids)
        if tree.branches:
            ids = ids + tree.branches[branch].ids.tolist()
            mask = mask + tree.branches[branch].loss_mask.tolist()
        pieces = []
        start = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or mask[end] != mask[start]:
                pieces.append((self.tokens.decode(ids[start:end]), mask[start]))
                start = end
        return pieces

    # ------------------------------------------------------------ rows

    def _require_trees(self, row: Example) -> tuple[TokenTree, ...]:
        encoded = self.example(row)
        if not encoded.trees:
            dropped = encoded.dropped[0]
            raise RowError(
                f"{DROP_REASONS[dropped.reason]} ({dropped.message})",
                reason=dropped.reason,
                where=row.row,
                expected="a row that fits and has something to train on",
                remedy="raise max_length, choose another `truncation`, or remove the row",
            )
        return encoded.trees

    def _example(self, row: Example) -> EncodedExample:
        if isinstance(row, Demonstration):
            findings = RowFindings(self._drafter.special_findings(row.messages))
            drafts = self._drafter.demonstration(row, findings)
            encoded = self._finish(drafts, row, row.messages, findings)
            if row.is_text and len(drafts) > 1:  # once a text, however many pieces
                return replace(encoded, truncated=(*encoded.truncated, "text_split"))
            return encoded
        if isinstance(row, Task):
            # A task has no branches yet: its responses are sampled.
            findings = RowFindings(self._drafter.special_findings(row.prompt))
            ids = self._drafter.prompt(row.prompt, row.tools, findings)
            return self._finish([Draft(ids, ())], row, row.prompt, findings)

        if isinstance(row, Comparison):
            # Best first: losses read the order of the branches, and the row's own order says nothing.
            order = row.ranking or (row.winner, *(i for i in range(len(row.responses)) if i != row.winner))
            responses = [row.responses[index] for index in order]
            scores = None if row.scores is None else [row.scores[index] for index in order]
            annotations: dict[str, Any] = {"margin": row.margin, "scores": scores}
        elif isinstance(row, Feedback):
            responses, annotations = [row.response], {"label": row.good}
        elif not isinstance(row, StepwiseFeedback):
            raise wrong_argument(
                "row",
                row,
                expected="an example: Demonstration, Comparison, Feedback or Task",
                remedy="read rows first: `for row in pt.read(rows): encoder.example(row)`",
            )
        else:
            raise EncodingError(
                "steps are scored by a reward model, and this encoder has none",
                expected="demonstrations, comparisons, feedback or tasks",
                remedy="train on them with `method: reward`, `head: steps` and `objective: step_labels`",
            )
        findings = RowFindings(
            self._drafter.special_findings([*row.prompt, *(turn for side in responses for turn in side)])
        )
        draft = self._drafter.shared_prompt(row.prompt, responses, row.tools, findings)
        return self._finish([draft], row, row.prompt, findings, annotations)

    def _finish(
        self,
        drafts: Sequence[Draft],
        row: Example,
        messages: Sequence[Message],
        findings: RowFindings,
        annotations: Mapping[str, Any] = MappingProxyType({}),
    ) -> EncodedExample:
        """Truncates, counts and freezes."""
        trees, dropped, truncated, stops = [], [], [], []
        settings = self.settings
        for draft in drafts:
            # Beginnings to keep cost a rendering, so they are made for the few rows that are cut.
            too_long = settings.max_length is not None and draft.longest > settings.max_length
            heads = self._heads(draft, messages, row.tools) if too_long else ((),)
            fitted = fit_length(
                draft, settings.max_length, settings.truncation, heads=heads, shortest_prompt=self._shortest_prompt
            )
            if fitted.draft is None:
                reason = fitted.dropped or "nothing_to_train"
                limit = f", max_length is {settings.max_length:,}" if settings.max_length is not None else ""
                dropped.append(Dropped(reason, f"{draft.longest:,} tokens{limit}"))
                continue
            if fitted.truncated:
                truncated.append(fitted.truncated)
            stops.append(sum(len(side.stops) for side in fitted.draft.sides))
            branches = [(side.ids, side.mask) for side in fitted.draft.sides]
            trees.append(make_tree(fitted.draft.prompt, branches, row.row, **annotations))
        return EncodedExample(
            tuple(trees), tuple(stops), tuple(dropped), tuple(truncated), tuple(findings.names), findings.round_trip
        )

    # ------------------------------------------------------------ small parts

    def _heads(self, draft: Draft, messages: Sequence[Message], tools: Sequence[Any]) -> Sequence[Sequence[int]]:
        """Beginnings worth keeping when a prompt is cut: BOS with the system turn, BOS alone, nothing."""
        bos_id = self.tokens.bos_id
        bos = [bos_id] if bos_id is not None and draft.prompt[:1] == [bos_id] else []
        heads: list[list[int]] = [bos, []]
        if messages and messages[0].role == "system":
            try:
                system = self.tokens.ids(self.template.render([self.template.plain(messages[0])], tools))
            except TemplateError:  # a template that renders no system turn by itself: then there is no such beginning
                return heads
            if draft.prompt[: len(system)] == system:
                heads.insert(0, system)
        return heads

    def _generation_prompt_length(self) -> int:
        """How many ids a prompt ends with that belong to no message."""
        question: list[PlainMessage] = [{"role": "user", "content": "x"}]
        with_prompt, without_prompt = self.template.prompt(question), self.template.render(question)
        return len(self.tokens.ids(with_prompt[first_difference(with_prompt, without_prompt) :]))

    def _version(self) -> str:
        """A hash of everything that ids and masks depend on; the template's text stands for its name or path, and has
        the values and the day in it.

        What a probe becomes is hashed too: a tokenizer that renders in its own way may ask the clock where nobody
        can see it, and its rows must not be used again on another day.

        Raises:
            TemplateError: the probe is rendered differently each time.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)  # absent in tokenizers written in Python
        vocabulary = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        # The template's text stands for its name or path, and has the day in it.
        settings = {name: value for name, value in asdict(self.settings).items() if name not in ("template", "date")}
        parts = [
            ENCODER_VERSION,
            vocabulary,
            self.tokenizer.special_tokens_map,
            self.tokens.added,
            self.template.source,
            deterministic_rendering(lambda: self.template.prompt([{"role": "user", "content": "x"}])),
            settings,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


class CountedPrompts:
    """An encoder of prompts that counts what its tokenizer cannot write, for stages that sample.

    prompts = CountedPrompts(encoder)
    prompts.prompt(task.prompt, task.tools)     # as `Encoder.prompt`
    prompts.require_written()                   # at the end, before anything trains
    """

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self.read = 0
        self.findings: Counter[str] = Counter()
        self.round_trip = RoundTrip()
        self._examples: list[str] = []

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        encoded = self._encoder.checked_prompt(messages, tools)
        self.read += 1
        self.findings.update(encoded.findings)
        self.round_trip += encoded.round_trip
        if encoded.round_trip.lost and len(self._examples) < _SHOWN_PROMPTS:
            self._examples.append(f"prompt {self.read:,}, {str(messages[-1].content)[:40]!r}")
        return encoded.ids

    def require_written(self) -> None:
        """Raises LossyTokenizerError where too many prompts lose text; see `posttrain.data.round_trip`."""
        trip = self.round_trip
        require_written(
            self.read,
            self.findings["lost_text"],
            trip.characters,
            trip.lost,
            lossy=self._encoder.settings.lossy,
            examples=self._examples,
        )
