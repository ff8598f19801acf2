"""The rehearsal: what a run does at its end is tried on a few rows before its first step.

So data that does not fit, a figure that cannot be computed, a model that cannot be exported or kept in a checkpoint are
refused before anything was trained. Nothing of it stays: see `plait.training.trainer.Trainer.untouched`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plait import exporting
from plait.data import Data, Split, Subset
from plait.data.batches import not_finite
from plait.distributed.ranks import broken_exchange
from plait.errors import BadInput, PlaitError, first_line
from plait.storage import checkpoints
from plait.training.evaluation import NoSuchView, Predictions, View

if TYPE_CHECKING:
    from plait.training.trainer import Trainer

FEW = 16
"""Rows of a split that are tried, where it has not more classes and groups."""
MOST = 256
"""Rows that are tried at most for their classes and groups."""
ODD = 4
"""Rows that are tried because their input is not finite."""


def rehearse(trainer: Trainer, views: Mapping[str, View]) -> None:
    """Try one training batch, the figures, the export and the checkpoint of a run that is built and has made no step.

    A plugin that replaces the loop (``fit``) decides what is trained, on which batches, and what comes of it. Before
    it has begun there is nothing of it to try: the training batch, the export and its own figures are left out.

    Raises:
        BadInput: something failed, with what was tried, whose it is, and why.
    """
    strategy = trainer.composed["fit"].owner()
    _checkpoint(trainer)
    exporting.require_tensors(trainer.model)
    home = trainer.folder if trainer.writes else None
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=home) as folder, trainer.untouched(Path(folder)):
        if strategy is None and trainer.total_steps:
            _training_batch(trainer)
        whole = trainer.data
        trained = few(whole.train) if strategy is None else None
        if trained is not None and not hasattr(whole.train, "stream"):
            _predicted(trainer, "train", trained)
        short = {name: few(split) for name in ("validation", "test") if len(split := getattr(whole, name))}
        trainer.data = replace(whole, **short)  # type: ignore[arg-type]
        for name, rows in short.items():
            _predicted(trainer, name, rows)
        left_out = "" if strategy is None else strategy.plugin
        _figures(trainer, views, "test", whole, left_out)
        if "validation" in short:
            _figures(trainer, {"clean": View("", split=short["validation"])}, "validation", whole, left_out)
        if trained is not None:
            trainer.data = replace(trainer.data, train=trained)
            _export(trainer, Path(folder))


def few(split: Split) -> Subset:
    """A few rows of a split, in order: of every class and group one, where it has these as cheap columns.

    Where its inputs lie in memory, also the first rows that have NaN or infinite numbers.
    """
    size = len(split)
    rows = set(range(min(FEW, size)))
    columns = [getattr(split, "fields", {}).get(name) for name in ("label", "group")]
    cells: dict[tuple[Any, ...], int] = {}
    known = [c.reshape(size, -1)[:, 0].tolist() for c in columns if isinstance(c, Tensor) and len(c) == size]
    for row, cell in enumerate(zip(*known, strict=True)):
        cells.setdefault(cell, row)
    rows |= set(sorted(set(cells.values()) - rows)[: MOST - len(rows)])
    rows |= set(_odd_rows(getattr(split, "fields", {}).get("input"))[:ODD])
    return Subset(split, torch.tensor(sorted(rows), dtype=torch.int64))


def _odd_rows(column: Any) -> list[int]:
    if not isinstance(column, Tensor) or not column.is_floating_point():
        return []
    parts = torch.split(column, 4096)  # little memory at a time
    odd = torch.cat([~part.isfinite().reshape(len(part), -1).all(1) for part in parts])
    return odd.nonzero().flatten().tolist()


# ---- what is tried -----------------------------------------------------------------------------------------------
def _training_batch(trainer: Trainer) -> None:
    """One pass of the composed loss over the smallest batch that an epoch has, without a step."""
    with _trying("a training batch"):
        batch = _smallest_batch(trainer).to(trainer.device)
    try:
        with _trying("one pass over a training batch", "The model and the data may not fit each other."):
            report = trainer.gradients(batch, probe=True, freeze_statistics=True)
    except BadInput as error:
        if mend := _mend(trainer, batch, error):
            raise BadInput(mend) from error.__cause__
        raise
    _refuse_sparse(trainer, report.gradients or [])
    if not bool(torch.isfinite(report.loss)) and (odd := not_finite(batch)):
        raise BadInput(f"the training split: {odd}. The loss is {report.loss.item()}: mend or leave out such rows.")


def _smallest_batch(trainer: Trainer) -> Any:
    train, split, stream = trainer.recipe.train, trainer.data.train, trainer.train_stream
    if hasattr(split, "stream"):
        return next(stream)
    whole = min(train.batch_size, len(split))
    last = min(whole, len(split) - (stream.batches_per_epoch - 1) * train.batch_size)
    size = last if trainer.total_steps >= stream.batches_per_epoch else whole
    batch = split.__getitems__(torch.arange(max(1, size // trainer.world)))
    return batch if stream.augment is None else stream.augment(batch, torch.Generator().manual_seed(0))


def _mend(trainer: Trainer, batch: Any, error: BadInput) -> str:
    """What to do about a pass that failed, where that can be told from the batch and from what torch said."""
    _refuse_sparse(trainer, [p.grad for p in trainer.parameters])
    said = str(error.__cause__ or error)
    train = trainer.recipe.train
    if "Expected more than 1 value per channel" in said:
        size = len(batch["index"]) if "index" in batch else 1
        whole = min(train.batch_size, len(trainer.data.train)) // trainer.world
        if whole // train.accumulate > 1 and size < whole:
            parts = f" in {train.accumulate} parts" if train.accumulate > 1 else ""
            return (
                f"the last batch of an epoch has {size} row(s) for a process{parts}, and the model normalizes over the "
                "rows of a batch, of which it needs two: --set train.drop_last=true leaves that batch out (or choose "
                "another train.batch_size)."
            )
        return (
            f"a batch is computed in parts of one row (train.batch_size {train.batch_size}, train.accumulate "
            f"{train.accumulate}, {trainer.world} process(es)), and the model normalizes over the rows of a batch, of "
            "which it needs two: choose a larger batch or fewer parts."
        )
    prepare = trainer.forward.prepare
    given = (prepare(batch) if prepare is not None else batch)["input"] if "input" in batch else None
    weights = next((p.dtype for p in trainer.model.parameters() if p.is_floating_point()), None)
    if isinstance(given, Tensor) and weights is not None and given.dtype != weights:
        kinds = f"{given.dtype} and the model's weights {weights}".replace("torch.", "")
        if given.is_floating_point():
            return (
                f"the input is {kinds}: give the data as {str(weights).removeprefix('torch.')} (.float(), say). {error}"
            )
        if given.dtype == torch.uint8:
            return f"the input is {kinds}: give images as .float() / 255, in the data or in its prepare. {error}"
        return f"the input is {kinds}: if it holds no numbers of tokens, give .float(). {error}"
    return ""


def _refuse_sparse(trainer: Trainer, gradients: list[Tensor | None]) -> None:
    for parameter, gradient in zip(trainer.parameters, gradients, strict=False):
        if gradient is not None and gradient.layout is not torch.strided:
            name = next((n for n, p in trainer.model.named_parameters() if p is parameter), "a plugin's own")
            raise BadInput(
                f"the parameter {name!r} has sparse gradients, which masks, clipping and checkpoints do not take: "
                "build its layer with sparse=False."
            )


def _predicted(trainer: Trainer, name: str, rows: Subset) -> None:
    """The split's own figures, and finite outputs where the inputs are finite."""
    with _trying(f"the figures of the {name} split"):
        figures = trainer.split_figures(rows)
    loss = figures.get("loss")
    if loss is not None and loss.value != loss.value and (odd := not_finite(rows.split.__getitems__(rows.rows))):
        raise BadInput(f"the {name} split: {odd}. The loss there is {loss.value}: mend or leave out such rows.")


def _figures(trainer: Trainer, views: Mapping[str, View], name: str, whole: Data, left_out: str) -> None:
    """Every plugin's figures; what fails on a few rows is tried on the whole data, as a figure may need many."""
    rows: Split = getattr(trainer.data, name)
    short = {n: v if v.split is None or v.split is rows else replace(v, split=few(v.split)) for n, v in views.items()}
    predictions = Predictions(trainer.forward, trainer.model, short, rows)
    for view in short:
        with _trying(f"the view {view!r} of the {name} split"):
            predictions[view]
    for evaluate in trainer.composed["evaluate"].implementations:
        if evaluate.plugin == left_out:
            continue
        try:
            trainer.figures(evaluate, predictions)
        except NoSuchView:
            if name == "test":
                raise
        except Exception:  # a stranger's figures may raise anything
            long = {n: replace(v, split=getattr(whole, name)) if v.split is rows else v for n, v in views.items()}
            predictions_of_all = Predictions(trainer.forward, trainer.model, long, whole.test)
            trainer.data, shortened = whole, trainer.data
            with _trying(f"plugin {evaluate.plugin!r}: its figures on the {name} split"):
                trainer.figures(evaluate, predictions_of_all)
            trainer.data = shortened


def _export(trainer: Trainer, folder: Path) -> None:
    """What is delivered, from the export chain to the files."""
    with _trying("the export"):
        model = trainer.exported()
        if trainer.composed["export"]:
            Predictions(trainer.forward, model, {"clean": View("")}, trainer.data.test)["clean"]
        for name, put in exporting.forms(trainer, model.cpu()).items() if trainer.writes else ():
            put(folder / name)


def _checkpoint(trainer: Trainer) -> None:
    """Whether the state can be written, and whose is what cannot."""
    try:
        with _trying("the state for a checkpoint"):
            checkpoints.require_storable(trainer.state_dict())
    except BadInput as error:
        if not isinstance(cause := error.__cause__, checkpoints.Unstorable):
            raise
        part, _, rest = cause.place.removeprefix("/").partition("/")
        plugin, _, inside = rest.partition("/")
        whose = f"plugin {plugin!r}: its state_dict" if part == "plugins" else f"the {part}'s state"
        place = inside if part == "plugins" else rest
        raise BadInput(
            f"{whose} holds a {cause.kind} at {place or 'its root'!r}, which a checkpoint cannot: use tensors, "
            "numbers, strings, lists and dicts of them."
        ) from cause


# ---- how it is said ----------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _trying(what: str, advice: str = "") -> Iterator[None]:
    """Say of an error that is not ours what was tried; lack of memory and lost processes are said elsewhere."""
    try:
        yield
    except (PlaitError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a stranger's code may raise anything
        line = first_line(error)
        if broken_exchange(error) or "can't allocate memory" in line:
            raise
        reason = line if line == type(error).__name__ else f"{type(error).__name__}: {line}"
        raise BadInput(f"{what} failed, tried before the training: {reason.rstrip('.')}. {advice}".rstrip()) from error
