"""Fixtures in the published layouts, made small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait.data import Data, DataInfo
from plait.declare.options import Options, load_object
from plait.declare.sources import DataSource, ModelSource
from plait_zoo.plugin import ZooPlugin


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def sources() -> dict[str, DataSource]:
    return dict(ZooPlugin(Options()).data_sources())


@pytest.fixture(scope="session")
def models() -> dict[str, ModelSource]:
    return dict(ZooPlugin(Options()).models())


@pytest.fixture(scope="session")
def load(sources: dict[str, DataSource]) -> Callable[..., Data]:
    """``load(name, seed=0, **options)``: the data as a run would make it."""

    def make(name: str, seed: int = 0, **options: object) -> Data:
        source = sources[name]
        data: Data = load_object(source.factory, "data")(source.options.model_validate(options), seed)
        data.check(name)
        return data

    return make


@pytest.fixture(scope="session")
def build(models: dict[str, ModelSource]) -> Callable[..., object]:
    """``build(name, info, **options)``: the model as a run would make it."""

    def make(name: str, info: DataInfo, **options: object) -> object:
        source = models[name]
        return load_object(source.factory, "model")(source.options.model_validate(options), info)

    return make


@pytest.fixture(scope="session")
def picture() -> Callable[..., None]:
    """``picture(path, colour=0, size=(24, 30))``: write a small image of one colour."""

    def make(path: Path, colour: int = 0, size: tuple[int, int] = (24, 30)) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), colour, np.uint8)).save(path)

    return make
