"""Read back what our scripts will run: the words of a bash array, variables left as they stand."""

import re
import shlex

__all__ = ["array_words", "number_after"]


def array_words(text: str, name: str) -> list[str]:
    """Return the words of the bash array `name`, in order; quoted variables keep their ``$``."""
    match = re.search(rf"^{name}=\((.*?)^\)", text, flags=re.MULTILINE | re.DOTALL)
    if match is None:
        return []
    return shlex.split(match.group(1), comments=True)


def number_after(text: str, word: str) -> int | None:
    """Return the integer that follows `word` (an option, or ``NAME=``), None where there is none."""
    match = re.search(rf"{re.escape(word)}\s*(\d+)\b", text)
    return int(match.group(1)) if match else None
