"""Seconds of one iteration of a serving instance, part by part, for many configurations and batches at once.

An iteration takes the prompt tokens that the scheduler admits and one step of every decoding request of an
attention group; groups of one instance advance together, so the columns describe the fullest group. Pipeline
stages run one after the other for the same tokens: an iteration's latency is the sum over stages.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from costmodels.collectives.times import p2p_s
from costmodels.graph import ModelGraph
from costmodels.serving.config import Quant, ServingConfig, ServingTable
from costmodels.serving.engine import EngineStack, KernelScales, expert_format
from costmodels.serving.lora import lora_s
from costmodels.serving.memory import layer_counts
from costmodels.serving.operators import IterationWork, LayerTimes, ServingMachine, head_s, layer_times

__all__ = ["IterationCost", "iteration_cost", "iteration_s"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class IterationCost:
    """Seconds of one iteration by part, one row per (configuration, work) pair."""

    gemm_s: Floats
    prefill_attention_s: Floats
    decode_attention_s: Floats
    experts_s: Floats
    vector_s: Floats
    comm_s: Floats
    """Tensor-parallel reductions, expert dispatch and combine, sends between stages."""
    head_s: Floats
    """Projection to the vocabulary and sampling."""
    draft_s: Floats
    """Draft head of speculative decoding."""
    adapters_s: Floats
    """Low-rank adapters."""
    host_s: Floats

    @property
    def iteration_s(self) -> Floats:
        """From the first kernel of the iteration to the next iteration's."""
        total = np.zeros_like(self.host_s)
        for part in fields(self):
            total = total + getattr(self, part.name)
        return total

    def parts(self, row: int) -> dict[str, float]:
        """Return the parts of one row by name."""
        return {f.name: float(getattr(self, f.name)[row]) for f in fields(self)}


def iteration_cost(
    model: ModelGraph, table: ServingTable, engine: EngineStack, machine: ServingMachine, work: IterationWork
) -> IterationCost:
    """Return the cost of one iteration per row of `table` and `work`.

    Parameters
    ----------
    table : configurations. rows
    work : what each row's fullest attention group processes. rows, as many as `table`
    """
    total = LayerTimes(*(np.zeros(len(table)) for _ in range(6)))
    for block, count in layer_counts(model):
        times = layer_times(block, table, work, machine, engine.routing_skew)
        for part in fields(times):
            setattr(total, part.name, getattr(total, part.name) + count * getattr(times, part.name))
    mixed = np.where((work.prefill_tokens > 0) & (work.decode_seqs > 0), engine.mixed_attention_factor, 1.0)
    scale = _scales(engine, table, machine, work)
    attention = scale["attention"] * mixed
    draft = table.draft_tokens.astype(float)
    rows = work.prefill_seqs + work.decode_seqs * (1.0 + draft)
    head = scale["gemm"] * head_s(model.vocab, model.hidden, rows, table, machine)
    tokens = work.prefill_tokens + work.decode_seqs * (1.0 + draft)
    sends = (table.pp - 1) * p2p_s(2.0 * tokens * model.hidden, table.tp * table.dp, machine.levels)
    scaled = {
        "gemm_s": scale["gemm"] * total.gemm_s,
        "prefill_attention_s": attention * total.prefill_attention_s,
        "decode_attention_s": attention * total.decode_attention_s,
        "experts_s": scale["experts"] * total.experts_s,
        "vector_s": scale["vector"] * total.vector_s,
        "comm_s": scale["comm"] * total.comm_s + sends,
    }
    layers = sum(scaled[n] for n in scaled) - sends
    host = engine.host_s + engine.host_per_seq_s * work.decode_seqs
    return IterationCost(
        **scaled,
        head_s=head,
        draft_s=draft * (layers / model.num_layers + head),
        adapters_s=lora_s(
            model, table, tokens=tokens, seqs=work.prefill_seqs + work.decode_seqs, device=machine.device
        ),
        host_s=host,
    )


def _scales(
    engine: EngineStack, table: ServingTable, machine: ServingMachine, work: IterationWork
) -> dict[str, Floats]:
    """Return the factors of kernel times by part, between decoding's and prompts' by share of tokens."""
    tokens = work.prefill_tokens + work.decode_seqs
    prompt = work.prefill_tokens / np.maximum(tokens, 1.0)
    scales = {
        f.name: getattr(engine.decode, f.name) ** (1.0 - prompt) * getattr(engine.prefill, f.name) ** prompt
        for f in fields(KernelScales)
    }
    for code in np.unique(table.experts):
        key = expert_format(machine.device, Quant(code))
        decode, prefill = engine.expert_formats.get(key, (1.0, 1.0))
        scales["experts"] = np.where(
            table.experts == code,
            scales["experts"] * decode ** (1.0 - prompt) * prefill**prompt,
            scales["experts"],
        )
    return scales


def iteration_s(
    model: ModelGraph,
    config: ServingConfig,
    engine: EngineStack,
    machine: ServingMachine,
    prefill_tokens: npt.ArrayLike,
    prefill_context: npt.ArrayLike,
    decode_seqs: npt.ArrayLike,
    decode_context: npt.ArrayLike,
    prefill_seqs: npt.ArrayLike | None = None,
) -> Floats:
    """Return the seconds of iterations of one configuration, one per element of the work arrays.

    Parameters
    ----------
    prefill_tokens : new prompt tokens of the fullest attention group.
    prefill_context : tokens cached before them, summed over their prompts.
    decode_seqs : requests that decode.
    decode_context : cached tokens, summed over them.
    prefill_seqs : prompts that the new tokens belong to; one where omitted.
    """
    work = IterationWork.of(prefill_tokens, prefill_context, decode_seqs, decode_context, prefill_seqs)
    table = ServingTable.from_configs([config]).repeat(len(work.decode_seqs))
    return iteration_cost(model, table, engine, machine, work).iteration_s
