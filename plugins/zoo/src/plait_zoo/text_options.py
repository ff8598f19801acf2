"""Options of the zoo's texts and language models, kept apart so that planning imports no torch and no transformers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from plait.declare.options import Options

Setting = bool | int | float | str | list[int] | list[float] | list[str] | None


class TokenOptions(Options):
    """Options of every source of texts."""

    length: int = Field(64, ge=2, le=1_000_000, description="tokens of a window, and the most that are taken of a text")
    tokenizer: str = Field(
        "",
        max_length=4096,
        description="folder of a Hugging Face tokenizer; empty: byte-level BPE trained on the training split",
    )
    vocab: int = Field(
        512, ge=257, le=1_000_000, description="tokens of the trained BPE, the 256 bytes and <eos> included"
    )
    validation_share: float = Field(0.03, gt=0, le=0.45, description="share of each domain kept for validation")
    test_share: float = Field(0.05, gt=0, le=0.45, description="share of each domain kept for the test, its end")


class PythonDocsOptions(TokenOptions):
    """Options of ``python-docs``."""

    domains: tuple[Literal["kjv", "code", "docs"], ...] = Field(
        (),
        max_length=3,
        description="the King James Bible, Python's own sources, its documentation; empty: all that are installed",
    )
    characters: int = Field(
        5_000_000, ge=10_000, le=100_000_000, description="characters of each domain at most, from its beginning"
    )


class TextFilesOptions(TokenOptions):
    """Options of ``text-files``."""

    path: str = Field(
        min_length=1,
        max_length=4096,
        description="file, or pattern such as texts/*.jsonl.gz: JSON lines, or plain text",
    )
    validation_path: str = Field("", max_length=4096, description="likewise for validation; empty: a share of path")
    test_path: str = Field("", max_length=4096, description="likewise for the test; empty: a share of path")
    field: str = Field("text", min_length=1, max_length=256, description="field of a JSON line that holds the text")
    domain: str = Field(
        "",
        max_length=256,
        description="field of a JSON line that names its domain; empty: the file's name is the domain",
    )
    rows: Literal["windows", "texts"] = Field(
        "windows", description="an example is a window of joined texts, or one text (of a plain file one line)"
    )
    texts: int | None = Field(None, ge=1, description="texts of each file at most, from its beginning; default all")
    padding: Literal["right", "left"] = Field(
        "right", description="side on which shorter texts are padded (rows = texts)"
    )


class TransformersOptions(Options):
    """Options of ``transformers``."""

    path: str = Field(
        "",
        max_length=4096,
        description="folder of a Hugging Face causal language model; empty: a fresh model of a family",
    )
    family: str = Field(
        "qwen2_moe",
        min_length=1,
        max_length=100,
        description="model_type of a fresh model: llama, gpt2, qwen2_moe, ...",
    )
    hidden: int = Field(64, ge=1, le=65536, description="width of a fresh model")
    layers: int = Field(6, ge=1, le=1000, description="layers of a fresh model")
    heads: int = Field(2, ge=1, le=1024, description="attention heads of a fresh model")
    config: dict[Annotated[str, Field(max_length=100)], Setting] = Field(
        {},
        max_length=200,
        description="further values of the family's configuration (--set model.config.num_experts=8)",
        json_schema_extra={"unbounded": "the family's configuration checks its own values"},
    )
    router_loss: float | None = Field(
        None,
        ge=0,
        le=100,
        description="factor of the routers' load-balancing loss in training; default: the configuration's",
    )
    dtype: Literal["float32", "bfloat16", "stored"] = Field(
        "float32", description="type of the weights; stored: as in the folder"
    )

    @model_validator(mode="after")
    def _fresh_or_not(self) -> TransformersOptions:
        for name in ("family", "hidden", "layers", "heads", "config") if self.path else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of a fresh model, and path gives a trained one; leave one of them out")
        return self
