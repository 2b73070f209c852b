"""A chat template is a program out of a model folder: here it is stopped where it loops, or grows, without end.

Jinja's sandbox keeps a template from the files and bounds one `range`; two nested ones run for hours, and a text that
is doubled forty times takes a terabyte. So the syntax tree gets counters (`_Counting`): one in each loop and macro, and
one around each expression that can make something larger than what it is made of. They count into the `Budget` of the
thread that renders, so it works in workers and threads and needs no signal. A render beyond it ends in `Exceeded`.

The counted code takes the place of the plain code inside the template that `transformers` has compiled, so that all
else of its rendering stays its own. Outside of `bounded` the counters count nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from jinja2 import Environment, nodes, pass_context
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer
from transformers.utils.chat_template_utils import _compile_jinja_template

from posttrain.data.templates.clock import parsed

MOST_WORK = 10_000_000
"""Steps of one render: iterations, and characters in hundreds. A conversation of 64 MB takes some four million."""
LARGEST = 256_000_000
"""Characters of a text and entries of a list that a template may make, and of what it writes."""
MOST_SECONDS = 30.0
"""Of one thread's processor time, so that a machine under load refuses nothing; single steps can be slow, too."""
_CHARACTERS_A_STEP = 128
_LOOK_EVERY = 256
"""Steps between two looks at the clock."""
_TEXT_OF_ANYTHING = frozenset({"tojson", "string", "pprint", "join", "safe", "escape", "e", "indent", "format"})
"""Filters that write out a whole value: a list that holds one list twice, forty times over, is small until then."""


class Exceeded(Exception):
    """What a template used up: Exceeded("more than 10,000,000 steps")."""


class Budget:
    """What one render has left."""

    __slots__ = ("look", "started", "work", "written")

    def __init__(self) -> None:
        self.work, self.written, self.look = MOST_WORK, LARGEST, MOST_WORK - _LOOK_EVERY
        # Asked at the first look and not here: the clock of a thread is a call of the system, which took a third of the
        # time of encoding, and nearly all renders end before they look.
        self.started: float | None = None

    def spend(self, steps: int) -> None:
        self.work -= steps
        if self.work < self.look:
            self.look = self.work - _LOOK_EVERY
            if self.work < 0:
                raise Exceeded(
                    f"more than {MOST_WORK:,} steps (iterations of loops, calls of macros, hundreds of letters)"
                )
            now = time.thread_time()
            if self.started is None:
                self.started = now
            if now - self.started > MOST_SECONDS:
                raise Exceeded(f"more than {MOST_SECONDS:g} seconds")

    def require(self, size: int) -> None:
        if size > LARGEST:
            raise Exceeded(f"a text or list of more than {LARGEST:,} characters or entries")


class _Rendering(threading.local):
    budget: Budget | None = None


_rendering = _Rendering()


@contextmanager
def bounded(source: Any) -> Iterator[None]:
    """Renders of `source`, a template's text, inside this end in `Exceeded` where they use too much.

    Raises:
        Exceeded: by the counters.
        TemplateError: a constant of it is too large to be worked out.
    """
    if isinstance(source, str):
        _count_in(source)
    _rendering.budget = Budget()
    try:
        yield
    finally:
        _rendering.budget = None


def _count_in(source: str) -> None:
    """Puts the counters into the template that `transformers` keeps for this text, once."""
    if parsed(source) is None:
        return  # no Jinja: rendering says where
    compiled: Any = _compile_jinja_template(source)
    environment: Environment = compiled.environment
    if _TICK in environment.filters:
        return
    environment.filters |= {_TICK: _tick, _SIZED: _sized, _WHOLE: _whole, _WRITTEN: _written}
    environment.filters |= {_TIMES: _times, _POWER: _power}
    tree = _Counting().visit(environment.parse(source))
    counted = environment.template_class.from_code(environment, environment.compile(tree), compiled.globals)
    compiled.root_render_func, compiled.blocks = counted.root_render_func, counted.blocks


# ---------------------------------------------------------------- the counters, as filters of the template
#
# With the context, which they do not read: Jinja would otherwise work them out once, when it compiles.

_TICK, _SIZED, _WHOLE, _WRITTEN, _TIMES, _POWER = (
    f"posttrain_{name}" for name in ("tick", "sized", "whole", "written", "times", "power")
)


@pass_context
def _tick(_: Context, cost: int) -> str:
    if (budget := _rendering.budget) is not None:
        budget.spend(cost)
    return ""


@pass_context
def _sized(_: Context, value: Any) -> Any:
    """The value, counted by its size; what gives its entries one by one (`map`, `select`) as a list."""
    budget = _rendering.budget
    if budget is None:
        return value
    if type(value) is str:
        size = len(value)
        if size > _CHARACTERS_A_STEP:
            budget.require(size)
            budget.spend(size // _CHARACTERS_A_STEP)
        return value
    if isinstance(value, Iterator):
        value = list(islice(value, budget.work + 1))
    if isinstance(value, list | tuple | dict | range | set):
        budget.require(len(value))
        budget.spend(len(value))
    return value


@pass_context
def _whole(_: Context, value: Any) -> Any:
    """The value, counted with all that it holds, as often as it holds it."""
    if (budget := _rendering.budget) is not None and isinstance(value, list | tuple | dict):
        _weigh(value, budget)
    return value


def _weigh(value: Any, budget: Budget) -> None:
    items = (*value, *value.values()) if isinstance(value, dict) else value
    budget.spend(len(value))
    for item in items:
        if isinstance(item, str):
            budget.spend(len(item) // _CHARACTERS_A_STEP)
        elif isinstance(item, list | tuple | dict):
            _weigh(item, budget)


@pass_context
def _written(context: Context, value: Any) -> Any:
    if (budget := _rendering.budget) is not None:
        if type(value) is str:
            budget.written -= len(value)
            if budget.written < 0:
                raise Exceeded(f"more than {LARGEST:,} characters written")
        else:
            _whole(context, value)
    return value


@pass_context
def _times(_: Context, left: Any, right: Any) -> Any:
    """left * right, refused before it is worked out where it would be too large."""
    if (budget := _rendering.budget) is not None:
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple) and isinstance(times, int):
                budget.require(len(many) * times)
            elif isinstance(many, int) and isinstance(times, int):
                budget.require(many.bit_length() + times.bit_length())
    return left * right


@pass_context
def _power(_: Context, left: Any, right: Any) -> Any:
    if (budget := _rendering.budget) is not None and isinstance(left, int) and isinstance(right, int):
        budget.require(left.bit_length() * right)
    return left**right


class _Counting(NodeTransformer):
    """The tree with a counter wherever the template can repeat or enlarge something."""

    def _ticking(self, body: list[nodes.Node]) -> list[nodes.Node]:
        # What the body writes of the template's own text counts with it: a page of text in a loop is written each time.
        text = sum(len(data.data) for node in body for data in _own_text(node))
        cost = nodes.Const(1 + text // _CHARACTERS_A_STEP, lineno=1)
        return [nodes.ExprStmt(_counted(cost, _TICK), lineno=1), *body]

    def visit_For(self, node: nodes.For) -> nodes.Node:
        node = self.generic_visit(node)  # type: ignore[assignment]
        node.iter, node.body = _counted(node.iter, _SIZED), self._ticking(node.body)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        node = self.generic_visit(node)  # type: ignore[assignment]
        node.body = self._ticking(node.body)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        node = self.generic_visit(node)  # type: ignore[assignment]
        node.nodes = [
            part if isinstance(part, nodes.TemplateData) else _counted(part, _WRITTEN)  # the rest counts by its size
            for part in node.nodes
        ]
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        node = self.generic_visit(node)  # type: ignore[assignment]
        if node.node is None:  # {% filter upper %}: it takes what its block writes
            return node
        if node.name in _TEXT_OF_ANYTHING:
            node.node = _counted(node.node, _WHOLE)
        return _counted(node, _SIZED)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        node = self.generic_visit(node)  # type: ignore[assignment]
        node.nodes = [part if isinstance(part, nodes.Const) else _counted(part, _WHOLE) for part in node.nodes]
        return _counted(node, _SIZED)

    def visit_Mul(self, node: nodes.Mul) -> nodes.Node:
        node = self.generic_visit(node)  # type: ignore[assignment]
        return nodes.Filter(node.left, _TIMES, [node.right], [], None, None, lineno=node.lineno)

    def visit_Pow(self, node: nodes.Pow) -> nodes.Node:
        node = self.generic_visit(node)  # type: ignore[assignment]
        return nodes.Filter(node.left, _POWER, [node.right], [], None, None, lineno=node.lineno)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        return _counted(self.generic_visit(node), _SIZED)

    visit_Mod = visit_Call = visit_Add


def _own_text(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    """The template's own text in a node, that of loops inside it left out, which count it themselves."""
    if isinstance(node, nodes.For | nodes.Macro):
        return
    if isinstance(node, nodes.TemplateData):
        yield node
    for child in node.iter_child_nodes():
        yield from _own_text(child)


def _counted(node: nodes.Node, counter: str) -> nodes.Filter:
    return nodes.Filter(node, counter, [], [], None, None, lineno=node.lineno)
