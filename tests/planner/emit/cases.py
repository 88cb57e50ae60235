"""Which plan is emitted for which target and scheduler; the plans beside this file came from
`meshwright estimate train` and `meshwright plan serve` (their requests say with which flags).
"""

from pathlib import Path

PLANS = Path(__file__).parent / "plans"
GOLDEN = Path(__file__).parent / "golden"

TRAINING = {
    "megatron-lm": ("gpt3", "uneven", "mixtral", "deepseek", "context", "stages", "tensor"),
    "megatron-bridge": ("gpt3", "uneven", "mixtral", "deepseek"),
    "mindspeed": ("ascend-tensor", "ascend-context", "ascend-stages"),
    "deepspeed": ("sharded", "full", "stages"),
    "fsdp": ("sharded", "full", "replicas"),
    "accelerate": ("sharded", "full", "replicas"),
    "torchtitan": ("sharded", "tensor", "context", "stages"),
}
SERVING = {
    "vllm": ("serve-single", "serve-mix", "serve-split", "serve-fp8"),
    "sglang": ("serve-single", "serve-experts", "serve-split"),
    "tensorrt-llm": ("serve-single", "serve-trt", "serve-split"),
    "dynamo": ("serve-single", "serve-experts", "serve-split"),
    "llm-d": ("serve-single", "serve-mix", "serve-long"),
}
BY_TARGET = {**TRAINING, **SERVING}

_SCHEDULED = ("slurm", "kubernetes", "ray", "skypilot")
CASES = [(plan, target, None) for target, plans in BY_TARGET.items() for plan in plans]
CASES += [(plan, "megatron-lm", s) for s in _SCHEDULED for plan in ("gpt3", "uneven", "mixtral")]
CASES += [(plan, "vllm", s) for s in _SCHEDULED for plan in ("serve-single", "serve-mix", "serve-fp8")]
CASES += [("serve-split", "vllm", "kubernetes"), ("serve-experts", "sglang", "kubernetes")]
"""(plan, target, scheduler); None is the target's default scheduler."""


def plan_path(name: str) -> str:
    return str(PLANS / f"{name}.json")
