"""Constants of a chat template that are worked out before it runs, where no counter can stop them."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes

from posttrain.errors import TemplateError

LARGEST_CONSTANT = 10_000_000
"""Of a number by which something is multiplied or padded, and of the text that comes of it."""


def require_small_constants(tree: nodes.Template) -> None:
    """Jinja computes `10 ** 10 ** 9` and `'a' * 9999999999` while it compiles; those are refused unread.

    Raises:
        TemplateError: naming the line.
    """
    for node in tree.find_all((nodes.Pow, nodes.Mul, nodes.Filter, nodes.Call)):
        large = isinstance(node, nodes.Pow | nodes.Mul) and _size(node) > LARGEST_CONSTANT
        # 'a'|center(9999999999), 'a'.ljust(9999999999): the number itself is what is made.
        inner = (
            [*node.args, *(pair.value for pair in node.kwargs)] if isinstance(node, nodes.Filter | nodes.Call) else []
        )
        if large or any(_size(argument) > LARGEST_CONSTANT for argument in inner):
            raise TemplateError(
                f"the chat template has a constant that is worked out to more than {LARGEST_CONSTANT:,}",
                found=f"line {node.lineno}",
                expected="text and loops over the conversation",
                remedy="take it out of the template, or name another template (`template: chatml`, or a file)",
            )


def _size(node: nodes.Expr) -> float:
    """A number's value, a text's or list's length; 0 for what is not constant. Never computed: only estimated."""
    if isinstance(node, nodes.Const):
        return _of_value(node.value)
    if isinstance(node, nodes.List | nodes.Tuple):
        return sum((_size(item) for item in node.items), start=float(len(node.items)))
    if isinstance(node, nodes.UnaryExpr):
        return _size(node.node)
    if isinstance(node, nodes.Concat):
        return sum(map(_size, node.nodes))
    if isinstance(node, nodes.Pow):
        return _power(_size(node.left), _size(node.right))
    if isinstance(node, nodes.Mul):
        return _size(node.left) * _size(node.right)
    if isinstance(node, nodes.BinExpr):
        return _size(node.left) + _size(node.right)
    if isinstance(node, nodes.Filter):
        return max([_size(node.node) if node.node is not None else 0.0, *map(_size, node.args)])
    return 0.0


def _of_value(value: Any) -> float:
    if isinstance(value, int | float):
        return min(abs(value), 1e300)
    return float(len(value)) if isinstance(value, str) else 0.0


def _power(base: float, exponent: float) -> float:
    try:
        return base**exponent if base else 0.0
    except OverflowError:
        return float("inf")
