"""A run over time as an SVG picture: running, waiting, cache and engines of each pool."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

__all__ = ["timeline_svg"]

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 760, 120, 70, 28, 46
_PANELS = (
    ("requests", (("running", "#1f77b4"), ("waiting", "#d62728"))),
    ("share", (("kv_frac", "#2ca02c"), ("busy_frac", "#9467bd"))),
    ("engines", (("engines_on", "#7f7f7f"),)),
)


def timeline_svg(timeline: dict[str, Any]) -> str:
    """Return the picture of `planner.simulate.outcome.timeline`: three panels per pool, time to the right."""
    parts, top = [], _TOP
    at_s = timeline["at_s"]
    for name, series in timeline["pools"].items():
        for title, lines in _PANELS:
            parts.append(_panel(f"{name}: {title}", at_s, [(n, c, series[n]) for n, c in lines], top))
            top += _HEIGHT + _GAP
    width, height = _LEFT + _WIDTH + 20, top
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n' + "".join(parts) + "</svg>\n"
    )


def _panel(title: str, at_s: list[float], lines: list[tuple[str, str, list[float]]], top: int) -> str:
    """Return one panel with its axes, lines and legend."""
    high = max([1e-9, *(max(values) for _, _, values in lines)])
    begin, span = at_s[0], max(at_s[-1] - at_s[0], 1e-9)
    base = top + _HEIGHT
    out = [
        f'<text x="{_LEFT}" y="{top - 8}">{escape(title)}</text>\n',
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#ccc"/>\n',
        f'<text x="{_LEFT - 6}" y="{top + 10}" text-anchor="end">{high:.3g}</text>\n',
        f'<text x="{_LEFT - 6}" y="{base}" text-anchor="end">0</text>\n',
        f'<text x="{_LEFT}" y="{base + 14}">{begin:.0f} s</text>\n',
        f'<text x="{_LEFT + _WIDTH}" y="{base + 14}" text-anchor="end">{at_s[-1]:.0f} s</text>\n',
    ]
    for number, (name, colour, values) in enumerate(lines):
        points = " ".join(
            f"{_LEFT + _WIDTH * (t - begin) / span:.1f},{base - _HEIGHT * v / high:.1f}"
            for t, v in zip(at_s, values, strict=True)
        )
        x = _LEFT + _WIDTH - 90 * (len(lines) - number)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>\n')
        out.append(f'<text x="{x}" y="{top - 8}" fill="{colour}">{escape(name)}</text>\n')
    return "".join(out)
