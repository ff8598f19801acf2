"""Options as pydantic models, written once: the recipe's check, the command line's help and the library's arguments."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plait.errors import BadInput


class Options(BaseModel):
    """Base of every options model: unknown keys are refused, values are checked, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, defer_build=True)


class PresetOptions(Options):
    """Options that can start from a named set of values: ``baseline = "sam"`` fills in ``presets["sam"]``.

    What is given beside ``baseline`` wins over the preset. An unknown name is a validation error that lists the known.

    Attributes:
        presets: name -> values of other options; a subclass sets it.
        baseline: the name, or None for the defaults of the fields; the names are added to its description.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    baseline: str | None = Field(None, description="take a method's settings as defaults")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        field = cls.model_fields["baseline"]
        field.description = f"take a method's settings as defaults: {', '.join(cls.presets)}"

    @model_validator(mode="before")
    @classmethod
    def _take_baseline(cls, values: Any) -> Any:
        name = values.get("baseline") if isinstance(values, Mapping) else None
        if name is None:
            return values
        if not isinstance(name, str) or name not in cls.presets:
            raise ValueError(f"no baseline {name!r}; known: {', '.join(cls.presets)}")
        return {**cls.presets[name], **values}


def load_object(path: str, what: str) -> Callable[..., Any]:
    """Import ``package.module:name``.

    Raises:
        BadInput: when the path is malformed, the module does not import or lacks the name.
    """
    module_name, attribute = _parts(path, what)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"importing {module_name} failed with {type(error).__name__}: {error}"
        raise BadInput(f"{what} {path!r}: {reason}.") from error
    if not hasattr(module, attribute):
        raise BadInput(f"{what} {path!r}: module {module_name} has no {attribute!r}.")
    loaded: Callable[..., Any] = getattr(module, attribute)
    if not callable(loaded):
        raise BadInput(f"{what} {path!r} is a {type(loaded).__name__}, not a function or class.")
    return loaded


def _parts(path: str, what: str) -> tuple[str, str]:
    module, _, name = path.partition(":")
    if not module or not name:
        raise BadInput(f"{what} {path!r} is not an import path: write it as package.module:name.")
    return module, name


class Later:
    """An options model by its import path; as an attribute of a class it reads as the model itself."""

    def __init__(self, path: str) -> None:
        _parts(path, "options")
        self.path = path

    @cached_property
    def model(self) -> type[BaseModel]:
        """The model, imported at the first reading.

        Raises:
            BadInput: the path does not import or names no pydantic model.
        """
        model: Any = load_object(self.path, "options")
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise BadInput(f"options {self.path!r} is not a pydantic model (subclass plait.Options).")
        return model

    def __get__(self, instance: object, owner: type | None = None) -> type[BaseModel]:
        return self.model


def later(path: str) -> Any:
    """An options model by its import path, for `Plugin.Options`, `DataSource` and `ModelSource`.

    Every command looks at every installed plugin, and building a pydantic model takes milliseconds: with a path the
    model is imported only by runs that use it. This is what keeps ``plait plan`` fast with 50 plugins installed.

    Args:
        path: ``package.module:name``, e.g. ``plait_chase.options:ChaseOptions``.

    Raises:
        BadInput: the path is malformed.
    """
    return Later(path)
