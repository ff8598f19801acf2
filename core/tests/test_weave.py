"""The woven step in a loop of one's own: against hand-written loops, with every kind of batch, judged like a plan."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import plait
from plait import BadInput, Metric, Ownership, Plugin, Refused, View, hookimpl
from plait.errors import BadCheckpoint, RunFailed
from plait.planning.discovery import pretend

CLASSES = 3


class HalfMaskPlugin(Plugin):
    """Keeps the larger half of a weight, chosen anew every third step."""

    name = "half-mask"
    contract = 1

    def ownership(self) -> tuple[Ownership, ...]:
        return (Ownership("parameters", "0.weight"),)

    def setup(self, trainer: Any) -> None:
        self.mask = trainer.masks.own("half-mask", ["0.weight"])["0.weight"]
        self._choose(trainer)

    def _choose(self, trainer: Any) -> None:
        size = dict(trainer.model.named_parameters())["0.weight"].detach().abs()
        self.mask.copy_(size > size.median())
        trainer.masks.changed()

    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        if trainer.step % 3 == 0:
            self._choose(trainer)
            trainer.log({"half-mask/kept": float(self.mask.mean())})

    @hookimpl
    def evaluate(self, trainer: Any) -> dict[str, Metric]:
        return {"kept": Metric(float(self.mask.mean()), "", "lower")}


class NoisePlugin(Plugin):
    """Random weights of the examples out of its own generator, and a needed group."""

    name = "noise"
    contract = 1

    def needs(self) -> frozenset[str]:
        return frozenset({"field:group", "loss:per-example"})

    def setup(self, trainer: Any) -> None:
        self.draw = trainer.generator("noise")

    @hookimpl
    def example_weights(self, batch: Any) -> Tensor:
        return torch.rand(len(batch["label"]), generator=self.draw) + batch["group"]

    @hookimpl
    def views(self) -> dict[str, View]:
        def dark(batch: Any) -> Any:
            return plait.Batch({**batch, "input": batch["input"] / 2 + 1e-3 * batch["index"].unsqueeze(1)})

        return {"dark": View("half the light", dark)}

    @hookimpl
    def evaluate(self, predictions: Any) -> dict[str, Metric]:
        rows = predictions["dark"].fields["index"]
        return {"rows": Metric(float(len(rows)), "", "neither"), "last": Metric(float(rows[-1]), "", "neither")}


class OwnLossPlugin(Plugin):
    """Another loss."""

    name = "own-loss"
    contract = 1

    @hookimpl
    def objective(self, outputs: Tensor, batch: Any) -> Tensor:
        return functional.cross_entropy(outputs, batch["label"], reduction="none").clamp(max=1)


class LoopPlugin(Plugin):
    """Replaces the loop."""

    name = "loop"
    contract = 1

    @hookimpl
    def fit(self, trainer: Any) -> None:
        trainer.train_until(trainer.total_steps)


class DataPlugin(Plugin):
    """Changes the data, in the way that the options say."""

    name = "data-changer"
    contract = 1

    class Options(plait.Options):
        how: str = "nothing"

    @hookimpl
    def transform_data(self, data: Any) -> Any:
        import dataclasses

        if self.options.how == "copy":
            return dataclasses.replace(data, train=data.test)
        if self.options.how == "in place":
            data.augment = lambda batch, generator: batch
        if self.options.how == "columns":
            return plait.TensorSplit({name: data.train.fields[name] for name in ("label",)})
        return data


class SurgeonPlugin(Plugin):
    """Initialises in place, or replaces a layer."""

    name = "surgeon"
    contract = 1

    class Options(plait.Options):
        replaces: bool = False

    @hookimpl
    def transform_model(self, model: nn.Module) -> nn.Module:
        if self.options.replaces:
            model[0] = nn.Linear(5, 8)  # type: ignore[index]
        else:
            nn.init.ones_(model[0].bias)  # type: ignore[index]
        return model


PLUGINS = (HalfMaskPlugin, NoisePlugin, OwnLossPlugin, LoopPlugin, DataPlugin, SurgeonPlugin)


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with pretend(*PLUGINS, alone=True):
        yield


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, CLASSES))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def examples(rows: int = 16, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input": torch.randn(rows, 5, generator=generator),
        "label": torch.randint(CLASSES, (rows,), generator=generator),
        "group": torch.randint(2, (rows,), generator=generator),
    }


def woven_on(model: nn.Module, plugins: Any = (), **changes: Any) -> plait.WovenStep:
    options: dict[str, Any] = {"total_steps": 12, "example": examples(), **changes}
    return plait.weave(model, options.pop("optimizer", None) or sgd(model), plugins=plugins, **options)


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# ---- the step --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.NAdam])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_without_plugins_it_is_the_hand_written_loop(kind: Callable[..., Any], clip: float | None) -> None:
    mine, other = network(), network()
    optimizers = [kind(model.parameters(), lr=0.02) for model in (mine, other)]
    woven = woven_on(mine, optimizer=optimizers[0], clip_norm=clip)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in optimizers]
    for number in range(6):
        batch = examples(seed=number)
        report = woven.step(batch)
        optimizers[1].zero_grad()
        losses = functional.cross_entropy(other(batch["input"]), batch["label"], reduction="none")
        losses.mean().backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(other.parameters(), clip)
        optimizers[1].step()
        for schedule in schedules:
            schedule.step()
        assert torch.equal(report.per_example, losses)
        assert report.loss == losses.mean()
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(mine.parameters(), other.parameters(), strict=True))
    assert clip is not None or equal(mine, other)
    assert woven.steps == 6
    assert woven.model is mine
    assert woven.optimizer is optimizers[0]


def test_every_form_of_a_batch_gives_the_same_step() -> None:
    batch = examples()
    forms: list[Any] = [
        {"input": batch["input"], "label": batch["label"]},
        (batch["input"], batch["label"]),
        [batch["input"], batch["label"]],
        {"input": batch["input"], "labels": batch["label"]},
        plait.Batch({"input": batch["input"], "label": batch["label"], "index": torch.arange(16)}),
    ]
    models = []
    for form in forms:
        model = network()
        woven_on(model, example=form).step(form)
        models.append(model)
    assert all(equal(models[0], model) for model in models[1:])


def test_names_of_the_callers_own_fields() -> None:
    batch = examples()
    triple = (batch["input"], batch["group"], batch["label"])
    renamed = {"x": batch["input"], "y": batch["label"], "gender": batch["group"]}
    models = [network(), network()]
    woven_on(models[0], ["noise"], example=triple, fields=("input", "group", "label")).step(triple)
    names = {"x": "input", "y": "label", "gender": "group"}
    woven_on(models[1], ["noise"], example=renamed, fields=names).step(renamed)
    assert equal(*models)


class KeywordModel(nn.Module):
    """Takes and gives what a model of transformers does."""

    main_input_name = "features"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor, scale: Tensor | None = None, labels: Tensor | None = None) -> Any:
        assert labels is None  # the loss is computed outside
        return SimpleNamespace(logits=self.inner(features if scale is None else features * scale))


def test_a_batch_of_transformers_reaches_the_model_by_name() -> None:
    batch = examples()
    given = {"features": batch["input"], "scale": torch.full((16, 1), 2.0), "labels": batch["label"], "other": 1}
    keyword, plain = KeywordModel(network()), network()
    woven_on(keyword, example=given).step(given)
    doubled = (batch["input"] * 2, batch["label"])
    woven_on(plain, example=doubled).step(doubled)
    assert equal(keyword.inner, plain)


def test_a_loss_of_the_callers_own() -> None:
    def smooth(outputs: Tensor, batch: Any) -> Tensor:
        return functional.cross_entropy(outputs, batch["label"], reduction="none", label_smoothing=0.1)

    mine, other = network(), network()
    woven, optimizer, batch = woven_on(mine, loss=smooth), sgd(other), examples()
    for _ in range(3):
        woven.step(batch)
        optimizer.zero_grad()
        functional.cross_entropy(
            other(batch["input"]), batch["label"], label_smoothing=0.1, reduction="none"
        ).mean().backward()
        optimizer.step()
    assert equal(mine, other)


def test_regression_and_multilabel() -> None:
    torch.manual_seed(0)
    linear, batch = nn.Linear(5, 2), (torch.randn(6, 5), torch.randn(6, 2))
    report = plait.weave(linear, sgd(linear), total_steps=2, example=batch, task="regression").gradients(batch)
    assert torch.allclose(report.loss, functional.mse_loss(linear(batch[0]), batch[1]))
    labels = (batch[0], torch.randint(2, (6, 2)))
    woven = plait.weave(linear, sgd(linear), total_steps=2, example=labels, task="multilabel")
    expected = functional.binary_cross_entropy_with_logits(linear(labels[0]), labels[1].float())
    assert torch.allclose(woven.step(labels).loss, expected)


def test_gradients_are_repeatable_and_change_no_weight() -> None:
    model = network()
    woven, before, batch = woven_on(model), [p.detach().clone() for p in model.parameters()], examples()
    woven.gradients(batch)
    first = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    woven.gradients(batch)
    assert all(torch.equal(a, p.grad) for a, p in zip(first, model.parameters(), strict=True))  # type: ignore[arg-type]
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))
    assert woven.steps == 0


# ---- micro-batches ---------------------------------------------------------------------------------------------------
def test_micro_batches_are_one_batch() -> None:
    batch = examples(64)
    parts = [{name: value[i : i + 16] for name, value in batch.items()} for i in range(0, 64, 16)]
    whole, parted, chunked = (nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(3))
    parted.load_state_dict(whole.state_dict())
    chunked.load_state_dict(whole.state_dict())
    steps = [woven_on(whole), woven_on(parted, accumulate=4), woven_on(chunked, accumulate=4)]
    for _ in range(5):
        reports = [steps[0].step(batch), steps[1].step(*parts), steps[2].step(batch)]
        assert torch.allclose(reports[0].per_example, reports[1].per_example, atol=1e-6)
        assert torch.allclose(reports[0].loss, reports[1].loss, atol=1e-6)
    assert equal(parted, chunked)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole.parameters(), parted.parameters(), strict=True))


def test_uneven_micro_batches_count_by_their_examples() -> None:
    batch = examples(20)
    model = nn.Linear(5, 3)
    woven = woven_on(model, accumulate=4)
    parts = [{name: value[a:b] for name, value in batch.items()} for a, b in ((0, 3), (3, 13), (13, 20))]
    woven.gradients(*parts)
    assert model.weight.grad is not None
    expected = torch.autograd.grad(functional.cross_entropy(model(batch["input"]), batch["label"]), model.weight)[0]
    assert torch.allclose(model.weight.grad, expected, atol=1e-6)


def test_micro_batches_of_different_length() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.table(tokens).mean(1)

    torch.manual_seed(0)
    model = Mean()
    parts = [(torch.randint(7, (4, width)), torch.randint(3, (4,))) for width in (5, 9)]
    woven = plait.weave(model, sgd(model), total_steps=3, example=parts[0], accumulate=2)
    woven.gradients(*parts)
    assert model.table.weight.grad is not None
    loss = torch.cat([functional.cross_entropy(model(x), y, reduction="none") for x, y in parts]).mean()
    assert torch.allclose(model.table.weight.grad, torch.autograd.grad(loss, model.table.weight)[0], atol=1e-6)
    with pytest.raises(BadInput, match="differ in the shape of input"):
        woven.gradients(*parts, rows=torch.tensor([0]))


def test_too_many_micro_batches() -> None:
    with pytest.raises(BadInput, match="a step of 3 micro-batches"):
        woven_on(network(), accumulate=2).step(*[examples()] * 3)
    with pytest.raises(BadInput, match="a step of 0 micro-batches"):
        woven_on(network()).step()


# ---- masks -----------------------------------------------------------------------------------------------------------
def test_masked_weights_are_zero_in_every_pass_and_after_every_step() -> None:
    model = network()
    woven = woven_on(model, ["half-mask"])
    mask, seen = woven.trainer.masks.mask["0.weight"], []
    model.register_forward_pre_hook(lambda *_: seen.append(bool((model[0].weight * (1 - mask)).any())))
    for number in range(8):
        woven.step(examples(seed=number))
        assert not (model[0].weight * (1 - mask)).any()
    woven.evaluate([examples()])
    assert len(seen) == 9  # eight steps and the clean view
    assert not any(seen)
    assert woven.values == {"half-mask/kept": 0.5}


# ---- state -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("after", [0, 1, 4, 11])
def test_saved_after_any_step_it_ends_with_the_same_bits(after: int, tmp_path: Path) -> None:
    plugins = ["half-mask", "noise"]
    unbroken = network(dropout=0.3)
    woven = woven_on(unbroken, plugins)
    torch.manual_seed(1)
    for number in range(12):
        if number == after:
            woven.save(tmp_path / "state.safetensors")
        woven.step(examples(seed=number))
    torch.manual_seed(99)
    resumed = network(seed=5, dropout=0.3)
    again = plait.load_woven(tmp_path / "state.safetensors", resumed, sgd(resumed))
    assert again.steps == after
    for number in range(after, 12):
        again.step(examples(seed=number))
    assert equal(unbroken, resumed)


def test_the_state_needs_no_pickle() -> None:
    woven = woven_on(network(), ["half-mask", "noise"])
    woven.step(examples())
    file = io.BytesIO()
    torch.save(woven.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    model = network(3)
    again = woven_on(model, ["half-mask", "noise"])
    again.load_state_dict(state)
    woven.step(examples(seed=1)), again.step(examples(seed=1))
    assert equal(woven.model, model)


def test_a_state_of_another_weaving_is_refused(tmp_path: Path) -> None:
    state = woven_on(network(), ["half-mask"]).state_dict()
    with pytest.raises(BadCheckpoint, match=r"total_steps|train.steps = 12, this one with 13"):
        woven_on(network(), ["half-mask"], total_steps=13).load_state_dict(state)
    with pytest.raises(BadCheckpoint, match="plugins"):
        woven_on(network()).load_state_dict(state)
    path = tmp_path / "state.safetensors"
    woven_on(network()).save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(BadCheckpoint, match="truncated"):
        plait.load_woven(path, network(), sgd(network()))


def test_a_step_broken_off_in_its_middle_is_not_saved(tmp_path: Path) -> None:
    model = network()
    woven = woven_on(model)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        woven.step(examples())
    with pytest.raises(RunFailed, match="broken off in its middle"):
        woven.save(tmp_path / "state.safetensors")
    handle.remove()


# ---- afterwards ------------------------------------------------------------------------------------------------------
def test_evaluation_reads_every_batch_once_a_view() -> None:
    model = network()
    woven = woven_on(model, ["half-mask", "noise"])
    batches = [examples(16, 1), examples(16, 2), examples(5, 3)]
    figures = {name: metric.value for name, metric in woven.evaluate(batches).items()}  # type: ignore[union-attr]
    model.eval()
    right = [(model(b["input"]).argmax(1) == b["label"]).sum() for b in batches]
    assert figures["task/accuracy"] == pytest.approx(100 * float(sum(right)) / 37)
    assert (figures["noise/rows"], figures["noise/last"], figures["half-mask/kept"]) == (37, 36, 0.5)
    assert woven.evaluate(iter(batches)).keys() == figures.keys()
    clean = woven.evaluate(batches, views=["clean"])
    assert set(clean) == {"task/accuracy", "task/loss", "half-mask/kept"}
    with pytest.raises(BadInput, match=r"no view 'drak'. Did you mean 'dark'"):
        woven.evaluate(batches, views=["drak"])


def test_the_mode_of_the_model_is_the_callers() -> None:
    model = network()
    model[1].eval()
    woven = woven_on(model)
    woven.evaluate([examples()])
    woven.export()
    assert model.training
    assert not model[1].training


def test_export_is_a_copy() -> None:
    model = network()
    woven = woven_on(model, ["half-mask"])
    woven.step(examples())
    exported = woven.export()
    assert exported is not model
    assert not exported.training
    assert equal(exported, model)
    woven.step(examples(seed=1))
    assert not equal(exported, model)


# ---- judging ---------------------------------------------------------------------------------------------------------
def test_the_plan_is_what_plait_plan_prints() -> None:
    text = str(woven_on(network(), ["half-mask", "noise"]).plan)
    assert text.startswith("half-mask + noise on loop:batches with torch.nn.modules.container:Sequential\n\nHOOK ")
    assert text.endswith("ok: they can work together.")
    assert "NOT CHECKED YET" not in text


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        (["loop"], "'loop' replaces the training loop .* plait.run"),
        ({"data-changer": {"how": "copy"}}, "'data-changer' changes the training data .* plait.run"),
        ({"data-changer": {"how": "in place"}}, "'data-changer' changes the training data .* plait.run"),
        ({"data-changer": {"how": "columns"}}, "'data-changer' changes the training data .*'label' of the whole"),
        ({"surgeon": {"replaces": True}}, "'surgeon' replaces the model or its parameters"),
    ],
)
def test_what_needs_plaits_own_run_is_refused_by_name(plugins: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        woven_on(network(), plugins)


def test_what_changes_nothing_outside_is_welcome() -> None:
    model = network()
    woven_on(model, {"data-changer": {}, "surgeon": {}}).step(examples())
    assert model[0].bias.mean() > 0.5  # the surgeon filled it with ones before the step


def test_a_needed_field_is_asked_for_by_name() -> None:
    pair = (examples()["input"], examples()["label"])
    with pytest.raises(Refused, match=r"'noise' needs a field 'group' in every batch; the example has input, label"):
        woven_on(network(), ["noise"], example=pair)
    with pytest.raises(BadInput, match="no field 'group', which plugin 'noise' needs; it has input, label"):
        woven_on(network(), ["noise"]).step({"input": pair[0], "label": pair[1]})


def test_two_losses_are_refused() -> None:
    with pytest.raises(Refused, match="'own-loss' replaces the loss, and so does weave"):
        woven_on(network(), ["own-loss"], loss=lambda outputs, batch: outputs.sum(1))


def test_wrappers_and_foreign_optimizers_are_refused() -> None:
    model = network()
    with pytest.raises(BadInput, match=r"give model\.module"):
        plait.weave(nn.DataParallel(model), sgd(model), total_steps=1, example=examples())
    with pytest.raises(BadInput, match="compile=True"):
        plait.weave(torch.compile(model), sgd(model), total_steps=1, example=examples())  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"does not hold '0\.weight'"):
        woven_on(model, optimizer=sgd(network()))
    with pytest.raises(BadInput, match=r"does not hold '0.weight', which requires gradients"):
        woven_on(model, optimizer=torch.optim.SGD(model[4].parameters(), lr=0.1))
    with pytest.raises(BadInput, match="without a closure"):
        woven_on(model, optimizer=torch.optim.LBFGS(model.parameters()))


def test_labels_of_tokens_are_no_stack_of_replicas() -> None:
    model = nn.Linear(5, 3)
    tokens = (torch.randn(4, 7, 5), torch.randint(3, (4, 7)))
    with pytest.raises(BadInput, match=r"give weave\(loss=...\), which returns the loss of each example"):
        plait.weave(model, sgd(model), total_steps=1, example=tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"example": torch.randn(4, 5)}, "a batch is a mapping of tensors or a tuple"),
        ({"example": (torch.randn(4, 5),)}, "a batch of 1 values where 2 are expected"),
        ({"example": (torch.randn(4, 6), torch.zeros(4).long())}, r"cannot take the example \(input \(4, 6\)"),
        ({"example": (torch.randn(4, 5), torch.zeros(4))}, "the loss cannot take the example"),
        ({"loss": lambda outputs, batch: outputs.mean()}, r"must return the loss of each example, shape \[16\]"),
        ({"task": "segmentation"}, "'segmentation' has no default objective"),
        ({"precision": "fp16"}, "precision = 'fp16'"),
        ({"total_steps": -1}, "train.steps"),
        ({"plugins": ["nosie"]}, "Did you mean 'noise'"),
        ({"plugins": {"half-mask": {"part": 1}}}, "unknown key 'part'"),
    ],
)
def test_bad_input_is_said_before_the_first_step(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        woven_on(network(), **changes)


def test_a_loss_that_is_not_finite_names_where_it_came_from() -> None:
    woven = woven_on(network())
    batch = examples()
    batch["input"][3, 2] = float("nan")
    with pytest.raises(RunFailed, match=r"step 1: .*'input' has NaN .*row 3.*not to be used\.$"):
        woven.step(batch)


def test_weaving_leaves_no_trace_before_the_first_step() -> None:
    model = network(dropout=0.5)
    before, noise = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    woven_on(model, ["noise"])
    assert torch.equal(noise, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bf16_is_the_autocast_of_torch() -> None:
    mine, other = network(), network()
    woven, optimizer, batch = woven_on(mine, precision="bf16"), sgd(other), examples()
    for _ in range(3):
        woven.step(batch)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(other(batch["input"]), batch["label"], reduction="none").mean()
        loss.backward()
        optimizer.step()
    assert equal(mine, other)
    assert mine[0].weight.dtype is torch.float32


def test_a_step_inside_the_callers_autocast_is_refused() -> None:
    woven = woven_on(network())
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(BadInput, match=r"out of torch\.autocast"):
        woven.step(examples())
