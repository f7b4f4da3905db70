"""Bytes to the disk and from it: through the page cache, or past it (`O_DIRECT`) between memory and disk.

Past it a core spends 0.01 to 0.04 s a GB; through it 0.25 to write, 0.2 to read, and more where the kernel must look for
memory. Memory, place and length must then divide by 4096 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path

from interp.store.memory import BLOCK, memory

PART_BYTES = 16 << 20  # files are read in parts of this size


def write(path: Path, data: memoryview, at: int, direct: bool) -> None:
    """All of it at a place of a file. Raises `OSError`. Floor: each byte read once; buffered, also written once."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if direct else 0), 0o666)
    try:
        begin, size = at, len(data)
        while data:
            written = os.pwrite(handle, data, at)
            data, at = data[written:], at + written
        if not direct and hasattr(os, "posix_fadvise"):  # the kernel begins to write; the pages stay in memory
            os.posix_fadvise(handle, begin, size, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def writes_direct(folder: Path) -> bool:
    """Whether files in this folder can be written past the page cache."""
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        handle = os.open(folder, os.O_TMPFILE | os.O_DIRECT | os.O_WRONLY)  # it has no name, and is gone when closed
    except OSError:
        return False
    try:
        return os.pwrite(handle, memory(BLOCK).numpy().data, 0) == BLOCK
    except OSError:
        return False
    finally:
        os.close(handle)


def read(path: Path, out: memoryview, direct: bool) -> Iterator[memoryview]:
    """Fill `out`, which begins at a block, from the start of a file; yields each part once it is there.

    `direct`: past the page cache, as far as there are whole blocks, if the file system can. Raises `OSError`.
    """
    whole = len(out) // BLOCK * BLOCK if direct and hasattr(os, "O_DIRECT") else 0
    with open(path, "rb", buffering=0) as file, _past_the_cache(path) if whole else nullcontext() as past:
        for begin, end in pairwise([*range(0, whole, PART_BYTES), *range(whole, len(out), PART_BYTES), len(out)]):
            part = out[begin:end]
            if not (past and end <= whole and _filled(part, past, begin)):
                os.preadv(file.fileno(), [part], begin)
            yield part


@contextmanager
def _past_the_cache(path: Path) -> Iterator[int | None]:
    """A handle, or None where the file system opens no file so."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _filled(part: memoryview, handle: int, at: int) -> bool:
    """Whether the file system read it: some open a file past the cache and refuse to."""
    try:
        return os.preadv(handle, [part], at) == len(part)
    except OSError:
        return False


def sync(path: Path) -> None:
    """Have the content of a file on the disk before going on."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
