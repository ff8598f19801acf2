"""The declarations: light, complete, and true of what the factories give."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from plait.data import Data, DataInfo
from plait.declare.options import Options, load_object
from plait.declare.sources import DataSource, ModelSource
from plait.errors import BadInput
from plait.planning.discovery import implementations
from plait_zoo.plugin import ZooPlugin

DATA = [
    *("digits", "mnist5k", "toned-digits", "fashion-mnist", "cifar10", "cifar100"),
    *("celeba", "fairface", "lfw", "chexpert", "image-folder"),
    *("table", "adult", "compas", "german"),
    *("python-docs", "text-files"),
]
MODELS = ["mlp", "cnn", "vgg-bn", "resnet18", "resnet34", "resnet50", "transformers"]
TEXTS = {"python-docs", "text-files", "transformers"}
GROUPED = {"toned-digits", "celeba", "fairface", "lfw", "chexpert", "table", "adult", "compas", "german"}
GROUPED |= {"python-docs", "text-files"}


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, plait_zoo.plugin as p; from plait.plugin import Options;"
        "z = p.ZooPlugin(Options()); z.data_sources(); z.models();"
        "heavy = ('torch', 'numpy', 'torchvision', 'sklearn', 'PIL', 'transformers', 'tokenizers');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_hooks_fit_the_specs() -> None:
    assert {i.hook for i in implementations(ZooPlugin(Options()))} == {"data_sources", "models"}


def test_names(sources: dict[str, DataSource], models: dict[str, ModelSource]) -> None:
    assert list(sources) == DATA
    assert list(models) == MODELS
    assert {name for name, source in sources.items() if "field:group" in source.provides} == GROUPED
    for name, source in sources.items():
        assert {"task:causal-lm" if name in TEXTS else "task:classification", "field:index"} <= source.provides
    for name, model in models.items():
        assert model.provides == (set() if name in TEXTS else {"model:channel-groups"})


@pytest.mark.parametrize("name", DATA + MODELS)
def test_factories_import_and_options_are_described(
    name: str, sources: dict[str, DataSource], models: dict[str, ModelSource]
) -> None:
    source: DataSource | ModelSource = sources[name] if name in sources else models[name]
    assert callable(load_object(source.factory, name))
    for option, field in source.options.model_fields.items():
        assert field.description, option
        bounded = field.annotation is bool or field.metadata or "Literal" in str(field.annotation)
        assert bounded, f"{option} has no bounds"


@pytest.mark.parametrize("name", ["digits", "mnist5k", "toned-digits"])
def test_declared_fields_are_there(name: str, sources: dict[str, DataSource], load: Callable[..., Data]) -> None:
    data = load(name)
    declared = {word.removeprefix("field:") for word in sources[name].provides if word.startswith("field:")}
    assert declared == data.info.fields
    for split in (data.train, data.validation, data.test):
        batch = split.__getitems__([0, 2])
        assert set(batch) == declared
        assert batch["index"].tolist() == [0, 2]
        assert batch["input"].shape == (2, *data.info.input_shape)


# ---- any options: a clear refusal or a result -----------------------------------------------------------------------
PATHS = st.one_of(st.text(max_size=30), st.sampled_from(["/", "/tmp", "~nobody/x", "\0", "a" * 4000, "/dev/null", "."]))
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=3)
)


def _some_options(options: type[Options]) -> st.SearchStrategy[dict[str, object]]:
    """Valid ones with a few changed, or many."""
    known = {name: PATHS if name in ("root", "path", "weights") else VALUES for name in options.model_fields}
    known["unknown"] = VALUES
    needed = {name: PATHS for name, field in options.model_fields.items() if field.is_required()}
    names = st.sampled_from(sorted(known))
    changes = st.lists(names, max_size=2, unique=True) | st.lists(names, unique=True)
    return changes.flatmap(lambda chosen: st.fixed_dictionaries(needed | {name: known[name] for name in chosen}))


@pytest.mark.parametrize(
    "name", [name for name in DATA if name not in ("mnist5k", "toned-digits", "fashion-mnist", "python-docs")]
)
def test_data_options_never_crash(name: str, sources: dict[str, DataSource]) -> None:
    source, reached = sources[name], []

    @settings(max_examples=25, deadline=None)
    @given(values=_some_options(source.options))
    def attempt(values: dict[str, object]) -> None:
        with contextlib.suppress(BadInput, ValidationError):
            options = source.options.model_validate(values)
            reached.append(values)
            load_object(source.factory, name)(options, 0)

    attempt()
    assert reached, "no options were valid, so nothing was loaded"


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg-bn"])
def test_model_options_never_crash(name: str, models: dict[str, ModelSource]) -> None:
    source, built = models[name], []

    @settings(max_examples=50, deadline=None)
    @given(
        values=_some_options(source.options),
        shape=st.one_of(st.just(()), st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 40))),
        classes=st.integers(-1, 12),
    )
    def attempt(values: dict[str, object], shape: tuple[int, ...], classes: int) -> None:
        with contextlib.suppress(BadInput, ValidationError):
            options = source.options.model_validate(values)
            built.append(load_object(source.factory, name)(options, DataInfo(input_shape=shape, num_classes=classes)))

    attempt()
    assert built, "no network was built"


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="0123456789M, -x", max_size=20))
def test_vgg_widths_are_refused_or_parsed(text: str) -> None:
    from plait_zoo.options import VggOptions
    from plait_zoo.vgg import parse_widths

    try:
        options = VggOptions(widths=text)
    except ValidationError:
        return
    assert all(width == "M" or 1 <= int(width) <= 4096 for width in parse_widths(options.widths))


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1), corr=st.floats(-1, 1))
def test_toned_probabilities_are_probabilities(share: float, corr: float) -> None:
    import torch

    from plait_zoo.options import TonedDigitsOptions
    from plait_zoo.toned import dark_probability

    try:
        options = TonedDigitsOptions(share=share, corr=corr)
    except ValidationError:
        assert share * (1 + abs(corr)) > 1
        return
    chances = dark_probability(torch.tensor([True, False]), options.share, options.corr)
    assert 0 <= float(chances.min()) <= float(chances.max()) <= 1 + 1e-6
