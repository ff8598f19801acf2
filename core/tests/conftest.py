"""Fixtures shared by the core's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from plait import registry
from plait.plugin import Plugin

torch.set_num_threads(1)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make plugin classes installed, beside what really is, through the registry's own checks."""

    def add(*plugins: type[Plugin], distribution: str = "stranger") -> None:
        real = [item for item in registry.discover() if item.name == registry.BUILTIN]
        fake = []
        for plugin in plugins:
            item = registry.Installed(plugin.name, f"{distribution}-{plugin.name}", "1.0")
            fake.append(registry.examine(item, plugin))
        registry.mark_duplicates(real + fake)
        monkeypatch.setattr(registry, "installed", lambda: tuple(real + fake))

    return add
