"""The step: gradients that can be asked for as often as a method likes, and the update that follows."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from plait.errors import BadInput, RunFailed

if TYPE_CHECKING:
    from plait.trainer import Trainer


NOTHING = contextlib.nullcontext()


@dataclass
class LossReport:
    """What one pass gave.

    Attributes:
        loss: the scalar that was differentiated (before ``scale``), detached.
        per_example: the objective, [B] (or [N, B]), detached, without weights.
        terms: ``<plugin>/<name>`` -> scalar, detached.
        gradients: of a ``probe`` pass only: aligned with ``trainer.parameters``, None where a parameter took no part.
        noise: of a ``probe`` pass only: the state of the random generators before it, for ``replay``.
        size: B.
    """

    loss: Tensor
    per_example: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    gradients: list[Tensor | None] | None = None
    noise: list[Tensor] = field(default_factory=list)
    size: int = 0


def gradients(
    trainer: Trainer,
    batch: Any,
    *,
    rows: Tensor | None = None,
    without: Collection[str] = (),
    probe: bool = False,
    accumulate: bool = False,
    scale: float = 1.0,
    replay: LossReport | None = None,
    freeze_statistics: bool = False,
    sync: bool = True,
) -> LossReport:
    """Gradients of the composed loss at the present weights; repeatable within a step.

    masks -> forward -> objective x example weights + terms -> backward -> masked gradients in ``p.grad``.

    Args:
        trainer: the run.
        batch: a batch of the run's data, B examples.
        rows: only these rows, int64 [M]; the mean is then over M.
        without: plugins whose ``example_weights`` are left out of this pass.
        probe: for information: the gradients come back in the report, ``p.grad`` stays as it was, and mask owners that
            asked for dense gradients do not see this pass.
        accumulate: add to ``p.grad`` instead of replacing it.
        scale: factor on the gradient.
        replay: repeat the random choices (dropout) of that earlier pass.
        freeze_statistics: running statistics (BatchNorm and every other buffer) stay as they are.
        sync: average gradients over the ranks; False keeps this rank's own.

    Raises:
        BadInput: an objective or weights of a shape other than [B], naming the plugin.
    """
    if not sync and trainer.sharded:
        raise BadInput("distributed.strategy = 'fsdp' has no gradients of one rank alone (sync=False); use ddp.")
    if rows is not None:
        batch = batch.take(rows)
    noise = random_state(trainer.device) if probe else []
    if replay is not None:
        set_random_state(replay.noise, trainer.device)
    parameters = trainer.parameters
    stashed: list[Tensor | None] | None = None
    if probe:
        stashed = [p.grad for p in parameters]
    if probe or not accumulate:
        for p in parameters:
            p.grad = None
    if trainer.masks:
        trainer.masks.hold()
    parts = [batch] if trainer.accumulate == 1 else batch.chunks(trainer.accumulate)
    whole = _length(batch)
    if trainer.share != 1.0 and rows is None:
        scale = scale * trainer.share
    reports = []
    with frozen_buffers(trainer.model) if freeze_statistics else NOTHING:
        for position, part in enumerate(parts):
            portion = 1.0 if len(parts) == 1 else _length(part) / whole
            last = position == len(parts) - 1
            with trainer.no_sync() if trainer.world > 1 and not (sync and last) else NOTHING:
                reports.append(_pass(trainer, part, without, portion, scale))
    if trainer.masks:
        trainer.masks.mask_gradients(keep=not probe, accumulate=accumulate)
    report = reports[0] if len(reports) == 1 else _joined(reports)
    report.noise = noise
    report.size = whole
    if probe:
        assert stashed is not None
        report.gradients = [p.grad for p in parameters]
        for p, gradient in zip(parameters, stashed, strict=True):
            p.grad = gradient
    return report


def _pass(trainer: Trainer, batch: Any, without: Collection[str], portion: float, scale: float) -> LossReport:
    with trainer.autocast():
        raw = trainer.raw(trainer.network, batch)
        outputs = trainer.readout(raw, batch)
        per_example = trainer.objective(outputs, batch)
        weights = example_weights(trainer, batch, per_example, without)
        weighted = per_example if weights is None else per_example * weights
        # over N stacked replicas [N, B] the sum gives every replica the gradient of its own mean
        loss = weighted.mean(-1) if weighted.ndim == 1 else weighted.mean(-1).sum()
        terms = loss_terms(trainer, outputs, batch, per_example, weights, raw)
        for term in terms.values():
            loss = loss + term
    factor = portion * scale
    (loss if factor == 1.0 else loss * factor).backward()  # type: ignore[no-untyped-call]
    detached = {name: term.detach() * portion for name, term in terms.items()} if terms else {}
    return LossReport(loss.detach() if portion == 1.0 else loss.detach() * portion, per_example.detach(), detached)


def _joined(reports: list[LossReport]) -> LossReport:
    terms = {name: torch.stack([r.terms[name] for r in reports]).sum() for name in reports[0].terms}
    loss = torch.stack([r.loss for r in reports]).sum()
    return LossReport(loss, torch.cat([r.per_example for r in reports], dim=-1), terms)


def _length(batch: Any) -> int:
    size = getattr(batch, "size", None)
    return size if isinstance(size, int) else 1


def example_weights(trainer: Trainer, batch: Any, per_example: Tensor, without: Collection[str]) -> Tensor | None:
    """The product of the plugins' weights, [B] (or [N, B] for stacked replicas), or None when no plugin gives any."""
    product: Tensor | None = None
    for implementation in trainer.composed["example_weights"].implementations:
        if implementation.plugin in without:
            continue
        weights = implementation({"trainer": trainer, "batch": batch})
        if not isinstance(weights, Tensor) or weights.shape not in (per_example.shape, per_example.shape[-1:]):
            shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            wanted = tuple(per_example.shape[-1:])
            raise BadInput(
                f"plugin {implementation.plugin!r}: example_weights gave {shape}, expected a tensor {wanted}."
            )
        product = weights if product is None else product * weights
    return product


def loss_terms(
    trainer: Trainer, outputs: Any, batch: Any, per_example: Tensor, weights: Tensor | None, raw: Any
) -> dict[str, Tensor]:
    """``<plugin>/<name>`` -> scalar of every plugin's terms."""
    composed = trainer.composed["loss_terms"]
    if not composed:
        return {}
    if weights is None:
        weights = per_example.new_ones(per_example.shape[-1:])
    values = {
        "trainer": trainer,
        "outputs": outputs,
        "batch": batch,
        "per_example": per_example,
        "weights": weights,
        "raw": raw,
    }
    return {f"{plugin}/{name}": term for plugin, terms in composed.named(**values) for name, term in terms.items()}


def refuse_non_finite(trainer: Trainer, batch: Any, report: LossReport) -> None:
    """Raise `RunFailed` that names the step and the plugin behind a loss that is not finite."""
    culprits = [name for name, term in report.terms.items() if not bool(torch.isfinite(term))]
    if not culprits and not bool(torch.isfinite(report.per_example).all()):
        owner = trainer.composed["objective"].owner()
        culprits = [f"the objective of plugin {owner.plugin!r}" if owner else "the default objective"]
    if not culprits:
        for implementation in trainer.composed["example_weights"].implementations:
            if not bool(torch.isfinite(implementation({"trainer": trainer, "batch": batch})).all()):
                culprits.append(f"the example weights of plugin {implementation.plugin!r}")
    steppers = [i.plugin for i in trainer.composed["optimizer_step"].implementations]
    active = f" Active in the step: {', '.join(steppers)}." if steppers else ""
    raise RunFailed(
        f"step {trainer.step}: the loss is {report.loss.item()}, "
        f"first seen in {', '.join(culprits) or 'the weighted loss'}."
        f"{active} The run stops; the last checkpoint is kept. Try a smaller learning rate (--set optimizer.lr=...)."
    )


@contextlib.contextmanager
def frozen_buffers(model: nn.Module) -> Iterator[None]:
    """Let the model run in training mode without changing any buffer.

    Normalisation layers use batch statistics but record none (their momentum and counters stay untouched); buffers of
    every other module are put back afterwards.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    known = {id(b) for m in norms for b in m.buffers(recurse=False)}
    others = [(b, b.clone()) for b in model.buffers() if id(b) not in known]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        with torch.no_grad():
            for buffer, before in others:
                buffer.copy_(before)


def random_state(device: torch.device) -> list[Tensor]:
    """The state of torch's global generators that a forward pass can draw from."""
    state = [torch.get_rng_state()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device))
    return state


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    """Put the generators back to `random_state`."""
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)
