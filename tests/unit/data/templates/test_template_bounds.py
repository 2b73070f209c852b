"""Templates that never end, or that make texts out of nothing, are stopped and named; right ones render as they did."""

from __future__ import annotations

import threading
import time

import pytest
from transformers.utils.chat_template_utils import _cached_compile_jinja_template

from posttrain.data.templates import bounds
from posttrain.data.templates.template import ChatTemplate
from posttrain.data.tokens import Tokens
from posttrain.errors import TemplateError
from tests.fixtures import TEMPLATES, byte_tokenizer

TURNS = "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
TEXT = "{% set ns = namespace(t='ab', l=[1, 2], n=2) %}"
WORK, LARGEST = 20_000, 100_000

ENDLESS = {
    "nested ranges": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "a filtered loop": "{% for i in range(9999) %}{% for j in range(9999) if false %}{% endfor %}{% endfor %}",
    "a lazy filter": "{% for i in range(9999) %}{% if range(9999) | select('odd') | list %}{% endif %}{% endfor %}",
    "a doubled text": TEXT + "{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "a sum of texts": TEXT + "{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "a joined text": TEXT + "{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] | join %}{% endfor %}",
    "a replaced text": TEXT + "{% for i in range(60) %}{% set ns.t = ns.t.replace('a', ns.t) %}{% endfor %}",
    "a text many times": TEXT + "{% for i in range(60) %}{% set ns.t = ns.t * 100 %}{% endfor %}",
    "a doubled list": TEXT + "{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "a list of itself": TEXT + "{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
    "a list written": TEXT + "{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "a formatted text": TEXT + "{% for i in range(22) %}{% set ns.t = '%s%s' % (ns.t, ns.t) %}{% endfor %}",
    "a filtered text": TEXT + "{% for i in range(5) %}{% set ns.t = ns.t | replace('b', ns.t * 9) %}{% endfor %}",
    "an object of itself": TEXT
    + "{% for i in range(18) %}{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}{{ ns.l | tojson }}",
    "a power of powers": TEXT + "{% for i in range(60) %}{% set ns.n = ns.n ** ns.n %}{% endfor %}",
    "a macro twice in itself": "{% macro f(n) %}"
    "{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "a page in a loop": "{% for i in range(9999) %}" + "x" * 5000 + "{% endfor %}",
    "a value in a loop": "{% set t = 'a' * 9999 %}{% for i in range(9999) %}{{ t }}{% endfor %}",
}


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_WORK", WORK)
    monkeypatch.setattr(bounds, "LARGEST", LARGEST)


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_it_is_stopped_and_named(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TemplateError, match="does not come to an end, or grows") as caught:
        ChatTemplate(Tokens(byte_tokenizer(TURNS + text)), "chat", {})
    assert "more than" in str(caught.value) and "chat template" in str(caught.value)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "text",
    ["{{ 10 ** 10 ** 9 }}", "{{ 'a' * 9999999999 }}", "{{ 'a' | center(9999999999) }}", "{{ 'a'.ljust(9**12) }}"],
)
def test_a_constant_is_refused_before_it_is_worked_out(text: str) -> None:
    with pytest.raises(TemplateError, match="worked out to more than") as caught:
        ChatTemplate(Tokens(byte_tokenizer(TURNS + "\n" + text)), "chat", {})
    assert "line 2" in str(caught.value)


@pytest.mark.usefixtures("small_budget")
def test_a_loop_in_one_kind_of_conversation_is_not_probed_again_and_again() -> None:
    text = TURNS + "{% if tools %}" + ENDLESS["nested ranges"] + "{% endif %}"
    with pytest.raises(TemplateError, match="does not come to an end"):
        ChatTemplate(Tokens(byte_tokenizer(text)), "chat", {})


def test_slow_steps_end_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_SECONDS", 0.05)
    slow = "{% set t = 'a' * 999999 %}{% for i in range(99999) %}{% if 'b' in t %}{% endif %}{% endfor %}"
    with pytest.raises(TemplateError, match=r"more than 0\.05 seconds"):
        ChatTemplate(Tokens(byte_tokenizer(TURNS + slow)), "chat", {})


@pytest.mark.usefixtures("small_budget")
def test_each_thread_counts_for_itself() -> None:
    tokens = Tokens(byte_tokenizer("CHATML"))
    template = ChatTemplate(tokens, "chat", {})
    said: list[str] = []

    def render() -> None:
        said.append(template.prompt([{"role": "user", "content": "a"}] * 500))

    threads = [threading.Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 4 and len(set(said)) == 1


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_counted_template_writes_what_it_wrote(name: str) -> None:
    tokenizer = byte_tokenizer(name)
    plain = _cached_compile_jinja_template(tokenizer.chat_template)  # compiled anew, past the cache
    template = ChatTemplate(Tokens(tokenizer), "chat", {})
    for roles in (["user"], ["user", "assistant", "user"]):
        messages = [{"role": role, "content": f"text {place} ä"} for place, role in enumerate(roles)]
        values = {**tokenizer.special_tokens_map, "tools": None, "documents": None, "add_generation_prompt": True}
        counted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert counted == plain.render(messages=messages, **values)
        if isinstance(template.source, str) and template.source == tokenizer.chat_template:
            assert template.render(messages, add_generation_prompt=True) == counted


def test_outside_of_a_render_of_ours_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer("CHATML")
    ChatTemplate(Tokens(tokenizer), "chat", {})
    assert bounds._rendering.budget is None
    monkeypatch.setattr(bounds, "MOST_WORK", 10)
    messages = [{"role": "user", "content": "a"}] * 100
    assert tokenizer.apply_chat_template(messages, tokenize=False).count("<|im_start|>") == 100
