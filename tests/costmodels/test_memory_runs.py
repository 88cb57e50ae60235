"""Rows of memory tables as jobs: defaults, switches in test names, refusals."""

import csv

import pytest

from costmodels.graph import Attention, Experts
from costmodels.memory.runs import NEEDED_COLUMNS, parse_memory_runs
from costmodels.run_table import read_run_table
from costmodels.strategy import Recompute
from hardware.errors import SpecError

COLUMNS = (
    "path", "platform", "nodes", "gpus_per_node", "layers", "hidden", "ffn", "heads", "kv_groups", "seq",
    "vocab", "swiglu", "untie", "num_experts", "topk", "moe_ffn", "mla", "mbs", "gbs", "tp", "pp",
    "vp_layers", "vp_stages", "cp", "ep", "etp", "sp", "dist_opt", "fsdp", "recompute", "attn", "fp8", "impl",
    "deterministic", "mem_alloc_bytes", "mem_max_alloc_bytes", "n_iter_vals",
)  # fmt: skip
GPT = {"platform": "dgx_h100", "nodes": 1, "gpus_per_node": 8, "layers": 12, "hidden": 512, "heads": 8,
       "seq": 1024, "mbs": 4, "gbs": 32, "tp": 1, "pp": 4, "impl": "transformer_engine"}  # fmt: skip


@pytest.fixture
def parse(tmp_path):
    def run(name="gpt/plain", file="golden_values_dev_dgx_h100", **changes):
        row = GPT | {"path": f"tests/{name}/{file}.json"} | changes
        table = tmp_path / "runs.csv"
        with table.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerow(row)
        runs, rejected = parse_memory_runs(read_run_table(table, NEEDED_COLUMNS))
        return runs[0] if runs else rejected[0][1]

    return run


def attention_of(run) -> Attention:
    return next(op for op in run.job.model.blocks[0].operators if isinstance(op, Attention))


def test_blank_cells_get_megatrons_defaults(parse):
    run = parse()
    assert run.strategy.dp == 2
    assert run.strategy.zero == 0
    assert run.job.model.vocab == 50304
    assert run.stack.flash
    assert run.stack.logit_bytes == 6.0
    assert run.family == "gpt"


def test_vocabulary_is_padded_to_128_per_tensor_rank(parse):
    assert parse(tp=4, pp=1).job.model.vocab == 50688
    assert parse(tp=2, pp=1, vocab=151936).job.model.vocab == 152064


def test_gated_feed_forward_defaults_to_eight_thirds(parse):
    gated, plain = parse(swiglu="True").job.model, parse().job.model
    up = {m.name: m.out_features for m in gated.blocks[0].operators if m.name == "gate_up"}
    assert up == {"gate_up": 2 * 1344}
    assert gated.num_params < plain.num_params


@pytest.mark.parametrize(
    ("file", "changes", "flash"),
    [
        ("golden_values_dev_dgx_h100", {}, True),
        ("golden_values_dev_dgx_h100", {"attn": "unfused"}, False),
        ("golden_values_lts_dgx_a100", {"attn": "flash"}, True),
        ("golden_values_lts_dgx_a100", {}, True),
        ("golden_values_lts_dgx_a100", {"nodes": ""}, False),
        ("golden_values_lts_dgxa100_dracooci-ord", {}, False),
        ("golden_values_dev_dgx_h100", {"impl": "local"}, False),
    ],
)
def test_attention_kernel_of_old_containers(parse, file, changes, flash):
    assert parse(file=file, **changes).stack.flash is flash


def test_names_state_uneven_stages_and_longer_groups(parse):
    assert parse("gpt/te_uneven_pipeline").details.missing_layers == 1.0
    ends = parse("gpt/te_account_for_embedding_loss_in_pipeline_split", layers=6, vp_layers=1).details
    assert (ends.layers, ends.missing_layers) == (2.0, 1.0)
    assert parse("gpt/te_tunable_overlap", vp_layers=1).details.micro_batch_group == 5
    assert parse("gpt/te_defer_embedding_wgrad_compute").details.deferred_logits == 2


def test_fused_loss_keeps_ten_bytes_and_fourteen_in_early_containers(parse):
    name = "gpt/te_cross_entropy_loss_fusion"
    assert parse(name).stack.logit_bytes == 10.0
    assert parse(name, file="golden_values_lts_dgxa100_dracooci").stack.logit_bytes == 14.0


def test_optimizer_instances_halve_the_shard(parse):
    run = parse("gpt/te_multi_dist_optimizer_instances", tp=2, pp=1, dist_opt="True")
    assert (run.strategy.dp, run.strategy.shard_group, run.strategy.zero) == (4, 2, 1)


def test_replicas_never_exceed_the_batch(parse):
    assert parse(pp=1, mbs=2, gbs=2).strategy.dp == 1


def test_degrees_that_do_not_divide_are_refused(parse):
    assert "does not divide the 8 devices" in parse(pp=3)


def test_workspaces_follow_generation_and_grouping(parse):
    new, old = parse(), parse(platform="dgx_a100")
    assert new.workspace_bytes - old.workspace_bytes == pytest.approx((28 + 24) * 2**20)
    fixed = [parse(platform=p, deterministic="True").workspace_bytes for p in ("dgx_h100", "dgx_a100")]
    assert fixed[0] - fixed[1] == pytest.approx(28 * 2**20)
    moe = {"num_experts": 8, "topk": 1, "ep": 2, "pp": 1}
    grouped = parse("moe/te_8experts2parallel_groupedGEMM", **moe)
    single = parse("moe/te_8experts2parallel_dist_optimizer", **moe)
    assert grouped.workspace_bytes - single.workspace_bytes == pytest.approx(4 * 32 * 2**20)


def test_experts_and_recompute(parse):
    run = parse("moe/te_8experts", num_experts=8, topk=2, ep=2, pp=1, tp=2, recompute="full")
    experts = [op for op in run.job.model.blocks[0].operators if isinstance(op, Experts)]
    assert [(e.num_experts, e.top_k, e.ffn_hidden) for e in experts] == [(8, 2, 2048)]
    assert (run.strategy.etp, run.strategy.recompute) == (2, Recompute.FULL)


def test_published_models_fill_their_vocabulary(parse):
    assert parse("gpt/gpt3_15b_8t_release", tp=8, pp=1, nodes="").job.model.vocab == 256_000
    assert parse("mixtral/mixtral_8x7b_release", nodes="").job.model.vocab == 32_000


def test_a_name_that_spells_out_its_degrees_wins(parse):
    run = parse("mixtral/deepseekv3_proxy_flex_tp1pp4emp16etp1cp1_release", tp=2, nodes="", num_experts=64,
                topk=8, ep=16, etp=1, mla="True", gbs=512)  # fmt: skip
    assert (run.strategy.tp, run.strategy.dp, run.details.extra_heads) == (1, 16, 1)


def test_encoder_decoder_is_two_stacks(parse):
    run = parse("t5/t5_mcore", pp=1, layers="", seq="", hidden=768, ffn=3072, heads=12, attn="unfused")
    assert run.encoder is not None
    assert (run.encoder.seq_len, run.job.seq_len) == (512, 128)
    assert (run.encoder.model.num_layers, run.job.model.num_layers) == (12, 12)
    assert run.encoder.model.vocab == 0
    attention, cross = 4 * 768 * 769, 4 * 768 * 769 + 2 * 768
    feed_forward, norms = 2 * 768 * 3072 + 768 + 3072, 4 * 768
    body = 12 * (2 * (attention + feed_forward + norms) + cross) + 4 * 768
    embeddings = (run.job.model.vocab + 512) * 768
    held = run.encoder.model.num_params + run.job.model.num_params
    assert held == body + embeddings
    assert "pp:" in parse("t5/t5_mcore", pp=2, layers="", seq="", hidden=768, ffn=3072, heads=12)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt/gpt_grpo_tp1", "inference engine"),
        ("multimodal/llava_tp1", "vision tower"),
        ("hybrid/mamba_tp1", "state-space"),
        ("gpt/modelopt_distill_resume", "teacher"),
    ],
)
def test_runs_that_hold_more_than_their_row_says_are_refused(parse, name, why):
    assert why in parse(name)


def test_a_bad_cell_is_named(parse):
    assert "hidden: 'wide' is not a number" in parse(hidden="wide")


def test_missing_columns_are_named(tmp_path):
    table = tmp_path / "runs.csv"
    table.write_text("path,layers\na,1\n", encoding="utf-8")
    with pytest.raises(SpecError, match="'hidden' is missing"):
        read_run_table(table, NEEDED_COLUMNS)


def test_attention_of_bert_is_not_causal(parse):
    assert not attention_of(parse("bert/bert_tp1", attn="unfused")).causal
    assert attention_of(parse()).causal
