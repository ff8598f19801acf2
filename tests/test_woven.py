"""chase and fairsam in one run: masks in both passes, descent gradients for growth, exact reduction to each alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import plait
from plait.data.seeds import seed_everything
from plait.declare.recipe import Recipe
from plait.distributed.world import World
from plait.loading import build_model, load_data
from plait.planning.discovery import pretend
from plait.planning.plan import make_plan
from plait.storage import progress
from plait.storage.directory import RunDirectory
from plait.storage.recorder import Recorder
from plait.training.trainer import Trainer
from plait_authoring.kill import final_state, first_difference
from plait_chase.plugin import ChasePlugin
from plait_fairsam.plugin import FairsamPlugin

CHASE = {"density": 0.3, "exploration_interval": 4, "channel_interval": 8, "timing_repeats": 0}
DENSE = {"baseline": "dense", "timing_repeats": 0}
FAIR: dict[str, Any] = {"severities": [3]}
PLAIN = {"weights": "none", "rho": 0.0, "severities": [3]}


@pytest.fixture(scope="module", autouse=True)
def _methods_only() -> Iterator[None]:
    """No report of every run, which would take half of its time."""
    with pretend(ChasePlugin, FairsamPlugin, distribution="plait", alone=True):
        yield


def recipe(plugins: dict[str, Any], steps: int = 40, **train: Any) -> dict[str, Any]:
    return {
        "data": {"name": "tiny-images"},
        "model": {"name": "tiny-cnn"},
        "train": {"steps": steps, "batch_size": 32, **train},
        "optimizer": {"lr": 0.05},  # chase suggests another
        "device": "cpu",
        "plugins": plugins,
    }


def trainer_for(path: Path, plugins: dict[str, Any], steps: int = 40) -> Trainer:
    plan = make_plan(Recipe.parse(recipe(plugins, steps)))
    directory = RunDirectory(path / "run")
    directory.create()
    recorder = Recorder(directory, progress.Silent())
    trainer = Trainer(plan.recipe, plan.plugins, plan.composed, World(torch.device("cpu")), recorder)
    seed_everything(0)
    data = load_data(trainer.recipe.data, 0)
    trainer.build(data, build_model(trainer.recipe.model, data.info))
    return trainer


def run(path: Path, name: str, plugins: dict[str, Any], steps: int = 40, **train: Any) -> Path:
    plait.run(recipe(plugins, steps, **train), out=path / name)
    return path / name


def weights(path: Path) -> dict[str, Tensor]:
    model: dict[str, Tensor] = final_state(path)["model"]
    return model


@pytest.mark.parametrize("perturbation", ["weighted", "plain", "ascent_only", "per_group"])
@pytest.mark.parametrize("asam", [False, True])
def test_masks_are_exactly_zero_in_every_pass(tmp_path: Path, perturbation: str, asam: bool) -> None:
    options = {**FAIR, "perturbation": perturbation, "asam": asam, "rho": 0.3}
    trainer = trainer_for(tmp_path, {"chase": CHASE, "fairsam": options})
    passes = []

    def look(module: torch.nn.Module, inputs: Any) -> None:
        parameters = dict(trainer.model.named_parameters())
        leaks = [n for n, m in trainer.masks.mask.items() if bool((parameters[n].detach()[m == 0] != 0).any())]
        passes.append(leaks)

    trainer.model.register_forward_pre_hook(look)
    trainer.train_until(40)
    assert len(passes) >= 2 * 40
    assert not any(passes)


def test_growth_reads_the_dense_descent_gradient_and_the_norm_counts_survivors(tmp_path: Path) -> None:
    """Oracle: the step by hand. e from the masked ascent gradient, then the unmasked gradient at w + e."""
    trainer = trainer_for(tmp_path, {"chase": CHASE, "fairsam": {**FAIR, "rho": 0.2}})
    stream = trainer.train_stream
    for _ in range(3):
        trainer.train_step(next(stream))
    batch = next(stream)
    model, masks = trainer.model, dict(trainer.masks.mask)
    names = [n for n, _ in model.named_parameters()]
    full = {n: masks.get(n, torch.ones_like(p)).clone() for n, p in model.named_parameters()}
    weight = trainer.plugins["fairsam"]._weave.weights(batch)  # type: ignore[attr-defined]

    def gradient() -> dict[str, Tensor]:
        with plait_frozen(model):
            losses = functional.cross_entropy(model(batch["input"]), batch["label"], reduction="none")
            return dict(
                zip(names, torch.autograd.grad((losses * weight).mean(), list(model.parameters())), strict=True)
            )

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ascent = {n: g * full[n] for n, g in gradient().items()}
    norm = torch.stack([g.pow(2).sum() for g in ascent.values()]).sum().sqrt()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.add_(0.2 * ascent[n] / (norm + 1e-12))
    moved = torch.stack([(p.detach() - before[n]).pow(2).sum() for n, p in model.named_parameters()]).sum().sqrt()
    torch.testing.assert_close(moved, torch.tensor(0.2))
    dense = gradient()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(before[n])

    seen: dict[str, Tensor] = {}
    engine = trainer.plugins["chase"]._weave.engine  # type: ignore[attr-defined]
    original = engine.update

    def spy(step: int, parameters: Any, gradients: Callable[[str], Tensor]) -> Any:
        seen.update({n: gradients(n).clone() for n in engine.names})
        return original(step, parameters, gradients)

    engine.update = spy
    assert engine.needs_gradient(4)
    trainer.train_step(batch)
    assert set(seen) == set(engine.names)
    for name, got in seen.items():
        torch.testing.assert_close(got, dense[name], rtol=1e-4, atol=1e-6)
        hidden = full[name] == 0
        assert not hidden.any() or bool((got[hidden] != 0).any())


def plait_frozen(model: torch.nn.Module) -> Any:
    from plait.training.frozen import frozen_buffers

    return frozen_buffers(model)


def test_without_weights_and_radius_the_woven_run_is_chase_alone(tmp_path: Path) -> None:
    woven = run(tmp_path, "woven", {"chase": CHASE, "fairsam": PLAIN})
    alone = run(tmp_path, "alone", {"chase": CHASE})
    state, other = final_state(woven), final_state(alone)
    for key in ("model", "optimizer", "masks", "random", "streams", "generators"):
        assert first_difference(state[key], other[key]) is None, key
    assert first_difference(state["plugins"]["chase"], other["plugins"]["chase"]) is None


def test_without_sparsity_the_woven_run_is_fairsam_alone(tmp_path: Path) -> None:
    woven = run(tmp_path, "woven", {"chase": DENSE, "fairsam": FAIR})
    alone = run(tmp_path, "alone", {"fairsam": FAIR})
    for key in ("model", "optimizer", "random", "streams"):
        assert first_difference(final_state(woven)[key], final_state(alone)[key]) is None, key


def test_the_order_on_the_command_line_does_not_change_the_bits(tmp_path: Path) -> None:
    first = run(tmp_path, "one", {"chase": CHASE, "fairsam": FAIR})
    second = run(tmp_path, "two", {"fairsam": FAIR, "chase": CHASE})
    assert first_difference(weights(first), weights(second)) is None


def test_fairsam_without_weights_is_sam_bit_for_bit(tmp_path: Path) -> None:
    """Oracle: SAM written naively as a stranger's plugin of a few lines on the same contract."""

    class NaiveSAM(plait.Plugin):
        name, contract = "naive-sam", plait.CONTRACT_VERSION

        @plait.hookimpl(inner=True)
        def optimizer_step(self, trainer: Any, batch: Any) -> Any:
            trainer.gradients(batch)
            with torch.no_grad():
                norm = torch.stack([p.grad.norm() for p in trainer.parameters]).norm()
                saved = [p.clone() for p in trainer.parameters]
                for p in trainer.parameters:
                    p.add_(p.grad * (0.05 / (norm + 1e-12)))
            report = trainer.gradients(batch, freeze_statistics=True)
            with torch.no_grad():
                for p, before in zip(trainer.parameters, saved, strict=True):
                    p.copy_(before)
            trainer.apply_gradients()
            return report

    sam = run(tmp_path, "sam", {"fairsam": {**FAIR, "weights": "none"}})
    with pretend(NaiveSAM):
        naive = run(tmp_path, "naive", {"naive-sam": {}})
        for name, got in weights(sam).items():
            # the norm of norms and the norm of everything differ in the last bit, nothing else may
            torch.testing.assert_close(got, weights(naive)[name], rtol=1e-5, atol=1e-6)
        with pytest.raises(plait.Refused, match="naive-sam"):
            plait.run(recipe({"fairsam": {}, "naive-sam": {}}), out=tmp_path / "refused")


def test_rho_zero_is_weighted_sgd_bit_for_bit(tmp_path: Path) -> None:
    class GroupWeights(plait.Plugin):
        name, contract = "group-weights", plait.CONTRACT_VERSION

        def setup(self, trainer: Any) -> None:
            counts = torch.bincount(trainer.data.train.fields["group"]).double()
            self.table = (counts.sum() / (len(counts) * counts)).float()

        @plait.hookimpl
        def example_weights(self, batch: Any) -> Tensor:
            return self.table[batch["group"]]

    fair = run(tmp_path, "fair", {"fairsam": {**FAIR, "rho": 0.0}})
    with pretend(GroupWeights):
        plain = run(tmp_path, "plain", {"group-weights": {}})
    assert first_difference(weights(fair), weights(plain)) is None


def test_export_is_shrunk_exact_and_fairly_judged_before_and_after(tmp_path: Path) -> None:
    done = plait.run(
        recipe({"chase": CHASE, "fairsam": FAIR}, 60) | {"export": {"formats": ["torch_export"]}}, out=tmp_path / "r"
    )
    figures = done.metrics
    assert figures["chase/channels"] == 12 and done.details["chase/channels"]["note"] == "of 24 prunable"
    assert figures["chase/shrink_error@export"] < 1e-4
    assert figures["chase/macs@export"] < figures["chase/macs"]
    for name in ("mcdd", "clean_accuracy", "corrupted_accuracy_worst_group"):
        assert figures[f"fairsam/{name}@export"] == pytest.approx(figures[f"fairsam/{name}"], abs=0.5)
    inputs = load_data(done.recipe.data, 0).test.__getitems__(torch.arange(5))["input"]
    alone = torch.export.load(tmp_path / "r/export/model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(alone(inputs), done.model(inputs), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(plait.load_run(tmp_path / "r").model(inputs), done.model(inputs))


def test_shrinking_during_training_is_the_masked_run(tmp_path: Path) -> None:
    """Both choose the same weights and channels; sums in another order may differ in the last bits only."""
    during = plait.run(recipe({"chase": {**CHASE, "shrink_during": True}, "fairsam": FAIR}), out=tmp_path / "during")
    masked = plait.run(recipe({"chase": CHASE, "fairsam": FAIR}), out=tmp_path / "masked")
    assert during.metrics["chase/nonzeros"] == masked.metrics["chase/nonzeros"]
    for (name, a), b in zip(masked.model.state_dict().items(), during.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_best_is_chosen_among_finished_networks_only(tmp_path: Path) -> None:
    done = plait.run(recipe({"chase": CHASE, "fairsam": FAIR}, 80, select="best", evaluate_every=1), out=tmp_path / "r")
    chosen = [e for e in done.directory.events() if e["event"] == "selected"]
    assert chosen, "no state was selectable"
    assert chosen[0]["step"] >= 64
    assert done.metrics["chase/nonzeros"] <= 0.3 * 1288 and done.metrics["chase/channels"] == 12


def test_plan_refuses_a_second_owner_of_the_masks_by_rule() -> None:
    class Pruner(plait.Plugin):
        name, contract = "pruner", plait.CONTRACT_VERSION

        def ownership(self) -> tuple[plait.Ownership, ...]:
            return (plait.Ownership("parameters", "conv1.*"),)

        @plait.hookimpl
        def update_masks(self, trainer: Any) -> None:
            return None

    with pretend(Pruner):
        plan = plait.plan(plugins=["chase", "pruner"])
    assert [(r.rule, r.plugins) for r in plan.refusals] == [("partition", ("chase", "pruner"))]
    assert "-p chase" in plan.refusals[0].fix
