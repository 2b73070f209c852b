"""The Modelfile of a GGUF file: `ollama create NAME -f Modelfile`, with the template that the model was trained under.

Ollama writes templates in Go's language and guesses where it is given none. Ours is found by asking the Jinja template:
what stands before and after the content of each role, and what opens an answer. It is kept only if it renders a number
of conversations exactly as the Jinja template does; else the Modelfile leaves TEMPLATE out, and says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError as JinjaError

ROLES = ("system", "user", "assistant")
Render = Callable[[Sequence[tuple[str, str]], bool], str]
"""(turns, whether an answer is opened) -> the text."""
MARK = "\u2402content\u2403"
"""Stands for the content of a turn while the template is asked; no template has it."""
DIALOGUES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Hi"),),
    (("system", "Be brief."), ("user", "What is 2 + 2?")),
    (("user", "Hi"), ("assistant", "Hello."), ("user", "And now?\nTwo lines. {{ .Content }}")),
    (("system", "A"), ("user", "B"), ("assistant", "C"), ("user", "D"), ("assistant", "E"), ("user", "F")),
)
"""Conversations on which the two templates have to agree."""


@dataclass(frozen=True, slots=True)
class TurnTemplate:
    """A template that writes turn after turn: TurnTemplate({"user": ("<|user|>", "<|end|>"), ...}, opening="<|bot|>",
    lead="")"""

    around: Mapping[str, tuple[str, str]]
    """What stands before and after the content, by role."""
    opening: str
    """Begins an answer."""
    lead: str
    """What stands before the first turn where it is no system message: a default one, of some templates."""

    def render(self, turns: Sequence[tuple[str, str]]) -> str:
        """As Ollama will."""
        lead = "" if turns and turns[0][0] == "system" else self.lead
        return lead + "".join(content.join(self.around[role]) for role, content in turns) + self.opening

    def go(self) -> str:
        """The same in the language of Ollama's templates."""
        parts = []
        if self.lead:
            parts.append(f'{{{{ if ne (index .Messages 0).Role "system" }}}}{_go_text(self.lead)}{{{{ end }}}}')
        parts.append("{{ range .Messages }}")
        for place, role in enumerate(ROLES):
            before, after = self.around[role]
            test = "if" if place == 0 else "else if"
            parts.append(f'{{{{ {test} eq .Role "{role}" }}}}{_go_text(before)}{{{{ .Content }}}}{_go_text(after)}')
        parts.append("{{ end }}{{ end }}" + _go_text(self.opening))
        return "".join(parts)


def turn_template(tokenizer: Any, *, adds_bos: bool) -> TurnTemplate | str:
    """The tokenizer's template turn by turn; or, in words, why there is none.

    Args:
        adds_bos: whether the reader of the file puts the first token there itself; then the template must not.
    """
    if not isinstance(tokenizer.chat_template, str):
        return "the model has no chat template" if not tokenizer.chat_template else "it has several chat templates"

    def render(turns: Sequence[tuple[str, str]], opened: bool = True) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened))
        return text.removeprefix(tokenizer.bos_token) if adds_bos and tokenizer.bos_token else text

    try:
        found = _asked(render)
        if found is None:
            return "the template does not write turn after turn"
        for turns in DIALOGUES:
            if found.render(turns) != render(turns):
                return f"the template writes more than its turns (in a conversation of {len(turns)})"
    # The boundary: a template raises what it likes, on roles that it does not want, say.
    except (JinjaError, ValueError, TypeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"the template refuses a conversation ({why})"
    return found


def _asked(render: Render) -> TurnTemplate | None:
    """By differences: what a further turn adds is its own text. None where a piece is not found where it should be."""
    system, user, assistant = ("system", MARK), ("user", MARK), ("assistant", MARK)

    def pieces(*turns: tuple[str, str], opened: bool = False) -> list[str]:
        """The text around the contents: one piece more than turns, in a template that writes each content once."""
        found = render(turns, opened).split(MARK)
        if len(found) != len(turns) + 1:
            raise _NotByTurnsError
        return found

    try:
        before_system, after_system = pieces(system)
        _, between, after_user = pieces(system, user)
        *_, opened = pieces(system, user, opened=True)
        *_, before_answer, after_answer = pieces(system, user, assistant)
        before_user, _ = pieces(user)
        user_start = _without(between, after_system)
        answer_start = _without(before_answer, after_user)
        opening = _without(opened, after_user)
    except _NotByTurnsError:
        return None
    if not before_user.endswith(user_start):
        return None
    around = {
        "system": (before_system, after_system),
        "user": (user_start, after_user),
        "assistant": (answer_start, after_answer),
    }
    return TurnTemplate(around, opening, before_user.removesuffix(user_start))


class _NotByTurnsError(Exception):
    """A content is written twice, or not at all, or a turn changes the text of the one before it."""


def _without(text: str, start: str) -> str:
    if not text.startswith(start):
        raise _NotByTurnsError
    return text[len(start) :]


def _go_text(text: str) -> str:
    """A text inside a Go template: braces that would open an action, by themselves or with the one that follows, are
    written as one."""
    return re.sub(r"\{{2,}|\{$", lambda braces: f'{{{{ "{braces[0]}" }}}}', text)


def modelfile(
    file: str,
    tokenizer: Any,
    *,
    adds_bos: bool,
    stop_texts: Sequence[str],
    sampling: Mapping[str, Any],
    context: int,
) -> tuple[str, str | None]:
    """The Modelfile's text, and why it has no TEMPLATE if it has none.

    Args:
        file: the GGUF file, as a path from the Modelfile.
        stop_texts: what ends an answer.
        sampling: what the model's folder proposes: {"temperature": 1.0, "top_p": 1.0, "top_k": 0, ...}.
        context: positions that the model has.
    """
    lines = [f"FROM ./{file}"]
    found = turn_template(tokenizer, adds_bos=adds_bos)
    if isinstance(found, TurnTemplate) and (unsaid := _unsayable(found.go())):
        found = f"the template holds {unsaid}, which a Modelfile cannot hold"
    why = found if isinstance(found, str) else None
    if isinstance(found, TurnTemplate):
        lines.append(f"TEMPLATE {_quoted(found.go())}")
    else:
        lines.append(
            f"# No TEMPLATE: {why}. Ollama takes what it knows for the template in the file, or a bare prompt."
        )
    for text in filter(None, stop_texts):
        unsaid = _unsayable(text)
        lines.append(f"# No stop {text!r}: it holds {unsaid}." if unsaid else f"PARAMETER stop {_quoted(text)}")
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
    # Ollama's own defaults (temperature 0.8, top_k 40, repeat_penalty 1.1) are another distribution than was trained.
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    asked = {**plain, **{name: value for name, value in sampling.items() if value is not None}}
    lines += [f"PARAMETER {name} {asked[own]}" for own, name in names.items()]
    lines += [f"PARAMETER repeat_penalty {asked['repetition_penalty']}", f"PARAMETER num_ctx {context}"]
    return "\n".join(lines) + "\n", why


def _quoted(text: str) -> str:
    """A value of a Modelfile: between three quotes it may hold lines and quotes. No escape is read there: `\\n` would
    stop at a backslash and an n."""
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


def _unsayable(text: str) -> str | None:
    """What of a text Ollama's reader of Modelfiles would lose, in words: a value ends at a line that ends in three
    quotes, and characters that are not printed are passed over."""
    if '"""\n' in text or text.endswith('"'):
        return "quotes where a value would end"
    lost = sorted({sign for sign in text if not sign.isprintable() and sign not in "\n\t"})
    return f"the character {lost[0]!r}" if lost else None
