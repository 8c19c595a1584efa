"""Tools change nothing when they are put on, do what they promise afterwards, and leave plain weights behind."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from vidlose import kernels
from vidlose.checkpoints import random
from vidlose.config import StabilityConfig
from vidlose.errors import InputError, UsageError
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.layers import FrameNorm
from vidlose.models.temporal import QKNorm, TemporalAttention
from vidlose.models.unet import UNet
from vidlose.training import stability
from vidlose.training.stability import EntropyHinge, QKClip, Recorder, SigmaReparam, SkipScale, Tools
from vidlose.training.trainable import attentions, block_of, choose, drop_lora, lora_layers, select

FAMILIES = ["animatediff-v2", "videocrafter1-512"]
EVERY = {
    "sigma-reparam": StabilityConfig(sigma_reparam=True),
    "QK-norm": StabilityConfig(qk_norm=True),
    "learned skips": StabilityConfig(skip_scale="learned"),
    "annealed skips": StabilityConfig(skip_scale="annealed"),
    "hinge and clip": StabilityConfig(entropy_hinge=1.0),
}


def network(family: str = "animatediff-v2") -> UNet:
    return random.load(family).unet.eval()


def call(unet: UNet, probe=None, frame_mask=None, size: int = 16):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 4, size, size, generator=g), torch.randn(2, 7, 32, generator=g)
    timestep = torch.randint(0, 1000, (2, 4), generator=g)
    return unet(x, timestep, text, probe=probe, frame_mask=frame_mask)


def put(unet: UNet, config: StabilityConfig, blocks: str = "all", steps: int = 100) -> Tools:
    return Tools(unet, config, blocks, steps, look=lambda recorder: call(unet, recorder))


def tools_of(unet: UNet, kind: type) -> list[nn.Module]:
    return [module for module in unet.modules() if isinstance(module, kind)]


def sharpen(attention: TemporalAttention, by: float) -> None:
    with torch.no_grad():
        attention.to_q.weight *= by


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
@torch.no_grad()
def test_nothing_changes_at_the_start(family, config):
    unet = network(family)
    before = call(unet)
    tools = put(unet, config)
    recorder = tools.before(0)
    assert torch.equal(call(unet, recorder), before)  # to the bit, and with the probe on
    assert config.entropy_hinge == 0 or tools.penalty(recorder) == 0
    assert tools.after(recorder) == {}
    torch.testing.assert_close(call(unet), before, atol=5e-6, rtol=0)  # one power iteration rounds


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_folding_leaves_plain_weights_and_the_same_function(family):
    unet = network(family)
    names = list(unet.state_dict())
    before, parameters = call(unet), dict(unet.named_parameters())
    put(unet, StabilityConfig(sigma_reparam=True, skip_scale="learned"))
    for tool in tools_of(unet, SigmaReparam):
        tool.gamma *= 1.3
    for i, tool in enumerate(tools_of(unet, SkipScale)):
        tool.kappa.fill_(0.5 + 0.1 * i)
    tuned = call(unet)
    assert (tuned - before).abs().max() > 1e-2
    exported = stability.plain(unet)
    assert torch.equal(call(exported), tuned)
    assert list(exported.state_dict()) == names
    assert exported.conv_in.weight.data_ptr() == unet.conv_in.weight.data_ptr()  # shared, not copied
    changed = stability.fold(unet)
    assert torch.equal(call(unet), tuned) and set(unet.state_dict()) == set(names)
    assert all(parameters[name] is parameter for name, parameter in unet.named_parameters())
    assert len(changed) == 4 * len(tools_of(unet, TemporalAttention)) + sum(len(stage) for stage in unet.up)


def test_tools_stand_only_where_they_are_wanted():
    unet = network()
    put(unet, StabilityConfig(sigma_reparam=True, qk_norm=True, skip_scale="learned"), "mid,up.1")
    found = {block_of(n) for n, m in unet.named_modules() if isinstance(m, SigmaReparam | QKNorm)}
    assert found == {"middle", "up.1.0", "up.1.1"}
    assert {block_of(n) for n, m in unet.named_modules() if isinstance(m, SkipScale)} == {"up.1.0", "up.1.1"}
    with pytest.raises(InputError, match="--skip-scale is for up blocks, which read skips; middle read none"):
        put(network(), StabilityConfig(skip_scale="learned"), "mid")


@torch.no_grad()
def test_sigma_reparam_follows_the_weight():
    torch.manual_seed(0)
    layer = nn.Linear(48, 32)
    tool = SigmaReparam(layer.weight)
    assert torch.equal(tool(layer.weight), layer.weight)
    exact = torch.linalg.matrix_norm(layer.weight, 2)
    assert tool.gamma.item() == pytest.approx(exact.item(), rel=1e-6)
    for _ in range(50):  # many small steps, one power iteration each
        layer.weight += 0.01 * torch.randn_like(layer.weight)
        tool.follow(layer.weight)
    assert torch.linalg.matrix_norm(tool(layer.weight), 2) == pytest.approx(tool.gamma.item(), rel=0.01)


def test_sigma_reparam_takes_singular_vectors_for_constants():
    """d(gamma W / sigma)/dW with sigma = u^T W v, so that the gradient along W itself is nothing."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 5))
    tool = SigmaReparam(weight)
    out = torch.randn(6, 5)
    (tool(weight) * out).sum().backward()
    assert (weight.grad * weight).sum().abs() < 1e-5
    u, v, sigma = tool.u, tool.v, tool.gamma.detach()
    expected = out - (out * weight.detach()).sum() / sigma * torch.outer(u, v)
    torch.testing.assert_close(weight.grad, expected, atol=1e-5, rtol=1e-5)
    assert not tool.u.requires_grad and tool.gamma.grad is not None


@torch.no_grad()
def test_qk_norm_fades_in():
    torch.manual_seed(0)
    norm = QKNorm(2)
    norm.log_query.copy_(torch.tensor([0.5, 1.0]))
    norm.log_key.copy_(torch.tensor([0.1, 0.2]))
    q, k = torch.randn(2, 3, 4, 5, 16)
    assert all(torch.equal(*pair) for pair in zip(norm(q, k), (q, k), strict=True))

    def products(q, k):
        return torch.einsum("bishd,bjshd->bshij", q.unflatten(-1, (2, 8)), k.unflatten(-1, (2, 8)))

    plain = products(q, k)
    cosine = products(*(nn.functional.normalize(x.unflatten(-1, (2, 8)), dim=-1).flatten(-2) for x in (q, k)))
    whole = cosine * torch.exp(norm.log_query + norm.log_key)[:, None, None]
    norm.beta.fill_(1)
    torch.testing.assert_close(products(*norm(q, k)), whole, atol=1e-5, rtol=1e-5)
    norm.beta.fill_(0.25)
    between = plain.sign() * plain.abs() ** 0.75 * whole.abs() ** 0.25
    torch.testing.assert_close(products(*norm(q, k)), between, atol=1e-5, rtol=1e-4)


def test_qk_norm_is_measured_and_refuses_plain_export():
    unet = network()
    with torch.no_grad():
        recorder = Recorder(10**9)
        call(unet, recorder)
        before = call(unet)
    tools = put(unet, StabilityConfig(qk_norm=True, qk_norm_steps=10, probe_pixels=10**9))
    attention, (q, _) = next(iter(recorder.kept.items()))
    lengths = q.unflatten(-1, (attention.heads, -1)).norm(dim=-1).mean((0, 1, 2))
    torch.testing.assert_close(attention.qk_norm.log_query.detach().exp(), lengths)
    assert stability.plain(unet) is not unet and not stability.qk_norm_works(unet)
    tools.before(3)
    assert attention.qk_norm.beta == pytest.approx(0.3) and stability.qk_norm_works(unet)
    with torch.no_grad():
        assert 1e-5 < (call(unet) - before).abs().max() < 1
    for leave in (stability.plain, stability.fold):
        with pytest.raises(InputError, match="QK-norm is part of this network"):
            leave(unet)
    tools.before(0)
    stability.fold(unet)
    with torch.no_grad():
        assert torch.equal(call(unet), before) and not tools_of(unet, QKNorm)
    Tools(unet, StabilityConfig(qk_norm=True, qk_norm_steps=0), "all", 1).before(0)  # from scratch: at once
    assert all(norm.beta == 1 for norm in tools_of(unet, QKNorm))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_qk_clip_bounds_the_logits_of_sharp_heads_alone(family):
    unet = network(family)
    layers = attentions(unet, choose(unet, "up.1"))
    clip = QKClip(layers, factor=1.5, floor=1.0)
    first = Recorder(10**9)
    call(unet, first)
    weights = [p.clone() for p in unet.parameters()]
    assert clip(first) == {}
    sharp = next(iter(layers.values()))
    head = slice(0, len(sharp.to_q.weight) // sharp.heads)
    sharp.to_q.weight[head] *= 20
    others = sharp.to_k.weight[head.stop :].clone()
    second = Recorder(10**9)
    call(unet, second)
    (name,) = clip(second)
    limit = clip.limits[name]
    assert layers[name] is sharp and second.largest(sharp)[0] > 5 * limit[0]
    # The attention's own input is unchanged, so its logits are now at the limit.
    third = Recorder(10**9)
    call(unet, third)
    torch.testing.assert_close(third.largest(sharp)[0], limit[0], rtol=1e-4, atol=0)
    assert torch.equal(sharp.to_k.weight[head.stop :], others)
    changed = [not torch.equal(*pair) for pair in zip(unet.parameters(), weights, strict=True)]
    assert sum(changed) == (2 if family.startswith("animatediff") else 1)  # relative positions: the queries alone
    for parameter in unet.parameters():
        parameter.requires_grad_(False)
    assert clip(second) == {} and not clip.active


def test_recorder_sees_what_the_kernel_sees():
    """All pixels: the entropy is the door's own; hidden frames do not count."""
    unet = network("videocrafter1-512")
    seen = {}

    def both(attention, q, k):
        _, entropy = kernels.temporal_attention(
            q, k, q, attention.heads, relative_k=attention.relative_k, return_entropy=True
        )
        seen[attention] = entropy.mean(0) / math.log(4)
        recorder(attention, q, k)

    recorder = Recorder(10**9)
    with torch.no_grad():
        call(unet, both)
    assert len(seen) == len(recorder.kept) == len(tools_of(unet, TemporalAttention))
    for attention, entropy in seen.items():
        torch.testing.assert_close(recorder.entropy(attention).mean(0), entropy, atol=1e-5, rtol=0)

    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    hidden = Recorder(7, frame_mask=mask)
    with torch.no_grad():
        call(network(), hidden, mask)
    for attention, (q, k) in hidden.kept.items():
        short = Recorder(7)
        short.kept[attention] = q[:1, :3], k[:1, :3]
        torch.testing.assert_close(hidden.entropy(attention), short.entropy(attention))
        assert hidden.largest(attention).max() < 1e3


def test_metrics():
    unet = network()
    with torch.no_grad():
        sharpen(next(iter(attentions(unet, {"up.1.1"}).values())), 40)
        recorder = Recorder(16, seed=3)
        call(unet, recorder)
    found = stability.metrics(unet, recorder)
    blocks = {block_of(name) for name in attentions(unet, choose(unet, "all"))}
    kinds = ("entropy", "entropy_min", "entropy_q05", "logit_max", "sigma_qk")
    assert found.keys() == {f"{kind}/{block}" for kind in kinds for block in blocks}
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    entropies = stability.entropies(found)
    assert entropies.keys() == blocks and min(entropies, key=entropies.get) == "up.1.1"
    assert all(0 <= found[f"entropy_min/{b}"] <= found[f"entropy/{b}"] <= 1 + 1e-6 for b in blocks)
    assert found["logit_max/up.1.1"] > 10 * found["logit_max/up.1.0"]
    attention = next(iter(attentions(unet, {"middle"}).values()))
    q, k = (layer.weight.detach().unflatten(0, (attention.heads, -1)) for layer in (attention.to_q, attention.to_k))
    torch.testing.assert_close(
        stability.sigma_qk(attention), torch.linalg.matrix_norm(q.mT @ k, 2), rtol=1e-4, atol=1e-6
    )


@torch.no_grad()
def test_single_frames_have_no_entropy():
    unet = network()
    mask = torch.tensor([[True, False, False, False]] * 2)
    recorder = Recorder(4, frame_mask=mask)
    call(unet, recorder, mask)
    assert {name.partition("/")[0] for name in stability.metrics(unet, recorder)} == {"logit_max", "sigma_qk"}
    assert EntropyHinge(attentions(unet, choose(unet, "all")), weight=1.0, slack=0.0)(recorder) == 0


def test_gradient_checkpointing_does_not_tell_twice():
    """The penalty reaches the weights all the same, and by the same amount."""
    grads = []
    for checkpointing in (False, True):
        unet = network().train()
        unet.gradient_checkpointing = checkpointing
        layers = attentions(unet, choose(unet, "all"))
        hinge = EntropyHinge(layers, weight=1.0, slack=0.0)
        calls, recorder = [], Recorder(8)
        with torch.no_grad():
            call(unet, recorder)
            hinge(recorder)
            for attention in layers.values():
                sharpen(attention, 3)
        recorder = Recorder(8)

        def probe(attention, q, k, recorder=recorder, calls=calls):
            calls.append(1)
            recorder(attention, q, k)

        out = call(unet, probe)
        assert len(calls) == len(recorder.kept) == len(layers)
        (out.square().mean() + hinge(recorder)).backward()
        assert len(calls) == (1 + checkpointing) * len(layers)
        grads.append([parameter.grad for parameter in unet.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-6, rtol=1e-4)


def test_hinge_pulls_entropy_up_only_below_its_threshold():
    unet = network()
    layers = attentions(unet, {"up.1.0"})
    hinge = EntropyHinge(layers, weight=2.0, slack=0.3)

    def penalty():
        recorder = Recorder(16)
        call(unet, recorder)
        return hinge(recorder), torch.stack([recorder.entropy(of).mean() for of in layers.values()])

    first, start = penalty()
    assert first == 0
    for attention in layers.values():
        sharpen(attention, 30)
    second, fallen = penalty()
    threshold = 0.7 * (start + fallen).detach() / 2  # the start is a running mean over the first looks
    expected = 2 * (threshold - fallen).clamp(min=0).square().sum()
    torch.testing.assert_close(second, expected)
    assert second > 0
    optimizer = torch.optim.SGD([of.to_q.weight for of in layers.values()], 0.5)
    for _ in range(5):
        optimizer.zero_grad()
        penalty()[0].backward()
        optimizer.step()
    assert penalty()[1].mean() > fallen.mean()


@pytest.mark.parametrize("straddles", [False, True])
@torch.no_grad()
def test_a_group_norm_undoes_the_scale_of_a_skip_unless_a_group_straddles(straddles):
    """What SkipScale's docstring says: scaling the convolution's columns is scaling the skip, but for that group."""
    unet = network()
    block = unet.up[3][1 if not straddles else 0]["res"]
    own = 32 if not straddles else 64
    channels = block.norm1.num_channels
    assert (own % (channels // 32) > 0) == straddles
    torch.manual_seed(0)
    h, skip = torch.randn(1, own, 16, 16), torch.randn(1, channels - own, 16, 16)
    norm, conv = block.norm1, block.skip
    assert isinstance(norm, FrameNorm)
    norm.weight.normal_()
    whole, scaled = torch.cat([h, skip], 1), torch.cat([h, 0.4 * skip], 1)
    tool = SkipScale(own, learned=True)
    tool.kappa.fill_(0.4)
    torch.testing.assert_close(
        nn.functional.conv2d(whole, tool(conv.weight), conv.bias), conv(scaled), atol=1e-5, rtol=1e-4
    )
    difference = (norm(whole, 1) - norm(scaled, 1)).abs().amax((0, 2, 3))
    size = channels // 32
    inside = difference.unflatten(0, (32, size)).amax(1)
    assert (inside > 1e-2).sum() == straddles
    assert inside.sort().values[:31].max() < 1e-3  # the norm's epsilon


def test_four_of_stable_diffusions_skips_straddle_a_group():
    with torch.device("meta"):
        unet = UNet(AnimateDiff())
        stability.put_skip_scale(unet, choose(unet, "up"), learned=True)
    blocks = {f"up.{i}.{j}": block["res"] for i, stage in enumerate(unet.up) for j, block in enumerate(stage)}
    own = {name: res.skip.parametrizations.weight[0].own for name, res in blocks.items()}
    straddling = [name for name, res in blocks.items() if own[name] % (res.norm1.num_channels // 32)]
    assert len(blocks) == 12 and straddling == ["up.1.2", "up.2.0", "up.2.2", "up.3.0"]


@torch.no_grad()
def test_scalelong_fades_in():
    unet = network()
    tools = put(unet, StabilityConfig(skip_scale="annealed", skip_kappa=0.5, skip_anneal=0.2), steps=100)
    found = [[], []]
    for values, step in zip(found, (10, 60), strict=True):
        tools.before(step)
        values += [tool.kappa.item() for tool in tools_of(unet.up, SkipScale)]
    deep_first = [0.5**i for i in reversed(range(8))]
    assert found[1] == pytest.approx(deep_first)
    assert found[0] == pytest.approx([(1 + kappa) / 2 for kappa in deep_first])
    before = call(unet)
    assert torch.equal(call(stability.plain(unet)), before)


RUNS = {
    "clip, hinge, learned skips": StabilityConfig(
        entropy_hinge=1.0, entropy_slack=0.0, skip_scale="learned", qk_clip_floor=0.1, qk_clip_factor=1.0
    ),
    "sigma, QK-norm, annealed skips": StabilityConfig(
        sigma_reparam=True, qk_norm=True, qk_norm_steps=5, skip_scale="annealed"
    ),
}


@pytest.mark.parametrize("config", RUNS.values(), ids=RUNS)
def test_a_resumed_run_is_the_same_to_the_bit(config):
    config = replace(config, probe_pixels=8, probe_every=3)

    def start(look):
        unet = network()
        tools = Tools(unet, config, "up.1", 6, (lambda recorder: call(unet, recorder, size=8)) if look else None)
        chosen = select(unet, "up.1", "motion")
        return unet, tools, chosen, torch.optim.AdamW(chosen.parameters.values(), 1e-2)

    def train(unet, tools, optimizer, steps):
        log = []
        for step in steps:
            recorder = tools.before(step)
            loss = call(unet, recorder, size=8).square().mean()
            penalty = tools.penalty(recorder)
            (loss if penalty is None else loss + penalty).backward()
            found = tools.metrics(step, recorder)
            optimizer.step()
            optimizer.zero_grad()
            log.append((loss.item(), tools.after(recorder), found))
        return log

    unet, tools, chosen, optimizer = start(look=True)
    train(unet, tools, optimizer, range(3))
    parameters = {name: parameter.detach().clone() for name, parameter in chosen.parameters.items()}
    kept = parameters, tools.state_dict(), deepcopy(optimizer.state_dict())
    whole = train(unet, tools, optimizer, range(3, 6))

    unet, tools, chosen, optimizer = start(look=False)
    with torch.no_grad():
        for name, parameter in chosen.parameters.items():
            parameter.copy_(kept[0][name])
    tools.load_state_dict(kept[1])
    optimizer.load_state_dict(kept[2])
    assert train(unet, tools, optimizer, range(3, 6)) == whole
    if tools.clip is not None:
        assert any(clipped for _, clipped, _ in whole)


def test_lora_layers_are_seen_and_exported():
    unet = network()
    with torch.no_grad():
        before = call(unet)
    names = list(unet.state_dict())
    select(unet, "up.1", "motion-lora", rank=2, seed=3)
    with torch.no_grad():
        assert torch.equal(call(unet), before)
        for module in unet.modules():
            if hasattr(module, "lora_B"):
                module.lora_B["default"].weight.normal_(std=0.1)
        tuned = call(unet)
        exported = stability.plain(unet)
        assert (tuned - before).abs().max() > 1e-3 and list(exported.state_dict()) == names
        torch.testing.assert_close(call(exported), tuned, atol=1e-5, rtol=0)
        for layer in lora_layers(unet):  # the recipe's own sum is the same
            weight = unet.get_submodule(layer.name).base_layer.weight
            torch.testing.assert_close(
                exported.get_submodule(layer.name).weight, weight + layer.scale * layer.up @ layer.down
            )
        recorder = Recorder(8)
        call(unet, recorder)
        seen, plain = stability.metrics(unet, recorder), Recorder(8)
        call(exported, plain)
        assert seen == pytest.approx(stability.metrics(exported, plain), rel=1e-3, abs=1e-4)
        drop_lora(unet, merge=True)
        torch.testing.assert_close(call(unet), tuned, atol=1e-5, rtol=0)
        assert list(unet.state_dict()) == names


def test_gradient_norms():
    unet = network()
    chosen = select(unet, "down,mid", "motion")
    call(unet).square().mean().backward()
    norms = stability.gradient_norms({**chosen.blocks, "empty": {}})
    assert norms.keys() == {"down.0.0", "down.1.0", "down.2.0", "down.3.0", "middle", "empty"} and norms["empty"] == 0
    whole = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in chosen.parameters.values()]).double())
    assert math.hypot(*norms.values()) == pytest.approx(whole.item(), rel=1e-4)


def test_config():
    assert StabilityConfig().qk_clips and not StabilityConfig(sigma_reparam=True).qk_clips
    with pytest.raises(UsageError, match="take one of them"):
        StabilityConfig(qk_clip=True, qk_norm=True)
    with pytest.raises(InputError, match="--block-lr is 'up'; give BLOCK=FACTOR"):
        StabilityConfig(block_lr=["up"])
    with pytest.raises(InputError, match="unknown skip scale 'x'; choose from off, learned, annealed"):
        StabilityConfig(skip_scale="x")
    for name in ("probe_every", "spike_window", "ring_age"):
        with pytest.raises(InputError, match="must be greater than 0"):
            StabilityConfig(**{name: 0})
