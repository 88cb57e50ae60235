"""What the columns of a trace say about the tokens that its requests share: block hashes, or parents."""

import json
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from costmodels.prefix_tree import PrefixTree, hash_block_tokens, tree_of_hashes, tree_of_parents
from hardware.errors import SpecError

__all__ = ["SHARING_COLUMNS", "parse_hashes", "read_json_lines", "sharing_tree"]

Floats = npt.NDArray[np.float64]
Hashes = list[list[int]]

SHARING_COLUMNS = ("request_id", "parent_id", "shared_tokens")
_MAX_PROBLEMS = 10
_JSON_KEYS = {
    "timestamp": ("arrival_s", 1e-3),
    "input_length": ("prompt_tokens", 1.0),
    "output_length": ("output_tokens", 1.0),
}
"""Keys of a Mooncake trace, what they are here, and in what unit (milliseconds)."""


def parse_hashes(cells: Iterable[str], source: str) -> Hashes:
    """Return the block hashes of each request: whole numbers between spaces.

    Raises
    ------
    SpecError
        naming the lines that hold something else.
    """
    found: Hashes = []
    problems = []
    for line, cell in enumerate(cells, start=2):
        try:
            found.append([int(part) for part in cell.split()])
        except ValueError:
            problems.append(f"line {line}: hash_ids: {cell!r} is not a list of whole numbers between spaces")
    if problems:
        raise SpecError(source, problems[:_MAX_PROBLEMS])
    return found


def read_json_lines(lines: Iterable[str], source: str) -> tuple[dict[str, Floats], Hashes | None]:
    """Return columns and block hashes of a trace in Mooncake's form, one JSON object per line.

    Keys are `timestamp` (milliseconds), `input_length`, `output_length` and, in all lines or in none,
    `hash_ids`.

    Raises
    ------
    SpecError
        naming every line that is no such object.
    """
    rows: list[tuple[float, ...]] = []
    hashes: Hashes = []
    problems = []
    for number, text in enumerate(lines, start=1):
        try:
            row = json.loads(text)
            rows.append(tuple(float(row[key]) * unit for key, (_, unit) in _JSON_KEYS.items()))
            if "hash_ids" in row:
                hashes.append([int(label) for label in row["hash_ids"]])
        except (ValueError, TypeError, KeyError):
            wanted = ", ".join(_JSON_KEYS)
            problems.append(f"line {number}: {text.strip()[:60]!r} is no JSON object with {wanted}, hash_ids")
    if not rows and not problems:
        problems.append("no requests: the file is empty")
    if hashes and len(hashes) < len(rows):
        problems.append(f"hash_ids: in {len(hashes)} of {len(rows)} lines; all or none must have them")
    if problems:
        raise SpecError(source, problems[:_MAX_PROBLEMS])
    table = np.array(rows, dtype=np.float64)
    columns = {name: table[:, at] for at, (name, _) in enumerate(_JSON_KEYS.values())}
    return columns, hashes or None


def sharing_tree(columns: Mapping[str, Floats], hashes: Hashes | None, source: str) -> PrefixTree | None:
    """Return the tree of what requests share; None where the trace has neither hashes nor parents.

    Raises
    ------
    SpecError
        if the columns contradict each other or a parent is no earlier request.
    """
    ways = [name for name in ("session", "prefix_tokens", "parent_id") if name in columns]
    ways += ["hash_ids"] if hashes is not None else []
    if len(ways) > 1 and ways != ["session", "prefix_tokens"]:
        raise SpecError(source, [f"columns {' and '.join(ways)} all say what requests share; keep one"])
    if hashes is None and "parent_id" not in columns:
        extra = [name for name in SHARING_COLUMNS[2:] if name in columns]
        if extra:
            raise SpecError(source, [f"column {extra[0]} needs parent_id (and request_id)"])
        return None
    prompt, output = (columns[name].astype(np.int64) for name in ("prompt_tokens", "output_tokens"))
    if hashes is None:
        return _of_parents(columns, prompt, output, source)
    count = np.array([len(ids) for ids in hashes], dtype=np.int64)
    known = count > 0
    if not known.any():
        return None
    try:
        block_tokens = hash_block_tokens(count[known], prompt[known])
    except ValueError as error:
        raise SpecError(source, [f"hash_ids: {error}"]) from None
    return tree_of_hashes(hashes, block_tokens, prompt, output)


def _of_parents(
    columns: Mapping[str, Floats], prompt: npt.NDArray[np.int64], output: npt.NDArray[np.int64], source: str
) -> PrefixTree:
    if "request_id" not in columns:
        raise SpecError(source, ["column parent_id needs request_id: which request each line is"])
    row: dict[float, int] = {}
    parent: list[int] = []
    problems = []
    pairs = zip(columns["request_id"].tolist(), columns["parent_id"].tolist(), strict=True)
    for number, (name, above) in enumerate(pairs):
        if name in row:
            problems.append(f"line {number + 2}: request_id: {name:g} is that of line {row[name] + 2} too")
        if above != -1 and above not in row:
            problems.append(
                f"line {number + 2}: parent_id: {above:g} is no request above; -1 is one that continues none"
            )
        parent.append(row.get(above, -1))
        row.setdefault(name, number)
    shared = columns.get("shared_tokens")
    if shared is not None:
        bad = np.flatnonzero((shared < 0) | (shared > prompt) | (shared % 1 != 0))
        problems += [
            f"line {n + 2}: shared_tokens: {shared[n]:g} is not a whole number from 0 to prompt_tokens"
            for n in bad.tolist()
        ]
    if problems:
        raise SpecError(source, problems[:_MAX_PROBLEMS])
    given = None if shared is None else shared.astype(np.int64)
    return tree_of_parents(np.array(parent, dtype=np.int64), prompt, output, given)
