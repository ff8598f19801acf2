"""Options of the method, its data and its model: bounds, units and a description each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from plait import Options, PresetOptions

from .presets import BASELINES

Transported = Literal[
    "partial", "emd", "entropic_partial", "fused", "unbalanced", "sinkhorn_div", "mmd", "jsd", "hybrid"
]
Align = Literal[Transported, "mse", "l1", "huber", "quantile"]
Masking = Literal["none", "regions", "pairs", "shapley"]


class BrainotOptions(PresetOptions):
    """How brain tokens are aligned with image tokens, how they are captioned, and what is analysed."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = BASELINES

    align: Align = Field("partial", description="the loss between the two token sets of a sample")
    m: float = Field(1.0, gt=0, le=1, description="transported share of the mass; 1 is balanced (embedded default)")
    m_schedule: Literal["constant", "linear"] = Field(
        "constant", description="linear: from 1 down to m over the training"
    )
    cost: Literal["euclidean", "sqeuclidean"] = Field("euclidean", description="distance of two tokens")
    solver: Literal["auto", "simplex", "assignment"] = Field(
        "auto", description="exact plans by POT's network simplex, or by assignment where m N is whole (auto: then)"
    )
    eps: float | None = Field(None, gt=0, le=1e6, description="entropy, in units of the distance; none: by eps_share")
    eps_share: float = Field(0.005, gt=0, le=10, description="entropy as a share of the batch's median distance")
    sweeps: int = Field(2000, ge=1, le=1_000_000, description="sweeps of the entropic solver at most")
    tolerance: float = Field(1e-3, gt=0, le=1, description="share of the mass that a sweep still moves when they stop")
    ot_grad: Literal["envelope", "unroll"] = Field(
        "envelope", description="entropic plans: constant, or differentiated"
    )
    plan_reuse: bool = Field(False, description="later passes of a step (SAM) take the plan of its first one")
    alpha: float = Field(0.5, ge=0, le=1, description="fused: share of the structure against the features")
    rho: float = Field(1.0, gt=0, le=1e6, description="unbalanced: strength of the marginals (KL)")
    lam: float = Field(0.5, ge=0, le=1, description="hybrid: lam MSE + (1 - lam) partial transport")
    quantile: float = Field(0.9, gt=0, lt=1, description="quantile: which one of the absolute differences")
    lm: str | None = Field(
        None, min_length=1, description="folder of a Hugging Face causal LM; none: a small captioner"
    )
    projector: Literal["linear", "mlp"] = Field("linear", description="from image tokens to the language model's width")
    prompt: str = Field(
        "Describe this image <image> as simply as possible.",
        max_length=2000,
        description="what a language model of lm is asked; tokens stand at <image>",
    )
    captioner_steps: int = Field(600, ge=1, le=1_000_000, description="its training on image tokens, steps")
    captioner_width: int = Field(96, ge=8, le=4096, multiple_of=8, description="width of the small captioner")
    captioner_seed: int = Field(0, ge=0, le=10**6, description="first weights and batches of the captioner")
    max_new_tokens: int = Field(32, ge=1, le=1024, description="longest caption, tokens")
    caption_rows: int = Field(300, ge=2, le=100_000, description="samples of a split that are captioned")
    ridge: bool = Field(False, description="also caption the tokens of a ridge regression from the voxels, a floor")
    masking: Masking = Field("none", description="regions left out at the test: each, pairs too, or Shapley")
    mask_mode: Literal["zero", "shuffle"] = Field("zero", description="masked voxels: 0, or another test sample's")
    pairs: tuple[str, ...] = Field(
        ("xorA+xorB", "object+copy"), max_length=64, description="pairs of regions whose interaction is measured"
    )
    resamples: int = Field(1000, ge=10, le=100_000, description="bootstrap resamples of an interval")

    @property
    def moved(self) -> float:
        """The share of the mass that the loss moves: m where it is partial, else all of it."""
        return self.m if self.align in ("partial", "entropic_partial", "hybrid") else 1.0


class EncoderOptions(Options):
    """The brain encoder: a tokenizer for each subject, a shared perceiver, a linear head."""

    hidden: int = Field(128, ge=4, le=8192, description="H, width of the perceiver (published: 1024)")
    latents: int | None = Field(None, ge=1, le=4096, description="L = N, brain tokens; none: as many as image tokens")
    depth: int = Field(2, ge=1, le=48, description="layers of the perceiver (published: 6)")
    heads: int = Field(4, ge=1, le=128, description="attention heads (published: 16)")
    head_dim: int = Field(16, ge=1, le=1024, description="width of a head (published: 96)")
    nonlinear: bool = Field(False, description="LayerNorm, GELU and dropout 0.5 inside the tokenizer; naive then")
    naive_tokenizer: bool = Field(False, description="build the B x V x L tensor instead of the rank-one shortcut")
    subject_tokens: int = Field(0, ge=0, le=64, description="learnt tokens of the subject, beside the voxels'")
    checkpoint: str | None = Field(None, min_length=1, description="an UMBRAE checkpoint to begin from")
    freeze_shared: bool = Field(False, description="train the tokenizers alone (adaptation to a new subject)")


class BrainsOptions(Options):
    """Options of generated scenes and brains, whatever the scenes look like."""

    train: int = Field(2500, ge=8, le=1_000_000, description="training scenes")
    validation: int = Field(300, ge=2, le=100_000, description="scenes to choose by")
    test: int = Field(300, ge=2, le=100_000, description="scenes to test on")
    scene_seed: int = Field(0, ge=-1, le=10**6, description="which scenes and brains; -1: by the run's seed")
    places: Literal["random", "fixed"] = Field(
        "random", description="objects anywhere, or each where the set of objects says (there matching cannot help)"
    )
    early_snr: float = Field(0.3, ge=0, le=100, description="signal over noise of the voxels that see places")
    snr: float = Field(1.0, ge=0, le=100, description="signal over noise of object, colour, place and copy")
    xor_snr: float = Field(2.0, ge=0, le=100, description="signal over noise of xorA and xorB")
    xor: bool = Field(True, description="xorA and xorB together tell the light; false: xorB is drawn by itself")
    subjects: int = Field(1, ge=1, le=4, description="brains; of several, a quarter of the training scenes is shared")
    voxels: int = Field(600, ge=40, le=50_000, description="of subject 1; the others have 11/12, 10/12, 9.6/12")
    repetitions: int = Field(3, ge=1, le=10, description="looks at a training scene; the test is their mean")


class ScenesOptions(BrainsOptions):
    """Options of ``scenes``."""

    grid: int = Field(5, ge=4, le=32, description="side of the grid of tokens")
    dim: int = Field(32, ge=8, le=4096, description="D, width of a token")
    classes: int = Field(16, ge=4, le=40, description="kinds of objects; there are five colours and five backgrounds")
    nuisance: int = Field(4, ge=0, le=512, description="tokens of random content at random background places")
    nuisance_std: float = Field(2.2, ge=0, le=1000, description="their standard deviation per coordinate")
    token_noise: float = Field(0.3, ge=0, le=10, description="noise of every other token, standard deviation")


class PicturesOptions(BrainsOptions):
    """Options of ``pictures``."""

    image_encoder: str | None = Field(
        None, min_length=1, description="folder of a CLIP vision model; none: EfficientNet-Lite0, of the extra vision"
    )
    dim: int = Field(128, ge=8, le=4096, description="D, main components of a token that are kept")


class HaxbyOptions(Options):
    """Options of ``haxby``."""

    path: str = Field(min_length=1, description="folder with bold.nii.gz, mask.nii.gz and attributes_literal.txt")
    test_run: int = Field(-1, ge=-1, le=11, description="the run of the scanner that is left out; -1: seed mod 12")
    permute: bool = Field(False, description="control: categories of the training volumes are permuted in each run")
    tokens: int = Field(9, ge=1, le=256, description="M, tokens of a category")
    dim: int = Field(32, ge=8, le=4096, description="D, width of a token")
    token_noise: float = Field(0.3, ge=0, le=10, description="noise of a token, standard deviation")


class NsdOptions(Options):
    """Options of ``nsd``."""

    root: str = Field(min_length=1, description="folder webdataset_avg_split, or MindEye2's (with wds)")
    subjects: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field(
        (1,), min_length=1, max_length=8, description="subjects 1 to 8"
    )
    image_encoder: str | None = Field(
        None, min_length=1, description="folder of a CLIP vision model; none: cached tokens"
    )
    captions: str = Field(min_length=1, description="JSON {COCO id: [captions]} of every image")
    rois: str | None = Field(None, min_length=1, description="for masking: NSD's ppdata, or NPZ of subjectS/REGION")
    validation: int = Field(300, ge=1, le=100_000, description="training images that are kept to choose by")
    nan: Literal["refuse", "zero"] = Field("refuse", description="betas that are not finite")
