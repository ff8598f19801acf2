"""Published UMBRAE checkpoints into a brain encoder, and back (card, 2.8). No code of the file is run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .encoder import BrainEncoder
from .errors import BrainotError

__all__ = ["load_checkpoint", "save_checkpoint"]


def load_checkpoint(model: BrainEncoder, path: str | Path) -> None:
    """Load the weights of a published checkpoint.

    A checkpoint of one subject, whose tokenizer's names carry no subject, is taken for the encoder's only subject. For
    adaptation a subject that the file does not have keeps its first weights, if the perceiver fits.

    Args:
        model: of the same sizes.
        path: a file of ``torch.save`` with ``model_state_dict``.

    Raises:
        BrainotError: no such file, one that holds more than tensors, another layout, tensors of another shape.
    """
    file = Path(path)
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BrainotError(f"{file}: no such checkpoint") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).split(". ")[0].splitlines()[0]  # torch goes on to advise what is unsafe
        raise BrainotError(f"{file}: no checkpoint that can be read without running its code: {reason}") from None
    if not isinstance(stored, Mapping) or not isinstance(stored.get("model_state_dict"), Mapping):
        raise BrainotError(f"{file}: no 'model_state_dict' in it; give a checkpoint as UMBRAE publishes them")
    weights: dict[str, Tensor] = dict(stored["model_state_dict"])
    subjects = list(model.voxels)
    if any(name.split(".")[0] in ("lin1", "lin2") and ".fmri" not in name for name in weights):
        if len(subjects) != 1:
            raise BrainotError(f"{file} is of one subject, which it does not name; the encoder has {subjects}")
        weights = {_of_subject(name, subjects[0]): value for name, value in weights.items()}
    own = model.state_dict()
    shared = [name for name in own if name.startswith("perceiver.")]
    if missing := [name for name in shared if name not in weights]:
        raise BrainotError(f"{file} has no {missing[0]!r}: it is of another network (depth, say)")
    taken = {name: value for name, value in weights.items() if name in own}
    for name, value in taken.items():
        if value.shape != own[name].shape:
            shapes = f"{list(value.shape)}, the encoder's {list(own[name].shape)}"
            raise BrainotError(f"{file}: {name!r} is {shapes}: another subject or other sizes")
    if not any(name.startswith("lin2.") for name in taken) and not model.options.freeze_shared:
        there = ", ".join(sorted({name.split(".")[1] for name in weights if name.startswith("lin2.")})) or "nobody"
        raise BrainotError(
            f"{file} has tokenizers of {there}, not of {subjects}: for new subjects set model.freeze_shared = true"
        )
    model.load_state_dict({**own, **taken})


def _of_subject(name: str, subject: int) -> str:
    first, _, rest = name.partition(".")
    return f"{first}.fmri{subject}.{rest}" if first in ("lin1", "lin2") else name


def save_checkpoint(model: BrainEncoder, path: str | Path) -> None:
    """Write the encoder's weights in the published layout, for readers of it."""
    empty: dict[str, list[float]] = {"train_losses": [], "val_losses": [], "lrs": []}
    torch.save({"model_state_dict": model.state_dict(), "epoch": 0, **empty}, Path(path))
