"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, see it to the disk, and move it there.

    The permissions are those of any new file of this process, whatever `write` gave it.
    Raises OSError, naming the file, where it cannot be written; an earlier file of that name is then as it was.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        permissions = partial.stat().st_mode
        write(partial)
        partial.chmod(permissions)
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        partial.replace(target)
    except OSError as error:
        got = error.strerror or str(error)
        raise OSError(f"file {str(target)!r}: got {got}; takes a folder to write to, and room on its disk") from error
    finally:
        partial.unlink(missing_ok=True)


def is_partial(path: Path) -> bool:
    """Whether a file is what a killed process left of one that it was writing."""
    return path.name.startswith(".") and path.name.endswith(".partial")
