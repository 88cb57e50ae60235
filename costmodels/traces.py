"""Request traces: one row per request, read from CSV (plain or gzip) with located errors.

Needed columns are ``arrival_s``, ``prompt_tokens`` and ``output_tokens``. Optional ones say, each in its own
way, what requests share: ``session`` (turns of one conversation, each prompt starting with all before it);
``prefix_tokens`` (prompt tokens that an unlimited prefix cache would already hold); ``request_id`` and
``parent_id`` (the request that each continues, -1 for none; several may continue the same one), with
``shared_tokens`` where only a leading part of it is repeated; ``hash_ids`` (hashes of the prompt's blocks,
between spaces). Others are ignored. Mooncake's JSON lines (``.jsonl``) are read too.
"""

import csv
import gzip
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from costmodels.job import Traffic
from costmodels.prefix_tree import PrefixTree, tree_of_parents
from costmodels.trace_sharing import SHARING_COLUMNS, parse_hashes, read_json_lines, sharing_tree
from hardware.errors import InputError, SpecError

__all__ = ["Trace", "opened_csv", "read_lengths", "read_trace", "trace_from_columns"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MAX_PROBLEMS = 10
_LENGTHS = ("prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Requests in order of arrival, as equal-length columns."""

    arrival_s: Floats
    """Not negative, not falling."""
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints | None = None
    """Conversation of each request; -1 for a request that stands alone."""
    prefix_tokens: Ints | None = None
    """Prompt tokens that an unlimited prefix cache would hold when the request arrives."""
    tree: PrefixTree | None = None
    """What requests share with each other, where the trace names their blocks or what they continue."""
    source: str = ""

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """Time from the first arrival to the last."""
        return float(self.arrival_s[-1] - self.arrival_s[0])

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals per second: intervals over span; infinite when all arrive at once."""
        return (len(self) - 1) / self.span_s if self.span_s > 0.0 else math.inf

    @property
    def arrival_cv(self) -> float:
        """Standard deviation over mean of the time between arrivals; 1 for a Poisson process."""
        gaps = np.diff(self.arrival_s)
        return float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0.0 else 1.0

    def _sharing(self) -> PrefixTree:
        """Return what requests share; turns of a session continue the one before."""
        if self.tree is not None:
            return self.tree
        last: dict[int, int] = {}
        parent: list[int] = []
        for row, session in enumerate([] if self.session is None else self.session.tolist()):
            parent.append(last.get(session, -1) if session >= 0 else -1)
            last[session] = row
        return tree_of_parents(np.array(parent, dtype=np.int64), self.prompt_tokens, self.output_tokens)

    def head(self, num_requests: int) -> "Trace":
        """Return the first `num_requests` requests."""
        return self.take(np.arange(min(num_requests, len(self))))

    def take(self, rows: npt.NDArray[np.intp]) -> "Trace":
        """Return the chosen requests; `rows` must rise."""
        return Trace(
            arrival_s=self.arrival_s[rows],
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=self.output_tokens[rows],
            session=None if self.session is None else self.session[rows],
            prefix_tokens=None if self.prefix_tokens is None else self.prefix_tokens[rows],
            tree=None if self.tree is None else self.tree.take(rows),
            source=self.source,
        )

    def scaled(self, rate_per_s: float) -> "Trace":
        """Return the same requests at another mean rate: time is stretched, the order and bursts stay."""
        if not 0.0 < rate_per_s < math.inf or self.span_s == 0.0:
            which = f"{self.source}: " if self.source else ""
            message = (
                f"{which}cannot be stretched to rate_per_s {rate_per_s:g}; arrivals at two times and a rate "
                "above 0 are needed"
            )
            raise InputError(message)
        start_s = self.arrival_s[0]
        stretched = start_s + (self.arrival_s - start_s) * (self.rate_per_s / rate_per_s)
        return replace(self, arrival_s=stretched)

    def traffic(self) -> Traffic:
        """Return rate and joint length distribution, one size per distinct (prompt, output) pair."""
        pairs = Counter(zip(self.prompt_tokens.tolist(), self.output_tokens.tolist(), strict=True))
        sizes = sorted(pairs)
        total_prompt = float(self.prompt_tokens.sum())
        hits = self.prefix_tokens
        if hits is None and (self.tree is not None or self.session is not None):
            hits = np.minimum(self._sharing().seen_tokens(), self.prompt_tokens - 1)
        hit_frac = 0.0 if hits is None else float(hits.sum()) / total_prompt
        return Traffic(
            rate_per_s=self.rate_per_s,
            prompt_tokens=tuple(p for p, _ in sizes),
            output_tokens=tuple(o for _, o in sizes),
            share_frac=tuple(pairs[size] / len(self) for size in sizes),
            arrival_cv=self.arrival_cv,
            prefix_hit_frac=hit_frac,
        )


def read_trace(path: str | Path) -> Trace:
    """Return the requests of a trace CSV (``.gz`` too), in order of arrival.

    Raises
    ------
    SpecError
        naming every wrong column, or line, value and what is accepted; the first ten.
    InputError
        if the file cannot be opened or is no text.
    """
    path = Path(path)
    hashes: list[list[int]] | None
    if ".jsonl" in path.suffixes:
        with opened_csv(path) as file:
            columns, hashes = read_json_lines(file, str(path))
    else:
        optional = ("session", "prefix_tokens", *SHARING_COLUMNS)
        columns, texts = _read_columns(path, ("arrival_s", *_LENGTHS), optional, "hash_ids")
        hashes = None if texts is None else parse_hashes(texts, str(path))
    trace = trace_from_columns(columns, source=str(path))
    return replace(trace, tree=sharing_tree(columns, hashes, str(path)))


def read_lengths(path: str | Path) -> tuple[Ints, Ints]:
    """Return prompt and output lengths of a CSV that needs no arrivals."""
    columns, _ = _read_columns(Path(path), _LENGTHS, ())
    _check_lengths(columns, str(path))
    return columns["prompt_tokens"].astype(np.int64), columns["output_tokens"].astype(np.int64)


def trace_from_columns(columns: dict[str, Floats], *, source: str = "trace") -> Trace:
    """Return a checked trace from columns by name.

    Raises
    ------
    SpecError
        if arrivals are negative, fall or are not finite, or a length is below one or not whole.
    """
    _check_lengths(columns, source)
    arrival_s = np.asarray(columns["arrival_s"], dtype=np.float64)
    problems = _problems("arrival_s", arrival_s, arrival_s < 0.0, "0 or later")
    falls = np.concatenate(([False], np.diff(arrival_s) < 0.0))
    problems += _problems(
        "arrival_s", arrival_s, falls, "at or after the line above (sort the trace by arrival)"
    )
    prefix = columns.get("prefix_tokens")
    if prefix is not None:
        bad = (prefix < 0) | (prefix > columns["prompt_tokens"]) | (prefix % 1 != 0)
        problems += _problems("prefix_tokens", prefix, bad, "a whole number from 0 to prompt_tokens")
    session = columns.get("session")
    if session is not None:
        problems += _problems("session", session, session % 1 != 0, "a whole number")
    _raise_if(source, problems)
    return Trace(
        arrival_s=arrival_s,
        prompt_tokens=columns["prompt_tokens"].astype(np.int64),
        output_tokens=columns["output_tokens"].astype(np.int64),
        session=None if session is None else session.astype(np.int64),
        prefix_tokens=None if prefix is None else prefix.astype(np.int64),
        source=source,
    )


def _check_lengths(columns: dict[str, Floats], source: str) -> None:
    problems: list[str] = []
    for name in _LENGTHS:
        values = np.asarray(columns[name], dtype=np.float64)
        hint = " (a failed request has no output: leave it out)" if name == "output_tokens" else ""
        problems += _problems(
            name, values, (values < 1) | (values % 1 != 0), f"a whole number from 1 up{hint}"
        )
    _raise_if(source, problems)


def _problems(name: str, values: Floats, bad: npt.NDArray[np.bool_], accepted: str) -> list[str]:
    """Return one sentence per bad row; line 1 of a file is its header."""
    rows = np.flatnonzero(bad)
    shown = [
        f"line {row + 2}: {name}: {values[row]:.12g} is not {accepted}"
        for row in rows[:_MAX_PROBLEMS].tolist()
    ]
    if len(rows) > _MAX_PROBLEMS:
        shown.append(f"{name}: {len(rows) - _MAX_PROBLEMS} more lines of the same kind")
    return shown


def _raise_if(source: str, problems: list[str]) -> None:
    if problems:
        raise SpecError(source, problems)


@contextmanager
def opened_csv(path: Path) -> Iterator[TextIO]:
    """Open a text file, ``.gz`` too.

    Raises
    ------
    InputError
        if it cannot be opened or read as text.
    """
    opener: Callable[..., TextIO] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except FileNotFoundError as error:
        message = f"{path}: no such file"
        raise InputError(message) from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        message = f"{path}: cannot be read as a CSV file ({error})"
        raise InputError(message) from error


def _read_columns(
    path: Path, needed: tuple[str, ...], optional: tuple[str, ...], text: str | None = None
) -> tuple[dict[str, Floats], list[str] | None]:
    """Return the named columns as numbers, one as text; blank lines are refused, other columns ignored."""
    with opened_csv(path) as file:
        rows = csv.reader(file)
        header = [name.strip() for name in next(rows, [])]
        table = list(rows)
    missing = [name for name in needed if name not in header]
    repeated = [name for name in (*needed, *optional, text) if name and header.count(name) > 1]
    problems = [f"column {name} is missing; found: {', '.join(header) or 'nothing'}" for name in missing]
    problems += [f"column {name} appears more than once" for name in repeated]
    if not problems and not table:
        problems = ["no requests: the file holds a header only"]
    _raise_if(str(path), problems)
    names = [name for name in (*needed, *optional) if name in header]
    cells = None
    if text in header:
        at = header.index(text)
        cells = [row[at] if at < len(row) else "" for row in table]
    return {name: _numbers(path, table, header, name) for name in names}, cells


def _numbers(path: Path, table: list[list[str]], header: list[str], name: str) -> Floats:
    at = header.index(name)
    try:
        values = np.array([row[at] for row in table], dtype=np.float64)
    except (ValueError, IndexError):
        values = None
    if values is None or not np.isfinite(values).all():
        problems = [
            f"line {line}: {name}: {text!r} is not a finite number"
            for line, text in ((i + 2, row[at] if at < len(row) else "") for i, row in enumerate(table))
            if not _is_finite(text)
        ]
        more = len(problems) - _MAX_PROBLEMS
        shown = problems[:_MAX_PROBLEMS] + (
            [f"{name}: {more} more lines of the same kind"] if more > 0 else []
        )
        raise SpecError(str(path), shown)
    return values


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
