"""What posttrain writes at the top of a template: values and a day that count for every renderer, and never pile up."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.config import SFT
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.store import encode
from posttrain.data.templates.clock import codes_in, frozen_clock
from posttrain.data.templates.header import split_header, with_header
from posttrain.errors import ConfigError, TemplateError
from tests.chat_templates import CHATML, NO_GENERATION_PROMPT
from tests.fixtures import byte_tokenizer, chat, demonstration

DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
THINKING = "{% if thinking is defined and not thinking %}no thoughts\n{% endif %}" + CHATML
SPECIALS = ["<|im_start|>", "<|im_end|>"]
QUESTION = [{"role": "user", "content": "Hi"}]


def rendered(source: str, **values: Any) -> str:
    """As plain `transformers` renders it."""
    return str(render_jinja_template(conversations=[QUESTION], chat_template=source, **values)[0][0])


def encoder(template: Any = DATED, **settings: Any) -> Encoder:
    return Encoder(byte_tokenizer(template, specials=SPECIALS), EncoderSettings(**settings))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(value=JSON)
def test_a_template_is_given_any_json_value_as_it_is(value: Any) -> None:
    source = with_header("{{ value | tojson }}", {"value": value}, None).source
    assert rendered(source) == rendered("{{ value | tojson }}", value=value)
    assert split_header(source) == (({"value": value}, None), "{{ value | tojson }}")


@pytest.mark.parametrize("start", ["{{ 1 }}", "\n\n{{ 1 }}", "  {% if true %}x{% endif %}", "  {{ 1 }}", "\t\n x"])
def test_the_header_writes_no_text_of_its_own(start: str) -> None:
    source = with_header(start, {"mood": "calm #} {% x %}"}, None).source
    assert rendered(source) == rendered(start)


def test_a_callers_value_wins() -> None:
    source = with_header(THINKING, {"thinking": False}, None).source
    assert rendered(source).startswith("no thoughts")
    assert not rendered(source, thinking=True).startswith("no thoughts")


def test_the_tokens_of_the_tokenizer_and_documents_can_be_set_too() -> None:
    """Every caller gives these a value, so a mere default would never count."""
    made = encoder("{{ bos_token }}{{ documents[0]['text'] }}" + CHATML, template_kwargs={
        "bos_token": "<begin>", "documents": [{"text": "a paper"}],
    })  # fmt: skip
    made.tokenizer.chat_template = made.chat_template
    text = made.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<begin>a paper<|im_start|>")
    assert made.tokens.decode(made.prompt(chat("Hi"))) == text


def test_headers_do_not_pile_up_over_stages() -> None:
    made = encoder(THINKING, template_kwargs={"thinking": False})
    for _ in range(3):
        made.tokenizer.chat_template = made.chat_template
        made = Encoder(made.tokenizer)  # says nothing, so it is as before
    assert made.chat_template == encoder(THINKING, template_kwargs={"thinking": False}).chat_template
    assert made.settings.template_kwargs == {"thinking": False}
    assert made.notes == ()


def test_a_later_stage_replaces_the_value_and_says_so() -> None:
    made = encoder(THINKING, template_kwargs={"thinking": False})
    made.tokenizer.chat_template = made.chat_template
    later = Encoder(made.tokenizer, EncoderSettings(template_kwargs={"thinking": True}))
    assert later.chat_template.count("posttrain-speech-end") == 1
    assert "no thoughts" not in rendered(later.chat_template)
    assert "`thinking: false`" in later.notes[0] and "`thinking: true`" in later.notes[0]


def test_two_headers_on_top_of_each_other_are_read_as_rendered() -> None:
    inner = with_header(THINKING, {"thinking": False}, None).source
    outer = with_header("X", {"thinking": True}, None).source.removesuffix("X") + inner
    assert split_header(outer) == (({"thinking": True}, None), THINKING)
    assert not rendered(outer).startswith("no thoughts")


def test_each_of_several_templates_has_the_values() -> None:
    tools = "TOOLS" + THINKING
    tokenizer = byte_tokenizer(THINKING, specials=SPECIALS)
    tokenizer.chat_template = {"default": THINKING, "tool_use": tools}
    made = Encoder(tokenizer, EncoderSettings(template_kwargs={"thinking": False}))
    assert set(made.chat_template) == {"default", "tool_use"}
    assert all(rendered(text).endswith(rendered(THINKING, thinking=False)) for text in made.chat_template.values())
    tokenizer.chat_template = made.chat_template
    again = Encoder(tokenizer)
    assert again.chat_template == made.chat_template
    assert again.prompt(chat("Hi")) == made.prompt(chat("Hi"))


def test_an_added_generation_prompt_stays_under_the_header() -> None:
    made = encoder("{{ mood }}" + NO_GENERATION_PROMPT, template_kwargs={"mood": "calm"})
    made.tokenizer.chat_template = made.chat_template
    ids = made.tokenizer.apply_chat_template(QUESTION, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert ids == made.prompt(chat("Hi")) == Encoder(made.tokenizer).prompt(chat("Hi"))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"enable-thinking": False}, "no template can read"),
        ({"messages": []}, "set by whoever renders"),
        ({"tokenize": True}, "set by whoever renders"),
        ({"strftime_now": "2026"}, "set by whoever renders"),
        ({"live_date": True}, "set by whoever renders"),
        ({"day": datetime.date(2026, 1, 2)}, "cannot be saved"),
        ({"share": float("nan")}, "cannot be saved"),
        ({"names": {1: "a"}}, "cannot be saved"),
    ],
)
def test_values_that_no_folder_could_keep_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EncoderSettings(template_kwargs=values)
    with pytest.raises(ValueError, match=words):
        SFT(data="a.jsonl", encoding={"template_kwargs": values})


def test_a_value_that_the_template_does_not_read_is_said() -> None:
    notes = encoder(THINKING, template_kwargs={"thinkin": False}).notes
    assert "reads no value `thinkin`" in notes[0] and "did you mean `thinking`?" in notes[0]


@pytest.mark.parametrize(
    "part", ["{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}", "{% if tools %}{{ [1]|random }}{% endif %}"]
)
def test_a_template_that_draws_lots_is_refused(part: str) -> None:
    with pytest.raises(TemplateError, match="another text at each rendering"):
        encoder(part + CHATML)


def test_a_tokenizer_that_renders_differently_each_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer(CHATML, specials=SPECIALS)
    plain, calls = tokenizer.apply_chat_template, []

    def counting(*args: Any, **options: Any) -> str:
        calls.append(1)
        return f"{len(calls)}{plain(*args, **options)}"

    monkeypatch.setattr(tokenizer, "apply_chat_template", counting)
    with pytest.raises(TemplateError):
        Encoder(tokenizer)


def test_a_torn_header_is_refused() -> None:
    made = encoder(THINKING, template_kwargs={"thinking": False})
    made.tokenizer.chat_template = made.chat_template.replace('{"template_kwargs"', '{"template', 1)
    with pytest.raises(TemplateError, match="torn"):
        Encoder(made.tokenizer)


# ---------------------------------------------------------------- the clock


@pytest.mark.parametrize(
    "form",
    [
        "%d %b %Y",
        "%Y-%m-%d",
        "%-d. %B %y",
        "100%% on %A",
        "%j, %H:%M:%S",
        "%",
        "no code",
        " %a  ",
        "%D %F %x %c",
        "%%d",
    ],
)
def test_the_frozen_clock_writes_what_the_clock_wrote(form: str) -> None:
    source = "{{ strftime_now('" + form + "') }}|{{ strftime_now('%Y') | int + 1 }}"
    midnight = datetime.datetime(2026, 3, 4)
    expected = f"{midnight.strftime(form)}|2027"
    assert rendered(with_header(source, {}, "2026-03-04").source) == expected


def test_a_format_that_the_template_puts_together_is_frozen_too() -> None:
    source = (
        "{% set sign = '%' %}{% macro day() %}{{ strftime_now(sign + 'Y-' + sign + '-m') }}{% endmacro %}{{ day() }}"
    )
    assert rendered(with_header(source, {}, "2026-03-04").source) == "2026-3"


def test_only_the_codes_that_are_asked_for_are_written() -> None:
    assert list(codes_in("%d %b, 100%% of %-m")) == ["d", "b", "-m"]
    assert "'Y': '2026'" in frozen_clock("{{ strftime_now('%Y') }}", "2026-03-04")
    assert "'b'" not in frozen_clock(
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}", "2026-03-04"
    )


def test_who_serves_the_folder_can_have_the_clock_back(monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_header("{{ strftime_now('%Y-%m-%d') }}", {}, "2001-02-03").source
    assert rendered(source) == "2001-02-03"
    assert rendered(source, live_date=True) == datetime.datetime.now().strftime("%Y-%m-%d")


def test_an_encoder_keeps_its_day_and_another_day_is_another_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.data.templates.header.today", lambda: "2026-11-30")
    monday = encoder()
    before = monday.prompt(chat("Hi"))
    assert monday.tokens.decode(before).startswith("30 Nov 2026\n")
    assert "today's date" in monday.notes[0]
    monkeypatch.setattr("posttrain.data.templates.header.today", lambda: "2026-12-01")
    assert monday.prompt(chat("Hi")) == before
    made, arguments = monday.__reduce__()  # what a worker process gets
    assert made(*arguments).prompt(chat("Hi")) == before
    tuesday = encoder()
    assert tuesday.prompt(chat("Hi")) != before
    assert tuesday.version != monday.version
    assert encoder(date="2026-11-30").version == monday.version


def test_without_a_clock_the_day_changes_nothing() -> None:
    assert encoder(CHATML, date="2026-11-30").version == encoder(CHATML, date="2026-12-01").version
    assert encoder(CHATML, date="2026-11-30").chat_template == CHATML


def test_encoded_rows_of_another_day_are_not_used_again(tmp_path: Any) -> None:
    rows = [demonstration("Hi", "Hello.")]
    stores = [encode(rows, encoder(date=day), store=tmp_path) for day in ("2026-11-30", "2026-12-01", "2026-11-30")]
    assert [store.reused for store in stores] == [False, False, True]
    assert [store[0].prompt_ids.tolist()[:2] for store in stores[:2]] != [stores[0][0].prompt_ids.tolist()[:2]] * 2


@pytest.mark.parametrize("day", ["30.11.2026", "2026-13-01", "20261130", "2026-W01-1", "tomorrow"])
def test_a_day_is_a_date_of_the_calendar(day: str) -> None:
    with pytest.raises(ConfigError, match="no date"):
        EncoderSettings(date=day)
    with pytest.raises(ValueError, match="no date"):
        SFT(data="a.jsonl", encoding={"date": day})


def test_the_day_of_the_start_is_kept_until_another_is_named() -> None:
    made = encoder(date="2026-11-30")
    made.tokenizer.chat_template = made.chat_template
    assert Encoder(made.tokenizer).settings.date == "2026-11-30"
    later = Encoder(made.tokenizer, EncoderSettings(date="2027-01-05"))
    assert rendered(later.chat_template).startswith("05 Jan 2027")
    assert "2026-11-30" in later.notes[0] and "2027-01-05" in later.notes[0]
    assert json.loads(later.chat_template.partition("posttrain-speech ")[2].partition(" #}")[0])["date"] == "2027-01-05"
