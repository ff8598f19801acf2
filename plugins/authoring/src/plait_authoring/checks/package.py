"""Checks of the package: found, light, described, of this contract version, with claims that can be read."""

from __future__ import annotations

import json
import subprocess
import sys

import plait
from plait.hooks import CONTRACT_VERSION
from plait_authoring.conformance import Stage, check
from plait_authoring.subject import Subject
from plait_authoring.verdicts import DoesNotApply, broken, expect_none

HEAVY = """
accelerate catboost cupy cv2 datasets diffusers faiss fastai flax gensim h5py huggingface_hub imageio jax jaxlib keras
lightgbm lightning matplotlib mlflow mlxtend networkx nltk numba numpy onnx onnxruntime open_clip optax optuna pandas
PIL plotly polars pyarrow pytorch_lightning ray safetensors scipy seaborn sentence_transformers skimage sklearn spacy
statsmodels sympy tensorboard tensorflow timm tokenizers torch torch_geometric torch_pruning torchaudio torchdata
torchmetrics torchvision transformers triton wandb xgboost
""".split()  # noqa: SIM905 - sixty strings on as many lines would be harder to read
"""Libraries that take long to import, or import one that does; the file with the plugin's class imports none."""

WATCH = """
import json, sys, traceback
path, module, heavy = json.loads(sys.argv[1])
sys.path[:] = path
seen = {}

class Watch:
    def find_spec(self, name, *rest):
        if name in heavy and name not in seen:
            frames = [f for f in traceback.extract_stack()[:-1] if "importlib" not in f.filename]
            seen[name] = [f"{f.filename}:{f.lineno}" for f in frames[-1:]]
        return None

sys.meta_path.insert(0, Watch())
__import__(module)
print("\\n" + json.dumps({name: by for name, by in seen.items() if name in sys.modules}))
"""


@check(Stage.NAMED)
def discovered(subject: Subject) -> None:
    """The plugin is installed, loads, and carries the name of its entry point."""
    item = subject.item
    if item is None:
        known = ", ".join(sorted(subject.others())) or "none"
        broken(
            [f"No plugin named {subject.name!r} is installed. Installed: {known}."],
            "install your package into this environment (pip install -e .) and name it in pyproject.toml: "
            f'[project.entry-points.plait] {subject.name} = "your_package.plugin:YourPlugin".',
        )
    if item.status == "duplicate":
        broken([f"The plugin is a duplicate: {item.reason}."], "uninstall one of the packages, or rename your plugin.")
    if item.status == "broken" and item.plugin is None:
        broken(
            [f"Installed by {item.distribution} {item.version}, but not usable: {item.reason}."],
            "mend what the reason names; `plait plugins` shows the same line.",
        )


@check(Stage.NAMED)
def contract_version(subject: Subject) -> None:
    """The plugin was written for the hook-contract version that the installed plait-core speaks."""
    item = subject.item
    if item is None:
        raise DoesNotApply("there is no such plugin: see test_discovered")
    if item.status == "incompatible":
        where = f"class {item.plugin.__qualname__}" if item.plugin else f"plugin {item.name!r}"
        broken(
            [f"{where}: {item.reason}"],
            f"adapt the plugin to contract {CONTRACT_VERSION} and write `contract = {CONTRACT_VERSION}`, or install "
            "releases that fit together.",
        )


@check(Stage.LOADED)
def described(subject: Subject) -> None:
    """The class has a one-line summary, and a docstring of its own."""
    problems = []
    summary = subject.plugin.summary
    if not isinstance(summary, str) or not summary.strip():
        problems.append("`summary` is empty; `plait plugins` and `plait info` show nothing for this plugin.")
    elif "\n" in summary:
        problems.append("`summary` has several lines; it stands in one line of a table.")
    if not (subject.plugin.__doc__ or "").strip():
        problems.append(f"class {subject.plugin.__qualname__} has no docstring.")
    expect_none(problems, 'write `summary = "what it does, in one line"` and a docstring that says how it does it.')


@check(Stage.LOADED)
def light_import(subject: Subject) -> None:
    """Importing the file with the plugin's class imports no torch, numpy or other heavy library."""
    if not subject.packaged:
        raise DoesNotApply("a class was given, which is in no package yet")
    module = subject.plugin.__module__
    question = json.dumps([[p for p in sys.path if p], module, HEAVY])
    ended = subprocess.run([sys.executable, "-c", WATCH, question], capture_output=True, text=True, timeout=300)
    if ended.returncode:
        broken(
            [f"`import {module}` fails in a fresh interpreter: {ended.stderr.strip().splitlines()[-1]}"],
            "make the module importable by itself.",
        )
    places: dict[str, list[str]] = json.loads(ended.stdout.splitlines()[-1])
    first = [name for name in places if not any(name.startswith(f"{other}.") for other in places)]
    if first:
        broken(
            [f"`import {module}` imports {name}, at {' '.join(places[name]) or 'an unknown place'}." for name in first],
            "move these imports inside the hooks that use them, and under `if TYPE_CHECKING:` for annotations. "
            "`plait --help` and `plait plan` load every installed plugin, so this file must stay light.",
        )


@check(Stage.USABLE)
def claims_file(subject: Subject) -> None:
    """The package's claims.toml, if there is one, can be read, and its arms name real recipe keys and options."""
    if not subject.packaged:
        raise DoesNotApply("a class was given, which is in no package yet")
    try:
        from plait_experiments.experiment import check as arm_problems
        from plait_experiments.schema import load
    except ImportError:
        raise DoesNotApply("claims are read by plait-experiments, which is not installed") from None
    try:
        book = load(subject.name)
    except plait.BadInput as error:
        broken(str(error).splitlines(), "mend these keys; `docs/claims.md` in plait's repository lists them all.")
    if book is None:
        raise DoesNotApply("the package has no claims.toml beside plugin.py, so it claims nothing")
    problems = arm_problems(book)
    expect_none(problems, "mend these keys, or the options that they name.")
