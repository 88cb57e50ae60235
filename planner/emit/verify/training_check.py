"""Arithmetic of emitted training jobs: products, batches, stages, and ranks where the plan puts them."""

import json
from typing import Any

import yaml

from planner.emit.emission import Origin
from planner.emit.rank_order import ORDERS
from planner.emit.training_launch import TrainingLaunch, training_launch
from planner.emit.verify.emitted import Emitted
from planner.emit.verify.flag_table import flag_table, read_flags
from planner.emit.verify.megatron_rules import megatron_problems
from planner.emit.verify.scripts import array_words, number_after
from planner.emit.verify.verdict import Verdict

__all__ = ["launch_of", "training_verdicts"]

_WITH_FLAGS = {"megatron-lm": "megatron-lm", "mindspeed": "mindspeed", "torchtitan": "torchtitan"}


def training_verdicts(emitted: Emitted) -> list[Verdict]:
    """Return what our tables and arithmetic say of a training job."""
    script = emitted.files.get("train.sh", "")
    verdicts = []
    values: dict[str, str] = {}
    if emitted.target in _WITH_FLAGS:
        table = flag_table(_WITH_FLAGS[emitted.target])
        words = array_words(emitted.files.get("run_args.sh", ""), "RUN_ARGS") + array_words(script, "ARGS")
        values, problems = read_flags(words, table)
        files = ("train.sh", "run_args.sh")
        verdicts.append(Verdict.of(f"meshwright flag table {table.name}", emitted.version, files, problems))
    launch = launch_of(emitted)
    problems = _world_problems(launch, script) + _target_problems(emitted, launch, values)
    verdicts.append(Verdict.of("meshwright arithmetic", emitted.version, ("train.sh",), problems))
    placed = _placement_problems(emitted, launch)
    verdicts.append(Verdict.of("meshwright placement", emitted.version, ("hosts.txt", "ranks.tsv"), placed))
    return verdicts


def launch_of(emitted: Emitted) -> TrainingLaunch:
    """Return what the emitter was given, in the rank order that the files were made for."""
    origin = Origin(
        plan_sha256=emitted.plan_sha256,
        plan_number=emitted.plan_number,
        target=emitted.target,
        version=emitted.version,
        tool_version="",
    )
    order = emitted.manifest.get("facts", {}).get("rank_order")
    return training_launch(emitted.plan, origin, orders=(order,) if order in ORDERS else tuple(ORDERS))


def _world_problems(launch: TrainingLaunch, script: str) -> list[str]:
    if not launch.is_grouped:
        world = number_after(script, "WORLD_SIZE=")
        return [] if world == launch.strategy.world else [f"WORLD_SIZE {world}, plan {launch.strategy.world}"]
    per_host = launch.ranks_per_host
    nodes, ranks = number_after(script, "--nnodes"), number_after(script, "NPROC=")
    if "accelerate launch" in script or per_host is None:
        return []
    if nodes is None or ranks is None or nodes * ranks != launch.strategy.world:
        return [f"{nodes} nodes x {ranks} ranks, the plan has {launch.strategy.world} ranks"]
    return []


def _target_problems(emitted: Emitted, launch: TrainingLaunch, values: dict[str, str]) -> list[str]:
    if emitted.target in ("megatron-lm", "mindspeed"):
        return megatron_problems(values, launch.strategy.world)
    if emitted.target == "deepspeed":
        return _deepspeed_problems(json.loads(emitted.files.get("ds_config.json", "{}")), launch)
    if emitted.target == "accelerate":
        return _accelerate_problems(yaml.safe_load(emitted.files.get("accelerate.yaml", "")) or {}, launch)
    if emitted.target == "torchtitan":
        return _torchtitan_problems(values, launch)
    if emitted.target == "fsdp":
        settings = json.loads(emitted.files.get("settings.json", "{}"))
        product = settings.get("replicate", 0) * settings.get("shard", 0)
        if product != launch.strategy.world:
            return [f"replicate x shard = {product}, the world is {launch.strategy.world}"]
    return []


def _deepspeed_problems(config: dict[str, Any], launch: TrainingLaunch) -> list[str]:
    degrees = config.get("tensor_parallel", {}).get("autotp_size", 1) * config.get(
        "sequence_parallel_size", 1
    )
    replicas = launch.strategy.world // (degrees * launch.strategy.pp)
    micro, rounds = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    problems = []
    if config["train_batch_size"] != micro * rounds * replicas:
        problems.append(
            f"train_batch_size {config['train_batch_size']} is not {micro} x {rounds} x {replicas}"
        )
    if config["zero_optimization"]["stage"] > 3:
        problems.append(
            f"zero_optimization.stage {config['zero_optimization']['stage']} is none of 0, 1, 2, 3"
        )
    both = [k for k in ("bf16", "fp16") if config.get(k, {}).get("enabled")]
    if len(both) == 2:
        problems.append("bf16 and fp16 exclude each other")
    part = config["zero_optimization"].get("zero_hpz_partition_size", 1)
    if launch.strategy.world % part:
        problems.append(f"zero_hpz_partition_size {part} does not divide {launch.strategy.world} ranks")
    return problems


def _accelerate_problems(config: dict[str, Any], launch: TrainingLaunch) -> list[str]:
    problems = []
    if config.get("num_processes") != launch.strategy.world:
        problems.append(f"num_processes {config.get('num_processes')}, the plan has {launch.strategy.world}")
    if config.get("num_machines") != len(launch.hosts):
        problems.append(f"num_machines {config.get('num_machines')}, the plan has {len(launch.hosts)} hosts")
    product = 1
    for size in config.get("parallelism_config", {}).values():
        product *= size
    if config.get("parallelism_config") and product != launch.strategy.world:
        problems.append(f"parallelism_config multiplies to {product}, the world is {launch.strategy.world}")
    return problems


def _torchtitan_problems(values: dict[str, str], launch: TrainingLaunch) -> list[str]:
    def degree(name: str) -> int:
        return int(values.get(f"--parallelism.{name}", "1"))

    replicate, shard = degree("data_parallel_replicate_degree"), degree("data_parallel_shard_degree")
    tp, cp = degree("tensor_parallel_degree"), degree("context_parallel_degree")
    pp, ep = degree("pipeline_parallel_degree"), degree("expert_parallel_degree")
    problems = []
    product = replicate * shard * tp * cp * pp
    if product != launch.strategy.world:
        problems.append(f"degrees multiply to {product}, the world is {launch.strategy.world}")
    if shard * cp * tp % ep:
        problems.append(f"expert degree {ep} does not divide shard {shard} x context {cp} x tensor {tp}")
    if (pp > 1 or ep > 1) and "--training.disable_cuda_graphs" not in values:
        problems.append("pipelines and routed experts need --training.disable_cuda_graphs")
    parts = values.get("--parallelism.module_fqns_per_model_part", "").split()
    if parts and tuple(part.count("layers.") for part in parts) != launch.stage_layers:
        problems.append(f"module_fqns_per_model_part does not hold {launch.stage_layers} layers")
    local = int(values.get("--training.local_batch_size", "1"))
    batch = int(values.get("--training.global_batch_size", "1"))
    micro = int(values.get("--parallelism.pipeline_parallel_microbatch_size", "1"))
    if pp > 1 and local % micro:
        problems.append(f"local batch {local} is no multiple of the pipeline's micro-batch {micro}")
    if batch % (local * replicate * shard):
        problems.append(
            f"global batch {batch} is no multiple of local {local} x replicas {replicate * shard}"
        )
    return problems


def _placement_problems(emitted: Emitted, launch: TrainingLaunch) -> list[str]:
    """Return where ranks.tsv departs from the plan, hosts matched by their order where they were renamed."""
    rows = [line.split("\t") for line in emitted.files.get("ranks.tsv", "").splitlines()[1:]]
    names = emitted.files.get("hosts.txt", "").split()
    if len(names) != len(launch.hosts) or len(set(names)) != len(names):
        return [f"hosts.txt names {len(set(names))} hosts, the plan uses {len(launch.hosts)}"]
    if len(rows) != len(launch.seats):
        return [f"ranks.tsv has {len(rows)} ranks, the plan {len(launch.seats)}"]
    real = {host.planned_name: name for host, name in zip(launch.hosts, names, strict=True)}
    problems = []
    for seat, row in zip(launch.seats, rows, strict=True):
        wanted = [str(seat.rank), real[seat.host], str(seat.device)]
        if row != wanted:
            problems.append(
                f"rank {seat.rank} stands on {' '.join(row[1:])}, the plan says {' '.join(wanted[1:])}"
            )
    return problems[:5]
