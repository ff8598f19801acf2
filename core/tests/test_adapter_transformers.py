"""plait's step in the Trainer of transformers, against the Trainer without it and against a loop by hand."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import plait
from plait import BadInput, Ownership, Plugin, Refused, RunFailed, hookimpl
from plait.errors import BadCheckpoint
from plait.planning.discovery import pretend
from plait.training.frozen import evaluating

transformers = pytest.importorskip("transformers")
adapter = importlib.import_module("plait.adapters.transformers")
WovenTrainer, token_loss = adapter.WovenTrainer, adapter.token_loss

pytestmark = [
    pytest.mark.usefixtures("lone_process"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("error:.*lr_scheduler.step.*"),
]

ROWS, WIDTH = 90, 8  # 90 = 5 x 16 + 10: the last step of an epoch is smaller
SHARP = {"sharp": {}}
EPOCHLY = ("save_strategy", "eval_strategy")


class SharpPlugin(Plugin):
    """Sharpness-aware and masked: a second pass at perturbed weights, half of the classifier held at zero."""

    name = "sharp"
    contract = 1

    def setup(self, trainer: Any) -> None:
        self.name_of = next(n for n, _ in trainer.model.named_parameters() if n.endswith(("fc.weight", "score.weight")))
        trainer.masks.own("sharp", [self.name_of])[self.name_of][:, ::2] = 0
        trainer.masks.changed()
        self.sizes: list[int] = []

    def ownership(self) -> tuple[Ownership, ...]:
        return (Ownership("parameters", "*"),)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": len(self.sizes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sizes = [0] * state["steps"]

    @hookimpl
    def loss_terms(self, outputs: Tensor) -> dict[str, Tensor]:
        return {"size": 1e-2 * outputs.square().mean()}

    @hookimpl
    def update_masks(self, trainer: Any) -> None:
        trainer.log({"sharp/steps": float(len(self.sizes))})

    @hookimpl(inner=True)
    def optimizer_step(self, trainer: Any, batch: Any) -> Any:
        trainer.gradients(batch)
        before = [p.detach().clone() for p in trainer.parameters]
        with torch.no_grad():
            for p in trainer.parameters:
                p.add_(p.grad, alpha=0.1)
        report = trainer.gradients(batch, freeze_statistics=True)
        with torch.no_grad():
            for p, weight in zip(trainer.parameters, before, strict=True):
                p.copy_(weight)
        trainer.apply_gradients()
        self.sizes.append(batch.size)
        return report


@pytest.fixture(scope="module", autouse=True)
def _sharp() -> Iterator[None]:
    with pretend(SharpPlugin):
        yield


class TinyConfig(transformers.PretrainedConfig):
    model_type = "plait-tiny"


class Tiny(transformers.PreTrainedModel):
    """A classifier with dropout, batch statistics and the loss that transformers' classifiers have."""

    config_class = TinyConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.hidden, self.norm, self.drop = nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.Dropout(config.dropout)
        self.fc = nn.Linear(16, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.fc(self.drop(torch.relu(self.norm(self.hidden(pixel_values)))))
        loss = None
        if labels is not None and self.config.problem_type == "regression":
            loss = functional.mse_loss(logits.squeeze(-1), labels)
        elif labels is not None and self.config.problem_type == "multi_label_classification":
            loss = functional.binary_cross_entropy_with_logits(logits, labels)
        elif labels is not None:
            loss = functional.cross_entropy(logits, labels)
        return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss, logits=logits)


def tiny(norm: bool = True, dropout: float = 0.2, num_labels: int = 4, **config: Any) -> Tiny:
    torch.manual_seed(0)
    model = Tiny(TinyConfig(dropout=dropout, num_labels=num_labels, **config))
    if not norm:
        model.norm = nn.Identity()
    return model


def rows(labels: str = "class") -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    inputs, classes = torch.randn(ROWS, WIDTH, generator=draw), torch.randint(0, 4, (ROWS,), generator=draw)
    given = {"class": classes, "number": inputs.sum(1), "several": functional.one_hot(classes, 4).float()}[labels]
    return [{"pixel_values": x, "labels": y, "group": c % 2} for x, y, c in zip(inputs, given, classes, strict=True)]


def settings(folder: Path, **changed: Any) -> Any:
    given = {
        "per_device_train_batch_size": 16,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    return transformers.TrainingArguments(output_dir=str(folder), **given | changed)


def trained(
    folder: Path, model: nn.Module, *, kind: Any = WovenTrainer, data: Any = None, resume: Any = None, **given: Any
) -> Any:
    """A trainer after ``train()``; what is no argument of a trainer is a setting."""
    own = ("plugins", "callbacks", "compute_loss_func", "eval_dataset", "optimizers", "data_collator", "model_init")
    options = {name: given.pop(name) for name in (*own, *adapter.OPTIONS) if name in given}
    trainer = kind(model, settings(folder, **given), train_dataset=data or rows(), **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def equal(one: Any, other: Any) -> bool:
    a, b = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a | b)


def assert_near(one: Any, other: Any) -> None:
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(one.model.state_dict()[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "changed",
    [{}, {"bf16": True}, {"max_grad_norm": 0.0}, {"optim": "sgd", "lr_scheduler_type": "cosine"}, {"max_steps": 4}],
    ids=str,
)
def test_without_plugins_it_is_the_trainer_bit_for_bit(tmp_path: Path, changed: dict[str, Any]) -> None:
    host = trained(tmp_path, tiny(), kind=transformers.Trainer, **changed)
    woven = trained(tmp_path, tiny(), **changed)
    assert equal(host, woven)
    for theirs, ours in zip(host.state.log_history[:-1], woven.state.log_history[:-1], strict=True):
        assert ours.keys() == theirs.keys() >= {"loss", "grad_norm", "learning_rate"}
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("changed", [{"gradient_checkpointing": True}, {"neftune_noise_alpha": 5.0}], ids=str)
def test_a_model_of_transformers_trains_as_without_plait(tmp_path: Path, changed: dict[str, Any]) -> None:
    def bert() -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, num_labels=3, **sizes))

    words = torch.randint(0, 20, (40, 6), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": w, "attention_mask": (w > 3).long(), "labels": w.sum() % 3} for w in words]
    host = trained(tmp_path, bert(), kind=transformers.Trainer, data=data, num_train_epochs=1, **changed)
    assert equal(host, trained(tmp_path, bert(), data=data, num_train_epochs=1, **changed))


def test_the_loop_by_hand_gives_the_same_bits(tmp_path: Path) -> None:
    woven = trained(tmp_path, tiny(), plugins=SHARP, lr_scheduler_type="linear")
    again = WovenTrainer(tiny(), settings(tmp_path), train_dataset=rows())
    loader, model = again.get_train_dataloader(), again.model
    optimizer = again.create_optimizer()
    step = plait.weave(
        model,
        optimizer,
        plugins=SHARP,
        total_steps=12,
        example=torch.utils.data.default_collate(rows()[:16]),
        batch_size=16,
        clip_norm=0.05,
        seed=3,
    )
    schedule = again.create_scheduler(12)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            model.train()
            step.step(batch)
            schedule.step()
    assert equal(woven, again)


def test_four_times_four_is_sixteen_in_both_passes(tmp_path: Path) -> None:
    one = trained(tmp_path, tiny(norm=False, dropout=0.0), plugins=SHARP, optim="sgd")
    micro = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    four = trained(tmp_path, tiny(norm=False, dropout=0.0), plugins=SHARP, optim="sgd", **micro)
    assert four.state.global_step == four.woven.steps == 12
    assert four.woven.trainer.plugins["sharp"].sizes == [16, 16, 16, 16, 16, 10] * 2
    assert_near(four, one)
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (one, four)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_without_plugins_accumulation_is_the_trainers_large_batch(tmp_path: Path) -> None:
    host = trained(tmp_path, tiny(norm=False, dropout=0.0), kind=transformers.Trainer)
    micro = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert_near(trained(tmp_path, tiny(norm=False, dropout=0.0), **micro), host)


class Zeros(transformers.TrainerCallback):
    """Looks at the weights whenever the host says that a step ended."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.seen.append(bool((model.fc.weight[:, ::2] == 0).all()) and bool((model.fc.weight[:, 1::2] != 0).any()))


@pytest.mark.parametrize(
    "changed", [{}, {"bf16": True}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}], ids=str
)
def test_a_resumed_training_ends_as_the_unbroken_one(tmp_path: Path, changed: dict[str, Any]) -> None:
    look = Zeros()
    options = {"plugins": SHARP, "save_strategy": "steps", "save_steps": 4, **changed}
    unbroken = trained(tmp_path, tiny(), callbacks=[look], **options)
    assert look.seen == [True] * 12
    files = {file.name for file in (tmp_path / "checkpoint-4").iterdir()}
    assert {"plait.safetensors", "model.safetensors", "optimizer.pt", "trainer_state.json"} <= files
    for at in (4, 8):  # in the first epoch, and in the second
        resumed = trained(tmp_path, tiny(), resume=str(tmp_path / f"checkpoint-{at}"), **options)
        assert equal(unbroken, resumed)
        assert resumed.woven.trainer.plugins["sharp"].state_dict() == {"steps": 12}
    assert (Tiny.from_pretrained(tmp_path / "checkpoint-8").fc.weight[:, ::2] == 0).all()


def test_the_log_has_terms_and_values_of_plugins(tmp_path: Path) -> None:
    entries = [e for e in trained(tmp_path, tiny(), plugins=SHARP).state.log_history if "loss" in e]
    assert len(entries) == 12
    assert all(e.keys() >= {"loss", "learning_rate", "grad_norm", "sharp/size", "sharp/steps"} for e in entries)
    assert [e["sharp/steps"] for e in entries] == list(range(1, 13))
    assert all(0 < e["sharp/size"] < e["loss"] for e in entries)
    assert [e["learning_rate"] for e in entries] == pytest.approx([1e-2 * (1 - i / 12) for i in range(12)])


def test_columns_for_plugins_stay_in_the_batches_and_out_of_the_model(tmp_path: Path) -> None:
    class Grouped(Plugin):
        name, contract = "grouped", 1

        def needs(self) -> frozenset[str]:
            return frozenset({"field:group"})

        @hookimpl
        def example_weights(self, batch: Any) -> Tensor:
            return 1.0 + batch["group"].float()

    with pretend(Grouped):
        woven = trained(tmp_path, tiny(), plugins=["grouped"], eval_dataset=rows())
        others = [{**row, "sex": row["group"]} for row in rows()]
        for row in others:
            del row["group"]
        with pytest.raises(Refused, match=r"'grouped' needs a field 'group'"):
            trained(tmp_path, tiny(), plugins=["grouped"], data=others)
        renamed = trained(tmp_path, tiny(), plugins=["grouped"], data=others, fields={"sex": "group"})
    assert equal(woven, renamed)
    assert not equal(woven, trained(tmp_path, tiny(), plugins=[]))  # the column weighs examples
    assert woven.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    ("labels", "config"),
    [
        ("number", {"problem_type": "regression", "num_labels": 1}),
        ("several", {"problem_type": "multi_label_classification"}),
    ],
)
def test_the_task_is_the_models(tmp_path: Path, labels: str, config: dict[str, Any]) -> None:
    config |= {"norm": False}  # behind it a bias has no gradient but rounding, which Adam makes large
    host = trained(tmp_path, tiny(**config), kind=transformers.Trainer, data=rows(labels))
    woven = trained(tmp_path, tiny(**config), data=rows(labels))
    assert_near(woven, host)
    assert woven.woven.trainer.info.task == {"number": "regression", "several": "multilabel"}[labels]


def gpt() -> Any:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=20, n_positions=12, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )


def texts() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 12, (42,), generator=draw).tolist()
    return [{"input_ids": torch.randint(1, 20, (length,), generator=draw)} for length in lengths]


def padded(features: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    words = nn.utils.rnn.pad_sequence([f["input_ids"] for f in features], batch_first=True)
    return {"input_ids": words, "attention_mask": (words > 0).long(), "labels": words.masked_fill(words == 0, -100)}


@pytest.mark.parametrize("micro", [1, 4])
def test_a_language_model_trains_on_the_mean_over_tokens(tmp_path: Path, micro: int) -> None:
    """Texts of different length, also from one micro-batch to the next; oracle: the host."""
    options = {"data": texts(), "data_collator": padded, "per_device_train_batch_size": 16 // micro}
    options["gradient_accumulation_steps"] = micro
    host = trained(tmp_path, gpt(), kind=transformers.Trainer, **options)
    woven = trained(tmp_path, gpt(), **options)
    assert_near(woven, host)
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (host, woven)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_token_loss_of_a_batch_is_the_models(tmp_path: Path) -> None:
    batch, model = padded(texts()[:5]), gpt().eval()
    outputs = model(**batch)
    each = token_loss(outputs.logits, {"label": batch["labels"]})
    assert each.shape == (5,)
    torch.testing.assert_close(each.mean(), outputs.loss)


def test_another_loss_than_the_hosts_is_refused(tmp_path: Path) -> None:
    class Weighted(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Tensor:
            weight = torch.tensor([1.0, 9.0, 1.0, 1.0])
            return functional.cross_entropy(model(inputs["pixel_values"]).logits, inputs["labels"], weight=weight)

    class Mine(WovenTrainer, Weighted):
        pass

    with pytest.raises(BadInput, match=r"the Trainer's own loss is .* that plait would train .*loss=loss"):
        trained(tmp_path, tiny(), kind=Mine)

    def each(outputs: Tensor, batch: Any) -> Tensor:
        weight = torch.tensor([1.0, 9.0, 1.0, 1.0])[batch["label"]]
        return functional.cross_entropy(outputs, batch["label"], reduction="none") * weight / weight.mean()

    assert trained(tmp_path, tiny(), kind=Mine, loss=each, max_steps=2).woven.steps == 2


def test_a_trainer_of_the_users_own_keeps_its_methods(tmp_path: Path) -> None:
    class Theirs(transformers.Trainer):
        def create_optimizer(self, model: Any = None) -> Any:
            if self.optimizer is None:
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate, momentum=0.5)
            return self.optimizer

    class Mine(WovenTrainer, Theirs):
        pass

    assert equal(trained(tmp_path, tiny(), kind=Theirs), trained(tmp_path, tiny(), kind=Mine))


class Late(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        pass


class Stepping(transformers.Trainer):
    def training_step(self, *args: Any, **options: Any) -> Any:
        return super().training_step(*args, **options)


class Deaf(WovenTrainer):
    def training_step(self, *_: Any, **__: Any) -> Tensor:
        return torch.zeros(())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor would not act.*loss=loss"),
        ({"compute_loss_func": lambda *_, **__: torch.zeros(())}, "compute_loss_func"),
        ({"optim": "lomo"}, "optim='lomo'"),
        ({"optim": "galore_adamw_layerwise", "optim_target_modules": ["fc"]}, "layerwise"),
        ({"optim": "adamw_bnb_8bit"}, "mask cannot hold"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"torch_compile": True}, r"WovenTrainer\(compile=True\)"),
        ({"callbacks": [Late()]}, r"Late\.on_pre_optimizer_step"),
        ({"kind": type("Mine", (WovenTrainer, Stepping), {})}, r"Stepping\.training_step would not be called"),
        (
            {
                "load_best_model_at_end": True,
                "save_only_model": True,
                "save_strategy": "epoch",
                "eval_strategy": "epoch",
            },
            "load_best_model_at_end",
        ),
    ],
)
def test_what_the_host_cannot_do_is_refused_before_a_step(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Refused, match=words):
        trained(tmp_path, model, plugins=SHARP, eval_dataset=rows(), **changed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: setattr(t, "is_deepspeed_enabled", True), "DeepSpeed steps its own optimizer"),
        (lambda t: setattr(t, "is_fsdp_enabled", True), "FSDP"),
        (lambda t: setattr(t.args, "_n_gpu", 2), "torchrun"),
        (lambda t: setattr(t.accelerator.state, "_mixed_precision", "fp16"), "fp16 scales the loss.*bf16=True"),
    ],
)
def test_what_this_machine_cannot_set_is_refused_too(tmp_path: Path, change: Callable[[Any], None], words: str) -> None:
    trainer = WovenTrainer(tiny(), settings(tmp_path), train_dataset=rows(), plugins=SHARP)
    change(trainer)
    try:
        with pytest.raises(Refused, match=words):
            trainer._prepare_for_training(4, trainer.get_train_dataloader(), None)
    finally:
        trainer.accelerator.state._mixed_precision = "no"


def test_a_training_step_that_hides_ours_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"counts 1 steps and plait made 0.*Deaf\.training_step"):
        trained(tmp_path, tiny(), kind=Deaf)


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "a", tiny(), kind=transformers.Trainer, save_strategy="epoch")
    with pytest.raises(BadCheckpoint, match=r"has no plait\.safetensors"):
        trained(tmp_path / "a", tiny(), resume=True)
    trained(tmp_path / "b", tiny(), save_strategy="epoch")
    with pytest.raises(BadCheckpoint, match=r"plugins"):
        trained(tmp_path / "b", tiny(), resume=True, plugins=SHARP)


def test_the_best_state_comes_back_with_its_masks(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 3, "eval_steps": 3}
    best |= {
        "eval_strategy": "steps",
        "metric_for_best_model": "loss",
        "greater_is_better": True,
    }  # the worst, so an early one
    woven = trained(tmp_path, tiny(), plugins=SHARP, eval_dataset=rows(), **best)
    step = woven.state.best_global_step
    assert step < 12 and woven.woven.steps == step
    kept = Tiny.from_pretrained(tmp_path / f"checkpoint-{step}").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in woven.model.state_dict().items())


def test_in_bf16_evaluation_and_export_are_as_they_should_be(tmp_path: Path) -> None:
    trainer = WovenTrainer(
        tiny(), settings(tmp_path, bf16=True), train_dataset=rows(), eval_dataset=rows(), plugins=SHARP
    )
    trainer.evaluate()  # the host patches the model for its precision here
    trainer.train()
    host = trained(tmp_path, tiny(), kind=transformers.Trainer, bf16=True, eval_dataset=rows())
    host.model.load_state_dict(trainer.model.state_dict())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(host.evaluate()["eval_loss"], rel=1e-2)
    assert trainer.predict(rows()).predictions.dtype.name == "float32"
    exported = trainer.woven.export()
    assert "forward" not in vars(exported)
    with torch.no_grad(), evaluating(trainer.model):
        given = torch.stack([row["pixel_values"] for row in rows()])
        assert torch.equal(exported(given).logits, trainer.model(given).logits)


def test_it_can_train_again_and_from_model_init(tmp_path: Path) -> None:
    twice = WovenTrainer(model_init=lambda: tiny(), args=settings(tmp_path), train_dataset=rows(), plugins=SHARP)
    twice.train()
    first = copy.deepcopy(twice.model.state_dict())
    twice.train()
    assert twice.woven.steps == 12
    assert all(torch.equal(value, first[name]) for name, value in twice.model.state_dict().items())
    more = trained(tmp_path, tiny(), plugins=SHARP)
    more.train()
    assert more.woven.steps == 12 and (more.model.fc.weight[:, ::2] == 0).all()


def test_rows_without_numbers_need_an_example(tmp_path: Path) -> None:
    class Endless(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            while True:
                yield from rows()

    with pytest.raises(BadInput, match=r"WovenTrainer\(example=a batch\)"):
        trained(tmp_path, tiny(), data=Endless(), max_steps=3)
    example = torch.utils.data.default_collate(rows()[:8])
    assert trained(tmp_path, tiny(), data=Endless(), max_steps=3, plugins=SHARP, example=example).woven.steps == 3


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "plait.adapters.transformers")
    with pytest.raises(BadInput, match=r"pip install 'plait-core\[transformers\]'"):
        importlib.import_module("plait.adapters.transformers")
