"""The little language of expectations: ``mean(a.mcdd) <= 0.9 * mean(b.mcdd)``.

A name ``arm.metric`` stands for one value per seed. ``mean``, ``min`` and ``max`` reduce over the seeds, ``abs`` does
not; ``wins(a.m < b.m)`` counts the seeds in which a comparison holds, and ``seeds`` is how many there are. What is
left per seed on either side of a comparison is averaged (``a.m - b.m >= -0.7`` speaks of the mean difference), except
with ``==``, which must hold in every seed. Python's own parser reads the text; its tree is checked against what is
listed here, and then evaluated with numpy. The text is never executed.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plait.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST = 400
"""Characters of an expression; Python's parser recurses, so there is a limit."""

DEEPEST = 40
"""Levels of nesting."""

Operator = Callable[[Any, Any], Any]
COMPARISONS: Mapping[type[ast.cmpop], tuple[str, Operator]] = {
    ast.LtE: ("<=", operator.le),
    ast.Lt: ("<", operator.lt),
    ast.GtE: (">=", operator.ge),
    ast.Gt: (">", operator.gt),
    ast.Eq: ("==", operator.eq),
}
OPERATORS: Mapping[type[ast.operator], Operator] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
REDUCTIONS = ("mean", "min", "max")
FUNCTIONS = (*REDUCTIONS, "abs", "wins")
CONTRARY: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.LtE: ast.Gt,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
}
ROUNDING = 1e-12
"""Relative size of what floating-point rounding may add to a margin."""

Columns = Mapping[tuple[str, str], "NDArray[np.float64]"]
"""(arm, metric) -> values, the seeds along the last axis."""


@dataclass(frozen=True)
class Comparison:
    """What an expectation says; made by `parse`.

    Attributes:
        text: as it was written.
        tree: the same, checked.
    """

    text: str
    tree: ast.Compare

    @property
    def operator(self) -> str:
        """``<=``, ``<``, ``>=``, ``>`` or ``==``."""
        return COMPARISONS[type(self.tree.ops[0])][0]

    @property
    def references(self) -> list[tuple[str, str]]:
        """Every (arm, metric), in the order of appearance."""
        nodes = [node for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)]
        nodes.sort(key=lambda node: (node.lineno, node.col_offset))
        return list(dict.fromkeys((node.value.id, node.attr) for node in nodes if isinstance(node.value, ast.Name)))

    @property
    def smooth(self) -> bool:
        """Whether both sides are functions of means, so that an interval of the margin has a meaning."""
        return self.operator != "==" and not self._names & {"min", "max", "wins"}

    @property
    def counts(self) -> bool:
        """Whether it counts wins, each of a comparison of means, so that those have intervals."""
        inner = [Comparison("", node.args[0]) for node in _wins(self.tree) if isinstance(node.args[0], ast.Compare)]
        plain = self.operator != "==" and not self._names & {"min", "max"}
        return plain and bool(inner) and all(comparison.smooth for comparison in inner)

    @property
    def _names(self) -> set[str]:
        return {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}

    @property
    def strict(self) -> bool:
        """Whether a margin of 0 is not enough."""
        return self.operator in ("<", ">")

    def sides(self, columns: Columns, seeds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both sides, averaged over what is left per seed; shapes as the columns' without their last axis."""
        left, right = (_value(side, columns, seeds).mean(-1) for side in (self.tree.left, self.tree.comparators[0]))
        return left, right

    def margin(self, columns: Columns, seeds: int) -> NDArray[np.float64]:
        """By how much the comparison holds: 0 at the threshold, negative where it fails; NaN where undefined."""
        left, right = self.sides(columns, seeds)
        return right - left if self.operator in ("<=", "<") else left - right

    def counted(self, columns: Columns, seeds: int) -> list[Comparison]:
        """What `counts` counts, each turned so that more seeds in which it holds are better for this comparison."""
        turned = []
        for node in _wins(self.tree):
            inner = node.args[0]
            assert isinstance(inner, ast.Compare)
            none, many = (
                float(self._with({node: ast.Constant(count)}).margin(columns, seeds)) for count in (0.0, float(seeds))
            )
            if many < none:
                inner = ast.Compare(inner.left, [CONTRARY[type(inner.ops[0])]()], inner.comparators)
            turned.append(Comparison(ast.unparse(inner), inner))
        return turned

    def opened(self, columns: Columns, seeds: int) -> tuple[Comparison, Comparison | None]:
        """The comparison without the kink of ``abs(x)`` where x is a function of means.

        Such a bound is two thresholds, one for x and one for -x: near 0 an interval of ``abs(x)`` itself is too narrow.

        Returns:
            The comparison with ``x`` or ``-x`` for ``abs(x)``, as the sign of x is in these columns, and so with the
            same margin; and the one with the other sign, None where there is no such ``abs``.
        """
        near: dict[ast.AST, ast.expr] = {}
        far: dict[ast.AST, ast.expr] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and _called(node) == "abs" and not _by_seed(node.args[0]):
                inner = node.args[0]
                negative = ast.UnaryOp(ast.USub(), inner)
                below = float(_value(inner, columns, seeds)[..., 0]) < 0
                near[node], far[node] = (negative, inner) if below else (inner, negative)
        return (self._with(near), self._with(far)) if near else (self, None)

    def _with(self, parts: Mapping[ast.AST, ast.expr]) -> Comparison:
        """The comparison with some nodes of its tree replaced."""
        return Comparison(self.text, _replaced(self.tree, parts))

    def in_every_seed(self, columns: Columns, seeds: int) -> NDArray[np.bool_]:
        """Whether the comparison holds seed by seed, [..., n]."""
        return _held(self.tree, columns, seeds)


def _replaced(tree: Any, parts: Mapping[ast.AST, ast.expr]) -> Any:
    """A copy of a tree with some of its nodes replaced, also within what replaces others."""
    while tree in parts:
        tree = parts[tree]
    fields = {}
    for name, value in ast.iter_fields(tree):
        if isinstance(value, list):
            value = [_replaced(item, parts) for item in value]
        fields[name] = _replaced(value, parts) if isinstance(value, ast.AST) else value
    return ast.copy_location(type(tree)(**fields), tree)


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _wins(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node) == "wins"]


def _by_seed(tree: ast.AST) -> bool:
    """Whether a value depends on the seed, because no reduction stands between it and an ``arm.metric``."""
    if isinstance(tree, ast.Call) and _called(tree) in (*REDUCTIONS, "wins"):
        return False
    return isinstance(tree, ast.Attribute) or any(_by_seed(part) for part in ast.iter_child_nodes(tree))


# ---- parsing -----------------------------------------------------------------------------------------------------
def parse(text: str) -> Comparison:
    """An expectation from its text.

    Raises:
        BadInput: it is not a comparison in this language; the message says what is wrong.
    """
    if len(text) > LONGEST:
        raise BadInput(f"an expression has at most {LONGEST} characters, this one {len(text)}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of what is refused below anyway
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise BadInput(f"not an expression: {error}.") from None
    if not isinstance(tree, ast.Compare):
        raise BadInput("not a comparison: write it as left <= right, with <=, <, >=, > or ==.")
    _check_comparison(tree, 0)
    comparison = Comparison(text.strip(), tree)
    if not comparison.references:
        raise BadInput("it names no metric: write arm.metric.")
    return comparison


def _check_comparison(tree: ast.Compare, depth: int) -> None:
    if len(tree.ops) != 1 or type(tree.ops[0]) not in COMPARISONS:
        raise BadInput("one comparison is needed, with <=, <, >=, > or ==.")
    _check(tree.left, depth + 1)
    _check(tree.comparators[0], depth + 1)


def _check(tree: ast.expr, depth: int) -> None:
    """Refuse what `_value` does not know."""
    if depth > DEEPEST:
        raise BadInput(f"nested deeper than {DEEPEST} levels.")
    match tree:
        case ast.Constant(value):
            _check_number(value)
        case ast.Name(id="seeds") | ast.Attribute(value=ast.Name()):
            pass
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=inner):
            _check(inner, depth + 1)
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            _check(left, depth + 1)
            _check(right, depth + 1)
        case ast.Call(func=ast.Name(name), args=arguments, keywords=keywords) if name in FUNCTIONS:
            if len(arguments) != 1 or keywords or isinstance(arguments[0], ast.Starred):
                raise BadInput(f"{name} takes one argument.")
            if name != "wins":
                _check(arguments[0], depth + 1)
            elif isinstance(arguments[0], ast.Compare):
                _check_comparison(arguments[0], depth + 1)
            else:
                raise BadInput("wins takes a comparison: wins(a.metric < b.metric).")
        case _:
            what = tree.id if isinstance(tree, ast.Name) else type(tree).__name__
            known = f"numbers, arm.metric, seeds, + - * /, and {', '.join(FUNCTIONS)}"
            raise BadInput(f"{what!r} has no meaning here; there are {known}.")


def _check_number(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadInput(f"{value!r} is not a number.")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise BadInput("a number is too large.")


# ---- evaluating --------------------------------------------------------------------------------------------------
def _value(tree: ast.expr, columns: Columns, seeds: int) -> NDArray[np.float64]:
    """The value of a checked tree: [..., n] where it still depends on the seed, else [..., 1]."""
    import numpy as np  # reading claims must not cost its import

    value: NDArray[np.float64]
    match tree:
        case ast.Constant(number):
            return np.array([float(number)])  # type: ignore[arg-type]
        case ast.Name():
            return np.array([float(seeds)])
        case ast.Attribute(ast.Name(arm), metric):
            return columns[arm, metric]
        case ast.UnaryOp(op, inner):
            value = _value(inner, columns, seeds)
            return -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left, op, right):
            with np.errstate(all="ignore"):  # a division by zero gives a margin that is undefined, and is said to be
                value = OPERATORS[type(op)](_value(left, columns, seeds), _value(right, columns, seeds))
            return value
        case ast.Call(ast.Name("wins"), [ast.Compare() as inner]):
            return np.asarray(_held(inner, columns, seeds).sum(-1, keepdims=True), dtype=float)
        case ast.Call(ast.Name("abs"), [inner]):
            return np.abs(_value(inner, columns, seeds))
        case ast.Call(ast.Name(name), [inner]):
            reduce: Any = {"mean": np.mean, "min": np.min, "max": np.max}[name]
            value = reduce(_value(inner, columns, seeds), axis=-1, keepdims=True)
            return value
    raise AssertionError(f"not checked: {ast.dump(tree)}")


def _held(tree: ast.Compare, columns: Columns, seeds: int) -> NDArray[np.bool_]:
    """A comparison seed by seed, [..., n]; False where a side is NaN."""
    left, right = _value(tree.left, columns, seeds), _value(tree.comparators[0], columns, seeds)
    held: NDArray[np.bool_] = COMPARISONS[type(tree.ops[0])][1](left, right)
    return held
