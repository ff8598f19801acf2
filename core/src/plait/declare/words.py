"""The words with which plugins, data and models declare what they need, provide, break and own.

A declaration is a short string ``kind:name``. The kinds:

================  ===================================================================================================
``field:X``       every training batch has the field ``X`` (``field:group``, ``field:label``, ``field:index``)
``task:X``        the kind of problem: ``task:classification``, ``task:multilabel``, ``task:regression``,
                  ``task:causal-lm`` (predict the next token; the input is tokens [B, T])
``model:X``       a property of the model: ``model:channel-groups``, ``model:edge-weights``, ``model:parameters``
``loss:X``        a property of the loss: ``loss:per-example`` (the objective returns shape [B], unreduced)
``gradients:X``   what ``trainer.gradients`` can do: ``gradients:repeatable``, ``gradients:dense``
``parameters:X``  what a parameter is: ``parameters:single``, the weight of one network (stacked replicas break it);
                  a plugin whose step works on parameters spread over ranks (FSDP) provides ``parameters:sharded``
``steps:X``       how training advances: ``steps:minibatch``
``export:X``      what a plugin's export changes, for ``before`` and ``after``: ``export:structure`` (names or shapes),
                  ``export:values``
================  ===================================================================================================

``needs`` must be met by the core, the data, the model or another plugin. ``provides`` adds words, ``breaks`` takes
words away (a plugin whose objective is one scalar breaks ``loss:per-example``). New words need no change here: a word
is whatever two packages agree on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

CORE_PROVIDES = frozenset(
    {
        "loss:per-example",
        "gradients:repeatable",
        "gradients:dense",
        "parameters:single",
        "parameters:computed",
        "steps:minibatch",
    }
)
"""What the core gives every plugin unless another plugin breaks it."""

TASKS = ("classification", "multilabel", "regression", "causal-lm")
"""Those with a loss and figures of the core; for another one a plugin must have the hook ``objective``."""


@dataclass(frozen=True)
class Ownership:
    """What a mask owner takes as its own.

    Attributes:
        kind: the kind of thing: ``parameters`` (names as in ``model.named_parameters()``), ``edges``, ...
        pattern: a glob over the names (``*`` any characters, ``?`` one). Two of one kind whose patterns can match
            a common name collide.
    """

    kind: str
    pattern: str = "*"

    def overlaps(self, other: Ownership) -> bool:
        """Whether some name can belong to both."""
        return self.kind == other.kind and globs_intersect(self.pattern, other.pattern)

    def __str__(self) -> str:
        return f"{self.kind}:{self.pattern}"


def globs_intersect(left: str, right: str) -> bool:
    """Whether two globs (``*`` and ``?``) match at least one common string."""

    @cache
    def meet(i: int, j: int) -> bool:
        if i == len(left) and j == len(right):
            return True
        if i < len(left) and left[i] == "*":
            return meet(i + 1, j) or (j < len(right) and meet(i, j + 1))
        if j < len(right) and right[j] == "*":
            return meet(i, j + 1) or (i < len(left) and meet(i + 1, j))
        if i == len(left) or j == len(right):
            return False
        return (left[i] == right[j] or "?" in (left[i], right[j])) and meet(i + 1, j + 1)

    return meet(0, 0)
