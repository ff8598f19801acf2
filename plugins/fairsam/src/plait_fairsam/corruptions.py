"""Corrupted copies of test images (card section 5.3), the same noise whatever the model, order, batch size or device.

The four noises are a few lines each; their parameters are those of the imagecorruptions package (Hendrycks and
Dietterich 2019). The other fifteen corruptions call that package if it is installed.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .errors import FairsamError, check_choice, check_integer

__all__ = ["CORRUPTIONS", "DEFAULT_GRID", "Corruption", "corrupt"]

NOISES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "shot_noise": (60, 25, 12, 5, 3),
        "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    }
)
"""Parameter at severity 1..5: sigma, probability, photon count c, sigma."""

_EXTERNAL = (
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "spatter",
    "saturate",
)

CORRUPTIONS = (*NOISES, *_EXTERNAL)
"""Every known name; those after the four noises need the imagecorruptions package."""

DEFAULT_GRID = tuple((name, level) for name in ("gaussian_noise", "impulse_noise", "shot_noise") for level in (2, 3, 4))
"""The (corruption, severity) cells reported by default."""

_CHUNK = 32  # images per draw: part of the definition of the noise, changing it changes every figure


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("/".join(["plait-fairsam", *map(str, parts)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _gaussian(x: Tensor, noise: Tensor, sigma: float) -> Tensor:
    return x + sigma * noise


def _speckle(x: Tensor, noise: Tensor, sigma: float) -> Tensor:
    return x + x * sigma * noise


def _impulse(x: Tensor, u: Tensor, p: float) -> Tensor:
    return torch.where(u < p / 2, 0.0, torch.where(u < p, 1.0, x))


def _shot(x: Tensor, u: Tensor, c: float) -> Tensor:
    # Poisson by inversion, so that a pixel's noise depends on its own uniform only (torch.poisson consumes a number of
    # draws that depends on the other images). Counts above c are clipped to 1 anyway, so c terms of the sum are enough.
    rate = c * x
    term = torch.exp(-rate)
    cumulative, count = term.clone(), torch.zeros_like(x)
    for k in range(1, int(c) + 1):
        count += u >= cumulative
        term *= rate / k
        cumulative += term
    return count / c


_FORMULAS: Mapping[str, tuple[Callable[[Tensor, Tensor, float], Tensor], Callable[..., Tensor]]] = {
    "gaussian_noise": (_gaussian, torch.randn),
    "impulse_noise": (_impulse, torch.rand),
    "shot_noise": (_shot, torch.rand),
    "speckle_noise": (_speckle, torch.randn),
}


class Corruption:
    """One corruption at one severity, as a deterministic function of image and index.

    The noise of image i is drawn on the CPU by a generator seeded from (name, severity, base seed) and the block of 32
    indices that i lies in, so it depends on nothing else: not on the batch size, the order of evaluation or the device.

    Definitions, on images x in [0, 1], clipped to [0, 1] afterwards: ``gaussian_noise`` x + sigma N(0, 1);
    ``impulse_noise`` with probability p a value becomes 0 or 1 with equal odds; ``shot_noise`` Poisson(c x) / c;
    ``speckle_noise`` x + x sigma N(0, 1).

    Args:
        name: one of `CORRUPTIONS`.
        severity: 1..5.
        base_seed: another seed gives another draw of everything. Default 0.

    Raises:
        FairsamError: unknown name (the known ones are listed), severity outside 1..5, or a corruption that needs the
            imagecorruptions package where that is not installed.
    """

    def __init__(self, name: str, severity: int, *, base_seed: int = 0) -> None:
        self.name = check_choice("corruption", name, CORRUPTIONS)
        self.severity = check_integer("severity", severity, 1, 5)
        self.base_seed = check_integer("base_seed", base_seed, 0)
        self._package = None if name in NOISES else _package(name)

    def __repr__(self) -> str:
        return f"Corruption({self.name!r}, {self.severity}, base_seed={self.base_seed})"

    @torch.no_grad()
    def __call__(self, images: Tensor, start: int = 0) -> Tensor:
        """Corrupt a batch.

        Args:
            images: ``[N, C, H, W]`` floating point in [0, 1], before any normalisation.
            start: index in the test set of ``images[0]``. Default 0.

        Returns:
            The same shape, dtype and device, in [0, 1].

        Raises:
            FairsamError: images of another rank, dtype or range, a negative start; for a corruption of the package also
                images below 32x32 or with other than 1 or 3 channels.
        """
        check_images(images)
        check_integer("start", start, 0)
        if self._package is not None and len(images):
            return self._external(images, start)
        formula, draw = _FORMULAS[self.name]
        parameter = NOISES[self.name][self.severity - 1]
        out = torch.empty_like(images)
        stop = start + len(images)
        for block in range(start // _CHUNK, -(-stop // _CHUNK)):
            first, last = max(start, block * _CHUNK), min(stop, (block + 1) * _CHUNK)
            generator = torch.Generator().manual_seed(_seed(self.name, self.severity, self.base_seed, block))
            noise = draw((_CHUNK, *images.shape[1:]), generator=generator)
            noise = noise[first - block * _CHUNK : last - block * _CHUNK].to(images.device)
            part = slice(first - start, last - start)
            exact = images[part].to(torch.promote_types(images.dtype, torch.float32))
            out[part] = formula(exact, noise, parameter).clamp(0, 1)
        return out

    def batches(self, images: Tensor, batch_size: int = 256) -> Iterator[Tensor]:
        """Yield the corrupted copy of a whole test set ``[N, C, H, W]`` batch by batch, without holding all of it."""
        check_integer("batch_size", batch_size, 1)
        for start in range(0, len(images), batch_size):
            yield self(images[start : start + batch_size], start)

    def _external(self, images: Tensor, start: int) -> Tensor:
        import numpy

        _, channels, height, width = images.shape
        if height < 32 or width < 32 or channels not in (1, 3):
            raise FairsamError(
                f"corruption={self.name!r} needs images of at least 32x32 with 1 or 3 channels,"
                f" got {tuple(images.shape[1:])}"
            )
        assert self._package is not None
        takes_seed = "seed" in inspect.signature(self._package.corruption_dict[self.name]).parameters
        pixels = (images.float() * 255).round().byte().movedim(1, -1).cpu().numpy()
        before, out = numpy.random.get_state(), []
        try:
            for index, image in enumerate(pixels, start):
                seed = _seed(self.name, self.severity, self.base_seed, index) % 2**32
                numpy.random.seed(seed)  # the package draws from numpy's global generator ...
                extra = {"seed": seed} if takes_seed else {}  # ... except where it wants a seed of its own
                changed = self._package.corrupt(image, self.severity, self.name, **extra)
                out.append(torch.from_numpy(numpy.array(changed)).movedim(-1, 0))
        finally:
            numpy.random.set_state(before)
        result = torch.stack(out).float() / 255
        if channels == 1:  # the package answers in RGB
            result = result.mean(1, keepdim=True)
        return result.to(images)


def corrupt(images: Tensor, name: str, severity: int, *, base_seed: int = 0, start: int = 0) -> Tensor:
    """Corrupt ``images [N, C, H, W]`` in [0, 1] whose first index in the test set is ``start``; see `Corruption`."""
    return Corruption(name, severity, base_seed=base_seed)(images, start)


def check_images(images: Tensor) -> None:
    """Refuse what cannot be corrupted.

    Raises:
        FairsamError: no float [N, C, H, W], or values outside [0, 1].
    """
    if images.ndim != 4 or not images.is_floating_point():
        hint = "; divide by 255" if images.dtype == torch.uint8 else ""
        raise FairsamError(f"images must be float [N, C, H, W], got {images.dtype} {tuple(images.shape)}{hint}")
    if images.numel():
        low, high = (float(bound) for bound in torch.aminmax(images.detach()))
        if not (low >= 0 and high <= 1):
            raise FairsamError(
                f"images must lie in [0, 1], found {low:.4g} to {high:.4g}; corrupt before normalising, not after"
            )


def _package(name: str) -> Any:
    try:
        return importlib.import_module("imagecorruptions")
    except ImportError as error:
        raise FairsamError(
            f"corruption={name!r} needs the imagecorruptions package ({error}); run: pip install imagecorruptions-imaug"
        ) from error
