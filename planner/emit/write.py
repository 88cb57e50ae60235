"""Write an emission: everything under a temporary folder beside the target, then renamed; never half."""

import os
import shutil
import tempfile
from pathlib import Path

from hardware.errors import InputError
from planner.emit.emission import Emission

__all__ = ["write_emission"]


def write_emission(emission: Emission, folder: str | os.PathLike[str]) -> list[str]:
    """Write the files into `folder`, which is made; return their names, sorted.

    Raises
    ------
    InputError
        if the folder exists and holds anything, or cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        message = f"{target}: exists and is not empty; name a new folder, or remove this one first"
        raise InputError(message)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        for name, text in emission.files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755 if name in emission.commands else 0o644)
        temporary.chmod(0o755)
        if target.exists():
            target.rmdir()
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        message = f"{target}: cannot be written: {error.strerror}"
        raise InputError(message) from None
    return sorted(emission.files)
