"""Formulas of card games: their exact values, and all that reach a target."""

import ast
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

__all__ = ["solutions", "value"]

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: pow,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_LARGEST = 1000
"""Powers beyond it are not worked out: ``10**10**10`` would never end."""


def value(items: Sequence[str], *, as_text: bool = False) -> Fraction | float | None:
    """What a formula comes to; ``None`` where it is none. Nothing is executed.

    Args:
        items: Numbers, operators and parentheses, e.g. ``["8", "/", "(", "3", "-", "1", ")"]``.
        as_text: The items are written without spaces and read as Python would, in floating point: ``2`` and ``4`` make
            24, ``*`` and ``*`` a power. Otherwise each item stands for itself, in exact fractions.
    """
    try:
        tree = ast.parse(("" if as_text else " ").join(items), mode="eval")
        found: Fraction | float = _value(tree.body, float if as_text else Fraction)
        return found
    except (SyntaxError, ArithmeticError, ValueError):
        return None


def _value(node: ast.expr, number: Callable[[int], Any]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return number(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)](_value(node.operand, number))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, number), _value(node.right, number)
        if isinstance(node.op, ast.Pow) and (abs(right) > _LARGEST or left < 0):
            raise ArithmeticError
        return _OPERATORS[type(node.op)](left, right)
    raise ValueError(f"{type(node).__name__} is no part of a formula")


class _Part(NamedTuple):
    """A part of a formula; ``binds`` is 1 for sums, 2 for products, 3 for numbers and what is in parentheses."""

    value: Fraction
    items: tuple[str, ...]
    binds: int


@functools.lru_cache(maxsize=2048)
def solutions(
    numbers: tuple[int, ...], target: int, operators: str = "+-*/", parentheses: bool = True
) -> tuple[tuple[str, ...], ...]:
    """Formulas that take each number once and come to the target, without needless parentheses; the shortest first.

    Args:
        numbers: In rising order (a hand is asked about in one order alone).
        target: What they should come to.
        operators: Those that may be used.
        parentheses: Whether these may be used.
    """
    found = {
        part.items
        for order in set(itertools.permutations(numbers))
        for part in _parts(order, operators, parentheses)
        if part.value == target
    }
    return tuple(sorted(found, key=lambda items: (len(items), items)))


@functools.lru_cache(maxsize=8192)
def _parts(order: tuple[int, ...], operators: str, parentheses: bool) -> tuple[_Part, ...]:
    """Everything that can be made of numbers in this order."""
    if len(order) == 1:
        return (_Part(Fraction(order[0]), (str(order[0]),), 3),)
    made: list[_Part] = []
    for cut in range(1, len(order)):
        both = itertools.product(
            _parts(order[:cut], operators, parentheses), _parts(order[cut:], operators, parentheses), operators
        )
        for left, right, sign in both:
            binds = 1 if sign in "+-" else 2
            first, second = left.binds < binds, right.binds < binds or (right.binds == binds and sign in "-/")
            if ((first or second) and not parentheses) or (sign == "/" and not right.value):
                continue
            items = (*_wrapped(left, first), sign, *_wrapped(right, second))
            made.append(_Part(_OPERATORS[_SIGN_OF[sign]](left.value, right.value), items, binds))
    return tuple(made)


def _wrapped(part: _Part, needed: bool) -> tuple[str, ...]:
    return ("(", *part.items, ")") if needed else part.items


_SIGN_OF: dict[str, type[ast.operator]] = {"+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div}
