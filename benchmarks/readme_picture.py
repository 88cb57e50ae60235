"""Rewrite the README's picture of a plan with what its first command prints now.

python -m benchmarks.readme_picture
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
COMMAND = re.compile(r"<!-- run: install -->\n```bash\n.*?\.venv/bin/meshwright (.*?)```", re.DOTALL)
PICTURE = re.compile(r"(## A plan\n.*?```text\n).*?(\n```)", re.DOTALL)
WIDTH = 130


def main() -> None:
    text = README.read_text(encoding="utf-8")
    found = COMMAND.search(text)
    if found is None or PICTURE.search(text) is None:
        sys.exit("README.md has no install command or no picture of a plan")
    words = [w for w in shlex.split(found.group(1).replace("\\\n", " ")) if w not in ("-o", "plan.json")]
    code = "import sys; from planner.cli.main import main; sys.argv[0] = 'meshwright'; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, *words],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": str(WIDTH)},
    )
    picture = "\n".join(line.rstrip() for line in run.stdout.rstrip().splitlines())
    README.write_text(PICTURE.sub(lambda m: m.group(1) + picture + m.group(2), text), encoding="utf-8")


if __name__ == "__main__":
    main()
