"""The data and the model of the card's reference experiment: handwritten digits and a small perceptron."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plait_dbadfl.errors import DbadflError
from plait_dbadfl.sampling import derive, generator

__all__ = ["ImageData", "digits", "digits_mlp"]

DIGITS_TEST = 500


@dataclass(frozen=True)
class ImageData:
    """Labelled images.

    Args:
        train, test: float [n, ch, H, W] in [0, 1], not normalised [code].
        train_labels, test_labels: int64 [n], in 0..classes-1.
        classes: C.

    Raises:
        DbadflError: shapes that do not agree, labels outside the classes, values outside [0, 1].
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        for name, images, labels in (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
                raise DbadflError(
                    f"{name} data needs images [n, ch, H, W] and labels [n]; got {tuple(images.shape)} and "
                    f"{tuple(labels.shape)}"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
                raise DbadflError(f"{name} labels must lie in 0..{self.classes - 1}")
            # Written so that NaN is refused too.
            if not (float(images.min()) >= 0.0 and float(images.max()) <= 1.0):
                raise DbadflError(f"{name} images must lie in [0, 1]: triggers are written over raw pixels")
        if self.train.shape[1:] != self.test.shape[1:]:
            raise DbadflError(
                f"train images {tuple(self.train.shape[1:])} and test images {tuple(self.test.shape[1:])} differ"
            )

    @property
    def height(self) -> int:
        """H."""
        return self.train.shape[-2]

    @property
    def width(self) -> int:
        """W."""
        return self.train.shape[-1]

    def to(self, device: torch.device | str) -> ImageData:
        """On another device."""
        return ImageData(
            self.train.to(device),
            self.train_labels.to(device),
            self.test.to(device),
            self.test_labels.to(device),
            self.classes,
        )


def digits(seed: int = 0, *, test: int = DIGITS_TEST) -> ImageData:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, divided by 16; ``test`` of them to test, the rest to train."""
    from sklearn.datasets import load_digits

    dataset = load_digits()
    images = torch.from_numpy(dataset.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(dataset.target).long()
    order = torch.randperm(len(labels), generator=generator(seed, "digits"))
    return ImageData(images[order[test:]], labels[order[test:]], images[order[:test]], labels[order[:test]], 10)


def digits_mlp(seed: int = 0) -> nn.Module:
    """The perceptron 64-32-10 with ReLU, 2,410 parameters, initialised by PyTorch's rule from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
