"""The catalogue of models: exact published counts, names and aliases, files of one's own."""

import csv
import gzip
from pathlib import Path

import pytest

from costmodels.graph import ModelGraph
from costmodels.graph_import.transformer import TransformerSpec
from costmodels.models import _entry, find_model, model_aliases, model_names, published_params
from hardware.errors import SpecError, UnknownNameError
from hardware.schema import validate

SHARED = Path(__file__).parents[3] / "shared"

# Counts that the makers publish in exact form: the safetensors total of the model card, or the size that the
# release's own code reports. They are repeated here so that an edited data file cannot move both at once.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "olmo-2-7b": 7_298_617_344,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-13b": 12_853_473_280,
    "bloom-560m": 559_214_592,
    "bloom-176b": 176_247_271_424,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "gpt-neox-20b": 20_554_567_680,
    "pythia-6.9b": 6_857_302_016,
    "gpt-j-6b": 6_050_882_784,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "t5-small": 60_506_624,
    "t5-11b": 11_307_321_344,
    "vit-base": 86_567_656,
    "vit-large": 304_326_632,
    "mamba-130m": 129_135_360,
    "mamba-2.8b": 2_768_345_600,
    "mamba-codestral-7b": 7_285_403_648,
    "jamba-v0.1": 51_570_323_328,
    "mpt-7b": 6_649_286_656,
}

# Sizes that are published rounded: model cards, and table 1 of arXiv:2104.04473 for the GPT rows (in 1e9).
ROUNDED = {
    "gpt-1.7b": (1.7, 0.05),
    "gpt-3.6b": (3.6, 0.05),
    "gpt-7.5b": (7.5, 0.05),
    "gpt-18.4b": (18.4, 0.06),
    "gpt-39.1b": (39.1, 0.05),
    "gpt-76.1b": (76.1, 0.05),
    "gpt-145.6b": (145.6, 0.05),
    "gpt-310.1b": (310.1, 0.05),
    "gpt-530b": (529.6, 0.05),
    "gpt-1t": (1008.0, 0.05),
    "gpt-22b": (22, 0.5),
    "gpt3-175b": (175, 0.5),
    "gpt3-13b": (13, 0.5),
    "kimi-k2": (1000, 50),
    "glm-4.5-air": (106, 1),
    "glm-5": (744, 0.5),
    "minimax-m2.5": (229, 0.5),
    "qwen3.5-397b-a17b": (397, 1),
    "nemotron-4-15b": (15.6, 0.05),
    "nemotron-4-340b": (341, 0.5),
    "nemotron-3-nano-30b-a3b": (31.6, 0.05),
    "nemotron-3-super-120b-a12b": (120.6, 0.2),
    "llama-4-maverick": (400, 1),
    "falcon-180b": (180, 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_the_published_count(name: str) -> None:
    assert find_model(name).num_params == PUBLISHED[name] == published_params(name)


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_agree_with_the_published_size(name: str) -> None:
    size, within = ROUNDED[name]
    assert find_model(name).num_params / 1e9 == pytest.approx(size, abs=within)


@pytest.mark.parametrize("name", model_names())
def test_every_entry_builds_is_sourced_and_equals_its_published_count(name: str) -> None:
    entry, model = _entry(name), find_model(name)
    assert entry["source"]["kind"] in {"paper", "release"}
    assert model.name == name
    assert model.source == entry["source"]["ref"]
    assert model.num_params > 0
    published = published_params(name)
    assert published is None or model.num_params == published
    if published is not None:
        assert entry["published_params"]["ref"]
    if "transformer" in entry:
        validate(TransformerSpec, {"name": name, **entry["transformer"]}, name)


def test_active_parameters_of_mixtures() -> None:
    # Model cards: 37B of DeepSeek-V3, 22B of Qwen3-235B, 3.6B and 5.1B of gpt-oss (which leaves the
    # embedding out: 201088 * 2880), 12.9B of Mixtral.
    embedding = 201088 * 2880
    for name, active, without in [
        ("deepseek-v3", 37.0e9, 129280 * 7168),
        ("qwen3-235b-a22b", 22.0e9, 0),
        ("gpt-oss-20b", 3.61e9, embedding),
        ("gpt-oss-120b", 5.13e9, embedding),
        ("mixtral-8x7b", 12.9e9, 0),
    ]:
        assert find_model(name).num_active_params - without == pytest.approx(active, rel=0.015)


def test_qwen3_next_is_its_published_total_less_the_prediction_layer() -> None:
    # The release holds 81,324,862,720: one more attention layer with experts, a 2h-to-h matmul, three norms.
    model = find_model("qwen3-next-80b-a3b")
    hidden, layer = 2048, model.blocks[model.layers[3]].num_params
    assert model.num_params + layer + 2 * hidden * hidden + 3 * hidden == 81_324_862_720


def test_names_are_plain_and_the_catalogue_is_large() -> None:
    assert len(model_names()) >= 40
    assert all(name == name.lower() and " " not in name for name in model_names())


def test_names_that_other_programs_rely_on() -> None:
    names = (
        "gpt3-13b gpt3-175b gpt-1t gpt-22b llama-2-7b llama-3.1-8b llama-3.1-70b llama-3.1-405b mixtral-8x7b "
        "deepseek-v3 qwen3-32b qwen3-30b-a3b qwen3-235b-a22b opt-13b opt-66b opt-175b kimi-k2 gpt-oss-120b "
        "nemotron-4-15b nemotron-4-340b grok-1 jamba-v0.1"
    )
    for name in names.split():
        assert isinstance(find_model(name), ModelGraph)


def test_aliases_lead_to_models_and_hide_none() -> None:
    for alias, name in model_aliases().items():
        assert alias == alias.lower()
        assert name in model_names()
        assert alias not in model_names()


def test_case_and_hugging_face_ids_do_not_matter() -> None:
    assert find_model("Meta-Llama/LLAMA-3.1-70B") is find_model("llama-3.1-70b")


def test_models_of_the_serving_measurements_are_known() -> None:
    table = SHARED / "data" / "serving" / "serving_runs.csv.gz"
    if not table.exists():
        pytest.skip(f"{table} is absent")
    with gzip.open(table, "rt", newline="") as lines:
        names = {row["model_path"] for row in csv.DictReader(lines)}
    for name in names:
        find_model(name)


def test_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean llama-3\.1-8b"):
        find_model("lama-3.1-8b")


def test_missing_file_is_named() -> None:
    with pytest.raises(SpecError, match=r"nowhere/config.json: cannot be read \(No such file"):
        find_model("nowhere/config.json")


def test_own_files_of_each_kind(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    config = (
        '{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, '
        '"num_attention_heads": 4, "vocab_size": 100}'
    )
    (folder / "config.json").write_text(config)
    assert find_model(str(folder)).name == "my-llama"
    assert find_model(str(folder / "config.json")).num_layers == 2
    wrapped = tmp_path / "wrapped.yaml"
    wrapped.write_text(f"name: named\nconfig: {config}\n")
    assert find_model(str(wrapped)).name == "named"
    stack = tmp_path / "stack.yaml"
    stack.write_text("transformer: {hidden: 64, ffn_hidden: 256, num_layers: 3, num_heads: 4, vocab: 100}\n")
    assert find_model(str(stack)).num_layers == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("transformer: {hidden: 64, ffn: 256, num_layers: 3, num_heads: 4, vocab: 9}", "transformer.ffn: "),
        ("transformer: {hidden: 64, ffn_hidden: 256, num_layers: 3, num_heads: 5, vocab: 9}", "must divide"),
        (
            "transformer: {hidden: 64, ffn_hidden: x, num_layers: 3, num_heads: 4, vocab: 9}",
            "ffn_hidden: 'x'",
        ),
        ("transformer: 3", "transformer: 3 is not a mapping"),
        ("transformer: {}\nconfig: {}", "a file holds one of config, transformer, operators"),
        ("transformer: {}\ncolour: red", "colour: unexpected key"),
        ("hidden: 3", "model_type: missing"),
        ("[1, 2]", "expected a mapping"),
    ],
)
def test_bad_files_are_located(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        find_model(str(file))
    assert "bad.yaml" in str(caught.value)
    assert says in str(caught.value)
