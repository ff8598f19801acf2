"""Arrays are read out of pickles; nothing in them is run, and nothing that they ask for is looked up."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from plait_zoo.pickled import DTYPES, ArrayUnpickler, Name, Refused, StoredArray, read_dictionary


def read(content: bytes, encoding: Literal["latin1", "bytes"] = "latin1", **further: Any) -> Any:
    return ArrayUnpickler(io.BytesIO(content), encoding=encoding, **further).load()


ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: npst.arrays(DTYPES[name], npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@settings(max_examples=100, deadline=None)
@given(array=ARRAYS, protocol=st.integers(2, 5), fortran=st.booleans(), encoding=st.sampled_from(["latin1", "bytes"]))
def test_what_numpy_wrote_comes_back(array: Any, protocol: int, fortran: bool, encoding: Any) -> None:
    array = np.asfortranarray(array) if fortran else array
    arrays = read(pickle.dumps({"a": [array, 3]}, protocol), encoding)["a"]
    assert arrays[1] == 3 and isinstance(arrays[0], StoredArray)
    back = arrays[0].numpy()
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()  # also nan


@pytest.mark.parametrize(
    "array",
    [np.array([1, 2], ">i4"), np.array(["a"]), np.array([None]), np.array([1 + 2j]), np.array(["2020"], "M8[Y]")],
)
def test_other_arrays_are_refused(array: Any) -> None:
    with pytest.raises(Refused):
        read(pickle.dumps(array, 2)).numpy()


def test_an_array_of_another_size_than_it_says_is_refused() -> None:
    content = pickle.dumps(np.arange(4, dtype=np.uint8), 2)
    with pytest.raises(Refused, match=r"shape \(5,\) with 4 values"):
        read(content.replace(b"K\x04\x85", b"K\x05\x85", 1)).numpy()


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "executed"
    for evil in (Evil(os.system, f"touch {mark}"), Evil(eval, f"open({str(mark)!r}, 'w')"), Evil(np.load, str(mark))):
        with pytest.raises(Refused, match=r"the name \w+"):
            read(pickle.dumps(evil, protocol))
    assert not mark.exists()


def test_a_reader_may_know_further_names() -> None:
    class Two(Name):
        def __call__(self, *arguments: object) -> int:
            return 2

    content = pickle.dumps(Evil(os.getpid), 2)
    module = os.getpid.__module__
    assert read(content, further={(module, "getpid"): Two()}) == 2
    with pytest.raises(Refused, match=f"the name {module}.getpid"):
        read(content)


# ---- dictionaries ---------------------------------------------------------------------------------------------------
def test_both_numpy_spellings() -> None:
    data = pickle.dumps({b"data": np.arange(6, dtype=np.uint8).reshape(2, 3)}, 2)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    new = old.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    assert old != new
    for content in (old, new):
        assert read_dictionary(io.BytesIO(content))["data"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_python_2_pickle_is_read() -> None:
    # what Python 2 wrote: byte strings for keys, names and the array's content
    text = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x02\x07\xfftbU\x06labels]q\x08(K\x03K\x04eu."
    )
    pickletools.dis(text, out=io.StringIO())
    content = read_dictionary(io.BytesIO(text))
    assert content["data"].tolist() == [[7, 255]]
    assert content["labels"] == [3, 4]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"cos\nsystem\n(S'touch was-here'\ntR.", Refused, "the name os.system"),
        (b"cnumpy.core.multiarray\n__builtins__\n.", Refused, "the name numpy.core.multiarray.__builtins__"),
        (b"cnumpy\nload\n.", Refused, "the name numpy.load"),
        (b"cnumpy.testing\nndarray\n.", Refused, "the name numpy.testing.ndarray"),
        (b"cnumpy.core.multiarray.x\n_reconstruct\n.", Refused, "the name numpy.core.multiarray.x._reconstruct"),
        (b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__init__.x\x93.", Refused, "the name numpy.ndarray.__init__.x"),
        (b"c_codecs\nencode\n(Vabc\nVrot13\ntR.", Refused, "an encoding other than latin1"),
        (b"\x80\x02cnumpy\nndarray\n}U\x08__init__K\x01sb.", TypeError, ""),
        (b"\x80\x02c_codecs\nencode\nN}U\x08__call__K\x01s\x86b.", TypeError, ""),
        (b"Nr\xff\xff\xff\x7f.", Refused, "a NoneType instead of a dictionary"),
        (b"P1\n.", pickle.UnpicklingError, "persistent"),
        (b"\x82\x01.", ValueError, "extension code 1"),
    ],
)
def test_tricks_are_refused(
    content: bytes, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        read_dictionary(io.BytesIO(content))
    assert not (tmp_path / "was-here").exists()
    # the placeholders are as they were
    good = pickle.dumps({"data": np.ones(2, np.uint8)}, 2)
    assert read_dictionary(io.BytesIO(good))["data"].tolist() == [1, 1]


def test_only_a_dictionary_is_one() -> None:
    with pytest.raises(Refused, match="a list instead of a dictionary"):
        read_dictionary(io.BytesIO(pickle.dumps([1], 2)))
