"""ATen operators by what they mean for cost; names without name space and overload."""

__all__ = ["KEEPS_NOTHING", "MADE", "MOVES", "NORMS", "PRODUCTS", "RECURRENT", "VIEWS"]

VIEWS = frozenset(
    {
        "_to_copy",
        "_unsafe_view",
        "alias",
        "chunk",
        "clone",
        "contiguous",
        "detach",
        "detach_",
        "expand",
        "expand_as",
        "flatten",
        "getitem",
        "lift_fresh_copy",
        "movedim",
        "narrow",
        "permute",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "to",
        "transpose",
        "type_as",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as",
    }
)
"""Show what another operator made; no work."""

MADE = frozenset(
    {
        "_assert_scalar",
        "_assert_tensor_metadata",
        "arange",
        "empty",
        "empty_like",
        "full",
        "full_like",
        "new_ones",
        "new_zeros",
        "ones",
        "ones_like",
        "rand",
        "randn",
        "scalar_tensor",
        "sym_constrain_range_for_size",
        "sym_size",
        "tril",
        "triu",
        "zeros",
        "zeros_like",
    }
)
"""Make a constant, or only check something; no work that counts."""

MOVES = frozenset(
    {
        "_adaptive_avg_pool2d",
        "_log_softmax",
        "_safe_softmax",
        "_softmax",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "all",
        "amax",
        "amin",
        "any",
        "argmax",
        "argmin",
        "avg_pool1d",
        "avg_pool2d",
        "cat",
        "constant_pad_nd",
        "copy",
        "copy_",
        "cross_entropy_loss",
        "cumsum",
        "diff",
        "feature_dropout",
        "flip",
        "gather",
        "index",
        "index_add",
        "index_put",
        "index_select",
        "log_softmax",
        "logsumexp",
        "masked_fill",
        "max",
        "max_pool1d",
        "max_pool2d",
        "max_pool2d_with_indices",
        "mean",
        "min",
        "nll_loss_forward",
        "nonzero",
        "one_hot",
        "pad",
        "pixel_shuffle",
        "prod",
        "repeat",
        "repeat_interleave",
        "roll",
        "scatter",
        "scatter_add",
        "select_scatter",
        "slice_scatter",
        "softmax",
        "sort",
        "stack",
        "std",
        "sum",
        "tile",
        "topk",
        "unfold",
        "upsample_bilinear2d",
        "upsample_nearest2d",
        "var",
        "var_mean",
        "where",
    }
)
"""Read and write, with no work to speak of beside the traffic."""

KEEPS_NOTHING = frozenset(
    {
        "adaptive_avg_pool2d",
        "add",
        "add_",
        "avg_pool2d",
        "cat",
        "constant_pad_nd",
        "copy",
        "copy_",
        "mean",
        "neg",
        "pad",
        "repeat",
        "roll",
        "rsub",
        "stack",
        "sub",
        "sum",
        "upsample_nearest2d",
    }
)
"""Backward needs none of their inputs."""

PRODUCTS = frozenset({"addmm", "baddbmm", "bmm", "linear", "matmul", "mm"})
"""Matrix products."""

NORMS = frozenset(
    {"batch_norm", "group_norm", "layer_norm", "native_group_norm", "native_layer_norm", "rms_norm"}
)
"""Normalisations."""

RECURRENT = frozenset({"gru", "lstm", "rnn_relu", "rnn_tanh"})
"""Recurrent networks of any number of layers and directions."""
