"""A teacher that says what a script has, for tests of what makes rows.

teacher = ScriptedTeacher({"2 + 2?": ["4", "5"]})        # by the text of the last turn, one answer after another
teacher = ScriptedTeacher(lambda ask: "4")               # or a function of the question
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from posttrain.synthesis.teacher import Ask, OnReply, Reply

Script = Mapping[str, Sequence[str | Reply]] | Callable[[Ask], str | Reply]


class ScriptedTeacher:
    """A `Teacher`; `asked` is what it was asked, in order."""

    def __init__(self, script: Script, name: str = "script"):
        self.script, self.name = script, name
        self.asked: list[Ask] = []
        self._given: Counter[str] = Counter()

    def ask(self, asks: Sequence[Ask], on_reply: OnReply | None = None) -> list[Reply]:
        replies = []
        for index, ask in enumerate(asks):
            self.asked.append(ask)
            reply = self._said(ask)
            if on_reply is not None:
                on_reply(index, reply)
            replies.append(reply)
        return replies

    def _said(self, ask: Ask) -> Reply:
        if callable(self.script):
            said = self.script(ask)
        else:
            asked = ask.messages[-1].content or ""
            answers = self.script[asked]
            said = answers[self._given[asked] % len(answers)]
            self._given[asked] += 1
        if isinstance(said, Reply):
            return said
        return Reply(said, prompt_tokens=len(ask.messages), completion_tokens=len(said.split()))
