"""The repeated layers of a model are found by structure, not by name."""

import torch
from torch import nn

from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.layers import hidden_matrices, repeated_layers
from gpt2ckpt.model.counts import measure, size_of
from gpt2ckpt.model.gpt2 import GPT2


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.positions = nn.Embedding(3, 4)
        self.scale = nn.Parameter(torch.ones(4))


class Model(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.values = nn.ModuleList(nn.Embedding(5, 4) for _ in range(2))
        self.layers = layers
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))


def test_layers_of_gpt2_are_its_blocks_and_muon_trains_the_same_matrices_as_before() -> None:
    model = GPT2(ModelConfig(3, 2, 8, 4, 16))
    assert repeated_layers(model) == list(model.transformer.h)
    by_name = {
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith("transformer.h.") and parameter.ndim == 2
    }
    assert hidden_matrices(model) == by_name and len(by_name) == 12


def test_layers_of_other_models_are_found_in_lists_and_sequences() -> None:
    for container in (nn.ModuleList, lambda layers: nn.Sequential(*layers)):
        model = Model(nn.ModuleDict({"h": container([Layer(), Layer()])}))
        layers = repeated_layers(model)
        assert [type(layer) for layer in layers] == [Layer, Layer]
        linears = [part for layer in layers for part in (layer.mlp[0], layer.mlp[2])]  # type: ignore[index]
        assert hidden_matrices(model) == {linear.weight for linear in linears}


def test_model_with_layers_of_several_classes_has_no_repeated_layers() -> None:
    assert repeated_layers(Model(nn.Sequential(Layer(), nn.Linear(4, 4)))) == []
    assert repeated_layers(Model(Layer())) == []


def test_sizes_counted_in_a_gpt2_equal_those_computed_from_its_shape() -> None:
    config = ModelConfig(3, 2, 8, 4, 16, bias=True)
    computed, counted = size_of(config), measure(GPT2(config))
    assert counted.parts == {"transformer": computed.parameters}
    assert counted.matrices == computed.matrices
    assert (counted.tensors, counted.buffers) == (computed.tensors, 0)
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    assert counted.flops_per_token == computed.flops_per_token - attention


def test_buffers_that_are_saved_count_and_embeddings_do_no_work() -> None:
    model = Model(nn.ModuleList([Layer()]))
    model.register_buffer("mean", torch.zeros(7))
    model.register_buffer("table", torch.zeros(9), persistent=False)
    size = measure(model)
    assert size.parts == {"values": 40, "layers": 72 + 4 + 12 + 4 + 0, "head": 20 + 25}
    assert (size.matrices, size.buffers) == (64, 7)
    assert size.flops_per_token == 6 * (size.parameters - 40 - 12)
