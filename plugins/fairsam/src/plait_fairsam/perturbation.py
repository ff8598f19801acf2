"""The parameter sweeps of sharpness-aware minimization, on lists of tensors with ``torch._foreach_*``.

Sources: Foret et al. 2021 (SAM, eq. 2), Kwon et al. 2021 (ASAM, eq. 9); eps and the global norm as in card section 2.4.
All functions run without gradients and without reading a value on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from plait.training import replicas as sweeps

from .errors import FairsamError

__all__ = ["SavedWeights", "asam_perturbation", "global_norm", "sam_perturbation"]

EPSILON = 1e-12
"""Added to the norm, so that a zero gradient gives a zero perturbation."""

Reduce = Callable[[Tensor], Tensor]


@torch.no_grad()
def global_norm(tensors: Sequence[Tensor], *, reduce: Reduce | None = None, replicas: int | None = None) -> Tensor:
    """ONE Euclidean norm over all tensors together (a norm per tensor is a different method).

    Args:
        replicas: N where every tensor is ``[N, ...]`` and holds N networks: one norm for each, ``[N]``. Default None.
        tensors: any shapes and devices, floating point or complex; half precision is accumulated in float32.
        reduce: maps the squared norm (0-dim) of this process's shard to that of the whole, e.g. an all-reduce (sum).
            Needed where parameters are sharded (FSDP); not where they are replicated.

    Returns:
        0-dim tensor (with replicas ``[N]``), float32 (float64 if any tensor is of double precision), on the first
        tensor's device; 0.0 for an empty list.

    Raises:
        FairsamError: a sparse-layout gradient, or one of integers.
    """
    if not tensors:
        return torch.zeros(())
    if any(t.layout is not torch.strided for t in tensors):
        raise FairsamError("sparse-layout gradients cannot be perturbed; build the embedding with sparse=False")
    odd = [t.dtype for t in tensors if not (t.is_floating_point() or t.is_complex())]
    if odd:
        raise FairsamError(f"a norm of {odd[0]} has no meaning here; give floating-point or complex gradients")
    wide = [sweeps.wide(t) for t in tensors]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in wide) else torch.float32
    if replicas is None:
        norms = list(torch._foreach_norm(wide, 2))
    else:
        norms = [torch.linalg.vector_norm(t.reshape(replicas, -1), dim=1) for t in wide]
    norm = torch.linalg.vector_norm(torch.stack([n.to(tensors[0].device, dtype) for n in norms]), dim=0)
    return norm if reduce is None else reduce(norm.square()).sqrt()


def _scaled(tensors: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    """Multiply every tensor by a 0-dim one, or each of N replicas ``[N, ...]`` by its own of ``[N]``, keeping dtypes;
    the fused form needs all of them on one device."""
    if all(t.device == scale.device for t in tensors):
        return sweeps.scaled(tensors, scale)
    return [sweeps.scaled([t], scale.to(t.device))[0] for t in tensors]


@torch.no_grad()
def sam_perturbation(
    gradients: Sequence[Tensor], rho: float, *, reduce: Reduce | None = None, replicas: int | None = None
) -> tuple[list[Tensor], Tensor]:
    """SAM's ``e = rho g / (||g|| + 1e-12)`` (Foret et al. 2021, eq. 2 with p = 2).

    Entries where the gradient is 0 (pruned weights) get exactly 0.

    Args:
        gradients: list of tensors, left unchanged.
        rho: radius, same unit as the parameters, >= 0.
        reduce, replicas: see `global_norm`.

    Returns:
        ``(e, norm)``: a fresh list shaped like ``gradients``, and the 0-dim gradient norm (``[N]`` with replicas).
    """
    norm = global_norm(gradients, reduce=reduce, replicas=replicas)
    return _scaled(gradients, rho / (norm + EPSILON)), norm


@torch.no_grad()
def asam_perturbation(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    rho: float,
    eta: float = 0.01,
    *,
    reduce: Reduce | None = None,
    replicas: int | None = None,
) -> tuple[list[Tensor], Tensor]:
    """ASAM's ``e = rho T^2 g / (||T g|| + 1e-12)``, ``T = |w| + eta`` for every parameter (card section 2.4).

    Kwon et al. 2021, eq. 9. Their code leaves biases unscaled in the numerator; the card, and so this function, scales
    every parameter alike. Entries where the gradient is 0 get exactly 0.

    Args:
        parameters: list of tensors w, unchanged.
        gradients: list shaped like ``parameters``, unchanged.
        rho: radius in the scaled space, >= 0; sensible values are ten times SAM's.
        eta: floor of T, >= 0. Default 0.01.
        reduce, replicas: see `global_norm`.

    Returns:
        ``(e, norm)``: a fresh list, and the 0-dim norm of ``T g`` (``[N]`` with replicas).
    """
    # half precision in float32: products of small numbers would vanish in it
    scale = list(torch._foreach_abs([_full(p) for p in parameters]))
    torch._foreach_add_(scale, eta)
    scaled = torch._foreach_mul([_full(g) for g in gradients], scale)
    norm = global_norm(scaled, reduce=reduce, replicas=replicas)
    torch._foreach_mul_(scaled, scale)
    perturbation = _scaled(scaled, rho / (norm + EPSILON))
    return [e.to(g.dtype) for e, g in zip(perturbation, gradients, strict=True)], norm


def _full(tensor: Tensor) -> Tensor:
    """At least in single precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _own(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This rank's part of tensors that are spread over ranks (``DTensor``), the others as they are."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]


class SavedWeights:
    """Put parameters at ``w + e`` for a while and back at w, bit for bit.

    The way back copies what was saved; subtracting e would leave rounding drift. The copy (one set of parameters, 4P
    bytes in float32) is kept and reused by the next step; it is scratch memory and belongs in no checkpoint.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    @contextmanager
    def displaced(self, parameters: Sequence[Tensor], perturbation: Sequence[Tensor]) -> Iterator[None]:
        """Hold ``parameters`` (a list of leaves, changed in place) at ``w + e``; restore them even after an exception.

        Around the whole step, ``torch.autocast`` would go on with casts of the weights as they were: they are dropped.
        """
        with torch.no_grad():
            parameters = _own(parameters)
            saved = self._like(parameters)
            if parameters:
                torch._foreach_copy_(saved, parameters)
        try:
            with torch.no_grad():
                if parameters:
                    torch._foreach_add_(parameters, _own(perturbation))
            torch.clear_autocast_cache()
            del perturbation  # not needed on the way back, and as large as the model
            yield
        finally:
            with torch.no_grad():
                if parameters:
                    torch._foreach_copy_(parameters, saved)
            torch.clear_autocast_cache()

    def _like(self, parameters: list[Tensor]) -> list[Tensor]:
        fits = len(self._buffers) == len(parameters) and all(
            b.shape == p.shape and b.dtype == p.dtype and b.device == p.device
            for b, p in zip(self._buffers, parameters, strict=True)
        )
        if not fits:
            self._buffers = [torch.empty_like(p, requires_grad=False) for p in parameters]
        return self._buffers
