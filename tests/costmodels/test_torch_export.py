"""Programs of torch.export as model graphs; needs torch, which is an extra."""

from pathlib import Path
from typing import Any

import pytest

from costmodels.graph import Attention, Elementwise, Embedding, Generic, Matmul, Norm, Operator
from costmodels.model_flops import operator_flops
from costmodels.models import find_model
from hardware.errors import SpecError

torch = pytest.importorskip("torch", reason="torch is an extra; install meshwright[torch] to run these")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

from costmodels.graph_import.torch_export import model_from_export, read_torch_export  # noqa: E402

BATCH, SEQ, WIDTH, HEADS, VOCAB = 2, 8, 32, 4, 50


def small_gpt(num_layers: int) -> Any:
    nn, functional = torch.nn, torch.nn.functional

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            parts = self.qkv(self.norm_1(x)).chunk(3, -1)
            q, k, v = (p.view(*p.shape[:2], HEADS, -1).transpose(1, 2) for p in parts)
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
            return x + self.down(functional.gelu(self.up(self.norm_2(x))))

    class Gpt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(VOCAB, WIDTH)
            self.layers = nn.ModuleList([Layer() for _ in range(num_layers)])
            self.norm = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, VOCAB, bias=False)

        def forward(self, ids: Any) -> Any:
            x = self.tokens(ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x))

    return Gpt()


def export(module: Any, *inputs: Any) -> Any:
    return torch.export.export(module, inputs)


def size(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def operators(model: Any) -> list[Operator]:
    return [op for i in model.layers for op in model.blocks[i].operators]


def test_a_gpt_keeps_parameters_layers_and_kinds() -> None:
    module = small_gpt(3)
    model = model_from_export(export(module, torch.zeros(BATCH, SEQ, dtype=torch.long)), name="gpt")
    assert model.num_params == size(module)
    found = operators(model)
    assert sum(isinstance(op, Attention) for op in found) == 3
    assert sum(isinstance(op, Norm) for op in found) == 7
    assert sum(isinstance(op, Embedding) for op in found) == 1
    repeated = max(set(model.layers), key=model.layers.count)
    assert model.layers.count(repeated) == 3
    assert model.blocks[repeated].num_params == size(module.layers[0])
    attention = next(op for op in found if isinstance(op, Attention))
    assert (attention.num_heads, attention.head_dim, attention.causal) == (HEADS, WIDTH // HEADS, True)


def test_flops_of_a_gpt_equal_the_hand_count() -> None:
    model = model_from_export(export(small_gpt(2), torch.zeros(BATCH, SEQ, dtype=torch.long)), name="gpt")
    per_layer = 24 * WIDTH**2 + 4 * SEQ * WIDTH
    counted = sum(operator_flops(op, SEQ) for op in operators(model))
    assert counted == 2 * per_layer + 2 * WIDTH * VOCAB


def test_tied_weights_count_once() -> None:
    module = small_gpt(1)
    module.head.weight = module.tokens.weight
    model = model_from_export(export(module, torch.zeros(BATCH, SEQ, dtype=torch.long)), name="gpt")
    assert model.num_params == size(module)
    assert sum(operator_flops(op, SEQ) for op in operators(model)) == 24 * WIDTH**2 + 4 * SEQ * WIDTH + (
        2 * WIDTH * VOCAB
    )


def test_a_convolutional_network_counts_per_sample() -> None:
    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    model = model_from_export(export(module, torch.zeros(4, 3, 16, 16)), name="cnn")
    found = operators(model)
    conv = next(op for op in found if isinstance(op, Generic) and op.flops)
    assert conv.flops == 2 * 8 * 16 * 16 * 3 * 9
    assert conv.num_params == 8 * 3 * 9 + 8
    relu = next(op for op in found if isinstance(op, Elementwise))
    assert (relu.reads, relu.writes) == (8 * 256, 8 * 256)
    linear = next(op for op in found if isinstance(op, Matmul))
    assert (linear.in_features, linear.out_features, linear.tokens_frac) == (8, 10, 1.0)
    assert model.num_params == size(module)


def test_einsum_and_recurrent_networks_by_hand() -> None:
    class Scores(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.einsum("bqd,bkd->bqk", x, x)

    scores = model_from_export(export(Scores(), torch.zeros(2, 8, 16)), name="scores")
    assert operator_flops(operators(scores)[0], 1) == 2 * 8 * 8 * 16
    lstm = torch.nn.LSTM(8, 16, batch_first=True)
    model = model_from_export(export(lstm, torch.zeros(2, 5, 8)), name="lstm")
    assert model.num_params == size(lstm)
    assert sum(operator_flops(op, 1) for op in operators(model)) == 2 * 5 * 4 * 16 * (8 + 16)


def test_unknown_work_is_an_error_that_names_it() -> None:
    class Spectrum(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.fft.fft(x).real

    with pytest.raises(SpecError, match=r"fft.*: its work is not known"):
        model_from_export(export(Spectrum(), torch.zeros(4, 8)), name="spectrum")


def test_a_saved_program_is_read(tmp_path: Path) -> None:
    module = torch.nn.Linear(4, 6)
    file = tmp_path / "linear.pt2"
    torch.export.save(export(module, torch.zeros(3, 4)), file)
    model = find_model(str(file))
    assert (model.name, model.num_params) == ("linear", 30)
    (tmp_path / "broken.pt2").write_text("no program")
    with pytest.raises(SpecError, match=r"broken\.pt2: is no archive of torch\.export"):
        read_torch_export(tmp_path / "broken.pt2")
