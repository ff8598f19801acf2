"""Reading arrays out of files of ``torch.save``, by the unpickler of `plait_glt.pickles`, which runs nothing."""

from __future__ import annotations

import io
import zipfile
from typing import IO

from plait_glt.pickles import Array, Refused, read_named, read_value

MAGIC = 0x1950A86A20F9469CFC6C
"""The number at the beginning of the format before torch 1.6: pickles one after another, the fourth is the object."""
MOST_BYTES = 1 << 34


def read_arrays(file: IO[bytes]) -> dict[str, Array]:
    """A dictionary of arrays, in the present format (a zip archive) or the one before torch 1.6.

    Raises:
        Refused: the file asks for any other name, or holds anything else than arrays.
        Exception: whatever zipfile and pickle raise on damaged input.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.split("/", 1)[-1] == "data.pkl"]
            if len(names) != 1 or archive.getinfo(names[0]).file_size > MOST_BYTES:
                raise Refused("an archive without exactly one data.pkl")
            return read_named(io.BytesIO(archive.read(names[0])))
    file.seek(0)
    if read_value(file) != MAGIC:
        raise Refused("a file that torch.save did not write")
    for _ in range(2):  # the version of the format, and what kind of machine wrote it
        read_value(file)
    return read_named(file)
