"""Every example plan x every target that takes it: what our checks and the real parsers at hand say.

Run from the checkout: ``python -m benchmarks.parser_matrix [--python PATH] [--no-parsers]``. `PATH` is an
interpreter with the frameworks installed (no GPU needed): torch, megatron-core, deepspeed, accelerate,
kubernetes-validate, vllm, sglang, torchtitan; those it lacks are reported as skipped, never as passed.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from planner.emit.emit_plan import emit_plan
from planner.emit.verify.verify_folder import verify_folder
from planner.emit.write import write_emission
from tests.planner.emit.cases import CASES, plan_path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--no-parsers", action="store_true")
    options = parser.parse_args()
    totals: Counter[tuple[str, str]] = Counter()
    for plan, target, scheduler in CASES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "out"
            write_emission(emit_plan(plan_path(plan), target, scheduler=scheduler), folder)
            verdicts = verify_folder(folder, pythons=options.python, parsers=not options.no_parsers)
        own = [v for v in verdicts if v.checker.startswith("meshwright")]
        real = [v for v in verdicts if v not in own]
        mine = "pass" if all(v.verdict == "pass" for v in own) else "FAIL"
        others = ", ".join(f"{v.checker} {v.version}".strip() + f" {v.verdict}" for v in real)
        print(f"{plan:16} {target:16} {scheduler or 'default':11} own checks {mine}   {others}", flush=True)
        for v in verdicts:
            name = v.checker if v not in own else "meshwright"
            totals[name, v.verdict] += 1
            for problem in v.problems if v.verdict == "fail" else ():
                print(f"    {v.checker}: {problem}")
    print("\nchecker: passed, failed, skipped")
    for name in sorted({checker for checker, _ in totals}):
        print(f"{name:24} {totals[name, 'pass']:4} {totals[name, 'fail']:4} {totals[name, 'skip']:4}")
    return 1 if any(verdict == "fail" for _, verdict in totals) else 0


if __name__ == "__main__":
    sys.exit(main())
