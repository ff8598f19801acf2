"""The two example plugins as a stranger has them: installed from their folders, beside chase and fairsam.

The runs are made by one process in the stranger's environment. This process, which has neither of the two plugins,
reads what they left on disk.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from plait.storage import checkpoints
from plait.training.masks import unpack
from plait_authoring.kill import final_state, first_difference

ROOT = Path(__file__).parents[1]
EXAMPLES = ("ema", "label-smoothing")
MOST_LINES = 70
FOUR = ("chase", "fairsam", "label-smoothing", "ema")
STEPS = 40

RUNS = """
import json, shutil
import torch
from torch.nn import functional
import plait
from plait.planning.discovery import pretend

FOUR = ("chase", "fairsam", "label-smoothing", "ema")
OPTIONS = {
    "chase": {"density": 0.3, "exploration_interval": 4, "channel_interval": 8, "timing_repeats": 0},
    "fairsam": {"severities": [3]},
    "label-smoothing": {"epsilon": 0.2},
    "ema": {"decay": 0.9},
}

def run(folder, plugins, options={}, steps=40, every=1):
    chosen = {name: {**OPTIONS.get(name, {}), **options.get(name, {})} for name in plugins}
    settings = {"checkpoint.every_steps": every, "checkpoint.keep": 99, "optimizer.lr": 0.05, "device": "cpu"}
    settings["train.batch_size"] = 32
    return plait.run(plugins=chosen, data="tiny-images", model="tiny-cnn", steps=steps, settings=settings, out=folder)

class Smoothed(plait.Plugin):
    name, contract = "smoothed", plait.CONTRACT_VERSION

    @plait.hookimpl
    def objective(self, outputs, batch):
        return functional.cross_entropy(outputs, batch["label"], label_smoothing=0.2, reduction="none")

torch.set_num_threads(1)
metrics = {}
for folder, plugins, options, every, steps in (
    ("four", FOUR, {}, 1, (9, 31)),
    ("reversed", FOUR[::-1], {}, 40, ()),
    ("sliced", FOUR, {"chase": {"shrink_during": True}}, 8, (8, 32)),
    ("sliced-reversed", FOUR[::-1], {"chase": {"shrink_during": True}}, 8, (8, 32)),
):
    metrics[folder] = run(folder, plugins, options, every=every).metrics
    for step in steps:
        again = f"{folder}-from-{step}"
        shutil.copytree(folder, again)
        plait.resume(again, checkpoint=f"step-{step:09d}")
with pretend(Smoothed):
    for perturbation in ("weighted", "plain", "ascent_only", "per_group"):
        options = {"fairsam": {"perturbation": perturbation, "rho": 0.2}}
        run(f"ours-{perturbation}", ("fairsam", "label-smoothing"), options, steps=6, every=6)
        run(f"torchs-{perturbation}", ("fairsam", "smoothed"), options, steps=6, every=6)
print(json.dumps(metrics))
"""

Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Run a command where both are installed; this environment stays as it is."""
    folder = tmp_path_factory.mktemp("stranger")
    sources = [str(shutil.copytree(ROOT / "examples" / name, folder / "sources" / name)) for name in EXAMPLES]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(folder / "site"), *sources], check=True, timeout=300)
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{scripts}:{environment['PATH']}"

    def run(*command: str, cwd: str = ".", timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=folder / cwd, env=environment, capture_output=True, text=True, timeout=timeout
        )

    return run


@pytest.fixture(scope="module")
def runs(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    """The folder of the runs, and the metrics of each."""
    folder = tmp_path_factory.mktemp("runs")
    done = start(sys.executable, "-c", RUNS, cwd=str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout)


def code_lines(path: Path) -> int:
    """Physical lines that hold code: no comments, docstrings or blank lines."""
    source = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    strings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            strings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - strings)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_code_of_a_plugin_is_short(name: str) -> None:
    """Plugin, options and method together."""
    files = sorted((ROOT / "examples" / name / "src").rglob("*.py"))
    assert len(files) == 4
    assert sum(map(code_lines, files)) < MOST_LINES


def test_lines_are_counted_without_comments_docstrings_and_blanks(tmp_path: Path) -> None:
    file = tmp_path / "counted.py"
    file.write_text(
        '"""Two\n\nlines."""\n\nx = (  # a comment\n    1\n)\n\n\n# alone\ndef f():\n    "doc"\n    return """\n"""\n'
    )
    assert code_lines(file) == 3 + 1 + 2


def test_they_are_found_and_planned(start: Start) -> None:
    done = start("plait", "plugins", "--json")
    status = {item["name"]: item["status"] for item in json.loads(done.stdout)}
    assert {status[name] for name in FOUR} == {"ok"}
    for order in (FOUR, FOUR[::-1]):
        arguments = [part for name in order for part in ("-p", name)]
        done = start("plait", "plan", *arguments, "--json")
        plan = json.loads(done.stdout)
        assert done.returncode == 0 and plan["ok"]
        assert plan["order"]["export"] == ["ema", "chase"]
        assert plan["reasons"]["export"] == ["chase after ema: declared"]
        assert plan["order"]["optimizer_step"][-1] == "fairsam"
    shown = start("plait", "plan", *arguments).stdout
    assert "ema -> chase" in shown and "chase after ema: declared" in shown


@pytest.mark.parametrize("name", EXAMPLES)
def test_their_own_tests_pass(start: Start, name: str) -> None:
    done = start(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=f"sources/{name}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_readmes_code_runs(start: Start, name: str) -> None:
    text = (ROOT / "examples" / name / "README.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M))
    assert "import torch" in code
    done = start(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def shadow(state: dict[str, Any]) -> dict[str, Tensor]:
    average: dict[str, Tensor] = state["shadows"]["ema"]
    return average


def masks(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: unpack(m["bits"], torch.Size(m["shape"])) for name, m in state["masks"].items()}


def test_the_average_is_that_of_every_steps_weights_under_the_masks(runs: Any) -> None:
    """Oracle: the average by hand from a checkpoint of every step, zeroed by the masks of every step."""
    folder, _ = runs
    average: dict[str, Tensor] = {}
    came_back = 0
    before: dict[str, Tensor] = {}
    for step in range(1, STEPS + 1):
        state = checkpoints.load(folder / f"four/checkpoints/step-{step:09d}.safetensors")
        decay = min(0.9, step / (9 + step)) if step > 1 else 0.0
        kept = masks(state)
        for name in shadow(state):
            weight = state["model"][name].double()
            average[name] = decay * average.get(name, weight) + (1 - decay) * weight
            if name in kept:
                average[name] *= kept[name]
                came_back += int((kept[name] & ~before.get(name, kept[name])).sum())
            torch.testing.assert_close(shadow(state)[name].double(), average[name], rtol=1e-4, atol=1e-6)
        before = kept
    assert came_back > 50, "no weight came back, so nothing was tested"


def test_the_exported_network_is_the_average_without_its_zeros(runs: Any) -> None:
    folder, metrics = runs
    state, exported = final_state(folder / "four"), load_file(folder / "four/export/model.safetensors")
    kept = masks(state)
    for name, average in shadow(state).items():
        if name in kept:
            assert bool((average[~kept[name]] == 0).all())
            assert exported[name].count_nonzero() == average.count_nonzero() <= kept[name].sum()
            assert torch.equal(exported[name][exported[name] != 0], average[average != 0])
    assert exported["conv1.weight"].shape[0] + exported["conv2.weight"].shape[0] == 12
    average, live = shadow(state)["conv2.weight"], state["model"]["conv2.weight"]
    assert not torch.equal(average[average != 0], live[average != 0])  # else the network itself would do as well
    figures = metrics["four"]
    assert figures["chase/shrink_error@export"] < 1e-4
    assert figures["chase/macs@export"] < figures["chase/macs"]
    assert figures["task/loss@export"] != figures["task/loss"]
    assert figures["fairsam/clean_accuracy@export"] == pytest.approx(figures["fairsam/clean_accuracy"], abs=0.5)


@pytest.mark.parametrize("pair", [("four", "reversed"), ("sliced", "sliced-reversed")])
def test_the_order_on_the_command_line_does_not_change_the_bits(runs: Any, pair: tuple[str, str]) -> None:
    folder, _ = runs
    first, second = (final_state(folder / name) for name in pair)
    for key in ("model", "optimizer", "masks", "shadows", "random", "streams", "generators"):
        assert first_difference(first[key], second[key]) is None, key
    exported = [load_file(folder / name / "export/model.safetensors") for name in pair]
    assert first_difference(*exported) is None


def test_the_average_is_sliced_with_the_network(runs: Any) -> None:
    folder, metrics = runs
    sliced, whole = (load_file(folder / name / "export/model.safetensors") for name in ("sliced", "four"))
    assert shadow(final_state(folder / "sliced"))["conv2.weight"].shape == sliced["conv2.weight"].shape
    for name, tensor in whole.items():
        torch.testing.assert_close(sliced[name], tensor, rtol=1e-3, atol=1e-5)
    assert metrics["sliced"]["chase/shrink_error@export"] < 1e-4


@pytest.mark.parametrize(
    "name, step",
    [("four", 9), ("four", 31), ("sliced", 8), ("sliced", 32), ("sliced-reversed", 8), ("sliced-reversed", 32)],
)
def test_a_resumed_run_ends_with_the_bits_of_the_unbroken_one(runs: Any, name: str, step: int) -> None:
    folder, _ = runs
    assert first_difference(final_state(folder / f"{name}-from-{step}"), final_state(folder / name)) is None
    exported = [load_file(folder / f"{n}/export/model.safetensors") for n in (name, f"{name}-from-{step}")]
    assert first_difference(*exported) is None


@pytest.mark.parametrize("perturbation", ["weighted", "plain", "ascent_only", "per_group"])
def test_smoothing_under_fairness_weights_is_the_weighted_smoothed_loss(runs: Any, perturbation: str) -> None:
    """Oracle: torch's smoothed cross-entropy as the objective, which the core weights in every pass."""
    folder, _ = runs
    ours, torchs = (final_state(folder / f"{who}-{perturbation}")["model"] for who in ("ours", "torchs"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, torchs[name], rtol=1e-3, atol=1e-5)
