"""The data source ``nsd``: the Natural Scenes Dataset as MedARC and UMBRAE publish it (card, 5.1).

``webdataset_avg_split/{train,val,test}/*_subj0S_*.tar`` with ``KEY.jpg``, ``KEY.nsdgeneral.npy`` [3, V] and
``KEY.coco73k.npy`` of each sample. Image tokens come from a local CLIP vision model, once, and are kept in the user's
cache as a file that is mapped into memory. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from platformdirs import user_cache_path
from torch.nn import functional

from plait import Data, DataInfo
from plait.storage.files import write_atomically

from .errors import BrainotError
from .options import NsdOptions
from .samples import FIELDS, Samples
from .synthetic import by_subject

__all__ = ["image_tokens", "load", "samples"]

MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's pixels."""
BATCH = 32

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """One sample: betas float32 [3, V], the image as published, its number in COCO."""

    betas: Array
    image: bytes
    coco: int


def samples(root: Path, split: str, subject: int) -> Iterator[Sample]:
    """The samples of a subject in ``train``, ``val`` or ``test``, in the order of the tars.

    Raises:
        BrainotError: no such tar, a sample without one of its files, betas without the axis of repetitions.
    """
    files = sorted((root / split).glob(f"{split}_subj0{subject}_*.tar"), key=lambda f: int(f.stem.rsplit("_", 1)[1]))
    if not files:
        raise BrainotError(f"{root / split}: no {split}_subj0{subject}_*.tar; give the folder webdataset_avg_split")
    for file in files:
        try:
            with tarfile.open(file) as tar:
                parts: dict[str, dict[str, bytes]] = {}
                for member in tar:
                    key, _, kind = member.name.partition(".")
                    if kind in ("jpg", "nsdgeneral.npy", "coco73k.npy") and (opened := tar.extractfile(member)):
                        parts.setdefault(key, {})[kind] = opened.read()
        except tarfile.TarError as error:
            raise BrainotError(f"{file}: no tar that can be read: {error}") from error
        for key, of in parts.items():
            if missing := [kind for kind in ("jpg", "nsdgeneral.npy", "coco73k.npy") if kind not in of]:
                raise BrainotError(f"{file}: sample {key} has no {key}.{missing[0]}")
            betas, coco = (_array(of[kind], f"{file}: {key}.{kind}") for kind in ("nsdgeneral.npy", "coco73k.npy"))
            if betas.ndim != 2:
                raise BrainotError(
                    f"{file}: {key}.nsdgeneral.npy is {list(betas.shape)}; repetitions x voxels are needed"
                )
            yield Sample(betas.astype(np.float32), of["jpg"], int(coco.ravel()[0]))


def _array(data: bytes, where: str) -> Array:
    try:
        result: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise BrainotError(f"{where} is no NumPy array: {error}") from error
    return result


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
    scenes: dict[int, int] = {}
    pictures: list[bytes] = []
    rows: dict[str, list[tuple[Array, int, int]]] = {"train": [], "validation": [], "test": []}
    voxels: dict[int, int] = {}
    for subject in options.subjects:
        trained = [*samples(root, "train", subject), *samples(root, "val", subject)]
        if len(trained) <= options.validation:
            raise BrainotError(f"data.validation = {options.validation}: subject {subject} has {len(trained)} samples")
        cut = len(trained) - options.validation
        whole = {"train": trained[:cut], "validation": trained[cut:], "test": list(samples(root, "test", subject))}
        both = {s.coco for s in trained} & {s.coco for s in whole["test"]}
        if both:
            raise BrainotError(f"{root}: {len(both)} test images are in the training set (COCO {sorted(both)[:5]})")
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
    if missing := [coco for coco in scenes if str(coco) not in known]:
        raise BrainotError(f"{options.captions}: no captions of COCO {missing[:5]} ({len(missing)} images)")
    tokens = image_tokens(pictures, options.image_encoder)
    widest = max(voxels.values())
    splits = {n: _split(of, widest, tokens, options, f"{root}") for n, of in rows.items()}
    count = len(pictures)
    extra = {
        "voxels": voxels,
        "tokens": tuple(tokens.shape[1:]),
        "regions": _regions(options.rois, voxels),
        "captions": [known[str(coco)] for coco in scenes],
        "phrases": [[] for _ in range(count)],
        "word": [""] * count,
    }
    metadata = sorted(root.glob("metadata_subj0*.json"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in metadata)).hexdigest()[:12] if metadata else "none"
    note = f"nsd: subjects {', '.join(map(str, options.subjects))}, {count} images; metadata {digest}"
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
    except FileNotFoundError as error:
        raise BrainotError(f"data.captions: {file} is not there") from error
    except ValueError as error:
        raise BrainotError(f"data.captions: {file} is no JSON: {error}") from error
    for number, texts in given.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise BrainotError(f"data.captions: {file}: id {number} has no list of texts")
    result: dict[str, list[str]] = given
    return result


def _regions(file: str | None, voxels: dict[int, int]) -> dict[int, dict[str, Array]]:
    """Regions of each subject, from boolean vectors ``subject1/V1`` in an NPZ."""
    if file is None:
        return {}
    try:
        with np.load(Path(file).expanduser(), allow_pickle=False) as stored:
            given = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise BrainotError(f"data.rois: {file}: no NPZ of boolean vectors: {error}") from error
    regions: dict[int, dict[str, Array]] = {}
    for subject, count in voxels.items():
        own = {n.partition("/")[2]: v for n, v in given.items() if n.partition("/")[0] == f"subject{subject}"}
        if not own:
            raise BrainotError(f"data.rois: {file} has no region subject{subject}/NAME")
        for name, mask in own.items():
            if mask.shape != (count,):
                raise BrainotError(f"data.rois: {file}: subject{subject}/{name} is {list(mask.shape)}, not [{count}]")
            if not mask.any():
                raise BrainotError(f"data.rois: {file}: subject{subject}/{name} is empty")
        regions[subject] = {name: np.flatnonzero(mask) for name, mask in own.items()}
    return regions


def image_tokens(pictures: Sequence[bytes], encoder: str | None) -> Array:
    """Tokens of images, float16 [S, M, D], mapped from the cache; the first time a CLIP vision model makes them.

    The hidden state before the last layer without the class token, of images resized to 224 and centre-cropped.

    Raises:
        BrainotError: tokens that are not cached, and no model to make them.
    """
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(hashlib.sha256(picture).digest())
    digest.update(str(None if encoder is None else Path(encoder).expanduser().resolve()).encode())
    file = user_cache_path("plait", appauthor=False) / "brainot-tokens" / f"{digest.hexdigest()[:24]}.npy"
    if not file.is_file():
        if encoder is None:
            raise BrainotError(
                "data.image_encoder: the images' tokens are not made yet: give the folder of a CLIP model"
            )
        model = _vision(Path(encoder).expanduser())
        parts = []
        with torch.no_grad():
            for first in range(0, len(pictures), BATCH):
                pixels = torch.stack([_pixels(p) for p in pictures[first : first + BATCH]])
                states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
                parts.append(states[-2][:, 1:].half().numpy())
        write_atomically(file, lambda temporary: _save(temporary, np.concatenate(parts)))
    return np.load(file, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _save(file: Path, tokens: Array) -> None:
    with open(file, "wb") as handle:
        np.save(handle, tokens)


def _vision(folder: Path) -> Any:
    from transformers import CLIPVisionModel

    try:
        return CLIPVisionModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise BrainotError(
            f"data.image_encoder: {folder}: no CLIP vision model: {str(error).splitlines()[0]}"
        ) from error


def _pixels(picture: bytes, side: int = 224) -> torch.Tensor:
    with Image.open(io.BytesIO(picture)) as opened:
        image = torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[2:]
    scale = side / min(height, width)
    size = [max(side, round(height * scale)), max(side, round(width * scale))]
    image = functional.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    image = image[0, :, top : top + side, left : left + side]
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SPREAD)[:, None, None]
