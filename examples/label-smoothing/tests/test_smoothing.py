"""The method without plait, against torch's own label smoothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from plait_label_smoothing.smoothing import smoothing_term

SHAPES = [(1, 2), (7, 2), (64, 10), (5, 1000)]


def example(size: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size * classes)
    logits = (4 * torch.randn(size, classes, generator=generator)).requires_grad_()
    labels = torch.randint(classes, (size,), generator=generator)
    return logits, labels, functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("size, classes", SHAPES)
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradient_are_those_of_torch(size: int, classes: int, epsilon: float, weighted: bool) -> None:
    logits, labels, losses = example(size, classes)
    weights = torch.linspace(0, 2, size) if weighted else None
    v = torch.ones(size) if weights is None else weights
    got = (v * losses).mean() + smoothing_term(logits, losses, epsilon, weights)
    want = (v * functional.cross_entropy(logits, labels, label_smoothing=epsilon, reduction="none")).mean()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    pair = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (got, want)]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)


def test_replicas_are_added_up() -> None:
    logits, _, losses = example(6, 3)
    stacked = smoothing_term(torch.stack([logits, 2 * logits]), torch.stack([losses, losses]), 0.2)
    alone = smoothing_term(logits, losses, 0.2) + smoothing_term(2 * logits, losses, 0.2)
    torch.testing.assert_close(stacked, alone)


@pytest.mark.parametrize("logits", [torch.zeros(4, 3, 2), torch.zeros(5, 3), torch.zeros(4), {"logits": 1}])
def test_other_outputs_are_refused(logits: object) -> None:
    with pytest.raises(ValueError, match=r"label smoothing needs logits \[\*\(4,\), K\] from the model, got"):
        smoothing_term(logits, torch.zeros(4), 0.1)
