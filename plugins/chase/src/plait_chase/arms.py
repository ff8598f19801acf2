"""What the claims measure beside a run's own metrics: the saved network by itself, its speed, and Torch-Pruning."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import plait
from plait.data import DataInfo
from plait.declare.recipe import Recipe, assemble
from plait.errors import RunFailed
from plait.loading import build_model, load_data
from plait_chase.flops import dense_macs, layer_costs
from plait_chase.timing import compare_throughput
from plait_chase.yardsticks import count_weights, prune_with_torch_pruning

if TYPE_CHECKING:
    from plait.run import Run

BATCH = 64
REPEATS = 30
"""Timed batches of each network (card, "Metrics": at least 30, after at least 5 to warm up)."""

ALONE = """
import sys
for name in ("plait", "plait_chase", "plait_zoo"):
    sys.modules[name] = None
import torch
from safetensors.torch import load_file, save_file
model = torch.export.load(sys.argv[1]).module()
save_file({"outputs": model(load_file(sys.argv[2])["inputs"]).detach().contiguous()}, sys.argv[3])
"""
"""Loads and runs the exported program in a process in which plait cannot be imported."""


def exported(run: Run) -> dict[str, float]:
    """Measures of the saved, shrunk network of a finished run whose ``export.formats`` has ``torch_export``.

    Returns:
        ``saved/alone_error``: largest difference of its logits on a test batch when it is loaded without plait;
        ``saved/speedup``: median time of the dense network over that of the shrunk one, batch 64, one thread, timed in
        turns.
    """
    inputs = _inputs(run.recipe, BATCH)
    small = run.model.eval().cpu()
    with torch.no_grad():
        want = small(inputs)
    got = _alone(run.export / "model.pt2", inputs)
    data = load_data(run.recipe.data, run.recipe.seed)
    dense = build_model(run.recipe.model, data.info)
    timed = compare_throughput(dense, small, inputs, repeats=REPEATS, warmups=5, threads=1)
    return {"saved/alone_error": float((want - got).abs().max()), "saved/speedup": timed.speedup}


def _inputs(recipe: Recipe, count: int) -> Tensor:
    data = load_data(recipe.data, recipe.seed)
    batch = data.test.__getitems__(torch.arange(count))
    inputs: Tensor = (data.prepare(batch) if data.prepare else batch)["input"]
    return inputs


def _alone(program: Path, inputs: Tensor) -> Tensor:
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.safetensors"), Path(folder, "out.safetensors")
        save_file({"inputs": inputs.contiguous()}, source)
        process = subprocess.run(
            [sys.executable, "-c", ALONE, str(program), str(source), str(target)],
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            raise RunFailed(f"{program} does not run by itself: {process.stderr.strip().splitlines()[-1:]}")
        return load_file(target)["outputs"]


# ---- Torch-Pruning -----------------------------------------------------------------------------------------------
def torch_pruning(
    recipe: Recipe,
    folder: Path,
    *,
    kind: str = "magnitude",
    mac_ratio: float | None = None,
    weights: int | None = None,
    layer_ratio: float = 1.0,
    share: float = 0.5,
    fine_tune_lr: float | None = None,
) -> dict[str, float]:
    """Train dense, remove channels by torch-pruning, fine-tune; as many steps in all as the recipe says.

    Args:
        recipe: plain training, its budget in steps.
        folder: where both runs go.
        kind: ``"magnitude"`` or ``"bn-scale"``.
        mac_ratio, weights: how narrow; one of them (see `prune_with_torch_pruning`).
        layer_ratio: largest share of a layer's channels that may go; default 1, no floor.
        share: of the steps that train the dense network; both parts run the whole learning-rate schedule.
        fine_tune_lr: the rate at which the second schedule starts; default as the first.

    Returns:
        The metrics of the fine-tuned network, its MACs and weights under the names that a Chase run has.
    """
    total = recipe.train.steps
    if total is None:
        raise RunFailed("torch_pruning shares out train.steps; give the budget in steps")
    first = max(1, min(total - 1, round(share * total)))
    dense = plait.run(recipe.merged({"train.steps": first}), out=folder / "dense", go_on=True)
    goal = {"mac_ratio": mac_ratio} if weights is None else {"weights": weights}
    settings: dict[str, Any] = {
        "model.run": str(dense.path),
        "model.kind": kind,
        "model.layer_ratio": layer_ratio,
        **{f"model.{k}": v for k, v in goal.items()},
    }
    if fine_tune_lr is not None:
        settings["optimizer.lr"] = fine_tune_lr
    narrow = assemble(
        recipe, model="plait_chase.arms:pruned_model", settings={**settings, "train.steps": total - first}
    )
    tuned = plait.run(narrow, out=folder / "pruned", go_on=True)
    inputs = _inputs(recipe, 2)
    info = load_data(recipe.data, recipe.seed).info
    before = dense_macs(layer_costs(build_model(recipe.model, info), inputs))
    after = dense_macs(layer_costs(tuned.model, inputs))
    figures = {"macs@export": after, "mac_ratio@export": after / before, "nonzeros": count_weights(tuned.model)}
    return {**tuned.metrics, **{f"chase/{name}": float(value) for name, value in figures.items()}}


def pruned_model(
    info: DataInfo,
    run: str,
    kind: str,
    mac_ratio: float | None = None,
    weights: int | None = None,
    layer_ratio: float = 1.0,
) -> nn.Module:
    """The dense network of a finished run, narrowed by torch-pruning; a model for recipes.

    Args:
        info: of the data.
        run: the run directory of the dense network.
        kind, mac_ratio, weights, layer_ratio: as in `prune_with_torch_pruning`.
    """
    from safetensors.torch import load_model

    recipe = Recipe.load(Path(run) / "recipe.toml")
    model = build_model(recipe.model, info)
    load_model(model, str(Path(run) / "export" / "model.safetensors"))
    return prune_with_torch_pruning(
        model, torch.zeros(2, *info.input_shape), kind, mac_ratio=mac_ratio, weights=weights, layer_ratio=layer_ratio
    )
