"""Pieces of bash: quoting, arrays, the line that starts every script."""

import shlex
from collections.abc import Iterable, Mapping

__all__ = ["FIRST_LINES", "array", "exports", "flag"]

FIRST_LINES = "#!/usr/bin/env bash\n"


def flag(name: str, *values: object) -> str:
    """Return one line of an argument array: the flag and its values, quoted."""
    return " ".join([name, *(shlex.quote(str(value)) for value in values)])


def array(name: str, lines: Iterable[str]) -> str:
    """Return a bash array, one line per entry of `lines` (already quoted words)."""
    body = "".join(f"  {line}\n" for line in lines)
    return f"{name}=(\n{body})\n"


def exports(environment: Mapping[str, str]) -> str:
    """Return `export` lines in alphabetical order; a value that is set already wins."""
    return "".join(f'export {name}="${{{name}:-{value}}}"\n' for name, value in sorted(environment.items()))
