"""Small jobs and clusters shared by the tests of the training cost model."""

from costmodels.graph_import.transformer import transformer_graph
from costmodels.job import TrainingJob
from hardware.catalog import find_device
from hardware.cluster import Cluster
from hardware.plain_cluster import homogeneous_cluster

GPT = transformer_graph(
    name="gpt-small",
    hidden=2048,
    ffn_hidden=8192,
    num_layers=24,
    num_heads=16,
    vocab=51200,
    max_seq_len=2048,
    tied=True,
    learned_positions=True,
    dropout=True,
)
MIXTURE = transformer_graph(
    name="mixture-small",
    hidden=1024,
    ffn_hidden=4096,
    num_layers=8,
    num_heads=16,
    vocab=32000,
    num_experts=16,
    top_k=2,
    expert_ffn_hidden=2048,
    gated=True,
    bias=False,
    rms=True,
    tied=False,
    rotary=True,
)


def gpt_job(*, global_batch: int = 64, stack: str = "megatron-core", precision: str = "bf16") -> TrainingJob:
    """Return a job of the small dense model."""
    return TrainingJob(model=GPT, seq_len=2048, global_batch=global_batch, precision=precision, stack=stack)


def cluster(
    num_nodes: int = 2, *, device: str = "a100-80gb", intra: float = 300e9, inter: float = 25e9
) -> Cluster:
    """Return nodes of eight devices behind a switch and a fabric."""
    return homogeneous_cluster(
        device=find_device(device),
        num_nodes=num_nodes,
        devices_per_node=8,
        intra_bytes_per_s=intra,
        inter_bytes_per_s=inter,
        intra_technology="nvlink3",
        inter_technology="ib",
    )
