"""The plugin. Importing it imports no torch; the work is in `plait_label_smoothing.smoothing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plait import Plugin, hookimpl

from .options import LabelSmoothingOptions

if TYPE_CHECKING:
    from torch import Tensor

    from plait.declare.results import Metric
    from plait.training.evaluation import Predictions


class LabelSmoothingPlugin(Plugin):
    """Label smoothing in a plait run: one loss term, and how confident the network became."""

    name = "label-smoothing"
    summary = "spread a share of the target over all classes"
    paper = "Rethinking the Inception Architecture for Computer Vision, CVPR 2016, arXiv:1512.00567"
    contract = 1
    Options = LabelSmoothingOptions

    def needs(self) -> frozenset[str]:
        """Logits and labels, and a loss of each example that can be taken back in part."""
        return frozenset({"task:classification", "field:label", "loss:per-example"})

    @hookimpl
    def loss_terms(self, outputs: Any, per_example: Tensor, weights: Tensor) -> Mapping[str, Tensor]:
        """``epsilon * mean(v * (u - l))``."""
        from .smoothing import smoothing_term

        return {"smoothing": smoothing_term(outputs, per_example, self.options.epsilon, weights)}

    @hookimpl
    def evaluate(self, predictions: Predictions) -> Mapping[str, Metric]:
        """The mean of the largest probability, and by how much it exceeds the accuracy."""
        from plait import Metric

        seen = predictions["clean"]
        highest, predicted = seen.outputs.softmax(-1).max(-1)
        confidence = 100 * float(highest.mean())
        accuracy = 100 * float((predicted == seen.fields["label"]).double().mean())
        return {
            "confidence": Metric(confidence, "%", "neither"),
            "overconfidence": Metric(confidence - accuracy, "points", "neither", "confidence minus accuracy, best 0"),
        }
