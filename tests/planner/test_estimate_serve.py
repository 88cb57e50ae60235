"""`meshwright estimate serve`: exactly one configuration, refused where it cannot be built."""

import json

import pytest

from tests.planner.conftest import Meshwright

ASKED = ("estimate", "serve", "--model", "llama-3.1-8b")


def test_without_a_price_it_costs_all_but_money(meshwright: Meshwright) -> None:
    found = meshwright(*ASKED, "--gpu", "rtx-4090", "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["cost_usd_per_hour"] is None
    assert answer["cost_usd_per_million_output_tokens"] is None
    assert answer["tpot_s"] > 0.0
    assert "no price of rtx-4090 is known (--usd-per-hour)" in meshwright(*ASKED, "--gpu", "rtx-4090").stdout
    priced = json.loads(meshwright(*ASKED, "--gpu", "rtx-4090", "--usd-per-hour", "0.5", "--json").stdout)
    assert priced["cost_usd_per_hour"] == 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--tp", "3"],
            "tp: 3 is not accepted for llama-3.1-8b; tensor parallelism must divide the attention heads (1,",
        ),
        (["--tp", "2", "--ep", "2"], "ep: 2 for llama-3.1-8b, which has no experts"),
        (["--pp", "33"], "pp: 33 stages for 32 layers"),
        (["--lora-rank", "8"], "num_adapters: 0 with lora_rank 8"),
        (["--format", "int3"], "format: 'int3' is not accepted"),
        (["--kv-format", "fp4"], "kv_format: 'fp4' is not accepted"),
        (["--usd-per-hour", "nan"], "usd_per_hour: nan is not accepted"),
        (["--gpu", "h1000"], "no device is called 'h1000'; did you mean h100"),
        (["--model", "mixtral-8x7b", "--ep", "3", "--gpu", "h200"], "ep: 3 is not accepted for mixtral-8x7b"),
        (["--model", "vit-large"], "model: vit-large is of kind vision"),
        (["--model", "bert-large"], "model: bert-large is of kind encoder"),
        (["--model", "t5-large"], "model: t5-large is of kind encoder-decoder"),
    ],
)
def test_what_cannot_be_built_is_refused(meshwright: Meshwright, words: list[str], said: str) -> None:
    found = meshwright(*ASKED, *words)
    assert found.exit_code == 2, found.output
    assert said in found.stderr
    assert found.stdout == ""


def test_plan_serve_refuses_models_that_generate_nothing_and_names_devices(meshwright: Meshwright) -> None:
    found = meshwright(
        "plan", "serve", "--model", "t5-large", "--gpus", "h1000", "--workload", "fixed:1024x128",
        "--rate-per-s", "2", "--slo-ttft-s", "1",
    )  # fmt: skip
    assert found.exit_code == 2
    assert "model: t5-large is of kind encoder-decoder" in found.stderr
    assert "gpus: no device is called 'h1000'; did you mean h100" in found.stderr


def test_a_long_prompt_is_shown_as_the_tokens_of_one_iteration(meshwright: Meshwright) -> None:
    text = meshwright(*ASKED, "--prompt-tokens", "30000", "--concurrency", "2").stdout
    assert "8192 prompt tokens: gemm " in text
    assert "_s " not in text
