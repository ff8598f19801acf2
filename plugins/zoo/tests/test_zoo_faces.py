"""celeba, fairface, lfw and chexpert in their published layouts, and what is said when something is wrong."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from plait.data import Data
from plait.data.streams import Stream
from plait.errors import BadInput
from plait_zoo.splits import FileSplit

Load = Callable[..., Data]
Picture = Callable[..., None]
ATTRIBUTES = ("Attractive", "Blond_Hair", "Male", "Smiling", "Young")


def splits(data: Data) -> Iterator[FileSplit]:
    for split in (data.train, data.validation, data.test):
        assert isinstance(split, FileSplit)
        yield split


def names(split: FileSplit) -> list[str]:
    return [name.decode() for name in split.files]


def colours(split: FileSplit) -> list[int]:
    return [int(v) for v in (split.__getitems__(range(len(split)))["input"].mean((1, 2, 3)) * 255).round()]


# ---- celeba ---------------------------------------------------------------------------------------------------------
def celeba(root: Path, picture: Picture, csv: bool = False, count: int = 12) -> list[dict[str, int]]:
    rows = [{name: 1 if (row >> at) & 1 else -1 for at, name in enumerate(ATTRIBUTES)} for row in range(count)]
    files = [f"{row + 1:06d}.jpg" for row in range(count)]
    for row, name in enumerate(files):
        picture(root / "img_align_celeba" / name, 10 * row, (18, 22))
    parts = [0 if row < count - 4 else 1 if row < count - 2 else 2 for row in range(count)]
    if csv:
        table = ["image_id," + ",".join(ATTRIBUTES)]
        table += [",".join([name, *(str(row[a]) for a in ATTRIBUTES)]) for name, row in zip(files, rows, strict=True)]
        (root / "list_attr_celeba.csv").write_text("\n".join(table) + "\n")
        lines = [f"{name},{part}" for name, part in zip(files, parts, strict=True)]
        (root / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *lines]))
    else:
        table = [str(count), " ".join(ATTRIBUTES) + " "]
        table += [
            "  ".join([name, *(f"{row[a]:2d}" for a in ATTRIBUTES)]) for name, row in zip(files, rows, strict=True)
        ]
        (root / "list_attr_celeba.txt").write_text("\n".join(table) + "\n")
        lines = [f"{name} {part}" for name, part in zip(files, parts, strict=True)]
        (root / "list_eval_partition.txt").write_text("\n".join(lines))
    return rows


@pytest.mark.parametrize("csv", [False, True])
def test_celeba(tmp_path: Path, csv: bool, picture: Picture, load: Load) -> None:
    rows = celeba(tmp_path, picture, csv)
    data = load("celeba", root=str(tmp_path), size=16)
    assert [len(split) for split in splits(data)] == [8, 2, 2]
    assert data.info.input_shape == (3, 16, 16)
    assert (data.info.num_classes, data.info.num_groups) == (2, 2)
    assert data.names == {"label": ["not Smiling", "Smiling"], "group": ["not Male", "Male"]}
    at = 0
    for split in splits(data):
        got = split.__getitems__(range(len(split)))
        here = rows[at : at + len(split)]
        assert got["label"].tolist() == [int(row["Smiling"] > 0) for row in here]
        assert got["group"].tolist() == [int(row["Male"] > 0) for row in here]
        assert colours(split) == pytest.approx([10 * row for row in range(at, at + len(split))], abs=2)
        at += len(split)
    other = load("celeba", root=str(tmp_path), target="Young", sensitive="Blond_Hair", flip=False)
    assert other.info.input_shape == (3, 128, 128)
    assert other.augment is None


def test_celeba_names_what_is_wrong(tmp_path: Path, picture: Picture, load: Load) -> None:
    def refused(match: str, **options: object) -> None:
        with pytest.raises(BadInput, match=match) as caught:
            load("celeba", root=str(tmp_path), **options)
        assert "\n" not in str(caught.value)

    refused(r"no folder .*img_align_celeba.* Expected layout: ROOT/img_align_celeba/000001\.jpg")
    celeba(tmp_path, picture)
    refused(r"list_attr_celeba\.txt has no 'Smilling' \(option target\)\. Close: Smiling", target="Smilling")
    refused(r"has no 'male' \(option sensitive\)\. Close: Male", sensitive="male")
    refused(r"has no 'zzz' .*It has: image_id, Attractive", target="zzz")
    refused("target and sensitive are both 'Male'", target="Male")
    for number in (3, 5, 7, 12):
        (tmp_path / "img_align_celeba" / f"{number:06d}.jpg").unlink()
    refused(r"4 of 12 listed images are missing .*first: 000003.jpg, 000005.jpg, 000007.jpg\). Set skip_missing = true")
    data = load("celeba", root=str(tmp_path), skip_missing=True)
    assert [len(split) for split in splits(data)] == [5, 2, 1]
    assert "4 of 12 listed images are missing" in data.notes[0]
    assert data.test.__getitems__([0])["index"].tolist() == [0]
    (tmp_path / "img_align_celeba" / "000011.jpg").unlink()
    refused("the test split of .* is empty", skip_missing=True)

    table = (tmp_path / "list_attr_celeba.txt").read_text().splitlines()
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(table[:-2]))
    refused("announces 12 images and lists 10; is it truncated?", skip_missing=True)
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join([*table[:-1], table[-1][:-3]]))
    refused("line 14 has 5 values, the header has 6", skip_missing=True)
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join([*table[:-1], table[-1].replace(" 1", " 2")]))
    refused("row 12 has .* = '2'; expected 1, -1", skip_missing=True)
    (tmp_path / "list_attr_celeba.txt").write_bytes(b"\xff\xfe\x00")
    refused(r"list_attr_celeba\.txt: cannot be read")
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(table))
    lines = (tmp_path / "list_eval_partition.txt").read_text().splitlines()
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines[1:]))
    refused(r"1 images of list_attr_celeba\.txt are not listed \(first: 000001\.jpg\)")
    (tmp_path / "list_eval_partition.txt").unlink()
    refused(r"list_eval_partition\.txt is missing")


# ---- fairface -------------------------------------------------------------------------------------------------------
RACES = ["East Asian", "Indian", "Black", "White", "Middle Eastern", "Latino_Hispanic", "Southeast Asian"]


def fairface(root: Path, picture: Picture, images: str = "") -> None:
    for part, count in (("train", 14), ("val", 10)):
        lines = ["file,age,gender,race,service_test"]
        for row in range(count):
            name = f"{part}/{row + 1}.jpg"
            picture(root / images / name, 10 * row)
            lines.append(f"{name},20-29,{('Male', 'Female')[row % 2]},{RACES[row % 7]},{row % 2 == 0}")
        (root / f"fairface_label_{part}.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("images", ["", "fairface-img-margin025-trainval"])
def test_fairface(tmp_path: Path, images: str, picture: Picture, load: Load) -> None:
    fairface(tmp_path, picture, images)
    data = load("fairface", root=str(tmp_path), size=16)
    assert [len(split) for split in splits(data)] == [14, 5, 5]
    assert (data.info.num_classes, data.info.num_groups) == (2, 7)
    assert data.names["group"] == RACES
    train, validation, test = splits(data)
    assert train.fields["label"].tolist() == [1, 0] * 7
    assert train.fields["group"].tolist() == [0, 1, 2, 3, 4, 5, 6] * 2
    assert all(name.startswith("train/") for name in names(train))
    assert set(names(validation)) | set(names(test)) == {f"val/{n}.jpg" for n in range(1, 11)}
    assert names(load("fairface", seed=5, root=str(tmp_path)).test) == names(test)  # type: ignore[arg-type]
    white = load("fairface", root=str(tmp_path), races="white")
    assert white.names["group"] == ["non-White", "White"]
    assert white.train.fields["group"].tolist() == [0, 0, 0, 1, 0, 0, 0] * 2  # type: ignore[attr-defined]
    swapped = load("fairface", root=str(tmp_path), target="race", sensitive="gender")
    assert (swapped.info.num_classes, swapped.info.num_groups) == (7, 2)


def test_fairface_names_what_is_wrong(tmp_path: Path, picture: Picture, load: Load) -> None:
    with pytest.raises(BadInput, match=r"fairface_label_train\.csv is missing"):
        load("fairface", root=str(tmp_path))
    fairface(tmp_path, picture)
    with pytest.raises(BadInput, match=r"no 'rase' .*Close: race"):
        load("fairface", root=str(tmp_path), sensitive="rase")
    with pytest.raises(BadInput, match="no 'file'"):
        load("fairface", root=str(tmp_path), target="file")
    path = tmp_path / "fairface_label_val.csv"
    path.write_text(path.read_text().replace("Indian", "Martian"))
    with pytest.raises(BadInput, match=r"row 2 has race = 'Martian'; expected East Asian"):
        load("fairface", root=str(tmp_path))
    path.write_text("")
    with pytest.raises(BadInput, match="has no rows"):
        load("fairface", root=str(tmp_path))
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    fairface_val = path.with_name("fairface_label_train.csv").read_text()
    path.write_text(fairface_val)
    with pytest.raises(BadInput, match=r"there is no folder .*train"):
        load("fairface", root=str(tmp_path))


# ---- lfw ------------------------------------------------------------------------------------------------------------
def lfw(root: Path, picture: Picture, people: int = 30) -> None:
    lines = ["# lfw_attributes.txt", "#\tperson\timagenum\tMale\tSmiling\tBlond Hair"]
    for person in range(people):
        name = f"Ann Person{person}"
        for number in range(1, 2 + person % 3):
            folder = name.replace(" ", "_")
            picture(root / "lfw" / folder / f"{folder}_{number:04d}.jpg", 5 * person)
            lines.append(f"{name}\t{number}\t{(-1) ** person * 0.7:.3f}\t{number - 1.5:.2f}\t-0.1")
    (root / "lfw_attributes.txt").write_text("\n".join(lines) + "\n")


def test_lfw_splits_by_person(tmp_path: Path, picture: Picture, load: Load) -> None:
    lfw(tmp_path, picture)
    data = load("lfw", root=str(tmp_path), size=16)
    people = [{name.split("/")[0] for name in names(split)} for split in splits(data)]
    assert [len(of_person) for of_person in people] == [21, 3, 6]
    assert not people[0] & people[1] | people[0] & people[2] | people[1] & people[2]
    for split in splits(data):
        for name, label, group in zip(names(split), split.fields["label"], split.fields["group"], strict=True):
            assert int(label) == int(name.endswith(("_0002.jpg", "_0003.jpg")))
            assert int(group) == int(int(name.split("/")[0].removeprefix("Ann_Person")) % 2 == 0)
    again = load("lfw", seed=9, root=str(tmp_path))
    assert [names(split) for split in splits(again)] == [names(split) for split in splits(data)]
    assert load("lfw", root=str(tmp_path), sensitive="Blond Hair").names["group"] == ["not Blond Hair", "Blond Hair"]


def test_lfw_names_what_is_wrong(tmp_path: Path, picture: Picture, load: Load) -> None:
    with pytest.raises(BadInput, match=r"lfw_attributes\.txt is missing. Expected layout: ROOT/lfw/<Name>"):
        load("lfw", root=str(tmp_path))
    lfw(tmp_path, picture)
    with pytest.raises(BadInput, match="Close: Blond Hair"):
        load("lfw", root=str(tmp_path), target="Blond_Hair")
    with pytest.raises(BadInput, match="no 'imagenum'"):
        load("lfw", root=str(tmp_path), target="imagenum")
    path = tmp_path / "lfw_attributes.txt"
    text = path.read_text()
    for old, new, message in [
        ("#\tperson", "person", "no header line"),
        ("#\tperson", "#\tname", "expected person and imagenum"),
        ("Ann Person0\t1\t0.700", "Ann Person0\tone\t0.7", "no whole number"),
        ("Ann Person0\t1\t0.700", "Ann Person0\t1\tmuch", "no number"),
        ("Ann Person0\t1\t", "Ann Person0\t", "line 3 has 4 values"),
    ]:
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(BadInput, match=message):
            load("lfw", root=str(tmp_path))


# ---- chexpert -------------------------------------------------------------------------------------------------------
def chexpert(root: Path, picture: Picture, patients: int = 40) -> None:
    top = "CheXpert-v1.0-small"
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Pleural Effusion"
    for part, first, count in (("train", 1, patients), ("valid", patients + 1, 6)):
        lines = [header]
        for patient in range(first, first + count):
            sex = "Unknown" if patient == 3 else ("Female", "Male")[patient % 2]
            for view, side in ((1, "Frontal"), (2, "Lateral")):
                name = f"{top}/{part}/patient{patient:05d}/study1/view{view}_{side.lower()}.jpg"
                picture(root / name, patient)
                value = ("1.0", "0.0", "-1.0", "")[patient % 4]
                lines.append(f"{name},{sex},{20 + patient},{side},{'AP' if side == 'Frontal' else ''},,{value}")
        (root / top / f"{part}.csv").write_text("\n".join(lines) + "\n")


def patients(split: FileSplit) -> set[str]:
    return {name.split("/")[2] for name in names(split)}


@pytest.mark.parametrize("inside", ["", "CheXpert-v1.0-small"])
def test_chexpert(tmp_path: Path, inside: str, picture: Picture, load: Load) -> None:
    chexpert(tmp_path, picture)
    data = load("chexpert", root=str(tmp_path / inside), size=16)
    train, validation, test = splits(data)
    assert (
        not patients(train) & patients(validation)
        | patients(train) & patients(test)
        | patients(validation) & patients(test)
    )
    every = patients(train) | patients(validation) | patients(test)
    assert every == {f"patient{n:05d}" for n in range(1, 41) if n != 3}
    assert all("frontal" in name for split in splits(data) for name in names(split))
    assert "2 images without a known Sex" in data.notes[0]
    for split in splits(data):
        numbers = [int(name.split("/")[2].removeprefix("patient")) for name in names(split)]
        assert split.fields["label"].tolist() == [int(n % 4 == 0) for n in numbers]
        assert split.fields["group"].tolist() == [n % 2 for n in numbers]
    assert data.names == {"label": ["no Pleural Effusion", "Pleural Effusion"], "group": ["Female", "Male"]}


def test_chexpert_options(tmp_path: Path, picture: Picture, load: Load) -> None:
    chexpert(tmp_path, picture)
    ones = load("chexpert", root=str(tmp_path), uncertain="ones")
    skip = load("chexpert", root=str(tmp_path), uncertain="skip")
    for split in splits(ones):
        numbers = [int(name.split("/")[2].removeprefix("patient")) for name in names(split)]
        assert split.fields["label"].tolist() == [int(n % 4 in (0, 2)) for n in numbers]
    assert all(int(name.split("/")[2][-2:]) % 4 != 2 for split in splits(skip) for name in names(split))
    age = load("chexpert", root=str(tmp_path), sensitive="Age", age_threshold=40)
    assert age.names["group"] == ["under 40", "40 or older"]
    assert age.notes == ["chexpert: the test split has no image of Pleural Effusion."]
    numbers = [int(name.split("/")[2].removeprefix("patient")) for name in names(age.train)]  # type: ignore[arg-type]
    assert age.train.fields["group"].tolist() == [int(20 + n >= 40) for n in numbers]  # type: ignore[attr-defined]
    both = load("chexpert", root=str(tmp_path), frontal_only=False)
    assert sum(map(len, splits(both))) == 2 * 39
    valid = load("chexpert", root=str(tmp_path), test="valid")
    train, validation, test = splits(valid)
    assert patients(test) == {f"patient{n:05d}" for n in range(41, 47)}
    assert len(patients(train) | patients(validation)) == 39


def test_chexpert_names_what_is_wrong(tmp_path: Path, picture: Picture, load: Load) -> None:
    with pytest.raises(BadInput, match=r"train\.csv is missing"):
        load("chexpert", root=str(tmp_path))
    chexpert(tmp_path, picture)
    with pytest.raises(BadInput, match="Close: Pleural Effusion"):
        load("chexpert", root=str(tmp_path), target="Effusion Pleural")
    with pytest.raises(BadInput, match=r"no 'Sex' .option target"):
        load("chexpert", root=str(tmp_path), target="Sex")
    path = tmp_path / "CheXpert-v1.0-small" / "train.csv"
    text = path.read_text()
    for old, new, message in [
        (",1.0\n", ",yes\n", "no number"),
        (",1.0\n", ",2\n", "other than 1, 0, -1 and blank"),
        ("CheXpert-v1.0-small/train/patient00001/study1/", "", "expected CheXpert-v1.0-small/train/patient00001"),
        ("Path,Sex", "Path,Gender", "has no 'Sex'"),
        ("Path,Sex", '"Path,Sex', "not comma-separated"),
    ]:
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(BadInput, match=message):
            load("chexpert", root=str(tmp_path))
    path.write_text(text.replace(",21,", ",old,"))
    with pytest.raises(BadInput, match="Age has a value that is no number"):
        load("chexpert", root=str(tmp_path), sensitive="Age")


# ---- files in batches -----------------------------------------------------------------------------------------------
def test_file_split_is_picklable_and_alike_in_workers(tmp_path: Path, picture: Picture, load: Load) -> None:
    celeba(tmp_path, picture, count=24)
    data = load("celeba", root=str(tmp_path), size=16)
    copy = pickle.loads(pickle.dumps(data.train))
    want = data.train.__getitems__(range(16))
    for name, value in copy.__getitems__(torch.arange(16)).items():
        assert torch.equal(value, want[name])
    assert len(data.train.__getitems__([])["label"]) == 0
    here, there = (Stream(data.train, "train", 0, 4, workers=workers) for workers in (0, 1))
    for _ in range(2):
        first, two = next(here), next(there)
        assert all(torch.equal(first[name], two[name]) for name in first)


def test_unreadable_image_is_named(tmp_path: Path, picture: Picture, load: Load) -> None:
    celeba(tmp_path, picture, count=24)
    bad = tmp_path / "img_align_celeba" / "000002.jpg"
    data = load("celeba", root=str(tmp_path))
    bad.write_bytes(bad.read_bytes()[:60])
    for rows in ([1], range(12)):
        with pytest.raises(BadInput, match=r"000002\.jpg: not a readable image") as caught:
            data.train.__getitems__(rows)
        assert "\n" not in str(caught.value)


def test_images_are_cut_from_the_middle(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 100, (20, 60, 3), np.uint8)
    pixels[:, 20:40] += 155
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    split = FileSplit(str(tmp_path), ["a.png", "grey.png"], {"label": torch.zeros(2).long()}, 10)
    got = split.__getitems__([0, 1])["input"]
    want = np.asarray(Image.fromarray(pixels).resize((30, 10), Image.Resampling.BILINEAR).crop((10, 0, 20, 10)))
    assert torch.equal((got[0] * 255).round().byte(), torch.from_numpy(want.copy()).permute(2, 0, 1))
    assert torch.equal(got[1, 0], got[0, 0])
    assert torch.equal(got[1, 1], got[1, 0])
    wide = FileSplit(str(tmp_path), ["a.png"], {"label": torch.zeros(1).long()}, 10, margin=1.25)
    assert wide.__getitems__([0])["input"].min() > 0.6
