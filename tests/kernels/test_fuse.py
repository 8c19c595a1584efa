"""Merged queries, keys and values, with positions behind them: the same network, and none the worse for it."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vidlose import kernels
from vidlose.checkpoints import lora, random
from vidlose.config import FifoConfig, GenerateConfig
from vidlose.models.layers import Context
from vidlose.models.rows import Rows
from vidlose.models.temporal import QKNorm, TemporalAttention
from vidlose.models.unet import UNet
from vidlose.recipes import runtime
from vidlose.recipes.fifo import fifo
from vidlose.recipes.generate import generate

FAMILIES = ("animatediff-v1", "animatediff-v2", "animatediff-v3", "videocrafter1-512", "videocrafter2")


def context(frames: int, **options) -> Context:
    return Context(frames=frames, rows=Rows(frames), embedding=torch.empty(0), text=[], **options)


def inputs() -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 3, 16, 16, generator=g), torch.randn(1, 77, random.TEXT_WIDTH, generator=g)
    return x, torch.randint(0, 999, (1, 3), generator=g), text


def doubled() -> tuple[Tensor, ...]:
    x, timestep, text = inputs()
    return x.double(), timestep, text.double()


@cache
def network(family: str) -> UNet:
    torch.manual_seed(0)
    unet = UNet(random.NETWORKS[family]).eval()
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return unet


def temporal(unet: UNet) -> list[TemporalAttention]:
    return [layer for layer in unet.modules() if isinstance(layer, TemporalAttention)]


@pytest.fixture
def shifts(monkeypatch) -> list[bool]:
    """Of every call of temporal attention: was it given positions to add?"""
    calls, attend = [], kernels.temporal_attention

    def spy(*args, shift=None, **more):
        calls.append(shift is not None)
        return attend(*args, shift=shift, **more)

    monkeypatch.setattr(kernels, "temporal_attention", spy)
    return calls


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_fused_and_back(family, shifts):
    unet = deepcopy(network(family)).double()  # what is saved is work alone
    layers = temporal(unet)
    before, weights = unet(*doubled()), {name: x.clone() for name, x in unet.state_dict().items()}
    products: list[int] = []
    hooks = [layer.to_k.register_forward_hook(lambda *_: products.append(1)) for layer in layers]
    for folds in (None, True):  # on a processor None is False
        unet.fuse(folds)
        for layer in layers:
            assert layer.to_k.weight.untyped_storage().data_ptr() == layer.packed.untyped_storage().data_ptr()
        shifts.clear()
        torch.testing.assert_close(unet(*doubled()), before, atol=1e-12, rtol=0)
        assert shifts == [bool(folds and family.startswith("animatediff"))] * len(layers) and not products
    unet.unfuse()
    assert torch.equal(unet(*doubled()), before) and products
    after = unet.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], x) for name, x in weights.items())
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_what_looks_at_queries_sees_their_positions(shifts):
    """Caches and probes have queries as they are unfused, and a scale takes all of them."""
    unet = network("animatediff-v2")
    seen: list[Tensor] = []
    looks: dict[str, dict] = {
        "cache": {"query_weight": 0.3, "query_attention": ("attn1", "attn2")},
        "scale": {"motion_scale": 1.3},
        "probe": {"probe": lambda _, q, k: seen.extend((q, k))},
    }
    plain = {name: unet(*inputs(), **options) for name, options in looks.items()}
    unet.fuse(folds=True)
    for name, options in looks.items():
        torch.testing.assert_close(unet(*inputs(), **options), plain[name], atol=2e-5, rtol=0)
    half = len(seen) // 2
    torch.testing.assert_close(seen[half:], seen[:half], atol=2e-5, rtol=0)
    assert half == 2 * len(temporal(unet)) and not any(shifts)
    unet.unfuse()


def test_fused_layers_train_and_take_new_weights(shifts):
    layer, x = TemporalAttention(32, 2, positions=4), torch.randn(1, 3, 2, 32)
    expected = torch.autograd.grad(layer(x, context(3)).square().sum(), list(layer.parameters()))
    parameters = list(layer.parameters())
    layer.fuse(folds=True)
    assert all(one is other for one, other in zip(layer.parameters(), parameters, strict=True))
    found = torch.autograd.grad(layer(x, context(3)).square().sum(), parameters)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)) and not any(shifts)
    layer.double()
    layer.load_state_dict({name: torch.randn_like(tensor) for name, tensor in layer.state_dict().items()})
    with torch.no_grad():
        fused = layer(x.double(), context(3))
        assert shifts[-1]
        layer.unfuse()
        torch.testing.assert_close(fused, layer(x.double(), context(3)))
        assert not shifts[-1]


@torch.no_grad()
@pytest.mark.parametrize("given", ["in a copy", "by assignment", "as data"])
def test_new_memory_of_fused_weights_is_noticed(given):
    """Copies of a layer, state dicts that are assigned, LoRAs: the weights are no views of what was packed then."""
    layer, x = TemporalAttention(32, 2, positions=4), torch.randn(1, 3, 2, 32)
    layer.fuse(folds=True)
    layer(x, context(3))
    if given == "in a copy":
        layer = deepcopy(layer)
    new = {name: torch.randn_like(tensor) for name, tensor in layer.state_dict().items()}
    if given == "as data":
        for name, parameter in layer.named_parameters():
            parameter.data = new[name]
        layer.positions.copy_(new["positions"])
    else:
        layer.load_state_dict(new, assign=given == "by assignment")
    fused = layer(x, context(3))
    assert layer.packed is not None
    layer.unfuse()
    torch.testing.assert_close(fused, layer(x, context(3)), atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_drawn_queries_have_their_positions(shifts):
    layer, x = TemporalAttention(32, 2, positions=4), torch.randn(1, 3, 2, 32)
    layer.qk_norm = QKNorm(2)
    layer.qk_norm.beta.fill_(0.7)
    expected = layer(x, context(3))
    layer.fuse(folds=True)
    torch.testing.assert_close(layer(x, context(3)), expected, atol=1e-5, rtol=0)
    assert not any(shifts)


def test_what_is_not_plain_is_refused():
    layer = TemporalAttention(32, 2)
    parametrize.register_parametrization(layer.to_v, "weight", nn.Identity())
    with pytest.raises(ValueError, match="fold LoRAs"):
        layer.fuse()


@pytest.mark.parametrize(
    ("sample", "config"),
    [(generate, GenerateConfig(prompt="x", steps=2)), (fifo, FifoConfig(prompt="x", partitions=2, window_frames=4))],
    ids=["generate", "fifo"],
)
def test_networks_are_fused_for_a_card(sample, config, monkeypatch, tmp_path):
    """As on CUDA, whose weights have their LoRAs by then: the same frames."""
    calls: list[str] = []
    fuse, apply = runtime.fuse, lora.apply

    def on_cuda(network, device):
        calls.append("fuse")
        for where, expected in ((device, False), (torch.device("cuda"), True)):
            fuse(network, where)
            assert {layer.packed is not None for layer in temporal(network)} == {expected}

    def run(name: str) -> Tensor:
        path = tmp_path / f"{name}.safetensors"
        facts = {"model": "random", "width": 16, "height": 16, "seed": 5, "device": "cpu"}
        sample(replace(config, **facts, frames=3, output=str(path)), runtime.Silence())
        return load_file(path)["latents"]

    plain = run("plain")
    monkeypatch.setattr(lora, "apply", lambda *args: (calls.append("lora"), apply(*args))[1])
    monkeypatch.setattr(runtime, "fuse", on_cuda)
    torch.testing.assert_close(run("fused"), plain, atol=1e-4, rtol=0)
    assert calls == ["lora", "fuse"]
