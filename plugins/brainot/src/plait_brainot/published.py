"""The data source ``nsd``: the Natural Scenes Dataset as MedARC and UMBRAE publish it, or as MindEye2 does (card, 5.1).

Image tokens come from a local CLIP vision model, once, and are kept in the user's cache as a file that is mapped into
memory. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from platformdirs import user_cache_path
from torch import Tensor
from torch.nn import functional

from plait import Data, DataInfo
from plait.storage import progress as bars
from plait.storage.files import write_atomically

from . import mindeye, tars
from .errors import BrainotError
from .options import NsdOptions
from .regions import regions
from .samples import FIELDS, Samples
from .synthetic import by_subject

__all__ = ["clip", "image_tokens", "load", "watched"]

MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's pixels."""
BATCH = 32

Array = npt.NDArray[Any]


def load(options: NsdOptions, seed: int) -> Data:
    """``nsd`` as a data set; fields as of ``scenes``.

    Training is the tars ``train`` and ``val`` but for the last ``validation`` images, one row for each repetition;
    validation and test samples are the mean of the three. The test is read from its own tars and never chosen by.

    Raises:
        BrainotError: files that are missing or do not fit, betas that are not finite, an image of the test among those
            of training, an image without captions.
    """
    root = Path(options.root).expanduser()
    known = _captions(Path(options.captions).expanduser())
    samples = mindeye.samples if (root / "wds").is_dir() else tars.samples
    scenes: dict[int, int] = {}
    pictures: list[Callable[[], bytes]] = []
    rows: dict[str, list[tuple[Array, int, int]]] = {"train": [], "validation": [], "test": []}
    voxels: dict[int, int] = {}
    for subject in options.subjects:
        trained = [*samples(root, "train", subject), *samples(root, "val", subject)]
        if len(trained) <= options.validation:
            raise BrainotError(f"data.validation = {options.validation}: subject {subject} has {len(trained)} samples")
        cut = len(trained) - options.validation
        whole = {"train": trained[:cut], "validation": trained[cut:], "test": list(samples(root, "test", subject))}
        voxels[subject] = trained[0].betas.shape[1]
        for name, of in whole.items():
            for sample in of:
                if sample.betas.shape[1] != voxels[subject]:
                    raise BrainotError(
                        f"{root}: subject {subject} has samples of {voxels[subject]} and {sample.betas.shape[1]} voxels"
                    )
                if sample.coco not in scenes:
                    scenes[sample.coco] = len(pictures)
                    pictures.append(sample.image)
                looks = sample.betas if name == "train" else sample.betas.mean(0, keepdims=True)
                rows[name] += [(look, subject, scenes[sample.coco]) for look in looks]
    learnt, tested = ({scene for n in of for _, _, scene in rows[n]} for of in (("train", "validation"), ("test",)))
    if both := [coco for coco, scene in scenes.items() if scene in learnt & tested]:
        raise BrainotError(f"{root}: {len(both)} test images are in the training set (COCO {both[:5]})")
    if missing := [coco for coco in scenes if str(coco) not in known]:
        raise BrainotError(f"{options.captions}: no captions of COCO {missing[:5]} ({len(missing)} images)")
    tokens = image_tokens(pictures, options.image_encoder)
    widest = max(voxels.values())
    splits = {n: _split(of, widest, tokens, options, f"{root}") for n, of in rows.items()}
    extra = {
        "voxels": voxels,
        "tokens": tuple(tokens.shape[1:]),
        "regions": regions(options.rois, voxels),
        "captions": [known[str(coco)] for coco in scenes],
    }
    metadata = sorted(root.glob("metadata_subj0*.json"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in metadata)).hexdigest()[:12] if metadata else "none"
    note = f"nsd: subjects {', '.join(map(str, options.subjects))}, {len(pictures)} images; metadata {digest}"
    info = DataInfo("brain-tokens", (widest,), 0, 0, FIELDS, extra)
    return Data(info, splits["train"], splits["validation"], splits["test"], forward=by_subject, notes=(note,))


def _split(
    rows: Sequence[tuple[Array, int, int]], widest: int, tokens: Any, options: NsdOptions, where: str
) -> Samples:
    wide = np.zeros((len(rows), widest), np.float32)
    for row, (look, _, _) in enumerate(rows):
        wide[row, : len(look)] = look
    if options.nan == "zero":
        np.nan_to_num(wide, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    columns = {"subject": np.array([s for _, s, _ in rows]), "scene": np.array([scene for _, _, scene in rows])}
    digest = hashlib.sha256(wide.tobytes()).hexdigest()
    return Samples(wide, columns, tokens, fingerprint=f"{where} {digest}")


def _captions(file: Path) -> dict[str, list[str]]:
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrainotError(f"data.captions: {file} is not there") from None
    except ValueError as error:
        raise BrainotError(f"data.captions: {file} is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise BrainotError(f"data.captions: {file} is no object {{id: [captions]}}, but {type(given).__name__}")
    for number, texts in given.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise BrainotError(f"data.captions: {file}: id {number} has no list of texts")
    result: dict[str, list[str]] = given
    return result


def image_tokens(pictures: Sequence[Callable[[], bytes]], encoder: str | None) -> Array:
    """Tokens of images, float16 [S, M, D], mapped from the cache; the first time a CLIP vision model makes them.

    The hidden state before the last layer without the class token, of images resized to 224 and centre-cropped.

    Raises:
        BrainotError: tokens that are not cached, and no model to make them.
    """
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(hashlib.sha256(picture()).digest())
    digest.update(str(None if encoder is None else Path(encoder).expanduser().resolve()).encode())
    file = user_cache_path("plait", appauthor=False) / "brainot-tokens" / f"{digest.hexdigest()[:24]}.npy"
    if not file.is_file():
        if encoder is None:
            raise BrainotError(
                "data.image_encoder: the images' tokens are not made yet: give the folder of a CLIP model"
            )
        see = clip(Path(encoder).expanduser())
        parts = []
        for first in watched(range(0, len(pictures), BATCH), "encoding images"):
            pixels = torch.stack([_pixels(p()) for p in pictures[first : first + BATCH]])
            parts.append(see(pixels).half().numpy())
        made = np.concatenate(parts)

        def save(temporary: Path) -> None:
            with open(temporary, "wb") as handle:
                np.save(handle, made)

        write_atomically(file, save)
    return np.load(file, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def watched(steps: Sequence[int], what: str) -> Iterator[int]:
    """These steps, with a bar where stderr is a terminal and this process is no worker of another one."""
    bar = bars.make(parent_process() is None)
    bar.start(len(steps), 0, what)
    try:
        for done, step in enumerate(steps, 1):
            yield step
            bar.advance(done, "")
    finally:
        bar.stop()


def clip(folder: Path) -> Callable[[Tensor], Tensor]:
    """A CLIP vision model: from pixels [n, 3, 224, 224] in 0..1 to its hidden states before the last layer, [n, M, D].

    The class token is left out.

    Raises:
        BrainotError: no such model in the folder.
    """
    from transformers import CLIPVisionModel

    try:
        model = CLIPVisionModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise BrainotError(
            f"data.image_encoder: {folder}: no CLIP vision model: {str(error).splitlines()[0]}"
        ) from None

    @torch.no_grad()
    def see(pixels: Tensor) -> Tensor:
        scaled = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SPREAD)[:, None, None]
        states = model(pixel_values=scaled, output_hidden_states=True).hidden_states
        tokens: Tensor = states[-2][:, 1:]
        return tokens

    return see


def _pixels(picture: bytes, side: int = 224) -> Tensor:
    """A JPEG, or an NPY [3, H, W] in 0..1, resized to ``side`` and cut to its centre."""
    if picture.startswith(b"\x93NUMPY"):
        image = torch.from_numpy(tars.array(picture, "an image"))[None].float()
    else:
        with Image.open(io.BytesIO(picture)) as opened:
            image = torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[2:]
    scale = side / min(height, width)
    size = [max(side, round(height * scale)), max(side, round(width * scale))]
    image = functional.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return image[0, :, top : top + side, left : left + side]
