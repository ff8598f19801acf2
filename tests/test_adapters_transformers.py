"""chase and fairsam in the Trainer of transformers: masks, resume, accumulation, bf16, and two processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import plait
from plait.planning.discovery import pretend
from plait_authoring.together import together
from plait_chase.plugin import ChasePlugin
from plait_fairsam.plugin import FairsamPlugin

transformers = pytest.importorskip("transformers")
from plait.adapters.transformers import WovenTrainer  # noqa: E402 - where transformers is

pytestmark = [
    pytest.mark.usefixtures("lone_process"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("error:.*lr_scheduler.step.*"),
]

CHASE = {"density": 0.3, "exploration_interval": 2, "channel_interval": 4, "timing_repeats": 0}
FAIR: dict[str, Any] = {"severities": [3], "rho": 0.2}
BOTH = {"chase": CHASE, "fairsam": FAIR}
SHRINKING = {"chase": {**CHASE, "shrink_during": True}, "fairsam": FAIR}
MICRO = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}


@pytest.fixture(scope="module", autouse=True)
def _methods_only() -> Iterator[None]:
    with pretend(ChasePlugin, FairsamPlugin, distribution="plait", alone=True):
        yield


class TinyConfig(transformers.PretrainedConfig):  # type: ignore[misc]
    model_type = "plait-tiny-convolutions"


class Tiny(transformers.PreTrainedModel):  # type: ignore[misc]
    """Two convolutions with batch statistics, dropout, a classifier."""

    config_class = TinyConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm1, self.norm2 = (
            (nn.BatchNorm2d(8), nn.BatchNorm2d(8)) if config.norm else (nn.Identity(), nn.Identity())
        )
        self.drop, self.fc = nn.Dropout(config.dropout), nn.Linear(8, 4)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        hidden = torch.relu(self.norm1(self.conv1(pixel_values)))
        hidden = torch.relu(self.norm2(self.conv2(hidden)))
        logits = self.fc(self.drop(hidden.mean((2, 3))))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return transformers.modeling_outputs.ImageClassifierOutput(loss=loss, logits=logits)


def tiny(norm: bool = True, dropout: float = 0.1) -> Tiny:
    torch.manual_seed(0)
    return Tiny(TinyConfig(norm=norm, dropout=dropout))


def columns() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    label = torch.randint(0, 4, (90,), generator=draw)
    group = torch.randint(0, 2, (90,), generator=draw)
    images = torch.rand(90, 3, 8, 8, generator=draw) * (0.5 + label[:, None, None, None] / 8)
    return {"pixel_values": images, "label": label, "group": group}


class Zeros(transformers.TrainerCallback):  # type: ignore[misc]
    """Looks at the masked weights whenever the host says that a step ended."""

    trainer: Any

    def __init__(self) -> None:
        self.masked: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        parameters, masks = dict(self.trainer.model.named_parameters()), self.trainer.woven.trainer.masks.mask
        assert not any(bool((parameters[name][mask == 0] != 0).any()) for name, mask in masks.items())
        self.masked.append(sum(int((mask == 0).sum()) for mask in masks.values()))


def trained(folder: Path, plugins: Any, model: Any = None, *, resume: str | None = None, **changed: Any) -> Any:
    given = {"per_device_train_batch_size": 16, "num_train_epochs": 3, "learning_rate": 1e-2, "logging_steps": 1}
    given |= {"save_strategy": "steps", "save_steps": 5, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    data = columns()
    rows = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    look = Zeros()
    look.trainer = trainer = WovenTrainer(
        model or tiny(),
        transformers.TrainingArguments(output_dir=str(folder), **given | changed),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[look],
        plugins=plugins,
        train={"label": data["label"], "group": data["group"]},
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(folder / resume))
    assert "chase" not in plugins or (look.masked and all(look.masked)), look.masked
    return trainer


@pytest.mark.parametrize(
    ("plugins", "changed"),
    [({"chase": CHASE}, {}), ({"fairsam": FAIR}, {}), (BOTH, MICRO), (BOTH, {"bf16": True}), (SHRINKING, {})],
    ids=["chase", "fairsam", "both, in micro-batches", "both, bf16", "shrinking"],
)
def test_resume_from_the_hosts_checkpoint_is_the_unbroken_run(tmp_path: Path, plugins: Any, changed: Any) -> None:
    unbroken = trained(tmp_path, plugins, **changed)
    resumed = trained(tmp_path, plugins, resume="checkpoint-10", **changed)
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    if plugins is SHRINKING:
        assert unbroken.model.conv1.out_channels == len(resumed.model.conv1.weight) < 8


def test_four_times_four_is_sixteen(tmp_path: Path) -> None:
    one = trained(tmp_path, BOTH, tiny(norm=False, dropout=0.0), optim="sgd", save_strategy="no")
    four = trained(tmp_path, BOTH, tiny(norm=False, dropout=0.0), optim="sgd", save_strategy="no", **MICRO)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(four.model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_log_figures_and_export(tmp_path: Path) -> None:
    trainer = trained(tmp_path, BOTH, save_strategy="no")
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 18 and entries[-1].keys() >= {"learning_rate", "chase/density", "chase/channels"}
    assert entries[-1]["chase/density"] == pytest.approx(0.3, abs=0.02)
    assert trainer.evaluate()["eval_loss"] > 0
    figures = trainer.woven.evaluate(trainer.get_eval_dataloader())
    assert {"task/accuracy", "chase/nonzeros", "fairsam/mcdd"} <= figures.keys()
    exported = trainer.woven.export()
    exported.save_pretrained(tmp_path / "small")
    images = columns()["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(exported(images).logits, trainer.model.eval()(images).logits, rtol=1e-4, atol=1e-5)
    assert exported.conv1.out_channels < 8


def test_what_cannot_be_woven_is_refused_before_a_step(tmp_path: Path) -> None:
    class Rounds(plait.Plugin):
        name, contract = "rounds", 1

        @plait.hookimpl
        def fit(self, trainer: Any) -> None:
            return None

    with pretend(Rounds), pytest.raises(plait.Refused, match="'rounds' replaces the training loop"):
        trained(tmp_path, {"rounds": {}})


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """Ranks are equal to the bit, resume too; without plugins it is the host's own DDP."""

    def act(rank: int) -> None:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        half: dict[str, Any] = {"per_device_train_batch_size": 8, "ddp_find_unused_parameters": False}
        unbroken = trained(tmp_path / "two", BOTH, **half)
        resumed = trained(tmp_path / "two", BOTH, resume="checkpoint-10", **half)
        save_file({**unbroken.model.state_dict()}, tmp_path / f"unbroken-{rank}")
        save_file({**resumed.model.state_dict()}, tmp_path / f"resumed-{rank}")
        once: dict[str, Any] = {**half, "save_strategy": "no", "num_train_epochs": 1}
        plain = trained(tmp_path / "plain", {}, **once)
        host = transformers.Trainer(tiny(), plain.args, train_dataset=plain.train_dataset)
        host.train()
        assert all(torch.equal(v, host.model.state_dict()[k]) for k, v in plain.model.state_dict().items())

    ended = together(act)
    assert [e.code for e in ended] == [0, 0], ended
    files = [load_file(tmp_path / f"{what}-{rank}") for what in ("unbroken", "resumed") for rank in (0, 1)]
    for name, value in files[0].items():
        assert all(torch.equal(file[name], value) for file in files[1:] if "running" not in name), name
