"""Options of the zoo's data sources and models, kept apart so that planning imports no torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from plait.declare.options import Options

VGG_PRESETS = {
    "vgg11": "64,M,128,M,256,256,M,512,512,M,512,512,M",
    "vgg16": "64,64,M,128,128,M,256,256,256,M,512,512,512,M,512,512,512,M",
    "vgg19": "64,64,M,128,128,M,256,256,256,256,M,512,512,512,512,M,512,512,512,512,M",
}
"""Width strings of the published VGG networks (Simonyan and Zisserman 2015, table 1: A, D, E)."""


# ---- data in memory -------------------------------------------------------------------------------------------------
class DigitsOptions(Options):
    """Options of ``digits`` and ``mnist5k``."""

    validation_share: float = Field(
        0.15, ge=0.02, le=0.45, description="share of all images kept for validation, per class"
    )
    test_share: float = Field(0.25, ge=0.02, le=0.45, description="share of all images kept for the test, per class")


class TonedDigitsOptions(Options):
    """Options of ``toned-digits``."""

    share: float = Field(0.2, ge=0, le=1, description="probability that a training digit is in the dark group (0 to 1)")
    contrast: float = Field(0.45, gt=0, le=1, description="contrast of the dark group, in units of the pixel range")
    mirror: bool = Field(False, description="also flip the dark group left-right, so that 2/5 and 6/9 conflict")
    corr: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="dependence of the group on [digit >= 5]: share(1-corr) where true, share(1+corr) else",
    )
    classes: Literal["binary", "ten"] = Field("binary", description="target: [digit >= 5], or the digit")
    size: Literal[32, 16] = Field(32, description="side of the image in pixels; 16 is the 2x2 average of 32")
    paired_validation: int | None = Field(
        None,
        ge=10,
        le=2000,
        description="validation digits, each in both groups, as in the test; default 500, each in the group it drew",
    )

    @model_validator(mode="after")
    def _probabilities(self) -> TonedDigitsOptions:
        largest = self.share * (1 + abs(self.corr))
        if largest > 1:
            raise ValueError(f"share x (1 + |corr|) = {largest:.3g} is no probability; lower share or corr")
        return self


class FashionMnistOptions(Options):
    """Options of ``fashion-mnist``."""

    path: str = Field(
        "", max_length=4096, description="folder of the four idx files (.gz or raw); empty: the Debian package's"
    )
    pool: Literal[28, 14] = Field(28, description="side of the image in pixels; 14 is the 2x2 average of 28")
    train_images: int | None = Field(
        None,
        ge=10,
        le=1_000_000,
        description="training images, drawn by seed, with a tenth as many for validation; default 90 %",
    )


class Cifar10Options(Options):
    """Options of ``cifar10``."""

    path: str = Field(min_length=1, max_length=4096, description="the published folder, its parent, or the .tar.gz")
    augment: bool = Field(True, description="pad 4 pixels, random crop, random horizontal flip while training")
    validation_share: float = Field(
        0.1, gt=0, le=0.5, description="share of the training images kept for validation, by seed"
    )


class Cifar100Options(Cifar10Options):
    """Options of ``cifar100``."""

    labels: Literal["fine", "coarse"] = Field("fine", description="100 classes, or their 20 superclasses")


# ---- data in files --------------------------------------------------------------------------------------------------
class FileOptions(Options):
    """Options of every source that reads image files."""

    root: str = Field(min_length=1, max_length=4096, description="folder of the data set as published")
    size: int = Field(224, ge=8, le=1024, description="side of the square image in pixels")
    skip_missing: bool = Field(False, description="leave out listed images that are not on disk, instead of stopping")


class CelebaOptions(FileOptions):
    """Options of ``celeba``."""

    size: int = Field(128, ge=8, le=1024, description="side of the square image in pixels")
    target: str = Field("Smiling", min_length=1, max_length=64, description="attribute to predict")
    sensitive: str = Field("Male", min_length=1, max_length=64, description="attribute that makes the groups")
    flip: bool = Field(True, description="random horizontal flip while training")


class FairFaceOptions(FileOptions):
    """Options of ``fairface``."""

    target: str = Field("gender", min_length=1, max_length=64, description="column to predict: gender, race or age")
    sensitive: str = Field(
        "race", min_length=1, max_length=64, description="column that makes the groups: race, gender or age"
    )
    races: Literal["seven", "white"] = Field("seven", description="race as published, or White against all others")
    padding: Literal["auto", "0.25", "1.25"] = Field(
        "auto", description="published margin folder; auto: the one that is there"
    )
    flip: bool = Field(True, description="random horizontal flip while training")


class LfwOptions(FileOptions):
    """Options of ``lfw``."""

    target: str = Field("Smiling", min_length=1, max_length=64, description="attribute to predict (> 0 is present)")
    sensitive: str = Field(
        "Male", min_length=1, max_length=64, description="attribute that makes the groups (> 0 is present)"
    )
    validation_share: float = Field(0.1, gt=0, le=0.45, description="share of the people kept for validation")
    test_share: float = Field(0.2, gt=0, le=0.45, description="share of the people kept for the test")
    flip: bool = Field(True, description="random horizontal flip while training")


class ChexpertOptions(FileOptions):
    """Options of ``chexpert``."""

    target: str = Field("Pleural Effusion", min_length=1, max_length=64, description="finding to predict")
    sensitive: Literal["Sex", "Age"] = Field("Sex", description="column that makes the groups")
    age_threshold: int = Field(60, ge=1, le=120, description="first age in years of the older group (sensitive = Age)")
    uncertain: Literal["zeros", "ones", "skip"] = Field("zeros", description="what an uncertain finding (-1) counts as")
    frontal_only: bool = Field(True, description="use frontal views only")
    test: Literal["patients", "valid"] = Field(
        "patients", description="test on a share of the patients, or on valid.csv"
    )
    validation_share: float = Field(
        0.1, gt=0, le=0.45, description="share of the patients of train.csv kept for validation"
    )
    test_share: float = Field(
        0.1, gt=0, le=0.45, description="share of the patients of train.csv for the test (test = patients)"
    )


class ImageFolderOptions(FileOptions):
    """Options of ``image-folder``."""

    root: str = Field(
        min_length=1, max_length=4096, description="folder with train/<class>/ and val/<class>/ or test/<class>/"
    )
    val_labels: str = Field(
        "",
        max_length=4096,
        description="label file of a flat val folder, one `image class` line each; absolute or under root",
    )
    validation_share: float = Field(
        0.1, gt=0, le=0.5, description="share of train kept for validation when no folder is left for it"
    )
    augment: Literal["crop", "flip", "none"] = Field(
        "crop", description="training: random resized crop and flip, flip, nothing"
    )
    min_area: float = Field(
        0.25, gt=0, le=1, description="smallest share of the image's area in a random crop (augment = crop)"
    )


# ---- models ---------------------------------------------------------------------------------------------------------
class MlpOptions(Options):
    """Options of ``mlp``."""

    widths: tuple[Annotated[int, Field(ge=1, le=16384)], ...] = Field(
        (256, 128), max_length=64, description="units of each hidden layer; empty for logistic regression"
    )


class CnnOptions(Options):
    """Options of ``cnn``."""

    width: int = Field(
        16, ge=1, le=1024, description="channels of the first convolution; the others are multiples of it"
    )


class VggOptions(Options):
    """Options of ``vgg-bn``."""

    widths: str = Field(
        "32,32,M,64,64,M,128,128",
        min_length=1,
        max_length=1000,
        description=f"channels per convolution, M for a 2x2 max pool, by commas; or a preset: {', '.join(VGG_PRESETS)}",
    )

    @field_validator("widths")
    @classmethod
    def _layers(cls, value: str) -> str:
        layers = VGG_PRESETS.get(value.strip(), value)
        parts = [part.strip() for part in layers.split(",")]
        bad = [p for p in parts if p != "M" and not (re.fullmatch(r"[1-9][0-9]{0,3}", p, re.ASCII) and int(p) <= 4096)]
        if bad:
            raise ValueError(
                f"{bad[0]!r} is neither a width (1 to 4096), nor M, nor a preset ({', '.join(VGG_PRESETS)})"
            )
        if all(part == "M" for part in parts):
            raise ValueError("there is no convolution")
        return value


class ResNetOptions(Options):
    """Options of ``resnet18``, ``resnet34`` and ``resnet50``."""

    stem: Literal["auto", "cifar", "imagenet"] = Field(
        "auto",
        description="cifar: 3x3, stride 1, no pool; imagenet: 7x7, stride 2, pool; auto: cifar up to side 64",
    )
    weights: str = Field(
        "", max_length=4096, description="local file of torchvision weights: .safetensors, or a torch state dict"
    )
