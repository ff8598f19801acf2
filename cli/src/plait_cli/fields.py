"""Words for pydantic options: their type, default and bounds, read from the model."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of", "pattern": "matches"}
LENGTHS = {"min_length": ">=", "max_length": "<="}


def options(model: type[BaseModel], prefix: str = "") -> list[dict[str, Any]]:
    """{name, type, default, required, bounds, description} of every field; nested models with dotted names."""
    from pydantic import BaseModel

    described = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            described += options(inner, f"{prefix}{name}.")
            continue
        described.append(
            {
                "name": f"{prefix}{name}",
                "type": type_name(inner),
                "default": default(field),
                "required": field.is_required(),
                "bounds": bounds(field),
                "description": field.description or "",
            }
        )
    return described


def type_name(annotation: Any) -> str:
    """A type in the words of a user: ``int or none``, ``"last" | "best"``, ``list of float``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "none"
    if annotation is Any:
        return "any"
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if hasattr(annotation, "__metadata__"):
        return type_name(arguments[0])
    if origin in (list, tuple, set, frozenset):
        inner = [type_name(a) for a in arguments if a is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            return f"({', '.join(inner)})"
        return f"list of {inner[0]}" if inner else "list"
    if origin is dict:
        return "table"
    return str(getattr(annotation, "__name__", annotation))


def default(field: FieldInfo) -> Any:
    """The default as a plain value; None when required."""
    if field.is_required():
        return None
    factory: Any = field.default_factory
    value = field.default if factory is None or field.default_factory_takes_validated_data else factory()
    return getattr(value, "value", value)


def bounds(field: FieldInfo) -> str:
    """``>= 0, < 1`` and the like, from the constraints on the field."""
    words = []
    for constraint in field.metadata:
        for name, sign in {**BOUNDS, **LENGTHS}.items():
            limit = getattr(constraint, name, None)
            if limit is not None:
                words.append(f"{'length ' if name in LENGTHS else ''}{sign} {getattr(limit, 'pattern', limit)}")
    return ", ".join(words)
