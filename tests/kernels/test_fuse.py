"""Merged queries, keys and values: the same network, and none the worse for having been merged."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from vidlose.models.animatediff import AnimateDiff
from vidlose.models.temporal import TemporalAttention
from vidlose.models.unet import UNet
from vidlose.models.videocrafter import VideoCrafter

SIZES = {"channels": (32, 32), "blocks": 1, "text_width": 16, "attention": (True, False)}
FAMILIES = {
    "animatediff": AnimateDiff(heads=2, motion_heads=2, **SIZES),
    "videocrafter": VideoCrafter(head_width=8, relative=2, **SIZES),
}


def network(family: str) -> UNet:
    torch.manual_seed(0)
    unet = UNet(FAMILIES[family]).eval()
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return unet


def inputs():
    g = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, 3, 4, 4, generator=g), torch.randint(0, 999, (1, 3), generator=g), torch.randn(1, 77, 16)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_fused_and_back(family):
    unet = network(family)
    given = inputs()
    before, weights = unet(*given), {name: x.clone() for name, x in unet.state_dict().items()}
    cached = unet(*given, query_weight=0.3)
    unet.fuse()
    products = []
    for layer in unet.modules():
        if isinstance(layer, TemporalAttention):
            assert layer.to_k.weight.untyped_storage().data_ptr() == layer.packed.untyped_storage().data_ptr()
            layer.to_k.register_forward_hook(lambda *_: products.append(1))
    torch.testing.assert_close(unet(*given), before, atol=1e-5, rtol=0)
    torch.testing.assert_close(unet(*given, query_weight=0.3), cached, atol=1e-5, rtol=0)
    assert not products
    unet.unfuse()
    assert torch.equal(unet(*given), before) and products
    after = unet.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], x) for name, x in weights.items())


def test_fused_layers_train_and_take_new_weights():
    layer, x = TemporalAttention(32, 2), torch.randn(1, 3, 2, 32)
    context = type("Context", (), {"frames": 3, "probe": None, "query_cache": None, "frame_mask": None})
    expected = torch.autograd.grad(layer(x, context).square().sum(), list(layer.parameters()))
    parameters = list(layer.parameters())
    layer.fuse()
    assert all(one is other for one, other in zip(layer.parameters(), parameters, strict=True))
    found = torch.autograd.grad(layer(x, context).square().sum(), parameters)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    layer.double()
    layer.load_state_dict({name: torch.randn_like(tensor) for name, tensor in layer.state_dict().items()})
    with torch.no_grad():
        fused = layer(x.double(), context)
        layer.unfuse()
        torch.testing.assert_close(fused, layer(x.double(), context))


def test_what_is_not_plain_is_refused():
    layer = TemporalAttention(32, 2)
    parametrize.register_parametrization(layer.to_v, "weight", nn.Identity())
    with pytest.raises(ValueError, match="fold LoRAs"):
        layer.fuse()
