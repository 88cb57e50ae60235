"""The plans of the repository's examples: every command that a README or an example file shows, run here."""

from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from planner.cli.main import build_app

__all__ = ["example_plans"]

COMMANDS: dict[str, str] = {
    "ex-gpt3-175b": "plan train --request examples/requests/gpt3-175b.yaml",
    "ex-mixtral": "plan train --request examples/requests/mixtral-narrowed.yaml",
    "ex-llama-70b": "plan train --model llama-3.1-70b --cluster dgx-h100 --nodes 8 --seq-len 8192 "
    "--global-batch 512",
    "ex-two-halls": "plan train --model gpt3-13b --cluster examples/clusters/two-halls.yaml --seq-len 2048 "
    "--global-batch 512",
    "ex-old-and-new": "plan train --model llama-2-7b --cluster examples/clusters/old-and-new.yaml "
    "--seq-len 2048 --global-batch 256 --precision fp16",
    "ex-frontier": "plan train --model gpt3-175b --cluster frontier --nodes 128 --seq-len 2048 "
    "--global-batch 2560",
    "ex-cloudmatrix": "plan train --model gpt3-175b --cluster cloudmatrix384 --seq-len 4096 "
    "--global-batch 1536",
    "ex-local": "plan train --request examples/local/request-2.yaml "
    "--calibration examples/local/calibration-2.json",
    "ex-pipeline": "plan train --model gpt3-175b --cluster dgx-a100 --nodes 16 --seq-len 2048 "
    "--global-batch 256",
    "ex-qwen": "plan serve --model qwen3-32b --gpus h200 --workload fixed:4000x500 --rate-per-s 10 "
    "--slo-ttft-s 1 --slo-tpot-s 0.03 --formats bf16,fp8 --kv-formats bf16,fp8",
    "ex-mix": "plan serve --model llama-3.1-8b --gpus l4,a10g,a100-80gb,h100 --workload azure-conv "
    "--rate-per-s 5 --slo-ttft-s 3 --slo-tpot-s 0.15 --percentile 99",
    "ex-split": "plan serve --model llama-3.1-70b --gpus h100,a100-80gb --workload fixed:2048x512 "
    "--rate-per-s 8 --slo-ttft-s 2 --slo-tpot-s 0.04 --percentile 95 --formats fp8 --form split",
    "ex-capped": "plan serve --model llama-3.1-8b --gpus h100 --workload fixed:1024x256 --rate-per-s 20 "
    "--slo-ttft-s 1 --slo-tpot-s 0.05",
}
"""Name, and the words after ``meshwright``; run from the checkout."""


def example_plans(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of every example's plan, made in `folder`.

    Raises
    ------
    RuntimeError
        if a command fails.
    """
    for name, command in COMMANDS.items():
        path = folder / f"{name}.json"
        words = [*command.split(), "-o", str(path)]
        result = CliRunner().invoke(build_app(words), words)
        if result.exit_code:
            message = f"meshwright {command}: {result.output}"
            raise RuntimeError(message)
        yield name, path
