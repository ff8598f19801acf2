"""Options models that are imported when they are asked for: a short command pays for no plugin that it does not use."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel

from plait.errors import BadInput
from plait.plugin import Options


class Later:
    """The import path of an options model; as a class attribute it reads as the model itself.

    Args:
        path: ``package.module:name``.

    Raises:
        BadInput: the path is malformed; on reading, it does not import or names no pydantic model.
    """

    def __init__(self, path: str) -> None:
        module, colon, name = path.partition(":")
        if not (module and colon and name):
            raise BadInput(f"options {path!r} is not an import path: write it as package.module:name.")
        self.path = path
        self._model: type[BaseModel] | None = None

    def model(self) -> type[BaseModel]:
        """The model, imported at the first call."""
        if self._model is None:
            from plait.components import load_object

            found: Any = load_object(self.path, "options")
            if not (isinstance(found, type) and issubclass(found, BaseModel)):
                raise BadInput(f"options {self.path!r} is not a pydantic model (subclass plait.Options).")
            self._model = found
        return self._model

    def __get__(self, instance: object, owner: type | None = None) -> type[BaseModel]:
        return self.model()


def later(path: str) -> Any:
    """An options model by its import path, for `Plugin.Options`, `DataSource` and `ModelSource`.

    Building a pydantic model takes milliseconds, and every command looks at every installed plugin: with a path the
    model is imported only by runs that use it.

    Args:
        path: ``package.module:name``, e.g. ``plait_chase.options:ChaseOptions``.

    Raises:
        BadInput: the path is malformed.
    """
    return Later(path)


class OptionsField:
    """A field of a dataclass that holds an options model, now or `later`."""

    def __init__(self, default: type[Options]) -> None:
        self.default = default

    def __get__(self, instance: object, owner: type | None = None) -> type[Options]:
        if instance is None:
            return self.default
        held = instance.__dict__["options"]
        return cast("type[Options]", held.model() if isinstance(held, Later) else held)

    def __set__(self, instance: object, value: Any) -> None:
        instance.__dict__["options"] = value


class Unchosen:
    """Stands for the options of a plugin where only its registry hooks are asked, whose answers do not depend on them.

    Whoever reads an option all the same gets the default.
    """

    def __init__(self, options: Later) -> None:
        self._options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self._options.model().model_construct(), name)
