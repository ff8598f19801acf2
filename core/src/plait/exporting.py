"""The exported model: weights as safetensors with a description beside them, and whole programs when asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_model
from torch import nn

from plait.errors import RunFailed
from plait.storage.files import write_atomically, write_text

if TYPE_CHECKING:
    from plait.training.trainer import Trainer

FILES = {"torch_export": "model.pt2", "torchscript": "model.torchscript", "onnx": "model.onnx"}


def write(trainer: Trainer, model: nn.Module, folder: Path) -> None:
    """Write ``model`` (on the CPU, in eval mode) to ``folder`` in the recipe's formats.

    ``model.safetensors`` + ``config.json`` always; ``model.pt2``, ``model.torchscript`` and ``model.onnx`` run without
    plait and without the model's source, for any batch size. They take the model's own input, after the data's
    ``prepare``. What a plugin has to say of the exported model (that it must not be used, say) it puts into the model's
    ``export_metadata``, text -> text; it is written into the header of the safetensors file and into the config.

    Raises:
        RunFailed: a format cannot express this model, or the disk is full.
    """
    write_atomically(folder / "model.safetensors", lambda path: save_model(model, str(path), metadata=_metadata(model)))
    write_text(folder / "config.json", json.dumps(_config(trainer, model), indent=2))
    for kind in trainer.recipe.export.formats:
        if kind != "safetensors":
            try:
                _write_program(trainer, model, kind, folder / FILES[kind])
            except RunFailed:
                raise
            except Exception as error:
                raise RunFailed(
                    f"export as {kind} failed: {type(error).__name__}: {str(error).splitlines()[0]}. "
                    "The trained weights are in export/model.safetensors; choose export.formats without it."
                ) from error


def _metadata(model: nn.Module) -> dict[str, str]:
    return {str(k): str(v) for k, v in getattr(model, "export_metadata", {}).items()}


def _write_program(trainer: Trainer, model: nn.Module, kind: str, target: Path) -> None:
    batch = trainer.data.test.__getitems__([0, 0])
    example = (trainer.data.prepare(batch) if trainer.data.prepare else batch)["input"]
    if kind == "torchscript":
        traced = torch.jit.trace(model, example)  # type: ignore[no-untyped-call]
        write_atomically(target, lambda path: traced.save(str(path)))
        return
    sizes = ({0: torch.export.Dim("batch", min=1, max=65536)},)
    program = torch.export.export(model, (example,), dynamic_shapes=sizes)
    if kind == "torch_export":
        write_atomically(target, lambda path: _save_program(program, path))
    else:
        onnx: Any = torch.onnx.export(program, (example,), dynamo=True, verbose=False)
        write_atomically(target, lambda path: onnx.save(str(path)))


def _save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    with open(path, "wb") as file:
        torch.export.save(program, file)


def _config(trainer: Trainer, model: nn.Module) -> dict[str, Any]:
    info, recipe = trainer.info, trainer.recipe
    return {
        "model": recipe.model.model_dump(mode="json"),
        "data": recipe.data.model_dump(mode="json"),
        "task": info.task,
        "input_shape": list(info.input_shape),
        "num_classes": info.num_classes,
        "names": {k: list(v) for k, v in trainer.data.names.items()},
        "plugins": recipe.plugins,
        "seed": recipe.seed,
        "step": trainer.step,
        "metadata": _metadata(model),
        "tensors": {name: list(t.shape) for name, t in model.state_dict().items()},
    }
