"""Wrapping the network anew over several processes leaves every parameter where masks and shadows know it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import plait
from plait import Plugin, hookimpl
from plait.planning.discovery import pretend
from plait_authoring.together import together

NAME = "head.weight"


class WrapsAgainPlugin(Plugin):
    """Masks half of the head, wraps the network again in the middle, and writes something into the masked half."""

    name = "wraps-again"
    contract = plait.CONTRACT_VERSION

    def ownership(self) -> tuple[plait.Ownership, ...]:
        """The head."""
        return (plait.Ownership("parameters", NAME),)

    def setup(self, trainer: Any) -> None:
        """Take the mask and a shadow."""
        self.mask = trainer.masks.own(self.name, [NAME])[NAME]
        self.mask[:, ::2] = 0
        trainer.masks.changed()
        self.shadow = trainer.shadow(self.name)

    @hookimpl
    def optimizer_step(self, trainer: Any, proceed: Callable[[], Any]) -> Any:
        """Everything is still there after the wrapping."""
        if trainer.step == 2:
            trainer.refresh()
        report = proceed()
        weight = dict(trainer.model.named_parameters())[NAME]
        with torch.no_grad():
            weight.add_(1)
        trainer.masks.hold()
        assert not weight[:, ::2].any() and weight[:, 1::2].all()
        return report

    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        """They stay."""


def test_masks_hold_after_the_network_was_wrapped_again(tmp_path: Path) -> None:
    wanted = {
        "data": {"name": "tiny-images"},
        "model": {"name": "tiny-cnn"},
        "train": {"steps": 4, "batch_size": 16},
        "device": "cpu",
        "distributed": {"timeout": 60},
        "plugins": {"wraps-again": {}},
    }
    with pretend(WrapsAgainPlugin):
        ended = together(lambda rank: plait.run(wanted, out=tmp_path / "two"))
    assert [e.code for e in ended] == [0, 0], ended
