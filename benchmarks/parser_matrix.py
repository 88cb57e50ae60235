"""Every plan of the repository x every target of its kind: what our checks and the real parsers at hand say.

Run from the checkout: ``python -m benchmarks.parser_matrix [--python PATH]... [--no-parsers] [--only NAME]``.
`PATH` is an interpreter with frameworks installed (no GPU needed); several may be given, each parser runs in
the first that has it. What none has is reported as skipped, never as passed. Plans are those of the examples,
made here, and those that the tests keep; a plan that a target cannot express is printed with the reason.
Every scheduler takes the plans that the tests name.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.example_plans import example_plans
from hardware.errors import PlannerError
from planner.emit.emit_plan import emit_plan
from planner.emit.targets import TARGETS
from planner.emit.verify.verify_folder import verify_folder
from planner.emit.write import write_emission
from planner.plan_io import read_plan
from tests.planner.emit.cases import CASES, PLANS

_SCHEDULED = ("ex-mixtral", "ex-two-halls", "ex-mix", "ex-split")
"""Examples that go through every scheduler of their first target."""


def cases(folder: Path) -> Iterator[tuple[str, Path, str, str | None]]:
    """Yield name and file of a plan, target, and scheduler (None is the target's first).

    The kept plan `mixed-halls` names its cluster relative to the examples, where `ex-two-halls` is the same.
    """
    plans = [
        *example_plans(folder),
        *((p.stem, p) for p in sorted(PLANS.glob("*.json")) if p.stem != "mixed-halls"),
    ]
    for name, path in plans:
        kind = read_plan(path).kind
        fitting = [n for n, target in TARGETS.items() if target.kind == kind]
        for target in fitting:
            yield name, path, target, None
        if name in _SCHEDULED:
            for scheduler in TARGETS[fitting[0]].schedulers[1:]:
                yield name, path, fitting[0], scheduler
    for name, target, scheduler in CASES:
        if scheduler is not None:
            yield name, PLANS / f"{name}.json", target, scheduler


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--no-parsers", action="store_true")
    parser.add_argument("--only", default=None, help="plans whose name begins so")
    options = parser.parse_args()
    totals: Counter[tuple[str, str]] = Counter()
    emitted = refused = 0
    with tempfile.TemporaryDirectory() as place:
        for number, (name, path, target, scheduler) in enumerate(cases(Path(place))):
            if options.only and not name.startswith(options.only):
                continue
            title = f"{name:15} {target:15} {scheduler or TARGETS[target].schedulers[0]:10}"
            try:
                emission = emit_plan(str(path), target, scheduler=scheduler)
            except PlannerError as error:
                refused += 1
                print(f"{title} not expressible: {str(error).splitlines()[0]}", flush=True)
                continue
            emitted += 1
            folder = Path(place) / f"out-{number}"
            write_emission(emission, folder)
            verdicts = verify_folder(folder, pythons=options.python, parsers=not options.no_parsers)
            own = [v for v in verdicts if v.checker.startswith("meshwright")]
            real = [v for v in verdicts if v not in own]
            mine = "pass" if all(v.verdict == "pass" for v in own) else "FAIL"
            others = ", ".join(f"{v.checker} {v.verdict}" for v in real)
            print(f"{title} own checks {mine}; {others}", flush=True)
            for v in verdicts:
                totals["meshwright" if v in own else f"{v.checker} {v.version}", v.verdict] += 1
                for problem in v.problems if v.verdict == "fail" else ():
                    print(f"    {v.checker}: {problem}")
    print(f"\n{emitted} emissions, {refused} pairs of plan and target that cannot be expressed")
    print("checker: passed, failed, skipped")
    for name in sorted({checker for checker, _ in totals}):
        print(f"{name:32} {totals[name, 'pass']:4} {totals[name, 'fail']:4} {totals[name, 'skip']:4}")
    return 1 if any(verdict == "fail" for _, verdict in totals) else 0


if __name__ == "__main__":
    sys.exit(main())
