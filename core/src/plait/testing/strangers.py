"""Try plugin classes that are not packaged yet, as if they were installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plait import registry
from plait.plugin import Plugin


@contextmanager
def installed(*plugins: type[Plugin], distribution: str = "stranger", alone: bool = False) -> Iterator[None]:
    """Make plugin classes installed inside the ``with`` block, through the registry's own checks.

    Args:
        plugins: subclasses of `plait.Plugin`.
        distribution: the distribution's name shown for them, with ``-<plugin>`` behind it.
        alone: hide the plugins that really are installed (the core's own stays).
    """
    before = registry.installed
    real = [i for i in registry.discover() if not alone or i.name == registry.BUILTIN]
    found = [registry.examine(registry.Installed(p.name, f"{distribution}-{p.name}", "1.0"), p) for p in plugins]
    everything = (*real, *found)
    registry.mark_duplicates(list(everything))
    registry.installed = lambda: everything  # type: ignore[assignment]
    try:
        yield
    finally:
        registry.installed = before
