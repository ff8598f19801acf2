"""Shadows follow the network: they begin with the weights, obey masks, are sliced, saved, resumed and put back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.errors import BadCheckpoint
from plait.training.masks import MaskSet
from plait.training.shadows import Shadows
from plait.training.slicing import slice_tensors
from plait_authoring.kill import final_state, first_difference

Install = Callable[..., None]
KEPT = torch.tensor([0, 2, 3])


class Mean(plait.Plugin):
    """A running average, made in `setup` or, with ``late``, at the third step."""

    name, contract = "mean", plait.CONTRACT_VERSION
    late = False
    begun: dict[str, torch.Tensor]

    def setup(self, trainer: Any) -> None:
        if not self.late:
            trainer.shadow("mean")

    @plait.hookimpl
    def optimizer_step(self, trainer: Any, proceed: Any) -> Any:
        if trainer.step == 1 and not self.late:
            Mean.begun = {n: t.clone() for n, t in trainer.shadow("mean").items()}
        report = proceed()
        if not self.late or trainer.step >= 3:
            shadow = trainer.shadow("mean")
            for name, parameter in trainer.model.named_parameters():
                shadow[name].lerp_(parameter.detach(), 0.25)
        return report


class Late(Mean):
    name = "late"
    late = True


class Owner(plait.Plugin):
    """Masks that move every second step, so weights leave and come back."""

    name, contract = "owner", plait.CONTRACT_VERSION

    def ownership(self) -> tuple[plait.Ownership, ...]:
        return (plait.Ownership("parameters", "conv2.weight"),)

    def setup(self, trainer: Any) -> None:
        self.mask = trainer.masks.own("owner", ["conv2.weight"])["conv2.weight"]
        self._draw(trainer)
        with torch.no_grad():
            trainer.model.head.bias.add_(1.0)

    def _draw(self, trainer: Any) -> None:
        self.mask = trainer.masks.mask["conv2.weight"]
        self.mask.copy_(torch.rand(self.mask.shape, generator=trainer.generator("owner")) < 0.5)
        trainer.masks.changed()

    @plait.hookimpl
    def update_masks(self, trainer: Any) -> None:
        before = trainer.masks.mask["conv2.weight"].clone()
        shadows = {n: s["conv2.weight"].clone() for n, s in trainer._shadows.sets.items()}
        assert all(bool((s[before == 0] == 0).all()) for s in shadows.values())
        if trainer.step % 2 == 0:
            self._draw(trainer)
            trainer.masks.hold_state(trainer.optimizer)
            for name, shadow in shadows.items():
                now = trainer.shadow(name)["conv2.weight"]
                assert torch.equal(now, shadow * self.mask)
                assert bool((now[(before == 0) & (self.mask == 1)] == 0).all())


class Slicer(plait.Plugin):
    """Cuts channels of the first convolution after the fifth step."""

    name, contract = "slicer", plait.CONTRACT_VERSION
    sliced = False

    def ownership(self) -> tuple[plait.Ownership, ...]:
        return (plait.Ownership("nothing"),)

    @plait.hookimpl
    def update_masks(self, trainer: Any) -> None:
        if trainer.step == 5:
            self._slice()

    def setup(self, trainer: Any) -> None:
        self.trainer = trainer

    def _slice(self) -> None:
        norm = [f"norm1.{n}" for n in ("weight", "bias", "running_mean", "running_var")]
        plan = {name: [(0, KEPT)] for name in ("conv1.weight", *norm)} | {"conv2.weight": [(1, KEPT)]}
        before = {n: {k: t.clone() for k, t in s.items()} for n, s in self.trainer._shadows.sets.items()}
        self.trainer.slice_tensors(plan)
        for name, shadow in before.items():
            now = self.trainer.shadow(name)
            assert torch.equal(now["conv1.weight"], shadow["conv1.weight"][KEPT])
            assert torch.equal(now["conv2.weight"], shadow["conv2.weight"][:, KEPT])
            assert torch.equal(now["head.weight"], shadow["head.weight"])
        self.trainer.model.norm1.num_features = len(KEPT)
        self.sliced = True

    def state_dict(self) -> dict[str, Any]:
        return {"sliced": self.sliced}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["sliced"]:
            self._slice()


def recipe(*plugins: str) -> dict[str, Any]:
    return {
        "data": {"name": "tiny-images"},
        "model": {"name": "tiny-cnn"},
        "train": {"steps": 9, "batch_size": 32},
        "checkpoint": {"every_steps": 1, "keep": 99},
        "device": "cpu",
        "plugins": {name: {} for name in plugins},
    }


@pytest.mark.parametrize("order", [("mean", "owner", "slicer"), ("slicer", "owner", "mean"), ("late", "slicer")])
def test_a_resumed_run_ends_with_the_bits_of_the_unbroken_one(
    tmp_path: Path, install: Install, order: tuple[str, ...]
) -> None:
    install(Mean, Late, Owner, Slicer)
    plait.run(recipe(*order), out=tmp_path / "r")
    whole = final_state(tmp_path / "r")
    assert set(whole["shadows"]) == {"mean"}
    assert whole["shadows"]["mean"]["conv1.weight"].shape[0] == len(KEPT)
    for step in (7, 5, 4, 2):  # before and after the slice, and before the late shadow is made
        plait.resume(tmp_path / "r", checkpoint=f"step-{step:09d}")
        assert first_difference(final_state(tmp_path / "r"), whole) is None, step


def test_it_begins_with_the_weights_that_the_first_step_begins_with(tmp_path: Path, install: Install) -> None:
    """The owner sets itself up later, draws masks and changes a bias."""
    install(Mean, Owner)
    figures = []
    for order in (("mean", "owner"), ("owner", "mean")):
        plait.run({**recipe(*order), "train": {"steps": 1}}, out=tmp_path / order[0])
        figures.append(Mean.begun)
        assert bool((Mean.begun["head.bias"] > 0.5).all())
        share = (Mean.begun["conv2.weight"] == 0).float().mean()
        assert 0.3 < share < 0.7
    assert first_difference(*figures) is None


def test_slices_and_masks_as_the_momentum_has_them() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = MaskSet(model)
    mask = masks.own("owner", ["weight"])["weight"]
    shadows = Shadows(model, masks)
    model(torch.randn(8, 6)).pow(2).sum().backward()
    optimizer.step()
    momentum = optimizer.state[model.weight]
    with torch.no_grad():
        shadow = shadows.take("copy")
        shadow["weight"].copy_(momentum["momentum_buffer"])
    mask[1:3, 2] = 0
    masks.changed()
    masks.hold_state(optimizer)
    cuts = {"weight": [(0, torch.tensor([0, 2])), (1, torch.tensor([1, 2, 5]))]}
    slice_tensors(model, optimizer, masks, cuts)
    shadows.slice_tensors(cuts)
    assert shadow["weight"][1, 1] == 0 and shadow["weight"].count_nonzero() == 5
    assert torch.equal(shadow["weight"], momentum["momentum_buffer"])


def test_a_snapshot_brings_it_back(tmp_path: Path, install: Install) -> None:
    class Rounds(plait.Plugin):
        name, contract = "rounds", plait.CONTRACT_VERSION

        @plait.hookimpl
        def fit(self, trainer: Any) -> None:
            trainer.train_until(2)
            snapshot = trainer.snapshot_model()
            before = trainer._shadows.state_dict()
            trainer.train_until(4)
            assert first_difference(trainer._shadows.state_dict(), before) is not None
            trainer.restore_model(snapshot)
            assert first_difference(trainer._shadows.state_dict(), before) is None
            fitted.append(trainer.step)

    fitted: list[int] = []
    install(Mean, Owner, Rounds)
    assert plait.run(recipe("mean", "owner", "rounds"), out=tmp_path / "r").finished and fitted


def test_another_models_shadow_is_refused() -> None:
    model = torch.nn.Linear(6, 4)
    shadows = Shadows(model, MaskSet(model))
    saved = {"weight": torch.zeros(4, 6), "bias": torch.zeros(4)}
    shadows.load("copy", saved)
    assert shadows.take("copy")["weight"].count_nonzero() == 0
    with pytest.raises(BadCheckpoint, match=r"shadow 'copy'.*'weight' differs"):
        shadows.load("copy", {**saved, "weight": torch.zeros(4, 5)})
    with pytest.raises(BadCheckpoint, match=r"'other' differs"):
        shadows.load("copy", {**saved, "other": torch.zeros(1)})
