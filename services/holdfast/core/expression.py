"""Conditions in a policy, in numexpr's terms."""

import ast
import warnings
from typing import Any

import numexpr
import numpy as np

from holdfast.core.tolerance import RELATIVE

# One thread: batches are small, and the other cores belong to the other partitions.
numexpr.set_num_threads(1)
_LONGEST_EXPRESSION = 2000
_LONGEST_COMPARISON = 20_000
_FUNCTIONS = frozenset(
    [
        "abs",
        "arccos",
        "arcsin",
        "arctan",
        "arctan2",
        "ceil",
        "cos",
        "cosh",
        "exp",
        "expm1",
        "floor",
        "log",
        "log10",
        "log1p",
        "sin",
        "sinh",
        "sqrt",
        "tan",
        "tanh",
        "where",
    ]
)


class _ToNumexpr(ast.NodeTransformer):
    """Python's `and`, `or`, `not` and chained comparisons, in numexpr's terms.

    A comparison also demands that what it compares is finite: NaN and infinity made on the way (0/0, log of a
    negative, an overflow) must not pass through a `!=` or a `not`.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.computed: list[ast.expr] = []

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        operator = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        parts: list[ast.expr] = [self.visit(value) for value in node.values]
        result = parts[0]
        for part in parts[1:]:
            result = ast.BinOp(result, operator, part)
        return result

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        operand = self.visit(node.operand)
        return ast.UnaryOp(ast.Invert() if isinstance(node.op, ast.Not) else node.op, operand)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        sides: list[ast.expr] = [self.visit(side) for side in (node.left, *node.comparators)]
        self.computed += [side for side in sides if not isinstance(side, ast.Name | ast.Constant)]
        result: ast.expr | None = None
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            if not isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE | ast.Eq | ast.NotEq):
                raise ValueError(f"{ast.unparse(node)!r} is not a numeric comparison")
            link = _link(left, op, right)
            result = link if result is None else ast.BinOp(result, ast.BitAnd(), link)
        assert result is not None  # noqa: S101  a comparison has at least two sides
        return result

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._name(ast.unparse(node))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._name(node.id if node.id == "value" else f"features.{node.id}")

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
            raise ValueError(
                f"{ast.unparse(node.func)!r} is no function here; there are {', '.join(sorted(_FUNCTIONS))}"
            )
        return ast.Call(node.func, [self.visit(argument) for argument in node.args], [])

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise ValueError(f"{ast.unparse(node)} is not a number")
        try:
            return ast.Constant(float(node.value))
        except OverflowError:
            raise ValueError(f"{ast.unparse(node)} is larger than any number here") from None

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, ast.Expression | ast.BinOp | ast.operator | ast.unaryop):
            raise ValueError(f"{ast.unparse(node)!r} is not a numeric expression")
        return super().generic_visit(node)

    def _name(self, field: str) -> ast.Name:
        if field != "value" and (field.count(".") != 1 or not field.startswith(("outputs.", "features."))):
            raise ValueError(f"there is no number {field!r}; there are value, outputs.<name> and feature names")
        return ast.Name(self.names.setdefault(field, f"x{len(self.names)}"))


def _link(left: ast.expr, op: ast.cmpop, right: ast.expr) -> ast.expr:
    """One comparison, in which two numbers that differ by a billionth are equal: `<=` and `>=` hold for them, `<`, `>`
    and `!=` do not."""
    a, b = ast.unparse(left), ast.unparse(right)
    if len(a) + len(b) > _LONGEST_COMPARISON:
        # Each side is written several times, and so are comparisons within it.
        raise ValueError("comparisons are nested too deeply")
    # Half of each: their sum might be too large for a double.
    near = f"({RELATIVE / 2} * abs({a}) + {RELATIVE / 2} * abs({b}))"
    less, more = f"(({a}) - ({b}) < -{near})", f"(({a}) - ({b}) > {near})"
    texts = {
        ast.Lt: less,
        ast.Gt: more,
        ast.LtE: f"(({a}) - ({b}) <= {near})",
        ast.GtE: f"(({a}) - ({b}) >= -{near})",
        ast.Eq: f"(abs(({a}) - ({b})) <= {near})",
        ast.NotEq: f"({less} | {more})",
    }
    return ast.parse(texts[type(op)], mode="eval").body


def compile_expression(text: str) -> tuple[tuple[str, ...], Any]:
    if len(text) > _LONGEST_EXPRESSION:
        raise ValueError(f"the expression has {len(text)} characters; at most {_LONGEST_EXPRESSION} are allowed")
    translate = _ToNumexpr()
    try:
        # What Python only warns of, such as `1if`, it will refuse one day.
        with warnings.catch_warnings(action="error", category=SyntaxWarning):
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is not an expression: {getattr(error, 'msg', error)}") from None
    try:
        condition = ast.unparse(translate.visit(tree))
    except RecursionError:
        raise ValueError(f"{text!r} is nested too deeply") from None
    if not translate.names:
        raise ValueError(f"{text!r} reads no field, so it says nothing about a prediction")
    for side in translate.computed:
        condition = f"({condition}) & ((({ast.unparse(side)}) * 0.0) == 0.0)"
    try:
        compiled = numexpr.NumExpr(condition, [(name, np.float64) for name in translate.names.values()])
        kind = compiled(*(np.ones(1) for _ in translate.names)).dtype
    except Exception as error:  # numexpr raises whatever its own parser raised
        raise ValueError(f"{text!r} cannot be evaluated: {error}") from None
    if kind != np.bool_:
        raise ValueError(f"{text!r} is a number, not a condition: compare it with something")
    return tuple(translate.names), compiled
