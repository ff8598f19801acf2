"""Runs: figures, kills in every phase, two processes, other plugins, refusals."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.declare.recipe import assemble
from plait.errors import BadInput, Refused
from plait_authoring.kill import final_state, first_difference, forked, resume_until_done
from plait_authoring.together import together
from plait_cdmoe import storage
from plait_cdmoe.options import CdmoeOptions
from plait_cdmoe.presets import BASELINES

pytestmark = pytest.mark.smoke

SMALL = {
    "device": "cpu",
    "data.characters": 12000,
    "data.vocab": 280,
    "data.length": 16,
    "data.domains": ["code", "docs"],
    "model.hidden": 32,
    "model.layers": 3,
    "model.config": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "train.batch_size": 8,
    "checkpoint.every_steps": 2,
}


def wanted(steps: int = 4, settings: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    own = {"layers": 2, "texts": 6, "base_steps": 6, "base_batch": 4, "windows": 6, "questions": 3, "speed": False}
    return {
        "plugins": {"cdmoe": {**own, **options}},
        "data": "python-docs",
        "model": "transformers",
        "steps": steps,
        "settings": {**SMALL, **(settings or {})},
    }


def run(out: Path, steps: int = 4, **options: Any) -> plait.Run:
    return plait.run(**wanted(steps, **options), out=out)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> plait.Run:
    """A run of the method, with four steps of fine-tuning."""
    return run(tmp_path_factory.mktemp("tuned") / "run", curve=True)


@pytest.fixture(scope="module")
def untuned(tmp_path_factory: pytest.TempPathFactory) -> plait.Run:
    """The same without."""
    return run(tmp_path_factory.mktemp("untuned") / "run", 0, curve=True)


def test_a_run_condenses_tunes_and_exports(tuned: plait.Run, tmp_path: Path) -> None:
    first, second = tuned, run(tmp_path / "two", curve=True)
    drop = {"cdmoe/search_seconds", "cdmoe/search_seconds@export"}
    assert str({k: v for k, v in first.metrics.items() if k not in drop}) == str(
        {k: v for k, v in second.metrics.items() if k not in drop}
    )
    metrics = first.metrics
    assert metrics["cdmoe/excess"] == pytest.approx(
        math.log(metrics["task/perplexity"] / metrics["cdmoe/perplexity_original"]), abs=1e-5
    )
    assert metrics["cdmoe/excess@export"] == pytest.approx(metrics["cdmoe/excess"], abs=1e-4)
    assert metrics["cdmoe/excess_p2"] == pytest.approx(metrics["cdmoe/excess_before"], abs=1e-6)
    assert metrics["cdmoe/memory_ratio_p2"] == metrics["cdmoe/memory_ratio"]
    assert metrics["cdmoe/reload_difference@export"] == 0.0
    exported = storage.AutoModelForCausalLM.from_pretrained(first.export)
    found = json.loads((first.path / "cdmoe" / "search.json").read_text())
    assert sorted(exported.config.condensed_layers) == sorted(found["beams"][0]["order"])
    assert (first.export / "tokenizer.json").exists()
    assert any((first.path / "checkpoints").iterdir())


def test_only_the_condensed_layers_are_trained(tuned: plait.Run, untuned: plait.Run) -> None:
    ends = [final_state(done.path)["model"] for done in (tuned, untuned)]
    moved = {name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])}
    assert moved
    assert all(".mlp." in name and name.endswith("_proj.weight") for name in moved)
    assert untuned.metrics["cdmoe/excess"] == pytest.approx(untuned.metrics["cdmoe/excess_before"], abs=1e-6)


def test_a_sharpness_aware_step_moves_the_condensed_layers_alone(
    tuned: plait.Run, untuned: plait.Run, tmp_path: Path
) -> None:
    pytest.importorskip("plait_fairsam")
    given = wanted()
    given["plugins"]["fairsam"] = {}
    both = plait.run(**given, out=tmp_path / "both")
    assert both.metrics["fairsam/passes_per_step"] == 2
    ends = [final_state(done.path)["model"] for done in (both, tuned, untuned)]
    moved = {name for name in ends[0] if not torch.equal(ends[0][name], ends[2][name])}
    assert moved == {name for name in ends[1] if not torch.equal(ends[1][name], ends[2][name])}
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in moved)


@pytest.mark.parametrize("name", [*BASELINES])
def test_every_preset_runs(tmp_path: Path, name: str) -> None:
    metrics = run(tmp_path / "run", 0, baseline=name, curve=True, questions=0).metrics
    assert metrics["cdmoe/memory_ratio"] < 1
    assert metrics["cdmoe/excess_p2"] == pytest.approx(metrics["cdmoe/excess"], abs=1e-6)


def test_no_layers_leave_the_original(tmp_path: Path) -> None:
    metrics = run(tmp_path / "run", 0, layers=0).metrics
    assert metrics["cdmoe/excess"] == 0
    assert metrics["cdmoe/memory_ratio"] == 1


def test_the_control_keeps_the_router_and_its_memory(tmp_path: Path) -> None:
    metrics = run(tmp_path / "run", 3, control=True).metrics
    assert metrics["cdmoe/memory_ratio"] == 1
    assert metrics["cdmoe/excess_before"] == 0
    assert metrics["cdmoe/excess"] != 0


def test_killed_in_every_phase_it_ends_with_the_same_bits(
    tuned: plait.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at a write: of the base, of the search, of the figures, of a checkpoint."""
    recipe = assemble(None, **wanted(curve=True)).model_dump(mode="json")
    for number, reached in ((10, "recipe.toml"), (16, "cdmoe/search.json"), (28, "checkpoints")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{number}"))
        path = tmp_path / f"killed-{number}"
        assert forked(lambda path=path: run(path, curve=True), kill_at=("os.replace", number)) == -signal.SIGKILL
        assert (path / reached).exists()
        assert not (path / "export").exists()
        resume_until_done(path, recipe)
        assert first_difference(final_state(path), final_state(tuned.path)) is None
        ends = [plait.load_run(end).metrics for end in (path, tuned.path)]
        ends = [{name: value for name, value in end.items() if "search_seconds" not in name} for end in ends]
        assert str(ends[0]) == str(ends[1])


def test_two_processes_find_the_same_and_end_alike(tuned: plait.Run, tmp_path: Path) -> None:
    given = wanted(settings={"distributed.timeout": 60})
    ended = together(lambda rank: plait.run(**given, out=tmp_path / "two"), 2)
    assert [end.code for end in ended] == [0, 0], ended
    searches = [json.loads((path / "cdmoe" / "search.json").read_text()) for path in (tuned.path, tmp_path / "two")]
    assert {**searches[0], "seconds": 0} == {**searches[1], "seconds": 0}
    two, one = final_state(tmp_path / "two"), final_state(tuned.path)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_model_of_a_folder_is_condensed_without_a_base(tmp_path: Path, small: Callable[..., Any]) -> None:
    small("deepseek_v2", torch.float32, vocab_size=280).save_pretrained(tmp_path / "model")
    settings = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    made = plait.run(
        plugins={"cdmoe": {"layers": 2, "texts": 6, "base_steps": 0, "windows": 6, "questions": 0, "speed": False}},
        data="python-docs",
        model="transformers",
        steps=0,
        settings={**settings, "model.path": str(tmp_path / "model")},
        out=tmp_path / "run",
    )
    again = storage.AutoModelForCausalLM.from_pretrained(made.export)
    assert type(again).__name__ == "CondensedDeepseekV2ForCausalLM"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 4}, "layers = 4 is more than the 3 layers"),
        ({"kept": 7}, "kept = 7 is more than the 6 experts"),
        ({"distance": "far"}, "distance"),
        ({"replay": "nowhere"}, "gates.json cannot be read"),
    ],
)
def test_bad_options_leave_nothing(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        run(tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_model_without_experts_is_named(tmp_path: Path) -> None:
    given = wanted(settings={"model.family": "llama", "model.config": {}}, base_steps=0)
    with pytest.raises(BadInput, match="'llama' has no adapter; there are adapters for qwen2_moe"):
        plait.run(**given, out=tmp_path / "run")


def test_who_else_owns_experts_is_refused() -> None:
    from plait import Ownership, Plugin
    from plait.planning.discovery import pretend

    class Other(Plugin):
        """Removes experts of its own."""

        name = "other"
        contract = 1

        def ownership(self) -> tuple[Ownership, ...]:
            """All."""
            return (Ownership("experts", "*"),)

    with pretend(Other):
        plan = plait.plan(plugins=["cdmoe", "other"], data="python-docs", model="transformers")
        with pytest.raises(Refused, match=r"cdmoe.*other|other.*cdmoe"):
            plan.raise_if_refused()


def test_presets_are_options() -> None:
    for name in BASELINES:
        options = CdmoeOptions(baseline=name).model_dump()
        assert {key: options[key] for key in BASELINES[name]} == BASELINES[name] and options["baseline"] == name
