"""The model ``transformers``, trained on texts: the loss is transformers' own, and the export loads without plait."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import plait
from plait.data import Data, DataInfo
from plait.errors import BadInput, Refused
from plait.planning.discovery import pretend
from plait.training.forward import Forward
from plait.training.objectives import default_objective, token_losses
from plait_authoring.kill import final_state, first_difference, forked
from plait_authoring.together import together
from plait_zoo.language import build as build_model
from plait_zoo.language import with_router
from plait_zoo.plugin import ZooPlugin
from plait_zoo.text_options import TransformersOptions

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # a forked process cannot use the threads of its parent

WORDS = ["the cat sat on the mat. ", "def f(x):\n    return x\n", "Help on topic: see also topics.\n"]
SMALL = {"hidden": 32, "layers": 2}
INFO = DataInfo("causal-lm", (16,), 40, 1, frozenset({"input", "group", "index"}), {"length": 16})


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with pretend(ZooPlugin, distribution="plait", alone=True):
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three domains of a few texts each, of different length."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, words in zip(("bible", "code", "docs"), WORDS, strict=True):
        lines = [json.dumps({"text": f"{number} {words * (1 + number % 4)}"}) for number in range(30)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def recipe(corpus: Path, **changes: Any) -> dict[str, Any]:
    data = {"path": f"{corpus}/*.jsonl", "length": 16, "vocab": 270, "test_share": 0.2, "validation_share": 0.1}
    return {
        "data": {"name": "text-files", **data, **changes.pop("data", {})},
        "model": {"name": "transformers", **SMALL, **changes.pop("model", {})},
        "train": {"steps": 8, "batch_size": 8, **changes.pop("train", {})},
        "optimizer": {"name": "adamw", "lr": 0.003},
        "checkpoint": {"every_steps": 3, "keep": 9},
        "device": "cpu",
        **changes,
    }


def small(family: str = "llama", info: DataInfo = INFO, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_model(TransformersOptions(family=family, **{**SMALL, **options}), info)


def loss_of(model: Any, data: Data, batch: Any) -> Tensor:
    from plait.distributed.world import World

    way = (data.prepare, data.forward, data.readout)
    forward = Forward.of(World(torch.device("cpu")), "fp32", "causal-lm", model, *way)
    return default_objective(data.info, forward(model, batch), batch)


# ---- the loss --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_the_loss_is_that_of_transformers(family: str, corpus: Path, load: Callable[..., Data]) -> None:
    data = load("text-files", path=f"{corpus}/*.jsonl", rows="texts", length=20, vocab=270)
    model = small(family, data.info).eval()
    rows = torch.tensor([0, 5, 40, 61])
    with torch.no_grad():
        ours = loss_of(model, data, data.train.__getitems__(rows))
        for row, loss in zip(rows.tolist(), ours, strict=True):
            one = data.train.__getitems__([row])  # alone it has no padding
            assert bool(one["attention_mask"].all())
            own = (
                model(input_ids=one["input"], labels=one["input"], output_router_logits=False)
                if family == "qwen2_moe"
                else model(input_ids=one["input"], labels=one["input"])
            )
            torch.testing.assert_close(loss, own.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_side_of_padding_changes_nothing(family: str, corpus: Path, load: Callable[..., Data]) -> None:
    losses = []
    for side in ("right", "left"):
        data = load("text-files", path=f"{corpus}/*.jsonl", rows="texts", length=20, vocab=270, padding=side)
        model = small(family, data.info).eval()
        batch = data.train.__getitems__(torch.arange(9))
        assert not bool(batch["attention_mask"].all())
        losses.append(loss_of(model, data, batch))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_has_no_gradient(side: str, corpus: Path, load: Callable[..., Data]) -> None:
    data = load("text-files", path=f"{corpus}/*.jsonl", rows="texts", length=20, vocab=270, padding=side)
    model = small("llama", data.info, config={"tie_word_embeddings": False})
    batch = data.train.__getitems__(torch.arange(9))
    fill = data.train.fill  # type: ignore[attr-defined]
    batch["input"][batch["attention_mask"] == 0] = 269
    assert fill == 0 and 269 not in batch["input"][batch["attention_mask"] == 1]
    loss_of(model, data, batch).sum().backward()
    assert float(model.get_input_embeddings().weight.grad[269].abs().sum()) == 0


def test_perplexity_is_that_of_every_token(corpus: Path, tmp_path: Path, load: Callable[..., Data]) -> None:
    done = plait.run(recipe(corpus), out=tmp_path / "run")
    options = done.recipe.data.options
    data = load("text-files", **options)
    sums: dict[str, list[float]] = {"": [0.0, 0.0]}
    for row in range(len(data.test)):
        batch = data.test.__getitems__([row])
        with torch.no_grad():
            loss = float(done.model(input_ids=batch["input"], labels=batch["input"]).loss)
        for name in ("", "_" + data.names["group"][int(batch["group"])]):
            total = sums.setdefault(name, [0.0, 0.0])
            total[0], total[1] = total[0] + 15 * loss, total[1] + 15
    assert len(sums) == 4
    for name, (nats, tokens) in sums.items():
        assert math.isclose(done.metrics[f"task/perplexity{name}"], math.exp(nats / tokens), rel_tol=1e-4), name


# ---- a run -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["qwen2_moe", "gpt2"])
def test_a_killed_run_ends_bit_identical(family: str, corpus: Path, tmp_path: Path) -> None:
    """gpt2 has dropout."""
    wanted = recipe(corpus, model={"family": family})
    small(family)  # transformers imported once, for all forks
    plait.run(wanted, out=tmp_path / "unbroken")
    assert forked(lambda: plait.run(wanted, out=tmp_path / "killed"), kill_at=("os.replace", 6)) == -9
    plait.resume(tmp_path / "killed")
    assert first_difference(final_state(tmp_path / "unbroken"), final_state(tmp_path / "killed")) is None


def test_two_processes_have_the_figures_of_one(corpus: Path, tmp_path: Path) -> None:
    wanted = recipe(corpus, data={"rows": "texts"}, model={"family": "llama"}, distributed={"timeout": 60})
    small()
    ended = together(lambda rank: plait.run(wanted, out=tmp_path / "two"), 2)
    assert [e.code for e in ended] == [0, 0], ended
    two, one = plait.load_run(tmp_path / "two"), plait.run(wanted, out=tmp_path / "one")
    assert two.metrics.keys() == one.metrics.keys()
    assert all(math.isclose(value, one.metrics[name], rel_tol=1e-3) for name, value in two.metrics.items())


def test_the_export_is_a_folder_of_transformers(corpus: Path, tmp_path: Path) -> None:
    done = plait.run(recipe(corpus), out=tmp_path / "run")
    names = {path.name for path in done.export.iterdir()}
    assert {"config.json", "plait.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    code = (
        "import sys, torch, transformers as t; p = sys.argv[1];"
        "m = t.AutoModelForCausalLM.from_pretrained(p); k = t.AutoTokenizer.from_pretrained(p);"
        "i = k('the cat', return_tensors='pt');"
        "torch.save((i['input_ids'], m(**i).logits), sys.argv[2]);"
        "assert k.decode(m.generate(**i, max_new_tokens=3, do_sample=False)[0]).startswith('the cat');"
        "assert 'plait' not in sys.modules"
    )
    out = tmp_path / "logits.pt"
    ended = subprocess.run([sys.executable, "-c", code, str(done.export), str(out)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    tokens, logits = torch.load(out)
    with torch.no_grad():
        assert torch.equal(done.model(input_ids=tokens).logits, logits)
        assert torch.equal(plait.load_run(done.path).model(input_ids=tokens).logits, logits)
    again = recipe(corpus, model={"path": str(done.export)}, train={"steps": 0})
    del again["model"]["hidden"], again["model"]["layers"]
    resumed = plait.run(again, out=tmp_path / "again")
    assert resumed.metrics["task/loss"] == pytest.approx(done.metrics["task/loss"], abs=1e-9)
    assert json.loads((done.export / "plait.json").read_text())["task"] == "causal-lm"


def test_a_model_with_other_shapes_than_its_config_is_exported_plainly(corpus: Path, tmp_path: Path) -> None:
    from plait import Plugin, hookimpl

    class Narrow(Plugin):
        name = "narrow"
        contract = 1

        @hookimpl
        def export(self, model: nn.Module) -> nn.Module:
            layer: Any = model.get_submodule("model.layers.0.mlp")
            layer.up_proj.weight = nn.Parameter(layer.up_proj.weight[:8].clone())
            layer.gate_proj.weight = nn.Parameter(layer.gate_proj.weight[:8].clone())
            layer.down_proj.weight = nn.Parameter(layer.down_proj.weight[:, :8].clone())
            return model

    with pretend(ZooPlugin, Narrow, distribution="plait", alone=True):
        done = plait.run(recipe(corpus, model={"family": "llama"}, plugins={"narrow": {}}), out=tmp_path / "run")
    names = {path.name for path in done.export.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert json.loads((done.export / "config.json").read_text())["task"] == "causal-lm"


def test_a_woven_loop_trains_the_same_model(corpus: Path, load: Callable[..., Data]) -> None:
    data = load("text-files", path=f"{corpus}/*.jsonl", rows="texts", length=20, vocab=270)
    model = small("qwen2_moe", data.info)
    batches = [data.train.__getitems__(torch.arange(start, start + 4)) for start in (0, 4)]
    theirs = [{"input_ids": b["input"], "attention_mask": b["attention_mask"], "group": b["group"]} for b in batches]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    woven = plait.weave(model, optimizer, total_steps=2, example=theirs[0], task="causal-lm")
    reports = [woven.step(batch) for batch in theirs]
    assert set(reports[0].terms) == {"model/router"}
    figures = woven.evaluate(theirs)
    with torch.no_grad():
        sums = sum(
            token_losses(model(input_ids=b["input"], attention_mask=b["attention_mask"]).logits, b).sum(0)
            for b in batches
        )
    assert figures["task/perplexity"].value == pytest.approx(float((sums[0] / sums[1]).exp()), rel=1e-5)  # type: ignore[index,union-attr]


# ---- routers ---------------------------------------------------------------------------------------------------------
def test_the_routers_loss_is_that_of_transformers(corpus: Path, load: Callable[..., Data]) -> None:
    data = load("text-files", path=f"{corpus}/*.jsonl", length=16, vocab=270)
    model = small("qwen2_moe", data.info)
    batch = data.train.__getitems__(torch.arange(1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    woven = plait.weave(model, optimizer, total_steps=1, example=batch, task="causal-lm")
    report = woven.gradients(batch)
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.zero_grad()
    own = model(input_ids=batch["input"], labels=batch["input"])  # in training with its auxiliary loss
    own.loss.backward()
    torch.testing.assert_close(report.loss, own.loss.detach())
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, msg=name)
    assert report.terms["model/router"].item() == pytest.approx(0.01 * own.aux_loss.item(), rel=1e-5)


def test_it_acts_in_training_alone_and_can_be_left_out() -> None:
    model = small("qwen2_moe")
    tokens = torch.randint(40, (2, 8))
    assert model.train()(input_ids=tokens).aux_loss is not None
    assert model.eval()(input_ids=tokens).aux_loss is None
    assert not hasattr(small("qwen2_moe", router_loss=0.0), "loss_terms")
    assert not hasattr(small("llama"), "loss_terms")
    assert small("mixtral", router_loss=0.5).loss_terms.factor == 0.5
    with pytest.raises(BadInput, match=r"model\.router_loss: the family llama has no load-balancing loss"):
        with_router(small("llama"), 0.1)


# ---- building --------------------------------------------------------------------------------------------------------
def test_the_default_is_the_cards_small_model() -> None:
    info = DataInfo("causal-lm", (64,), 512, 3, INFO.fields, {"length": 64})
    model = small(info=info, family="qwen2_moe", hidden=64, layers=6)
    assert sum(p.numel() for p in model.parameters()) == 452_928
    config = model.config
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (16, 4, 16)
    assert (config.shared_expert_intermediate_size, config.norm_topk_prob) == (16, False)
    assert (config.tie_word_embeddings, model.loss_terms.factor) == (True, 0.01)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            model.parameters(), small(info=info, family="qwen2_moe", hidden=64, layers=6).parameters(), strict=True
        )
    )


@pytest.mark.parametrize(
    "family", ["mistral", "qwen3", "mixtral", "gemma2", "gpt_neox", "opt", "bloom", "deepseek_v2", "deepseek_v3"]
)
def test_families_are_built_small_and_run(family: str) -> None:
    model = small(family)
    assert model.config.vocab_size == 40
    assert sum(p.numel() for p in model.parameters()) < 600_000
    assert model(input_ids=torch.zeros(1, 16, dtype=torch.int64)).logits.shape == (1, 16, 40)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"family": "lama"}, "no family 'lama'. Did you mean 'llama'"),
        ({"heads": 5}, "model.hidden = 32 is not a multiple of model.heads = 5"),
        ({"config": {"num_expert": 3}, "family": "qwen2_moe"}, "model.config: qwen2_moe has no 'num_expert'"),
        ({"config": {"hidden_act": "none"}}, "llama cannot be built"),
        ({"config": {"num_experts_per_tok": 99}, "family": "qwen2_moe"}, "qwen2_moe"),
        ({"family": "bert"}, "bert sees the tokens that it is to predict"),
        ({"family": "bert", "config": {"is_decoder": True}}, ""),
    ],
)
def test_what_cannot_be_built_is_said(options: dict[str, Any], words: str) -> None:
    if not words:
        small(**options)
        return
    with pytest.raises(BadInput) as told:
        small(**options)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_a_path_and_a_fresh_model_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="layers is of a fresh model, and path gives a trained one"):
        TransformersOptions(path="x", layers=3)
    assert TransformersOptions(path="x", layers=6).path == "x"


# ---- folders ---------------------------------------------------------------------------------------------------------
def test_folders_that_cannot_be_loaded_are_refused(tmp_path: Path) -> None:
    def refused(words: str, info: DataInfo = INFO) -> None:
        with pytest.raises(BadInput) as told:
            build_model(TransformersOptions(path=str(tmp_path)), info)
        assert words in str(told.value) and "\n" not in str(told.value)

    refused("is no folder with a config.json")
    model = small()
    model.save_pretrained(tmp_path)
    build_model(TransformersOptions(path=str(tmp_path)), INFO)
    refused("has 41 tokens and the model", DataInfo("causal-lm", (16,), 41))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused("cannot be loaded")
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    refused("has no *.safetensors")
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused("weights are not all there (missing_keys: model.layers.2.")
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "model_type": "secret", "auto_map": {"AutoConfig": "x.Y"}})
    )
    (tmp_path / "x.py").write_text("raise SystemExit('code of the folder was run')")
    refused("cannot be loaded")
    (tmp_path / "config.json").write_text("{")
    refused("cannot be loaded")


def test_another_tokenizer_than_the_models_is_refused(corpus: Path, tmp_path: Path) -> None:
    done = plait.run(recipe(corpus), out=tmp_path / "run")
    again = recipe(corpus, data={"vocab": 265}, train={"steps": 0})
    again["model"] = {"name": "transformers", "path": str(done.export)}
    with pytest.raises(BadInput, match=f"--set data.tokenizer={done.export}"):
        plait.run(again, out=tmp_path / "again")
    again["data"]["tokenizer"] = str(done.export)
    resumed = plait.run(again, out=tmp_path / "again")
    assert resumed.metrics["task/loss"] == pytest.approx(done.metrics["task/loss"], abs=1e-9)
    assert (resumed.export / "tokenizer.json").is_file()


def test_other_tasks_are_refused_before_anything_starts(corpus: Path) -> None:
    plan = plait.plan(data="tiny-images", model="transformers")
    with pytest.raises(Refused, match="needs task:causal-lm"):
        plan.raise_if_refused()
    assert "transformers" not in {i.plugin for hook in plan.composed.values() for i in hook.implementations}


def test_planning_imports_no_transformers() -> None:
    code = (
        "import sys, plait; plait.plan(data='python-docs', model='transformers');"
        "print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- channels --------------------------------------------------------------------------------------------------------
def test_a_channel_of_a_gated_layer_is_three_slices() -> None:
    import copy

    model: Any = copy.deepcopy(small("llama"))
    assert model.channel_groups.__self__ is model
    groups = model.channel_groups()
    assert [group[0] for group in groups] == [f"model.layers.{n}.mlp.up_proj" for n in range(2)]
    tokens = torch.arange(12).reshape(1, 12)
    keep = torch.arange(1, 128)
    with torch.no_grad():
        for up, _, (down,), (gate,) in groups:
            rows = {name: model.get_submodule(name) for name in (up, gate, down)}
            rows[up].weight[0] = rows[gate].weight[0] = 0
            rows[down].weight[:, 0] = 0
        before = model(input_ids=tokens).logits
        for up, _, (down,), (gate,) in groups:
            for name in (up, gate):
                layer = model.get_submodule(name)
                layer.weight = nn.Parameter(layer.weight[keep])
            layer = model.get_submodule(down)
            layer.weight = nn.Parameter(layer.weight[:, keep])
        torch.testing.assert_close(model(input_ids=tokens).logits, before)
    assert small("gpt2").__dict__.get("channel_groups") is None
    names = [group[0] for group in small("qwen2_moe").channel_groups()]
    assert names == [f"model.layers.{n}.mlp.shared_expert.up_proj" for n in range(2)]
