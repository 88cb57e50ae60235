"""Emitted programs that run: the plain PyTorch trainer as two hosts, and the router over stand-in engines."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from planner.emit.emit_plan import emit_plan
from planner.emit.write import write_emission
from tests.planner.conftest import Meshwright
from tests.planner.emit.cases import plan_path

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "zero", "package"),
    [
        ("fsdp", 0, "torch"),
        ("fsdp", 3, "torch"),
        ("deepspeed", 1, "deepspeed"),
        ("deepspeed", 3, "deepspeed"),
    ],
)
def test_emitted_files_train(
    tmp_path: Path, meshwright: Meshwright, target: str, zero: int, package: str
) -> None:
    """Two hosts of one device, both played by this machine: started by their own train.sh, the loss falls."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    costed = meshwright(
        "estimate", "train", "--model", tmp_path / "config.json", "--cluster", "edge-l4-host", "--nodes", 2,
        "--seq-len", 64, "--global-batch", 16, "--micro-batch", 2, "--zero", zero, "--precision", "fp32",
        "--stack", "fsdp2", "-o", tmp_path / "plan.json",
    )  # fmt: skip
    assert costed.exit_code == 0, costed.output
    folder = tmp_path / "out"
    write_emission(emit_plan(str(tmp_path / "plan.json"), target), folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    port = str(29600 + os.getpid() % 300)
    environment = {**os.environ, "PATH": path, "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    started = [
        subprocess.Popen(
            ["./train.sh", str(node), "127.0.0.1"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    losses = [float(line.split()[3]) for line in said[0][0].splitlines() if line.startswith("step ")]
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def router_module(files: dict[str, str]) -> ModuleType:
    module = ModuleType("emitted_router")
    exec(compile(files["router.py"], "router.py", "exec"), module.__dict__)
    return module


def test_router_realises_the_planned_split() -> None:
    files = dict(emit_plan(plan_path("serve-experts"), "vllm").files)
    router = router_module(files).Router(json.loads(files["router.json"]), files["instances.tsv"], seed=1)
    for route in router.config["routes"]:
        prompt, output = route["prompt_tokens_up_to"], route["output_tokens_up_to"]
        drawn = Counter(router.pool("both", prompt or 10**6, output or 10**6) for _ in range(200))
        for pool, share in route["weights"].items():
            assert drawn[pool] / 200 == pytest.approx(share, abs=0.15)
    turns = [router.url("both", {"prompt": "x" * 100, "max_tokens": 8}) for _ in range(40)]
    assert len(set(turns)) > 1


class Engine(BaseHTTPRequestHandler):
    """Answers what an engine would, and remembers the requests."""

    seen: list[dict] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        first = (body.get("kv_transfer_params") or {}).get("do_remote_decode", False)
        answer = {"kv_transfer_params": {"remote_block_ids": [7]}} if first else {"choices": [{"text": "ok"}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        return


def test_router_joins_prefill_and_decode() -> None:
    files = dict(emit_plan(plan_path("serve-split"), "vllm").files)
    engine = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    lines = files["instances.tsv"].splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    table = "\n".join([lines[0], *("\t".join([*r[:3], "127.0.0.1", str(engine.server_port)]) for r in rows)])
    module = router_module(files)
    router = module.Router(json.loads(files["router.json"]), table, seed=0)
    front = ThreadingHTTPServer(("127.0.0.1", 0), module.handler_of(router))
    for server in (engine, front):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        body = {"prompt": "hello " * 10, "max_tokens": 32}
        with module.post(f"http://127.0.0.1:{front.server_port}", "/v1/completions", body) as answer:
            assert json.load(answer)["choices"][0]["text"] == "ok"
    finally:
        for server in (engine, front):
            server.shutdown()
            server.server_close()
    first, second = Engine.seen[-2:]
    assert first["max_tokens"] == 1
    assert second["max_tokens"] == 32
    assert second["kv_transfer_params"] == {"remote_block_ids": [7]}
