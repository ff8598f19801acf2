"""The plugin's command: `plait cdmoe condense`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from plait.errors import BadInput
from plait.storage.files import write_text
from plait.storage.progress import Bar

from .errors import CdmoeError
from .options import SearchOptions

if TYPE_CHECKING:
    from torch import Tensor

    from .streaming import Estimate, Folder


def condense(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of a Hugging Face mixture-of-experts model.")],
    texts: Annotated[
        Path,
        typer.Option("--texts", metavar="FILE", help="Calibration texts: JSON lines with `text`, or plain; .gz too."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the condensed model goes.")],
    layers: Annotated[int, typer.Option("--layers", metavar="P", help="Layers to condense.")] = 9,
    mode: Annotated[str, typer.Option("--mode", help="SR: shared and routed experts; S: the shared one alone.")] = "SR",
    kept: Annotated[
        int | None, typer.Option("--kept", metavar="K", help="Routed experts that a layer keeps; default as routed.")
    ] = None,
    count: Annotated[int, typer.Option("--count", metavar="N", help="Calibration texts, the first ones.")] = 100,
    tokens: Annotated[int, typer.Option("--tokens", metavar="T", help="Tokens of each for the searches.")] = 256,
    batch: Annotated[int, typer.Option("--batch", metavar="B", help="Texts computed at once.")] = 8,
    beam: Annotated[int, typer.Option("--beam", metavar="W", help="Sets of layers kept by the layer search.")] = 1,
    distance: Annotated[str, typer.Option("--distance", help="js_hidden, js_logits, mse or cosine.")] = "js_hidden",
    dtype: Annotated[str, typer.Option("--dtype", help="Type to compute in: stored, float32 or bfloat16.")] = "stored",
    replay: Annotated[
        Path | None, typer.Option("--replay", metavar="DIR", help="The authors' JSON files in the place of the search.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was interrupted.")] = False,
    dry: Annotated[bool, typer.Option("--dry", help="Print the estimate and stop.")] = False,
) -> None:
    """Condense a model of any size, layer by layer; it is never in memory as a whole."""
    named = {"texts": "count", "text_tokens": "tokens", "text_batch": "batch"}
    given = {"mode": mode, "layers": layers, "kept": kept, "distance": distance, "beam": beam, "texts": count}
    given |= {"text_tokens": tokens, "text_batch": batch, "replay": replay and str(replay)}
    try:
        options = SearchOptions.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        raise BadInput(f"--{named.get(name, name)} {problem['input']}: {problem['msg']}.") from None
    if not options.condenses:
        raise BadInput(
            f"--mode {mode}: SR or S; trimmed models are baselines of `plait run -p cdmoe` and are not written."
        )
    if dtype not in ("stored", "float32", "bfloat16"):
        raise BadInput(f"--dtype {dtype}: stored, float32 or bfloat16.")
    stored = out.with_name(f"{out.name}.search.json")
    if out.exists():
        raise BadInput(f"{out} exists already: choose another --out.")
    if stored.exists() and not resume:
        raise BadInput(f"{stored} is of an interrupted search: go on with --resume, or remove it.")
    try:
        _condense(path, texts, out, options, dtype, stored, dry)
    except CdmoeError as error:
        raise BadInput(f"{error}.") from error


def _condense(path: Path, texts: Path, out: Path, options: SearchOptions, dtype: str, stored: Path, dry: bool) -> None:
    for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):  # of torch's and oneDNN's compiled kernels:
        os.environ.setdefault(cache, "16")  # else one is kept for every number of tokens that an expert gets
    import torch

    from plait_zoo.corpus import read_files

    from .decoder import Decoder
    from .search import Search, SearchState
    from .streaming import Folder, Streamed, estimate, write

    folder = Folder(path)
    raw = [text for part in read_files(str(texts), most=options.texts, by_line=True).values() for text in part]
    raw = raw[: options.texts]
    if len(raw) < options.texts:
        print(f"{texts} has {len(raw)} texts and not {options.texts}: all of them are used", file=sys.stderr)
    from .storage import quiet  # which brings in transformers

    with quiet():
        streamed = Streamed(folder, None if dtype == "stored" else getattr(torch, dtype))
        rows = tokens_of(path, raw, streamed.model.get_input_embeddings().weight.shape[0])
        expected = estimate(folder, streamed.model, options, [len(row) for row in rows])
        _say(expected, folder, len(rows), options)
        _room(out, expected)
        if dry:
            return
        started, bars = time.perf_counter(), _Bars()
        try:
            search = Search(
                Decoder(streamed.model, streamed),
                rows,
                options,
                state=SearchState.load(stored) if stored.exists() else None,
                store=lambda state: write_text(stored, json.dumps(state.dump())),
                tell=bars.tell,
            )
            search.run()
            write(folder, search, out, bars.tell)
        finally:
            bars.stop()
    stored.unlink(missing_ok=True)
    after = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"condensed layers {search.state.order}, {expected.model / 1e9:.3f} GB -> {after / 1e9:.3f} GB: {out}")
    never = search.state.gates.never_selected()
    if never:
        print(f"never selected on these texts, and no candidates: {len(never)} (layer, expert): {never[:8]} ...")
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s. Load it with: import plait_cdmoe; AutoModelForCausalLM.from_pretrained")


def tokens_of(path: Path, texts: list[str], size: int) -> list[Tensor]:
    """Token ids of each text by the model's own tokenizer.

    Raises:
        CdmoeError: no tokenizer's files in the folder, or more tokens than the model has.
        BadInput: a tokenizer that cannot be loaded.
    """
    import torch

    from plait_zoo.tokenization import load_folder

    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CdmoeError(f"{path} has no tokenizer: its files are missing (tokenizer.json, or tokenizer.model)")
    tokenizer = load_folder(str(path))
    if tokenizer.size > size:
        raise CdmoeError(f"{path}: the tokenizer has {tokenizer.size} tokens and the model {size}")
    return [torch.tensor(ids, dtype=torch.int64) for ids in tokenizer.backend(texts)["input_ids"]]


def _say(expected: Estimate, folder: Folder, texts: int, options: SearchOptions) -> None:
    layer, outer, states, outputs, working, memory = (
        f"{getattr(expected, name) / 1e9:.3f}" for name in ("layer", "outer", "states", "outputs", "working", "memory")
    )
    print(
        f"{folder.path}: {expected.model / 1e9:.3f} GB on disk. {texts} texts, of each at most {options.text_tokens} "
        f"tokens; about {expected.work / 1e12:.2f} TFLOP.\nMemory at most {memory} GB beside Python's own: twice a "
        f"layer ({layer}) and the embeddings ({outer}), states of the texts {states}, outputs of experts {outputs}, "
        f"while a layer computes {working}.\nAfterwards {expected.written / 1e9:.3f} GB on disk.",
        flush=True,
    )


def _room(out: Path, expected: Estimate) -> None:
    place = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if free < expected.written:
        raise BadInput(f"{place} has {free / 1e9:.2f} GB free, and the model takes {expected.written / 1e9:.2f} GB.")
    with contextlib.suppress(OSError):  # Linux alone has the file
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
        if available < expected.memory:
            raise BadInput(
                f"{available / 1e9:.2f} GB of memory are free, and {expected.memory / 1e9:.2f} GB may be needed: take "
                "fewer texts (--count) or tokens (--tokens)."
            )


class _Bars(Bar):
    """A bar for each part on stderr; lines where that is no terminal."""

    part = ""

    def tell(self, part: str, done: int, of: int) -> None:
        """``done`` steps of a part's ``of``."""
        if not sys.stderr.isatty():
            print(f"{part} {done} of {of}", file=sys.stderr, flush=True)
            return
        if part != self.part:
            self.stop()
            self.start(of, 0, part)
            self.part = part
        self.advance(done, "")
