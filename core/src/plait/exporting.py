"""The exported model: weights as safetensors with a description beside them, and whole programs when asked for."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from plait.errors import BadInput, RunFailed, first_line
from plait.storage.files import write_atomically

if TYPE_CHECKING:
    from plait.training.trainer import Trainer

FILES = {"torch_export": "model.pt2", "torchscript": "model.torchscript", "onnx": "model.onnx"}


def write(trainer: Trainer, model: nn.Module, folder: Path) -> None:
    """Write ``model`` (on the CPU, in eval mode) to ``folder`` in the recipe's formats, each file whole or not at all.

    Raises:
        BadInput: as the functions of `forms`.
        RunFailed: the disk is full.
    """
    for name, put in forms(trainer, model).items():
        write_atomically(folder / name, put)


def forms(trainer: Trainer, model: nn.Module) -> dict[str, Callable[[Path], object]]:
    """What is exported: file name -> a function that writes it to a path.

    ``model.safetensors`` + ``config.json`` always; of a model of transformers they are as its ``from_pretrained`` loads
    them, with plait's description in ``plait.json``. ``model.pt2``, ``model.torchscript`` and ``model.onnx`` run
    without plait and without the model's source, for any batch size. They take the model's own input, after the data's
    ``prepare``. What a plugin has to say of the exported model (that it must not be used, say) it puts into the model's
    ``export_metadata``, text -> text; it is written into the header of the safetensors file and into the config. Files
    that belong to the model (a tokenizer) are its ``export_files``, name -> bytes.

    Raises:
        BadInput: a state that is no tensor; from the functions: a format that cannot express this model.
        RunFailed: the disk is full.
    """
    require_tensors(model)
    config = json.dumps(_config(trainer, model), indent=2)
    kinds = [kind for kind in trainer.recipe.export.formats if kind in FILES]
    whole: dict[str, Callable[[Path], object]] = {
        name: partial(Path.write_bytes, data=content) for name, content in getattr(model, "export_files", {}).items()
    }
    if _builds_anew(model):
        whole |= _pretrained(model, trainer.folder)
    else:
        whole["model.safetensors"] = lambda path: save_model(model, str(path), metadata=_metadata(model))
    whole["plait.json" if "config.json" in whole else "config.json"] = partial(Path.write_bytes, data=config.encode())
    return whole | {FILES[kind]: partial(_program, trainer, model, kind) for kind in kinds}


def _builds_anew(model: nn.Module) -> bool:
    """Whether this is a model of transformers whose config gives its shapes: one without removed channels."""
    if not (hasattr(model, "save_pretrained") and hasattr(model, "main_input_name")):
        return False
    try:
        with torch.device("meta"):
            fresh = type(model)(copy.deepcopy(model.config))
    except Exception:  # a stranger's model may need more than its config
        return False
    shapes, anew = ({name: t.shape for name, t in m.state_dict().items()} for m in (model, fresh))
    return shapes == anew


def _pretrained(model: Any, home: Path) -> dict[str, Callable[[Path], object]]:
    """The files of ``save_pretrained``, written beside where they go and then moved."""
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".export-", dir=home)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            model.save_pretrained(scratch.name)
    except OSError as error:
        raise RunFailed(f"{home}: the model could not be written: {error}.") from error

    def put(path: Path, name: str) -> None:
        os.replace(Path(scratch.name, name), path)

    return {name: partial(put, name=name) for name in sorted(os.listdir(scratch.name))}


def require_tensors(model: nn.Module) -> None:
    """Refuse a model whose state is not of tensors alone.

    Raises:
        BadInput: naming the first such entry.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            given = f"a {type(value).__name__} at {name!r}"
            whose = " (of get_extra_state)" if name.rpartition(".")[2] == "_extra_state" else ""
            raise BadInput(
                f"the model's state_dict holds {given}{whose}; weights files hold tensors alone: make it a tensor, or "
                "keep it out of the state."
            )


def _metadata(model: nn.Module) -> dict[str, str]:
    return {str(k): str(v) for k, v in getattr(model, "export_metadata", {}).items()}


def _program(trainer: Trainer, model: nn.Module, kind: str, path: Path) -> None:
    batch = trainer.data.test.__getitems__([0, 0])
    example = (trainer.data.prepare(batch) if trainer.data.prepare else batch)["input"]
    try:
        with _quiet_where_it_fails():
            if kind == "torchscript":
                torch.jit.trace(model, example).save(str(path))  # type: ignore[no-untyped-call]
                return
            sizes = ({0: torch.export.Dim("batch", min=1, max=65536)},)
            program = torch.export.export(model, (example,), dynamic_shapes=sizes)
            if kind == "torch_export":
                with open(path, "wb") as file:
                    torch.export.save(program, file)
            else:
                onnx: Any = torch.onnx.export(program, (example,), dynamo=True, verbose=False)
                onnx.save(str(path))
    except OSError:
        raise
    except Exception as error:  # a tracer may raise anything
        raise BadInput(
            f"export as {kind} failed: {type(error).__name__}: {first_line(error)}. "
            f"Choose export.formats without {kind!r}; model.safetensors is written with any choice."
        ) from error


@contextlib.contextmanager
def _quiet_where_it_fails() -> Iterator[None]:
    """What torch writes to stderr is shown when it succeeds; when it fails, its error says the same in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as written:
            yield
        sys.stderr.write(written.getvalue())
    finally:
        logging.disable(before)


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
