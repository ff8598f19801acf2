"""A model that is never in memory as a whole: its layers are read one by one, and the condensed model is written so.

What is in memory at a time is bounded, and the bound is known before anything is computed (`Estimate`): one decoder
layer, the embeddings, the states of the calibration texts, and some of the outputs of the experts. Files are mapped, so
their pages are the system's to take back and are not counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .condensed import fold
from .decoder import Weights
from .distance import WORKING
from .errors import CdmoeError
from .experts import BUDGET
from .families import LAYOUTS, Family
from .layers import ROWS
from .options import SearchOptions
from .search import Search, checked

__all__ = ["Estimate", "Folder", "Streamed", "estimate", "write"]

LAYER = re.compile(r"model\.layers\.(\d+)\.")
KERNELS = 160 * 2**20
"""Bytes of compiled kernels that oneDNN, which computes in 16 bits on a CPU, keeps when its cache is limited."""
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
        self.size = sum(file.stat().st_size for file in self.files)

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
    def names(self) -> dict[int | None, list[str]]:
        """Decoder layer -> names of its tensors; None: those of no layer."""
        names: dict[int | None, list[str]] = {None: []}
        for name in self.places:
            match = LAYER.match(name)
            names.setdefault(int(match[1]) if match else None, []).append(name)
        return names

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Each tensor of these names; its memory is the mapped file's."""
        for file in sorted({self.places[name] for name in names}):
            with safe_open(file, framework="pt") as stored:
                for name in names:
                    if self.places[name] == file:
                        yield name, stored.get_tensor(name)


class Streamed(Weights):
    """The weights of a folder, one decoder layer at a time.

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
        outer = {name: self._own(tensor) for name, tensor in folder.read(folder.names[None])}
        missing, unexpected = self.model.load_state_dict(outer, strict=False, assign=True)
        self.model.tie_weights()
        left = [n for n in missing if not LAYER.match(n) and self.model.get_parameter(n).is_meta]
        if left or unexpected:
            raise CdmoeError(f"{folder.path}: the weights do not fit the model ({', '.join([*left, *unexpected][:3])})")
        base = self.model.model
        base.rotary_emb = type(base.rotary_emb)(config=config)

    def _type(self, tensor: Tensor) -> torch.dtype:
        return self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype

    def _own(self, tensor: Tensor) -> Tensor:
        """A copy, so that the file need not stay mapped."""
        return tensor.to(self._type(tensor), copy=True)

    @contextlib.contextmanager
    def of(self, place: int) -> Iterator[None]:
        """Read the layer, and forget it afterwards."""
        layer = self.model.model.layers[place]
        try:
            layer.load_state_dict(self._read(place), assign=True)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:200]
            raise CdmoeError(f"{self.folder.path}: layer {place} does not fit the model: {detail}") from error
        layer.requires_grad_(False)
        layer.eval()
        try:
            yield
        finally:
            layer.to("meta")
            _give_back()

    def _read(self, place: int) -> dict[str, Tensor]:
        """A layer's tensors as transformers 5 has them: the matrices of its experts stacked, each copied as it comes.

        Raises:
            RuntimeError: experts that are incomplete or of several sizes.
        """
        names = self.folder.names.get(place, [])
        numbers = [int(match[1]) for name in names if (match := EXPERT.search(name))]
        experts = 1 + max(numbers, default=-1)
        if len(numbers) != 3 * experts:
            raise RuntimeError(f"{len(numbers)} matrices of {experts} experts")
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.folder.read(names):
            match = EXPERT.search(name)
            if match is None:
                tensors[name.removeprefix(f"model.layers.{place}.")] = self._own(tensor)
                continue
            (rows, columns), down = tensor.shape, match[2] == "down"
            stack = "mlp.experts.down_proj" if down else "mlp.experts.gate_up_proj"
            if stack not in tensors:
                tensors[stack] = torch.empty(experts, rows if down else 2 * rows, columns, dtype=self._type(tensor))
            first = rows if match[2] == "up" else 0
            tensors[stack][int(match[1]), first : first + rows] = tensor
        return tensors


def _give_back() -> None:
    """Freed memory to the system, which glibc else keeps where blocks are below 32 MB; elsewhere nothing."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class Estimate:
    """What condensing a folder takes.

    Attributes:
        model, written: bytes on disk, before and after.
        layer, outer: bytes of the largest decoder layer, and of what is in none (embeddings).
        states, outputs, working: bytes of the texts' states, of expert outputs that are kept, and of a layer at work.
        memory: the bound: bytes beside Python's own at most, without the pages of mapped files.
        work: floating-point operations.
    """

    model: int
    written: int
    layer: int
    outer: int
    states: int
    outputs: int
    working: int
    work: float

    @property
    def memory(self) -> int:
        """Two of a layer and of the embeddings: kernels and the writer have a copy at a time."""
        return 2 * (self.layer + self.outer) + self.states + self.outputs + self.working


def estimate(folder: Folder, model: Any, options: SearchOptions, lengths: Sequence[int]) -> Estimate:
    """Before anything is computed, of a model on the meta device and texts of these lengths."""
    family = Family(model)
    sizes, kept = family.geometry(), checked(options, family)
    width = 2 if "16" in str(model.dtype) else 4
    by_layer = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    parameters = sum(p.numel() for p in model.parameters())
    cut = [min(length, options.text_tokens) for length in lengths]
    longs, tokens, state = sum(lengths), sum(cut), sizes.hidden * width
    # tokens that a layer computes at once: a batch of whole texts, or the candidates of the layer search
    at_once = min(max(options.text_batch * max(lengths), ROWS * max(cut)), max(longs, sizes.layers * tokens))
    survey = 3 * tokens + 2 * longs + 3 * max(tokens, longs)
    carried = (sizes.layers + 2) * tokens + 2 * sizes.layers * min(tokens, options.text_batch * max(cut))
    by_token = 8 * sizes.hidden + sizes.per_token * (2 * sizes.hidden + 4 * sizes.width) + max(lengths)
    cosines = 48 * sizes.hidden * options.text_batch * max(lengths)
    suffixes = sum((sizes.layers - t) / 2 for t in range(options.layers)) + 2
    active = sum(by_layer) - sizes.layers * 3 * sizes.hidden * sizes.width * (sizes.experts - sizes.per_token)
    return Estimate(
        model=folder.size,
        written=folder.size - options.layers * sizes.removed(kept) * (folder.size // parameters),
        layer=max(by_layer) * width,
        outer=(parameters - sum(by_layer)) * width,
        states=max(survey, carried if options.layers else 0) * state,
        outputs=min(BUDGET, tokens * sizes.experts * state),
        working=min(WORKING, 32 * tokens * sizes.experts * sizes.hidden)
        + max(at_once * by_token * width, cosines)
        + (KERNELS if width == 2 else 0),
        work=2.0 * tokens * (active * suffixes + sizes.layers * sizes.experts * 3 * sizes.hidden * sizes.width),
    )


def write(folder: Folder, search: Search, out: Path, tell: Callable[[str, int, int], object]) -> None:
    """The condensed model beside where it goes, layer by layer, then put in place in one step.

    Layers that stay are written as they are on disk; of the others everything but the experts. ``cdmoe_report.json``
    says what was searched, and with what.

    Raises:
        CdmoeError: ``out`` is a folder with files, or the disk is full.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_into(partial, folder, search, tell)
        partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CdmoeError(f"{out} could not be written: {error}") from error


def _write_into(partial: Path, folder: Folder, search: Search, tell: Callable[[str, int, int], object]) -> None:
    import transformers

    from .storage import condensed_config

    decoder, chosen = search.decoder, search.chosen()
    written: dict[str, str] = {}
    total = 0
    places = sorted(folder.names, key=lambda place: -1 if place is None else place)
    for number, place in enumerate(places, 1):
        names = folder.names[place]
        if place in chosen:
            prefix = f"model.layers.{place}."
            with decoder.weights.of(place):
                small = search.condensed(chosen[place])
            fold(small)
            tensors = dict(folder.read([n for n in names if not n.startswith(prefix + "mlp.")]))
            dtype = tensors[prefix + "input_layernorm.weight"].dtype
            tensors |= {f"{prefix}mlp.{n}": t.to(dtype).contiguous() for n, t in small.state_dict().items()}
            del small
        else:
            tensors = dict(folder.read(names))
        name = f"model-{number:05d}-of-{len(places):05d}.safetensors"
        save_file(tensors, partial / name, metadata={"format": "pt"})
        written |= dict.fromkeys(tensors, name)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
        del tensors
        _give_back()
        tell("writing", number, len(places))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(written.items()))}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    config = condensed_config(decoder.model.config, search.entries())
    config.architectures = ["Condensed" + type(decoder.model).__name__]
    config.save_pretrained(partial)
    others = {".safetensors", ".bin", ".pt", ".py"}
    for extra in folder.path.iterdir():  # tokenizer, generation settings
        if extra.is_file() and extra.suffix not in others and not (partial / extra.name).exists():
            shutil.copy2(extra, partial / extra.name)
    report = {
        "options": search.options.model_dump(mode="json"),
        "search": search.state.dump(),
        "never_selected": search.state.gates.never_selected(),
        "bytes_before": folder.size,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (partial / "cdmoe_report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
