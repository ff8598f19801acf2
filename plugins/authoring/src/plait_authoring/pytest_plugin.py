"""``pytest --plait-plugin NAME``: the conformance suite of an installed plugin, without a test file.

pytest imports this at its every start in an environment with plait-authoring, so nothing of plait is imported until the
option is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    group = parser.getgroup("plait")
    group.addoption(
        "--plait-plugin",
        action="append",
        default=[],
        metavar="NAME",
        help="check an installed plait plugin against the hook contract; may be given several times. Without paths on "
        "the command line only these checks are collected.",
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Without paths, collect no files: the author's other tests are not asked for."""
    if config.getoption("plait_plugin") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the suite of every plugin that was named, before -k and -m choose."""
    for name in dict.fromkeys(session.config.getoption("plait_plugin")):
        items.extend(_suite(session, name))


def _suite(session: pytest.Session, name: str) -> Iterator[pytest.Item]:
    from types import ModuleType

    from plait_authoring.suite import plait_plugin_suite

    module = ModuleType(f"plait_plugin_{name}")
    module.TestConformance = plait_plugin_suite(name)  # type: ignore[attr-defined]
    node: Any = pytest.Module.from_parent(session, path=session.config.rootpath / name)
    node.obj = module
    for item in session.genitems(node):
        if isinstance(item, pytest.Item):
            yield item
