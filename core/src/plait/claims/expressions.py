"""The little language of expectations: ``mean(a.mcdd) <= 0.9 * mean(b.mcdd)``.

A name ``arm.metric`` stands for one value per seed. ``mean``, ``min`` and ``max`` reduce over the seeds, ``abs`` does
not; ``wins(a.m < b.m)`` counts the seeds in which a comparison holds, and ``seeds`` is how many there are. What is
left per seed on either side of a comparison is averaged (``a.m - b.m >= -0.7`` speaks of the mean difference), except
with ``==``, which must hold in every seed. Text is parsed by Python's own parser into the nodes below and nothing else;
it is never executed.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Iterator, Mapping
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

COMPARISONS: Mapping[type[ast.cmpop], str] = {
    ast.LtE: "<=",
    ast.Lt: "<",
    ast.GtE: ">=",
    ast.Gt: ">",
    ast.Eq: "==",
}
OPERATORS: Mapping[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
REDUCTIONS = ("mean", "min", "max")
FUNCTIONS = (*REDUCTIONS, "abs", "wins")
ROUNDING = 1e-12
"""Relative size of what floating-point rounding may add to a margin."""


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True)
class Seeds:
    """How many seeds there are."""


@dataclass(frozen=True)
class Reference:
    """A metric of an arm, one value per seed."""

    arm: str
    metric: str


@dataclass(frozen=True)
class Operation:
    """``left <operator> right``."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Call:
    """A function of one argument; the argument of ``wins`` is a comparison."""

    function: str
    argument: Node | Comparison


Node = Number | Seeds | Reference | Operation | Call


@dataclass(frozen=True)
class Comparison:
    """What an expectation says.

    Attributes:
        text: as it was written.
        left, right: the two sides.
        operator: ``<=``, ``<``, ``>=``, ``>`` or ``==``.
    """

    text: str
    left: Node
    operator: str
    right: Node

    @property
    def references(self) -> list[tuple[str, str]]:
        """Every (arm, metric), in the order of appearance."""
        found = (node for side in (self.left, self.right) for node in walk(side))
        return list(dict.fromkeys((n.arm, n.metric) for n in found if isinstance(n, Reference)))

    @property
    def smooth(self) -> bool:
        """Whether both sides are functions of means, so that an interval of the margin has a meaning."""
        calls = {n.function for side in (self.left, self.right) for n in walk(side) if isinstance(n, Call)}
        return self.operator != "==" and not calls & {"min", "max", "wins"}

    @property
    def strict(self) -> bool:
        """Whether a margin of 0 is not enough."""
        return self.operator in ("<", ">")

    def sides(self, columns: Columns, seeds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both sides, averaged over what is left per seed; shapes as the columns' without their last axis."""
        left, right = (evaluate(side, columns, seeds).mean(-1) for side in (self.left, self.right))
        return left, right

    def margin(self, columns: Columns, seeds: int) -> NDArray[np.float64]:
        """By how much the comparison holds: 0 at the threshold, negative where it fails; NaN where undefined."""
        left, right = self.sides(columns, seeds)
        return right - left if self.operator in ("<=", "<") else left - right

    def in_every_seed(self, columns: Columns, seeds: int) -> NDArray[np.bool_]:
        """Whether the comparison holds seed by seed, [..., n]."""
        return compare(self, columns, seeds)


Columns = Mapping[tuple[str, str], "NDArray[np.float64]"]
"""(arm, metric) -> values, the seeds along the last axis."""


def walk(node: Node) -> Iterator[Node]:
    """A node and everything below it."""
    yield node
    below: list[Node] = []
    if isinstance(node, Operation):
        below = [node.left, node.right]
    elif isinstance(node, Call):
        inner = node.argument
        below = [inner.left, inner.right] if isinstance(inner, Comparison) else [inner]
    for child in below:
        yield from walk(child)


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
    made = _comparison(tree, text.strip(), 0)
    if not made.references:
        raise BadInput("it names no metric: write arm.metric.")
    return made


def _comparison(tree: ast.Compare, text: str, depth: int) -> Comparison:
    if len(tree.ops) != 1 or type(tree.ops[0]) not in COMPARISONS:
        raise BadInput("one comparison is needed, with <=, <, >=, > or ==.")
    left, right = _node(tree.left, depth + 1), _node(tree.comparators[0], depth + 1)
    return Comparison(text, left, COMPARISONS[type(tree.ops[0])], right)


def _node(tree: ast.expr, depth: int) -> Node:
    if depth > DEEPEST:
        raise BadInput(f"nested deeper than {DEEPEST} levels.")
    if isinstance(tree, ast.Constant):
        return Number(_finite(tree.value))
    if isinstance(tree, ast.Name) and tree.id == "seeds":
        return Seeds()
    if isinstance(tree, ast.Attribute) and isinstance(tree.value, ast.Name):
        return Reference(tree.value.id, tree.attr)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, (ast.USub, ast.UAdd)):
        inner = _node(tree.operand, depth + 1)
        return Operation("*", Number(-1.0), inner) if isinstance(tree.op, ast.USub) else inner
    if isinstance(tree, ast.BinOp) and type(tree.op) in OPERATORS:
        return Operation(OPERATORS[type(tree.op)], _node(tree.left, depth + 1), _node(tree.right, depth + 1))
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in FUNCTIONS:
        return _call(tree, tree.func.id, depth)
    what = tree.id if isinstance(tree, ast.Name) else type(tree).__name__
    raise BadInput(
        f"{what!r} has no meaning here; there are numbers, arm.metric, seeds, + - * /, and {', '.join(FUNCTIONS)}."
    )


def _call(tree: ast.Call, name: str, depth: int) -> Call:
    if len(tree.args) != 1 or tree.keywords or isinstance(tree.args[0], ast.Starred):
        raise BadInput(f"{name} takes one argument.")
    argument = tree.args[0]
    if name != "wins":
        return Call(name, _node(argument, depth + 1))
    if not isinstance(argument, ast.Compare):
        raise BadInput("wins takes a comparison: wins(a.metric < b.metric).")
    return Call(name, _comparison(argument, ast.unparse(argument), depth + 1))


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadInput(f"{value!r} is not a number.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadInput("a number is too large.")
    return number


# ---- evaluating --------------------------------------------------------------------------------------------------
def evaluate(node: Node, columns: Columns, seeds: int) -> NDArray[np.float64]:
    """The value of a node: [..., n] where it still depends on the seed, else [..., 1]."""
    import numpy as np

    if isinstance(node, Number):
        return np.array([node.value])
    if isinstance(node, Seeds):
        return np.array([float(seeds)])
    if isinstance(node, Reference):
        column: NDArray[np.float64] = columns[node.arm, node.metric]
        return column
    if isinstance(node, Operation):
        return _apply(node.operator, evaluate(node.left, columns, seeds), evaluate(node.right, columns, seeds))
    if isinstance(node.argument, Comparison):
        return np.asarray(compare(node.argument, columns, seeds).sum(-1, keepdims=True), dtype=float)
    value = evaluate(node.argument, columns, seeds)
    if node.function == "abs":
        return np.asarray(np.abs(value))
    reduce: Any = {"mean": np.mean, "min": np.min, "max": np.max}[node.function]
    reduced: NDArray[np.float64] = reduce(value, axis=-1, keepdims=True)
    return reduced


def compare(comparison: Comparison, columns: Columns, seeds: int) -> NDArray[np.bool_]:
    """A comparison seed by seed, [..., n]; False where a side is NaN."""
    import numpy as np

    test: Any = {
        "<=": np.less_equal,
        "<": np.less,
        ">=": np.greater_equal,
        ">": np.greater,
        "==": np.equal,
    }[comparison.operator]
    found: NDArray[np.bool_] = test(
        evaluate(comparison.left, columns, seeds), evaluate(comparison.right, columns, seeds)
    )
    return found


def _apply(operator: str, left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    with np.errstate(all="ignore"):  # a division by zero gives a margin that is undefined, and is said to be
        if operator == "+":
            return left + right
        if operator == "-":
            return left - right
        return left * right if operator == "*" else left / right
