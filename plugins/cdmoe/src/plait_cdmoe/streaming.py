"""A model that is never in memory as a whole: its layers are read one by one, and the condensed model is written so.

What is in memory at a time: one decoder layer, the embeddings, the states of the calibration texts, and some of
the outputs of the experts (`Estimate`).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .condensed import CondensedMLP, fold
from .decoder import Decoder
from .errors import CdmoeError
from .experts import BUDGET, WORKING
from .families import LAYOUTS, Family
from .options import SearchOptions
from .search import Search, checked

__all__ = ["Estimate", "Folder", "Streamed", "estimate", "opened", "write"]

EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight$")


class Folder:
    """A local model in Hugging Face's layout: ``config.json`` and ``*.safetensors``.

    Raises:
        CdmoeError: not such a folder, a family without adapter, or a model that is condensed already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            described = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CdmoeError(f"{path} is no folder with a config.json of a Hugging Face model") from error
        kind = str(described.get("model_type"))
        if described.get("condensed_layers"):
            raise CdmoeError(f"{path} is condensed already: give the original model")
        if kind not in LAYOUTS:
            raise CdmoeError(f"{path}: model_type {kind!r} has no adapter; there are adapters for {', '.join(LAYOUTS)}")
        self.files = sorted(path.glob("*.safetensors"))
        if not self.files:
            raise CdmoeError(f"{path} has no *.safetensors; convert other weights with save_pretrained")

    @cached_property
    def places(self) -> dict[str, Path]:
        """Tensor name -> its file."""
        names: dict[str, Path] = {}
        for file in self.files:
            try:
                with safe_open(file, framework="pt") as stored:
                    names |= dict.fromkeys(stored.keys(), file)
            except Exception as error:  # safetensors has several for a damaged file
                raise CdmoeError(f"{file} cannot be read: {error}") from error
        return names

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {file.name: file.stat().st_size for file in self.files}

    def read(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without the prefix."""
        inside = [name for name in self.places if name.startswith(prefix)]
        tensors: dict[str, Tensor] = {}
        for file in sorted({self.places[name] for name in inside}):
            with safe_open(file, framework="pt") as stored:
                for name in inside:
                    if self.places[name] == file:
                        tensors[name.removeprefix(prefix)] = stored.get_tensor(name)
        return tensors

    def layer_of(self, name: str) -> int | None:
        """The decoder layer that a tensor belongs to."""
        match = re.match(r"model\.layers\.(\d+)\.", name)
        return int(match.group(1)) if match else None


class Streamed:
    """The weights of a folder, one decoder layer at a time (`plait_cdmoe.decoder.Weights`).

    Args:
        folder: of the model.
        dtype: of the computation; None: as on disk.
    """

    resident = False

    def __init__(self, folder: Folder, dtype: torch.dtype | None = None) -> None:
        import transformers

        self.folder, self.dtype = folder, dtype
        config = transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True)
        with torch.device("meta"):
            self.model: Any = transformers.AutoModelForCausalLM.from_config(config)
        outer = {name: self._cast(folder.read(name)[""]) for name in folder.places if folder.layer_of(name) is None}
        missing, unexpected = self.model.load_state_dict(outer, strict=False, assign=True)
        self.model.tie_weights()
        left = [n for n in missing if folder.layer_of(n) is None and self.model.get_parameter(n).is_meta]
        if left or unexpected:
            raise CdmoeError(f"{folder.path}: the weights do not fit the model ({', '.join([*left, *unexpected][:3])})")
        base = self.model.model
        base.rotary_emb = type(base.rotary_emb)(config=config)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if self.dtype is not None and tensor.is_floating_point() else tensor

    @contextlib.contextmanager
    def of(self, place: int) -> Iterator[None]:
        """Read the layer, and forget it afterwards."""
        layer = self.model.model.layers[place]
        tensors = fused(
            {name: self._cast(tensor) for name, tensor in self.folder.read(f"model.layers.{place}.").items()}
        )
        try:
            layer.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:200]
            raise CdmoeError(f"{self.folder.path}: layer {place} does not fit the model: {detail}") from error
        del tensors
        layer.requires_grad_(False)
        layer.eval()
        try:
            yield
        finally:
            layer.to("meta")


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer's tensors as transformers 5 has them: the experts' matrices stacked; the given ones are used up."""
    experts = 1 + max((int(m.group(1)) for name in tensors if (m := EXPERT.search(name))), default=-1)
    if not experts:
        return tensors
    prefix = "mlp.experts."
    gate, down = tensors[f"{prefix}0.gate_proj.weight"], tensors[f"{prefix}0.down_proj.weight"]
    width = len(gate)
    gate_up, downs = gate.new_empty(experts, 2 * width, gate.shape[1]), down.new_empty(experts, *down.shape)
    for expert in range(experts):
        gate_up[expert, :width] = tensors.pop(f"{prefix}{expert}.gate_proj.weight")
        gate_up[expert, width:] = tensors.pop(f"{prefix}{expert}.up_proj.weight")
        downs[expert] = tensors.pop(f"{prefix}{expert}.down_proj.weight")
    return {**tensors, f"{prefix}gate_up_proj": gate_up, f"{prefix}down_proj": downs}


@dataclass(frozen=True)
class Estimate:
    """What condensing a folder takes.

    Attributes:
        model, layer, states, outputs: bytes of the model on disk, of its largest decoder layer, of the states of the
            texts, and of expert outputs at a time.
        memory: bytes at the most, the estimate of the command's peak beside Python's own 0.5 to 0.8 GB.
        written: bytes on disk afterwards.
        work: floating-point operations.
    """

    model: int
    layer: int
    states: int
    outputs: int
    memory: int
    written: int
    work: float


def estimate(folder: Folder, model: Any, options: SearchOptions, tokens: int, long_tokens: int) -> Estimate:
    """Before anything is computed.

    Args:
        folder: of the model.
        model: its architecture, on the meta device.
        options: of the search.
        tokens, long_tokens: of the calibration texts, truncated and whole.
    """
    family = Family(model)
    sizes, kept = family.geometry(), checked(options, family)
    width = 2 if "16" in str(model.dtype) else 4
    by_layer = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    outer = sum(p.numel() for p in model.parameters()) - sum(by_layer)
    candidates = sizes.layers if options.layers else 0
    survey = (3 * tokens + 2 * long_tokens + 3 * max(tokens, long_tokens)) * sizes.hidden * width
    carried = (candidates + 2) * tokens * sizes.hidden * width
    states = max(survey, carried)
    outputs = min(BUDGET, tokens * sizes.experts * sizes.hidden * width)
    layer = max(by_layer) * width
    suffixes = sum((sizes.layers - t) / 2 for t in range(options.layers)) + 2
    active = sum(by_layer) - sizes.layers * 3 * sizes.hidden * sizes.width * (sizes.experts - sizes.per_token)
    work = 2.0 * tokens * (active * suffixes + sizes.layers * sizes.experts * 3 * sizes.hidden * sizes.width)
    whole = sum(folder.sizes.values())
    return Estimate(
        whole,
        layer,
        states,
        outputs,
        2 * layer + outer * width + states + outputs + WORKING,
        whole - options.layers * sizes.removed(kept) * width,
        work,
    )


def write(
    folder: Folder, search: Search, out: Path, report: Mapping[str, Any], tell: Callable[[int, int], object]
) -> None:
    """The condensed model beside where it goes, layer by layer, then put in place in one step.

    Layers that stay are written as they are on disk; of the others everything but the experts.

    Raises:
        CdmoeError: ``out`` exists, or the disk is full.
    """
    if out.exists():
        raise CdmoeError(f"{out} exists already: choose another folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_into(partial, folder, search, report, tell)
        partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CdmoeError(f"{out} could not be written: {error}") from error


def _write_into(
    partial: Path, folder: Folder, search: Search, report: Mapping[str, Any], tell: Callable[[int, int], object]
) -> None:
    from .storage import condensed_config

    state, decoder = search.state, search.decoder
    places = search.family.moe_layers()
    chosen = {places[layer]: layer for layer in state.order[: search.options.layers]}
    entries = search.entries()
    shards = sorted({layer for name in folder.places if (layer := folder.layer_of(name)) is not None})
    written: dict[str, str] = {}
    total = 0
    for number, place in enumerate([None, *shards], 1):
        tensors: dict[str, Tensor] = {}
        if place is None:
            tensors = {n: folder.read(n)[""] for n in folder.places if folder.layer_of(n) is None}
        elif place in chosen:
            prefix = f"model.layers.{place}."
            dtype = folder.read(prefix + "input_layernorm.weight")[""].dtype
            with decoder.weights.of(place):
                small: CondensedMLP = search.condensed(chosen[place])
            fold(small)
            rest = (n for n in folder.places if n.startswith(prefix) and not n.startswith(prefix + "mlp."))
            tensors = {name: folder.read(name)[""] for name in rest}
            tensors |= {f"{prefix}mlp.{n}": t.to(dtype).contiguous() for n, t in small.state_dict().items()}
        else:
            tensors = {f"model.layers.{place}.{n}": t for n, t in folder.read(f"model.layers.{place}.").items()}
        name = f"model-{number:05d}-of-{len(shards) + 1:05d}.safetensors"
        save_file(tensors, partial / name, metadata={"format": "pt"})
        written |= dict.fromkeys(tensors, name)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
        tell(number, len(shards) + 1)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(written.items()))}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    config = condensed_config(decoder.model.config, entries)
    config.architectures = ["Condensed" + type(decoder.model).__name__]
    config.save_pretrained(partial)
    for extra in folder.path.iterdir():  # tokenizer, generation settings
        if (
            extra.is_file()
            and extra.suffix not in (".safetensors", ".bin", ".pt", ".py")
            and extra.name
            not in (
                "config.json",
                "model.safetensors.index.json",
            )
        ):
            shutil.copy2(extra, partial / extra.name)
    (partial / "cdmoe_report.json").write_text(json.dumps(dict(report), indent=2), encoding="utf-8")


def opened(folder: Folder, dtype: torch.dtype | None = None) -> Decoder:
    """The folder's model as a chain of layers that are read when they compute."""
    streamed = Streamed(folder, dtype)
    return Decoder(streamed.model, streamed)
