"""mpiGraph: bandwidth between all pairs of hosts, as its text output or as JSON matrices.

The text holds two tables, ``Send`` and ``Recv``, of MiB/s (mpiGraph prints ``MB`` and divides by 1024 twice).
The JSON form, ``{"0": {"gpus": [...], "bandwidth": [[...]]}, "1": ...}`` with 0 for receive and 1 for send,
holds MB/s as its users read it. What host i sends to host j is the send table's row i; a receive table alone
is turned over.
"""

import json
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hardware.errors import SpecError
from hardware.measured_links import MeasuredLinks, links_from_matrices

__all__ = ["import_mpigraph"]

Floats = npt.NDArray[np.float64]

_MIB = 2.0**20
_MB = 1e6


def import_mpigraph(paths: list[Path]) -> MeasuredLinks:
    """Return the links of one or several files.

    Files over the same hosts are snapshots of them, whatever order they name the hosts in. Files over
    different hosts are parts of one matrix and must together hold every pair.

    Raises
    ------
    SpecError
        naming the file and what is missing, negative or not understood in it.
    """
    read = [(path, *_read(path)) for path in paths]
    hosts = read[0][1]
    if all(set(names) == set(hosts) for _, names, _ in read):
        for path, names, matrix in read:
            links_from_matrices(str(path), names, [matrix])
        ordered = [
            matrix[np.ix_(order, order)] for _, names, matrix in read for order in [_order(hosts, names)]
        ]
        return links_from_matrices(str(paths[0]), hosts, ordered)
    return _joined(read)


def _order(hosts: tuple[str, ...], names: tuple[str, ...]) -> list[int]:
    return [names.index(host) for host in hosts]


def _joined(read: list[tuple[Path, tuple[str, ...], Floats]]) -> MeasuredLinks:
    """Return one matrix from files that each cover some of the hosts."""
    hosts = tuple(dict.fromkeys(host for _, names, _ in read for host in names))
    total, count = np.zeros((len(hosts), len(hosts))), np.zeros((len(hosts), len(hosts)))
    for path, names, matrix in read:
        links_from_matrices(str(path), names, [matrix])
        at = np.ix_([hosts.index(n) for n in names], [hosts.index(n) for n in names])
        total[at] += 1.0 / np.where(np.eye(len(names), dtype=bool), 1.0, matrix)
        count[at] += 1
    missing = np.argwhere((count == 0) & ~np.eye(len(hosts), dtype=bool))
    if len(missing):
        lonely = sorted({hosts[i] for i, _ in missing})
        pairs = ", ".join(f"{hosts[i]} to {hosts[j]}" for i, j in missing[:4])
        lacking = [f"{path}: lacks {', '.join(sorted(set(hosts) - set(n)))}" for path, n, _ in read]
        message = (
            f"{len(missing)} pairs of {len(lonely)} hosts are in no file ({pairs} ...); {'; '.join(lacking)}"
        )
        raise SpecError("mpigraph", [message])
    with np.errstate(divide="ignore", invalid="ignore"):
        return links_from_matrices("mpigraph", hosts, [count / total])


def _read(path: Path) -> tuple[tuple[str, ...], Floats]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [f"cannot be read ({error})"]) from None
    return _read_json(path, text) if text.lstrip().startswith("{") else _read_text(path, text)


def _read_json(path: Path, text: str) -> tuple[tuple[str, ...], Floats]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(str(path), [f"line {error.lineno}: no JSON ({error.msg})"]) from None
    table = data if "bandwidth" in data else data.get("1") or data.get("0")
    if not isinstance(table, dict) or not {"gpus", "bandwidth"} <= set(table):
        raise SpecError(
            str(path), ["expected 'gpus' and 'bandwidth', or them under '1' (send) or '0' (receive)"]
        )
    if not isinstance(table["gpus"], list):
        raise SpecError(str(path), [f"gpus: {table['gpus']!r} is no list of host names"])
    hosts = tuple(str(host) for host in table["gpus"])
    try:
        matrix = np.array(table["bandwidth"], dtype=np.float64)
    except (TypeError, ValueError):
        raise SpecError(str(path), ["bandwidth: the rows differ in length or hold no numbers"]) from None
    if matrix.shape != (len(hosts), len(hosts)):
        raise SpecError(str(path), [f"bandwidth: shape {matrix.shape} for {len(hosts)} hosts"])
    turned = "bandwidth" not in data and "1" not in data
    return hosts, (matrix.T if turned else matrix) * _MB


def _read_text(path: Path, text: str) -> tuple[tuple[str, ...], Floats]:
    tables = {name: _table(path, text, name) for name in ("Send", "Recv")}
    if tables["Send"] is not None:
        return tables["Send"]
    if tables["Recv"] is not None:
        hosts, matrix = tables["Recv"]
        return hosts, matrix.T
    raise SpecError(str(path), ["no mpiGraph table found; expected a line that begins with 'Send' and a tab"])


def _table(path: Path, text: str, name: str) -> tuple[tuple[str, ...], Floats] | None:
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if re.match(rf"{name}\t", line) and ":" in line), None)
    if begin is None:
        return None
    labels = lines[begin].split("\t")[1:]
    hosts = tuple(re.sub(r":\d+$", "", label.strip()) for label in labels if label.strip())
    rows = []
    for number, line in enumerate(lines[begin + 1 : begin + 1 + len(hosts)], begin + 2):
        cells = [cell for cell in line.split("\t")[1:] if cell.strip()]
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            raise SpecError(str(path), [f"line {number}: a rate is no number"]) from None
        if len(values) != len(hosts):
            raise SpecError(str(path), [f"line {number}: {len(values)} rates for {len(hosts)} hosts"])
        rows.append(values)
    if len(rows) != len(hosts):
        raise SpecError(str(path), [f"the {name} table names {len(hosts)} hosts and holds {len(rows)} rows"])
    return hosts, np.array(rows) * _MIB
