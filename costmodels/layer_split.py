"""How the layers of a model are spread over the chunks of a pipeline when no plan says otherwise.

Chunks hold the same number of layers, rounded up. What is then missing is missing first from the last chunk,
which has the head, then from the first, which has the embedding, then from the chunks before the last: the
ends are the heaviest chunks when layers are spread evenly. With one or two layers missing, embedding and head
stand in for a layer each (Megatron-LM's `--account-for-embedding-in-pipeline-split` and
`--account-for-loss-in-pipeline-split`; Llama 3 405B has 126 layers for that reason, arXiv 2407.21783, 3.3.2).
"""

__all__ = ["MOST_STAND_INS", "chunk_layers"]

MOST_STAND_INS = 2
"""Layers that embedding and head can stand in for when chunks are interleaved."""


def chunk_layers(num_layers: int, num_chunks: int) -> tuple[int, ...]:
    """Return the layers of every chunk, in the order of the model; they sum to `num_layers`."""
    most = -(-num_layers // num_chunks)
    sizes = [most] * num_chunks
    order = [num_chunks - 1, 0, *range(num_chunks - 2, 0, -1)]
    for chunk in order[: most * num_chunks - num_layers]:
        sizes[chunk] -= 1
    return tuple(sizes)
