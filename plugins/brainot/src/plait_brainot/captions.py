"""How good captions are: BLEU, ROUGE-L and CIDEr as coco-caption defines them, by a plain tokenizer (card, section 4).

METEOR and SPICE are Java programs of the package pycocoevalcap (extra ``metrics``); without it they are null with the
reason, as are the figures that need CLIP weights. Nothing stands in for a missing one, and nothing is downloaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BrainotError

__all__ = ["TEN", "bleu", "checked", "cider", "meteor", "objects", "rouge_l", "score", "tokenised"]

TEN = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l", "cider", "spice", "clip_s", "refclip_s")
"""The ten metrics of the published tables, in percent."""
PUNCTUATION = re.compile(r"''|``|--|\.\.\.|[.?!,:;'`\"(){}\[\]-]")
"""What the PTB tokenizer of coco-caption leaves out."""
SIGMA = 6.0
"""Width of CIDEr-D's penalty on a difference in length, words."""

Numbers = npt.NDArray[np.float64]


def tokenised(text: str) -> list[str]:
    """The words of a caption, in lower case and without punctuation (``tokenizer=simple``)."""
    return PUNCTUATION.sub(" ", text.lower()).split()


def checked(
    captions: Mapping[str, Any], references: Mapping[str, Any], where: str = "the captions"
) -> tuple[list[str], list[list[str]]]:
    """Captions and their references in the same order, by id.

    Args:
        captions: id -> caption.
        references: id -> captions to compare with.
        where: what the captions are called in messages.

    Raises:
        BrainotError: other ids than the references', an empty list of references, captions that are no text.
    """
    odd = sorted(set(captions) ^ set(references))
    if odd:
        shown = ", ".join(odd[:5]) + " ..." * (len(odd) > 5)
        raise BrainotError(f"{where} and the references have other ids: {shown}; give one caption for each id")
    for name, given in captions.items():
        texts = references[name]
        if not isinstance(texts, (list, tuple)) or not texts:
            raise BrainotError(f"{where}: id {name} has no reference to compare with")
        if not isinstance(given, str) or not all(isinstance(text, str) for text in texts):
            raise BrainotError(f"{where}: id {name} is no text ({type(given).__name__}): captions are strings")
    return [captions[name] for name in captions], [list(references[name]) for name in captions]


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-1 to BLEU-4 of the corpus, 0 to 1: clipped precision, and a penalty by the closest reference's length."""
    guessed, right = np.zeros(4), np.zeros(4)
    length, wanted = 0, 0
    for caption, texts in zip(captions, references, strict=True):
        words, others = tokenised(caption), [tokenised(text) for text in texts]
        length += len(words)
        wanted += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(1, 5):
            most: Counter[tuple[str, ...]] = Counter()
            for other in others:
                most |= _grams(other, n)
            own = _grams(words, n)
            guessed[n - 1] += max(0, len(words) - n + 1)
            right[n - 1] += sum((own & most).values())
    precision = np.cumprod((right + 1e-15) / (guessed + 1e-9)) ** (1 / np.arange(1, 5))
    ratio = (length + 1e-15) / (wanted + 1e-9)
    return [float(p) for p in precision * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)]


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2) -> Numbers:
    """ROUGE-L of each caption, 0 to 1: F of the best precision and the best recall over the references."""
    values = []
    for caption, texts in zip(captions, references, strict=True):
        words = tokenised(caption)
        precision, recall = 0.0, 0.0
        for text in texts:
            other = tokenised(text)
            common = _subsequence(words, other)
            precision = max(precision, common / len(words) if words else 0.0)
            recall = max(recall, common / len(other) if other else 0.0)
        both = precision and recall
        values.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision) if both else 0.0)
    return np.array(values)


def _subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        last = 0
        for j, other in enumerate(b, 1):
            last, row[j] = row[j], last + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Numbers:
    """CIDEr-D of each caption (0 to 10; 100 times its mean is what tables show), by the references' word frequencies.

    Raises:
        BrainotError: fewer than two samples, of which there are no frequencies.
    """
    if len(captions) < 2:
        raise BrainotError(
            f"CIDEr needs two samples at least, got {len(captions)}: it weighs words by how rare they are"
        )
    texts = [[_counts(text) for text in of] for of in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for of in texts:
        frequency.update({gram for counts in of for gram in counts})
    log_samples = math.log(len(references))

    def vector(counts: Counter[tuple[str, ...]]) -> tuple[list[dict[tuple[str, ...], float]], Numbers, int]:
        parts: list[dict[tuple[str, ...], float]] = [{} for _ in range(4)]
        for gram, count in counts.items():
            parts[len(gram) - 1][gram] = count * (log_samples - math.log(max(1.0, frequency[gram])))
        norms = np.sqrt([sum(value * value for value in part.values()) for part in parts])
        return parts, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

    values = []
    for caption, of in zip(captions, texts, strict=True):
        own, own_norm, own_length = vector(_counts(caption))
        total = 0.0
        for counts in of:
            other, norm, length = vector(counts)
            pairs = zip(own, other, strict=True)
            shared = np.array([sum(min(v, b.get(g, 0.0)) * b.get(g, 0.0) for g, v in a.items()) for a, b in pairs])
            scale = own_norm * norm
            alike = np.divide(shared, scale, out=np.zeros(4), where=scale > 0)
            total += float(alike.mean()) * math.exp(-((own_length - length) ** 2) / (2 * SIGMA**2))
        values.append(10 * total / len(of))
    return np.array(values)


def _counts(text: str) -> Counter[tuple[str, ...]]:
    words = tokenised(text)
    counts: Counter[tuple[str, ...]] = Counter()
    for n in range(1, 5):
        counts.update(_grams(words, n))
    return counts


def meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float | None, str]:
    """METEOR 1.5 of the corpus (0 to 1) by pycocoevalcap and Java, or None and the reason."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return None, "the package pycocoevalcap is not installed (extra metrics)"
    if shutil.which("java") is None:
        return None, "no Java, of which METEOR is a program"
    scorer = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
    numbered = range(len(captions))
    said = {i: [" ".join(tokenised(captions[i])) or "-"] for i in numbered}
    wanted = {i: [" ".join(tokenised(text)) for text in references[i]] for i in numbered}
    try:
        value, _ = scorer.compute_score(wanted, said)
    except Exception as error:  # a process of another language may end in many ways
        return None, f"METEOR failed: {type(error).__name__}"
    return float(value), ""


def objects(captions: Sequence[str], phrases: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> Numbers:
    """Right, named and wanted phrases of each sample, [n, 3]; F1 is 200 right / (named + wanted), in %.

    Args:
        captions: what was said.
        phrases: of each sample those that are true (``red car``).
        vocabulary: all that are looked for.
    """
    known = {tuple(tokenised(phrase)) for phrase in vocabulary}
    lengths = sorted({len(phrase) for phrase in known})
    counted = []
    for caption, of in zip(captions, phrases, strict=True):
        words = tokenised(caption)
        named = {gram for n in lengths for gram in _grams(words, n)} & known
        wanted = {tuple(tokenised(phrase)) for phrase in of}
        counted.append((len(named & wanted), len(named), len(wanted)))
    return np.array(counted, dtype=np.float64).reshape(-1, 3)


def score(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, tuple[float | None, str]]:
    """The ten metrics in percent, each with a reason where it is None.

    Args:
        captions: one a sample; an empty one scores 0.
        references: of each sample at least one.
    """
    given: dict[str, tuple[float | None, str]] = dict.fromkeys(TEN, (None, "no captions"))
    if not captions:
        return given
    given |= {f"bleu{n}": (100 * value, "") for n, value in enumerate(bleu(captions, references), 1)}
    given["rouge_l"] = (100 * float(rouge_l(captions, references).mean()), "")
    if len(captions) > 1:
        given["cider"] = (100 * float(cider(captions, references).mean()), "")
    else:
        given["cider"] = (None, "CIDEr needs two samples at least")
    value, reason = meteor(captions, references)
    given["meteor"] = (None if value is None else 100 * value, reason)
    given["spice"] = (None, "SPICE needs models of CoreNLP, which are not part of a package")
    for name in ("clip_s", "refclip_s"):
        given[name] = (None, "no CLIP weights")
    return given
