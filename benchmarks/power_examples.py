"""Renew the answers beside the power examples: plans, pictures and command files.

    python -m benchmarks.power_examples

Run from the checkout's root. The serving and training plans that two of the examples start from are made anew
by the commands of `benchmarks.example_plans`.
"""

import os
import shutil
import tempfile
from pathlib import Path

from typer.testing import CliRunner

from benchmarks.example_plans import COMMANDS
from planner.cli.main import build_app

EXAMPLES = Path(__file__).parents[1] / "examples" / "power"
NEEDED = {"serve.plan.json": "ex-capped", "train.plan.json": "ex-pipeline"}
"""Plans that the requests name, and the commands that make them."""
ANSWERS = {"row": "row-commands", "training": "clock-commands", "serving": "cap-commands"}
"""Requests, and the folder of each one's command files."""


def run(words):
    """Return what a command prints."""
    result = CliRunner().invoke(build_app(words), words)
    if result.exit_code:
        message = f"meshwright {' '.join(words)}: {result.output}"
        raise RuntimeError(message)
    return result.stdout


def main():
    target = EXAMPLES / "plans"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for plan, name in NEEDED.items():
            run([*COMMANDS[name].split(), "-o", plan])
        for name, commands in ANSWERS.items():
            words = ["plan", "power", "--request", str(EXAMPLES / f"{name}.yaml"), "--commands", commands]
            picture = run([*words, "-o", f"{name}.plan.json"])
            (target / f"{name}.txt").write_text(picture, encoding="utf-8")
            shutil.copy(f"{name}.plan.json", target)
            shutil.rmtree(target / commands, ignore_errors=True)
            shutil.copytree(commands, target / commands)
    print(f"renewed: {', '.join(ANSWERS)}")


if __name__ == "__main__":
    main()
