"""Writing files so that a crash leaves either the old one or the new one, and one writer at a time in a folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["lock", "write_atomic"]


def write_atomic(path: Path, data: Any) -> None:
    """Writes a file that is either there as a whole or not at all, also after a crash of the machine.

    Args:
        path: File to write or to replace; its folder exists.
        data: Its bytes, or an object with the buffer protocol.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def lock(folder: Path, name: str = ".lock") -> Iterator[None]:
    """One writer at a time in a folder; the system releases the lock of a killed process.

    Args:
        folder: It exists.
        name: Of the lock: those with different names do not wait for each other.
    """
    import fcntl  # POSIX only: elsewhere stores can be read, but nothing here can be written

    with open(folder / name, "ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
