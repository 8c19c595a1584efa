"""Which parameters train, by block and by kind."""

import pytest
import torch

from vidlose.checkpoints import random
from vidlose.config import StabilityConfig
from vidlose.errors import InputError
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet
from vidlose.training.stability import Tools
from vidlose.training.trainable import attentions, block_of, choose, drop_lora, is_motion, lora_layers, rates, select


def network(family: str = "animatediff-v2") -> UNet:
    return random.load(family).unet


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("down.0.1.temporal.attn1.to_q.weight", "down.0.1"),
        ("up.1.2.res.skip.parametrizations.weight.0.kappa", "up.1.2"),
        ("up.1.2.", "up.1.2"),  # a module's own path
        ("down.0", "down.0"),
        ("downsample.0.conv.weight", "down.0"),
        ("upsample.1.conv.bias", "up.1"),
        ("middle.temporal.norm.weight", "middle"),
        ("head.temporal.proj_in.weight", "head"),
        ("conv_in.weight", "in"),
        ("fps_embed.linear1.weight", "in"),
        ("norm_out.bias", "out"),
    ],
)
def test_block_of(name, block):
    assert block_of(name) == block


@pytest.mark.parametrize("family", sorted(random.NETWORKS))
def test_every_parameter_has_a_block(family):
    unet = network(family)
    assert choose(unet, "all") == {block_of(name) for name, _ in unet.named_parameters()}
    assert all(block_of(f"{name}.") for name, _ in unet.named_modules() if name)


def test_blocks_as_the_user_names_them():
    with torch.device("meta"):
        unet = UNet(AnimateDiff())
    assert choose(unet, "mid, up.1.2") == {"middle", "up.1.2"} == choose(unet, "middle,up.1.2")
    assert choose(unet, "down.0") == {"down.0", "down.0.0", "down.0.1"}
    assert choose(unet, "up.3") == {"up.3.0", "up.3.1", "up.3.2"}
    with pytest.raises(InputError, match=r"unknown block 'up.9'; choose from all, down, down.0, down.0.0,.*, mid, "):
        choose(unet, "down,up.9")
    with pytest.raises(InputError, match="unknown block ''"):
        choose(unet, "")


@pytest.mark.parametrize("family", ["animatediff-v2", "videocrafter2"])
def test_kinds_part_the_parameters(family):
    unet = network(family)
    kinds = {train: set(select(unet, "all", train).parameters) for train in ("motion", "spatial", "full")}
    assert kinds["motion"] | kinds["spatial"] == kinds["full"] == {name for name, _ in unet.named_parameters()}
    assert not kinds["motion"] & kinds["spatial"]
    assert all(".temporal" in name for name in kinds["motion"])
    if family == "videocrafter2":
        assert {block_of(name) for name in kinds["motion"]} >= {"head", "up.0.0"}
        assert any(".temporal_conv." in name for name in kinds["motion"])


def test_the_table_says_what_trains():
    unet = network()
    chosen = select(unet, "down.1,mid", "motion")
    assert list(chosen.blocks) == ["down.1.0", "middle"]
    assert [name for name, p in unet.named_parameters() if p.requires_grad] == list(chosen.parameters)
    for row in chosen.rows:
        assert row.trains == (is_motion(row.name) and row.block in ("down.1.0", "middle"))
        assert (
            row.shape == tuple(unet.get_parameter(row.name).shape) and row.count == unet.get_parameter(row.name).numel()
        )
    assert {name for named in chosen.blocks.values() for name in named} == set(chosen.parameters)


def test_nothing_left_to_train():
    with pytest.raises(
        InputError, match="--blocks in,out holds nothing that --train motion means; that is in down.0.0"
    ):
        select(network(), "in,out", "motion")
    with pytest.raises(InputError, match="--blocks head holds nothing that --train spatial means"):
        select(network("videocrafter2"), "head", "spatial")
    with pytest.raises(InputError, match="unknown --train 'x'; choose from full, motion, motion-lora, spatial"):
        select(network(), "all", "x")


def test_tools_train_wherever_they_stand():
    unet = network()
    Tools(unet, StabilityConfig(skip_scale="learned", tool_blocks="up"), "mid", 1)
    chosen = select(unet, "mid", "motion")
    assert sum(name.endswith(".kappa") for name in chosen.parameters) == 8
    with pytest.raises(InputError, match="holds nothing"):
        select(unet, "out", "motion")
    with pytest.raises(InputError, match="a LoRA cannot hold what sigma-reparam, QK-norm and skip scales change"):
        select(unet, "mid", "motion-lora", rank=4)


def test_rates():
    chosen = select(network(), "down,mid,up", "motion")
    found = rates(chosen, StabilityConfig(block_lr=["up=0.3", "up.1=0.1", "up.1.0=0", "mid=2"]))
    assert found.keys() == set(chosen.blocks)
    assert {block: found[block] for block in ("down.0.0", "middle", "up.0.1", "up.1.0", "up.1.1")} == {
        "down.0.0": 1.0,
        "middle": 2.0,
        "up.0.1": 0.3,
        "up.1.0": 0.0,
        "up.1.1": 0.1,
    }
    with pytest.raises(InputError, match="unknown block in --block-lr 'upp'"):
        rates(chosen, StabilityConfig(block_lr=["upp=0.3"]))


def test_lora_layers():
    unet = network("videocrafter2")
    names = list(unet.state_dict())
    chosen = select(unet, "head,up.1", "motion-lora", rank=3, alpha=6, seed=7)
    layers = lora_layers(unet)
    wanted = [
        f"{a}.{p}" for a in attentions(unet, choose(unet, "head,up.1")) for p in ("to_q", "to_k", "to_v", "to_out")
    ]
    assert [layer.name for layer in layers] == wanted and len(wanted) == 3 * 2 * 4
    assert len(chosen.parameters) == 2 * len(wanted) and all(".lora_" in name for name in chosen.parameters)
    assert all(layer.scale == 2 and layer.down.shape[0] == layer.up.shape[1] == 3 for layer in layers)
    assert all((layer.up == 0).all() and layer.down.std() > 0.05 for layer in layers)
    again = network("videocrafter2")
    torch.manual_seed(123)
    select(again, "head,up.1", "motion-lora", rank=3, alpha=6, seed=7)
    assert all(torch.equal(a.down, b.down) for a, b in zip(layers, lora_layers(again), strict=True))
    drop_lora(unet, merge=False)
    assert list(unet.state_dict()) == names and not lora_layers(unet)
    with pytest.raises(InputError, match="the rank of a LoRA must be at least 1, not 0"):
        select(network(), "all", "motion-lora")
    with pytest.raises(InputError, match="--blocks in holds nothing that --train motion-lora means"):
        select(network(), "in", "motion-lora", rank=1)
