"""ONNX operators by what they mean for cost."""

__all__ = ["KEEPS_NOTHING", "MADE", "MOVES", "NORMS", "POINTWISE", "RECURRENT", "VIEWS"]


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


VIEWS = _words(
    "Cast CastLike Expand Flatten Identity Reshape Slice Split SplitToSequence Squeeze Transpose",
    "Unsqueeze",
)
"""Show what another operator made; no work."""
MADE = _words("Constant ConstantOfShape EyeLike NonZero OneHot RandomNormal RandomUniform Range Shape Size")
"""Make a constant or a shape; no work that counts."""
POINTWISE = _words(
    "Abs Add And BitwiseAnd BitwiseOr Ceil Celu Clip Cos Div Dropout Elu Equal Erf Exp Floor Gelu",
    "Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max",
    "Mean Min Mish Mod Mul Neg Not Or Pow PRelu Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus",
    "Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Trilu Where Xor",
)
MOVES = _words(
    "ArgMax ArgMin AveragePool Concat CumSum DepthToSpace Gather GatherElements GatherND",
    "GlobalAveragePool GlobalMaxPool Hardmax LogSoftmax LpPool MaxPool Pad ReduceL1 ReduceL2",
    "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Resize",
    "RotaryEmbedding ScatterElements ScatterND Softmax SpaceToDepth Tile TopK Upsample",
)
"""Read and write, with no work to speak of beside the traffic."""
KEEPS_NOTHING = _words(
    "Add AveragePool Concat Dropout GlobalAveragePool Mean Neg Pad ReduceMean ReduceSum Resize Sub",
    "Sum Tile",
)
"""Backward needs none of their inputs."""
NORMS = _words(
    "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization LpNormalization",
    "LRN MeanVarianceNormalization RMSNormalization SimplifiedLayerNormalization",
)
RECURRENT = _words("GRU LSTM RNN")
