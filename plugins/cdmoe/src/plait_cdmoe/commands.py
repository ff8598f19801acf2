"""The plugin's command: `plait cdmoe condense`."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from plait.errors import BadInput, first_line
from plait.storage.files import write_text

from .errors import CdmoeError
from .options import SearchOptions

if TYPE_CHECKING:
    from torch import Tensor

    from .search import SearchState
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
    try:
        wanted: Any = SearchOptions
        options: SearchOptions = wanted(
            mode=mode,
            layers=layers,
            kept=kept,
            distance=distance,
            texts=count,
            text_tokens=tokens,
            text_batch=batch,
            beam=beam,
            replay=None if replay is None else str(replay),
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise BadInput(f"--{'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from None
    if mode not in ("SR", "S"):
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
        _condense(path, texts, out, options, dtype, stored if resume and stored.exists() else None, stored, dry)
    except CdmoeError as error:
        raise BadInput(f"{error}.") from error


def _condense(
    path: Path, texts: Path, out: Path, options: SearchOptions, dtype: str, going: Path | None, stored: Path, dry: bool
) -> None:
    from .streaming import Folder

    folder = Folder(path)
    raw = read_texts(texts, options.texts)
    import torch

    from .storage import quiet

    with quiet():
        from .replay import replayed
        from .search import Search, SearchState
        from .streaming import estimate, opened, write

        decoder = opened(folder, None if dtype == "stored" else getattr(torch, dtype))
        rows = tokens_of(path, raw, decoder.model.get_input_embeddings().weight.shape[0])
        lengths = [min(len(row), options.text_tokens) for row in rows]
        expected = estimate(folder, decoder.model, options, sum(lengths), sum(map(len, rows)))
        _say(expected, folder, len(rows), sum(lengths))
        _room(out, expected)
        if dry:
            return
        started = time.perf_counter()
        with _progress() as tell:
            state = None
            if going is not None:
                try:
                    state = SearchState.read(json.loads(going.read_text(encoding="utf-8")), str(going))
                except (OSError, ValueError) as error:
                    raise CdmoeError(f"{going} cannot be read: {first_line(error)}") from error
            search = Search(
                decoder,
                rows,
                options,
                state=state,
                store=lambda state: write_text(stored, json.dumps(state.dump())),
                tell=tell,
            )
            if options.replay is not None:
                replayed(search, Path(options.replay))
            else:
                search.run()
            write(folder, search, out, report(search.state, options, expected), lambda n, of: tell("writing", n, of))
    stored.unlink(missing_ok=True)
    after = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"condensed layers {search.state.order}, {expected.model / 1e9:.3f} GB -> {after / 1e9:.3f} GB: {out}")
    never = search.state.gates.never_selected()
    if never:
        print(
            f"never selected on these texts, and no candidates: {len(never)} experts (layer, expert): {never[:8]} ..."
        )
    print(
        f"{time.perf_counter() - started:.0f} s. Load it with: import plait_cdmoe; AutoModelForCausalLM.from_pretrained"
    )


def read_texts(file: Path, count: int) -> list[str]:
    """The first ``count`` texts; fewer than asked for is said and all are used.

    Raises:
        BadInput: a file that is missing, empty, not JSON, or without the field.
    """
    from plait_zoo.corpus import read_files

    texts = [text for part in read_files(str(file), most=count, by_line=True).values() for text in part][:count]
    if len(texts) < count:
        print(f"{file} has {len(texts)} texts and not {count}: all of them are used", file=sys.stderr)
    return texts


def tokens_of(path: Path, texts: list[str], size: int) -> list[Tensor]:
    """Token ids of each text by the model's own tokenizer.

    Raises:
        CdmoeError: no tokenizer in the folder, or one with more tokens than the model has.
    """
    import torch
    from transformers import AutoTokenizer

    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CdmoeError(f"{path} has no tokenizer: its files are missing (tokenizer.json, or tokenizer.model)")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # a stranger's files make it raise many things
        raise CdmoeError(f"{path} has no tokenizer that can be loaded: {first_line(error)}") from error
    if len(tokenizer) > size:
        raise CdmoeError(f"{path}: the tokenizer has {len(tokenizer)} tokens and the model {size}")
    return [torch.tensor(ids, dtype=torch.int64) for ids in tokenizer(texts)["input_ids"]]


def report(state: SearchState, options: SearchOptions, expected: Estimate) -> dict[str, Any]:
    """What is written beside the model: the search and where it came from."""
    import torch
    import transformers

    return {
        "options": options.model_dump(mode="json"),
        "search": state.dump(),
        "never_selected": state.gates.never_selected(),
        "bytes_before": expected.model,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _say(expected: Estimate, folder: Folder, texts: int, tokens: int) -> None:
    giga = 1e9
    print(
        f"{folder.path}: {expected.model / giga:.3f} GB on disk. {texts} texts, {tokens} tokens; about "
        f"{expected.work / 1e12:.2f} TFLOP.\nMemory at most about {expected.memory / giga:.3f} GB beside Python's own: "
        f"a layer {expected.layer / giga:.3f} (twice while it is read), states {expected.states / giga:.3f}, outputs "
        f"of experts {expected.outputs / giga:.3f}. Afterwards {expected.written / giga:.3f} GB on disk.",
        flush=True,
    )


def _room(out: Path, expected: Estimate) -> None:
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < expected.written:
        raise BadInput(f"{place} has {free / 1e9:.2f} GB free, and the model takes {expected.written / 1e9:.2f} GB.")
    try:
        available = next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/meminfo").read_text().splitlines()
            if "MemAvailable" in line
        )
    except (OSError, StopIteration):
        return
    if available < expected.memory:
        raise BadInput(
            f"{available / 1e9:.2f} GB of memory are free, and about {expected.memory / 1e9:.2f} GB are needed: take "
            "fewer texts (--count) or tokens (--tokens)."
        )


@contextmanager
def _progress() -> Iterator[Any]:
    """A rich bar for each part, on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def tell(part: str, done: int, of: int) -> None:
            if part not in tasks:
                tasks[part] = bars.add_task(part, total=of)
            bars.update(tasks[part], completed=done, total=of)

        yield tell
