"""A cluster of unlike groups with measured layers: from a YAML file to what the mixed search reads.

The file names one layer profile per group (`costmodels.training.layer_profiles`; the format that Sailor
publishes) and may replace what the catalogue says of sizes, links and memory. What it leaves out comes from
the model (sizes of its layers), from the cluster's networks (links at their rated speed times the
technology's efficiency) and from the software stack (bytes per parameter, runtime memory).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from costmodels.collectives.curves import find_technology
from costmodels.job import TrainingJob
from costmodels.memory.activations import saved_bytes
from costmodels.memory.peak import memory_coefficients, usable_bytes
from costmodels.parameters import rank_parameters
from costmodels.stacks import find_stack
from costmodels.training.hetero import HeteroModel, MemoryTerms
from costmodels.training.layer_profiles import (
    LayerProfile,
    LayerTable,
    LinkCurve,
    read_layer_profile,
    read_layer_table,
)
from hardware.cluster import Cluster
from hardware.errors import SpecError
from hardware.levels import nominal_bytes_per_s
from hardware.schema import read_yaml, validate
from hardware.units import Bytes, BytesPerSecond
from planner.training.hetero_search import HeteroFleet
from planner.training.island_plan import group_name

__all__ = ["ProfiledFleet", "read_profiled_fleet"]

_ELEMENT_BYTES = 2.0
_STATE_BYTES = 14.0
"""16-bit weight, fp32 master weight and two Adam moments; gradients come on top."""
_SAME_SIZE_FRAC = 0.1
"""How far the profile's parameters may be from the model's: one layer more or fewer of a small model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    file: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Link:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    groups: tuple[str, str]
    tp: Annotated[int, Field(ge=1)] = 1
    coefficients: tuple[float, float, float] | None = None
    peak_bytes_per_s: BytesPerSecond
    collective_frac: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    bytes_per_param: Annotated[float, Field(gt=0)]
    residual_tensors: Annotated[float, Field(ge=0)] = 0.0
    constant_bytes: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    profiles: Mapping[str, str]
    sizes: _Sizes | None = None
    links: tuple[_Link, ...] = field(default_factory=tuple)
    memory: _Memory | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProfiledFleet:
    """What is searched, and what was assumed where nothing was measured."""

    fleet: HeteroFleet
    model: HeteroModel
    notes: tuple[str, ...]


def read_profiled_fleet(path: str, job: TrainingJob, cluster: Cluster) -> ProfiledFleet:
    """Return the groups of `cluster` with the measured layers that a file names.

    Raises
    ------
    SpecError
        if the file names other groups than the cluster, profiles differ in their layers, or their sizes are
        not those of the model.
    """
    read = validate(_File, read_yaml(Path(path)), path)
    folder = Path(path).parent
    names = [group_name(cluster, index) for index in range(len(cluster.groups))]
    if set(read.profiles) != set(names):
        found = f"names {', '.join(sorted(read.profiles))}; the groups of {cluster.name} are"
        raise SpecError(path, [f"profiles: {found} {', '.join(names)}"])
    profiles = {
        name: _usable(
            read_layer_profile(folder / read.profiles[name], name), cluster.groups[i].node.num_devices, path
        )
        for i, name in enumerate(names)
    }
    table, notes = _sizes(read, folder, job, path)
    lengths = {name: len(next(iter(profile.layer_s.values()))) for name, profile in profiles.items()}
    if set(lengths.values()) != {len(table.num_params)}:
        counts = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise SpecError(path, [f"profiles: {counts} layers, but the model has {len(table.num_params)}"])
    pair, host = _links(read, cluster, names, profiles, path)
    known = memory_coefficients(job.stack)
    safe = float(np.exp(-2.326 * known.sigma))
    limits = {name: usable_bytes(cluster.groups[i].node.device) * safe for i, name in enumerate(names)}
    fleet = HeteroFleet(
        num_devices={name: cluster.groups[i].num_devices for i, name in enumerate(names)},
        limit_bytes=limits,
        global_batch=job.global_batch,
    )
    memory, remark = _memory(read, job)
    model = HeteroModel(layers=table, profiles=profiles, pair_links=pair, host_links=host, memory=memory)
    return ProfiledFleet(fleet=fleet, model=model, notes=(*notes, _link_note(read), remark))


def _usable(profile: LayerProfile, per_node: int, path: str) -> LayerProfile:
    """Return the profile without tensor degrees that do not tile a node."""
    kept = {key: times for key, times in profile.layer_s.items() if per_node % key[1] == 0}
    if not kept:
        degrees = ", ".join(map(str, profile.tensor_degrees))
        raise SpecError(path, [f"profiles.{profile.device}: no degree of {degrees} tiles {per_node} devices"])
    return replace(profile, layer_s=kept)


def _sizes(read: _File, folder: Path, job: TrainingJob, path: str) -> tuple[LayerTable, list[str]]:
    if read.sizes is None:
        return _table_of(job), ["sizes of layers: those of the model under the software stack"]
    table = read_layer_table(folder / read.sizes.file, read.sizes.model)
    total = float(table.num_params.sum())
    if abs(total / job.model.num_params - 1.0) > _SAME_SIZE_FRAC:
        message = f"sizes: {total:.4g} parameters in {read.sizes.model}, {job.model.num_params:.4g} in"
        raise SpecError(path, [f"{message} {job.model.name}"])
    return table, []


def _table_of(job: TrainingJob) -> LayerTable:
    """Return sizes of embedding, layers and head for one sequence without tensor parallelism."""
    stack, one, none = find_stack(job.stack), np.array([1]), np.array([0])
    counts = rank_parameters(job.model, one, one, one, one, one)
    saved = saved_bytes(job.model, one, one, none, seq_len=job.seq_len, precision=job.precision, stack=stack)
    layers = job.model.num_layers
    layer_params = float(counts.layer_dense[0] + counts.layer_expert[0])
    layer_bytes = float(saved.kept[0] + saved.scores[0]) * job.seq_len
    hidden_bytes = job.seq_len * job.model.hidden * _ELEMENT_BYTES
    logits = job.seq_len * job.model.vocab * stack.logit_bytes
    # A head tied to the embedding is a copy of it on the last stage.
    head_params = float(counts.last[0]) + (float(counts.first[0]) if job.model.tied_head else 0.0)
    return LayerTable(
        num_params=np.array([float(counts.first[0]), *[layer_params] * layers, head_params]),
        activation_bytes=np.array([0.0, *[layer_bytes] * layers, logits]),
        output_bytes=np.full(layers + 2, hidden_bytes),
        residual_bytes=hidden_bytes,
    )


def _memory(read: _File, job: TrainingJob) -> tuple[MemoryTerms, str]:
    if read.memory is not None:
        given = read.memory
        terms = MemoryTerms(
            bytes_per_param=given.bytes_per_param,
            residual_tensors=given.residual_tensors,
            constant_bytes=given.constant_bytes,
        )
        return terms, "memory: coefficients of the profile file"
    known = memory_coefficients(job.stack)
    each = _STATE_BYTES + find_stack(job.stack).main_grad_bytes
    terms = MemoryTerms(
        bytes_per_param=each,
        residual_tensors=0.0,
        constant_bytes=known.runtime_bytes + known.workspace_bytes,
    )
    return (
        terms,
        f"memory: {each:g} bytes per parameter and the runtime of {job.stack}; no optimizer sharding",
    )


def _link_note(read: _File) -> str:
    stated = f"{len(read.links)} links as measured, others" if read.links else "links"
    return f"{stated} at the rated speed of the cluster's networks times their technology's efficiency"


Pairs = dict[tuple[str, str], LinkCurve]
Hosts = dict[tuple[str, str, int], LinkCurve]


def _links(
    read: _File, cluster: Cluster, names: list[str], profiles: Mapping[str, LayerProfile], path: str
) -> tuple[Pairs, Hosts]:
    pair: Pairs = {}
    host: Hosts = {}
    degrees = sorted({tp for profile in profiles.values() for tp in profile.tensor_degrees})
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            rate, sends, rings = _rated(cluster, i, j)
            pair[a, b] = _flat(rate * sends)
            for tp in degrees:
                host[a, b, tp] = _flat(rate * tp, rings)
    for number, link in enumerate(read.links):
        strange = sorted(set(link.groups) - set(names))
        if strange:
            raise SpecError(path, [f"links.{number}.groups: no group is called {', '.join(strange)}"])
        if link.tp not in degrees:
            measured = ", ".join(map(str, degrees))
            raise SpecError(
                path, [f"links.{number}.tp: no layer was measured at {link.tp}, only at {measured}"]
            )
        curve = LinkCurve(
            coefficients=link.coefficients or (0.0, 0.0, link.peak_bytes_per_s / 1e9),
            peak_bytes_per_s=link.peak_bytes_per_s,
            collective_frac=link.collective_frac,
        )
        for a, b in {link.groups, link.groups[::-1]}:
            host[a, b, link.tp] = curve
            if link.tp == 1:
                pair[a, b] = curve
    return pair, host


def _rated(cluster: Cluster, i: int, j: int) -> tuple[float, float, float]:
    """Return what a device of group i sends to one of group j, rated, and what sends and rings attain."""
    if i == j:
        outer = cluster.group_cluster(i).levels[-1]
        rate, technology, attained = outer.bytes_per_s, outer.technology, outer.attained_frac
    else:
        fabric = cluster.fabric_between(i, j)
        rate, technology, attained = (
            cluster.bytes_per_s_between(i, j),
            fabric.technology,
            fabric.attained_frac,
        )
    traits = find_technology(technology).traits
    rated = nominal_bytes_per_s(rate, attained, traits.p2p_efficiency)
    return rated, traits.p2p_efficiency, traits.efficiency


def _flat(bytes_per_s: float, collective_frac: float = 1.0) -> LinkCurve:
    return LinkCurve(
        coefficients=(0.0, 0.0, bytes_per_s / 1e9),
        peak_bytes_per_s=bytes_per_s,
        collective_frac=collective_frac,
    )
