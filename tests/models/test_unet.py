"""What the U-Net promises beyond the originals: levels and texts per frame, keys once, checkpointing, masks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vidlose.checkpoints.random import NETWORKS, VIDEOCRAFTER
from vidlose.models.attention import SpatialTransformer
from vidlose.models.temporal import TemporalAttention, TemporalTransformer
from vidlose.models.unet import Deep, UNet

FAMILIES = sorted(NETWORKS)
EXACT = {"atol": 1e-12, "rtol": 0.0}  # in fp64: what is saved is work alone


def small(family: str) -> UNet:
    torch.manual_seed(0)
    unet = UNet(NETWORKS[family]).eval()
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return unet


def inputs(family: str, batch: int = 2, frames: int = 4, dtype: torch.dtype = torch.float32):
    """Text of 82 rows, so that it holds an image's tokens where the family reads them; fp64 of numbers in fp32."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, frames, 8, 16, generator=g).to(dtype)
    timestep = torch.randint(0, 1000, (batch, frames), generator=g)
    return x, timestep, torch.randn(batch, 82, NETWORKS[family].text_width, generator=g).to(dtype)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_text_per_sample_and_per_frame_agree(family):
    unet = small(family).double()
    x, timestep, text = inputs(family, dtype=torch.float64)
    once = unet(x, timestep, text)
    torch.testing.assert_close(unet(x, timestep, text.repeat_interleave(4, 0)), once, **EXACT)
    torch.testing.assert_close(unet(x, timestep, unet.text_keys(text)), once, atol=0, rtol=0)
    per_frame = torch.randn(8, *text.shape[1:]).double()
    assert (unet(x, timestep, per_frame) - once).abs().max() > 1e-3
    with pytest.raises(ValueError, match="3 texts do not divide 2 clips of 4 frames"):
        unet(x, timestep, per_frame[:3])
    with pytest.raises(ValueError, match=r"timestep is \(2,\), expected \(2, 4\)"):
        unet(x, timestep[:, 0], text)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_batched_clips_do_not_see_each_other(family):
    unet = small(family).double()
    x, timestep, text = inputs(family, dtype=torch.float64)
    both = unet(x, timestep, text)
    apart = torch.cat([unet(x[i : i + 1], timestep[i : i + 1], text[i : i + 1]) for i in (0, 1)])
    torch.testing.assert_close(both, apart, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_covers_temporal_layers(family):
    unet = small(family).train()
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x, timestep, text = inputs(family)
    text.requires_grad_()
    calls = []
    for layer in unet.modules():
        if isinstance(layer, TemporalAttention):
            layer.register_forward_hook(lambda *_: calls.append(1))
    grads, counts = [], []
    for checkpointing in (False, True):
        unet.gradient_checkpointing = checkpointing
        unet.zero_grad()
        text.grad = None
        calls.clear()
        unet(x, timestep, text).square().mean().backward()
        counts.append(len(calls))
        grads.append([text.grad.clone(), *(p.grad.clone() for p in unet.parameters() if p.grad is not None)])
    assert counts[1] == 2 * counts[0]  # every one of them ran again on the way back
    assert len(grads[0]) == len(grads[1]) == 1 + sum(1 for _ in unet.parameters())
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["animatediff-v2", "videocrafter1-512"])
@torch.no_grad()
def test_hidden_frames_do_not_reach_the_others(family):
    unet = small(family)
    x, timestep, text = inputs(family)
    mask = torch.tensor([[True, True, True, False]] * 2)
    changed = x.clone()
    changed[:, :, 3] += 1
    seen = (unet(changed, timestep, text) - unet(x, timestep, text))[:, :, :3].abs().max()
    hidden = [unet(of, timestep, text, frame_mask=mask) for of in (x, changed)]
    assert seen > 1e-4
    if family.startswith("animatediff"):  # VideoCrafter's norms are joint over frames
        assert (hidden[1] - hidden[0])[:, :, :3].abs().max() < 1e-6


@torch.no_grad()
def test_probe_hears_every_temporal_attention():
    unet = small("animatediff-v2")
    heard = {}
    x, timestep, text = inputs("animatediff-v2")
    out = unet(x, timestep, text, probe=lambda layer, q, k: heard.__setitem__(layer, (q, k)))
    assert torch.equal(out, unet(x, timestep, text))  # on the fused path as ever
    layers = [module for module in unet.modules() if isinstance(module, TemporalAttention)]
    assert heard.keys() == set(layers) and len(layers) == 2 * 13
    assert all(q.shape == k.shape == (2, 4, q.shape[2], layer.to_q.out_features) for layer, (q, k) in heard.items())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_starts_as_the_image_model(family):
    """Fresh temporal layers change nothing: every frame is drawn as if alone."""
    torch.manual_seed(0)
    unet = UNet(NETWORKS[family]).eval()
    x, timestep, text = inputs(family)
    assert all((m.proj_out.weight == 0).all() for m in unet.modules() if isinstance(m, TemporalTransformer))
    whole = unet(x, timestep, text)
    alone = torch.stack([unet(x[:, :, [i]], timestep[:, [i]], text)[:, :, 0] for i in range(4)], 2)
    if NETWORKS[family].joint_norm:  # v1's image layers themselves mix the frames' statistics
        assert (whole - alone).abs().max() > 1e-4
    else:
        torch.testing.assert_close(whole, alone, atol=2e-5, rtol=0)


@torch.no_grad()
def test_image_tokens_follow_the_text():
    facts = replace(VIDEOCRAFTER, image=True)
    torch.manual_seed(0)
    unet = UNet(facts).eval()
    x, timestep, _ = inputs("animatediff-v2")
    text, image = torch.randn(2, 77, 32), torch.randn(2, 5, 32)
    both = torch.cat([text, image], dim=1)
    out = unet(x, timestep, both)
    torch.testing.assert_close(unet(x, timestep, unet.text_keys(both)), out, atol=0, rtol=0)
    assert (unet(x, timestep, torch.cat([text, -image], dim=1)) - out).abs().max() > 1e-3
    # An image whose values are nothing leaves what the text alone does.
    plain = UNet(replace(facts, image=False)).eval()
    plain.load_state_dict({name: tensor for name, tensor in unet.state_dict().items() if "_ip." not in name})
    for name, parameter in unet.named_parameters():
        if "to_v_ip" in name:
            parameter.zero_()
    torch.testing.assert_close(unet(x, timestep, both), plain(x, timestep, text), atol=0, rtol=0)
    torch.testing.assert_close(unet(x, timestep, text), plain(x, timestep, text), atol=0, rtol=0)


@torch.no_grad()
def test_sizes_that_do_not_halve():
    unet = small("animatediff-v2")
    assert unet(torch.randn(1, 4, 2, 9, 13), torch.zeros(1, 2), torch.randn(1, 7, 32)).shape == (1, 4, 2, 9, 13)


def queue_of_frames(family: str, dtype: torch.dtype = torch.float32):
    """A queue of 9 frames, three windows of 4 that overlap by two, of which the last two frames are wanted."""
    x, timestep, text = inputs(family, batch=1, frames=9, dtype=dtype)
    windows = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5], [5, 6, 7, 8]])
    keep = torch.tensor([2, 3, 6, 7, 8, 10, 11])
    return x, timestep, torch.cat([text, -text]), windows, keep


@pytest.mark.parametrize("family", [*FAMILIES, "animatediff-v1, joint norms"])
@torch.no_grad()
def test_windows_and_branches_equal_clips_one_by_one(family):
    family, joint = family.split(",")[0], "joint" in family
    unet = small(family)
    if joint:
        torch.manual_seed(0)
        unet = UNet(replace(NETWORKS[family], joint_norm=True, motion_joint_norm=True)).eval()
    unet = unet.double()
    x, timestep, text, windows, keep = queue_of_frames(family, torch.float64)
    found = unet(x, timestep, text, branches=2, windows=windows, keep=keep)
    assert found.shape == (2, 4, 7, 8, 16)
    for branch in range(2):
        said = text[branch : branch + 1]
        clips = [unet(x[:, :, window], timestep[:, window], said) for window in windows]
        torch.testing.assert_close(found[branch : branch + 1], torch.cat(clips, 2)[:, :, keep], **EXACT)
    two = unet(x, timestep, text, branches=2)
    torch.testing.assert_close(two[:1], unet(x, timestep, text[:1]), **EXACT)
    with pytest.raises(ValueError, match="2 queues at once"):
        unet(torch.cat([x, x]), timestep.expand(2, -1), text, windows=windows, keep=keep)


@pytest.mark.parametrize(
    ("family", "first_conv", "self_attention", "last_feed_forward"),
    # A queue of 9 frames, 12 in windows, 7 wanted, all of them under two texts.
    [("animatediff-v2", 9, 9, 14), ("videocrafter2", 9, 12, 14)],
)
@torch.no_grad()
def test_rows_are_no_more_than_must_differ(family, first_conv, self_attention, last_feed_forward):
    """VideoCrafter mixes frames before its first residual block: what windows share ends there."""
    unet = small(family)
    rows = {}
    watched = {
        "first_conv": unet.conv_in,
        "self_attention": next(m for m in unet.modules() if isinstance(m, SpatialTransformer)).attn1,
        "last_feed_forward": unet.up[-1][-1]["temporal"].ff,
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda module, given, out, name=name: rows.update({name: len(given[0])}))
    x, timestep, text, windows, keep = queue_of_frames(family)
    unet(x, timestep, text, branches=2, windows=windows, keep=keep)
    assert rows == {
        "first_conv": first_conv,
        "self_attention": self_attention,
        "last_feed_forward": last_feed_forward,
    }


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_deep_features_are_left_and_taken(family, depth):
    """Taken for what they were left by, nothing changes; and what is below is not run."""
    unet = small(family)
    x, timestep, text, windows, keep = queue_of_frames(family)
    view = {"branches": 2, "windows": windows, "keep": keep}
    deep = Deep(depth)
    whole = unet(x, timestep, text, **view, deep=deep)
    torch.testing.assert_close(whole, unet(x, timestep, text, **view), atol=0, rtol=0)
    ran = []
    for name, module in unet.named_modules():
        if isinstance(module, TemporalTransformer | SpatialTransformer):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    torch.testing.assert_close(unet(x, timestep, text, **view, deep=Deep(depth, deep.features)), whole, atol=0, rtol=0)
    assert ran and all(name.split(".")[0] in ("head", "down", "up") for name in ran)
    levels = {
        int(i) if way == "down" else 3 - int(i) for way, i, *_ in (name.split(".") for name in ran) if way != "head"
    }
    assert levels == {level for level in range(depth) if unet.family.attention[level] or "animatediff" in family}
    other = unet(x + 1, timestep, text, **view, deep=Deep(depth, deep.features))
    assert (other - whole).abs().max() > 1e-3


@pytest.mark.parametrize("family", [*FAMILIES, "late text"])
@torch.no_grad()
def test_queries_are_lent_where_it_is_asked_for(family):
    """In windows and branches as clip by clip, also where a query is lent before branches part."""
    facts = NETWORKS["animatediff-v2" if family == "late text" else family]
    if family == "late text":
        facts = replace(facts, attention=(False, *facts.attention[1:]))
    torch.manual_seed(0)
    unet = UNet(facts).eval()
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    assert unet.pairs_queries
    x, timestep, _ = inputs("animatediff-v2", batch=1, frames=6)
    text = torch.randn(2, 82, facts.text_width, generator=torch.Generator().manual_seed(2))
    windows = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5]])
    asked = [(0.0, ("attn1",)), (0.9, ("attn1",)), (0.9, ("attn2",)), (0.9, ("attn1", "attn2")), (0.3, ("attn1",))]
    outs = []
    for weight, which in asked:
        options = {"query_weight": weight, "query_attention": which}
        both = unet(x, timestep, text, branches=2, windows=windows, **options).unflatten(2, (2, 4))
        for branch, window in ((0, 1), (1, 0)):
            slots = windows[window]
            alone = unet(x[:, :, slots], timestep[:, slots], text[branch : branch + 1], **options)
            torch.testing.assert_close(both[branch, :, window], alone[0], atol=5e-5, rtol=1e-4)
        outs.append(both)
    assert min((one - other).abs().max() for i, one in enumerate(outs) for other in outs[:i]) > 1e-4


@torch.no_grad()
def test_motion_scale_is_a_factor_on_the_logits():
    """Of every attention between frames, lent queries and relative positions with it."""
    unet = small("videocrafter1-512")
    x, timestep, text = inputs("videocrafter1-512")
    scaled = unet(x, timestep, text, motion_scale=2.0, query_weight=0.5)
    assert (scaled - unet(x, timestep, text, query_weight=0.5)).abs().max() > 1e-4
    for module in unet.modules():
        if isinstance(module, TemporalAttention):
            module.to_q.weight.mul_(2)
    torch.testing.assert_close(unet(x, timestep, text, query_weight=0.5), scaled, atol=1e-5, rtol=0)
