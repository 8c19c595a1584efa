"""Optimizers by block: rates, freezing, forgetting, and a state that continues bit for bit."""

import pytest
import torch
from torch import nn

from vidlose.errors import InputError
from vidlose.training.optimizers import OPTIMIZERS, Optimizer

KINDS = [kind for kind in OPTIMIZERS if kind != "adamw8bit"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(9, 12, 3), nn.Flatten(), nn.Linear(12 * 4, 16), nn.LayerNorm(16))


def blocks_of(net: nn.Sequential) -> dict[str, dict[str, nn.Parameter]]:
    named = dict(net.named_parameters())
    return {
        "down": {name: p for name, p in named.items() if name.startswith("0.")},
        "up": {name: p for name, p in named.items() if not name.startswith("0.")},
    }


def backward(net: nn.Sequential, step: int) -> None:
    x = torch.randn(5, 9, 4, 4, generator=torch.Generator().manual_seed(step))
    net.zero_grad()
    (net(x) - 1).square().mean().backward()


def run(kind: str, first: int, last: int, net: nn.Sequential, optimizer: Optimizer) -> None:
    for step in range(first, last):
        backward(net, step)
        optimizer.step(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_state_continues_bit_for_bit(kind):
    whole = network()
    run(kind, 0, 6, whole, Optimizer(blocks_of(whole), kind, 1e-2))
    first = network()
    optimizer = Optimizer(blocks_of(first), kind, 1e-2)
    run(kind, 0, 3, first, optimizer)
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    second = network()
    second.load_state_dict(first.state_dict())
    again = Optimizer(blocks_of(second), kind, 1e-2)
    again.restore(state)
    run(kind, 3, 6, second, again)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_adamw_is_torch_s():
    ours, theirs = network(), network()
    optimizer = Optimizer(blocks_of(ours), "adamw", 1e-2)
    plain = torch.optim.AdamW(theirs.parameters(), 0.5e-2)
    for step in range(4):
        backward(ours, step)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert one.grad is not None
            other.grad = one.grad.clone()  # Adam makes much of a gradient's last bit
        optimizer.step(0.5)
        plain.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_muon_steps_convolutions_as_matrices_of_even_reach():
    """Every direction of a matrix moves by about the rate: orthogonal updates."""
    net = network()
    before = net[0].weight.detach().clone()
    backward(net, 0)
    Optimizer(blocks_of(net), "muon", 1e-2, weight_decay=0.0, muon_rate=0.1).step(1.0)
    moved = torch.linalg.svdvals((net[0].weight.detach() - before).flatten(1)) / 0.1
    assert moved.min() > 0.4 and moved.max() < 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_scale_lowers_and_freezes_a_block(kind):
    net = network()
    optimizer = Optimizer(blocks_of(net), kind, 1e-2)
    optimizer.scale["up"] = 0.0
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    run(kind, 0, 2, net, optimizer)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]) == (not name.startswith("0.")), name


def test_forget_starts_a_block_anew():
    net = network()
    optimizer = Optimizer(blocks_of(net), "muon", 1e-2)
    run("muon", 0, 2, net, optimizer)
    optimizer.forget("down")
    assert {path.split(".")[0] for path in optimizer.state()} == {"2", "3"}


def test_unknown_and_absent_optimizers_are_refused():
    with pytest.raises(InputError, match="unknown optimizer 'sgd'; choose from adamw, adamw8bit"):
        Optimizer(blocks_of(network()), "sgd", 1e-2)
    with pytest.raises(InputError, match="pip install"):
        Optimizer(blocks_of(network()), "adamw8bit", 1e-2)
