"""The memory of a step as the meta device tells it, against what autograd really keeps."""

import pytest
import torch

from vidlose.checkpoints import random
from vidlose.models.unet import UNet
from vidlose.training.memory import OnDevice, estimate, kept_by_block
from vidlose.training.trainable import block_of, select


def network(family: str, device: str, checkpointing: bool = False):
    with torch.device(device):
        unet = UNet(random.NETWORKS[family]).train()
        x, timestep, text = torch.zeros(1, 4, 3, 16, 16), torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 77, 32)
    unet.gradient_checkpointing = checkpointing
    chosen = select(unet, "all", "motion")
    return unet, (lambda: unet(x, timestep, text)), chosen.parameters


@pytest.mark.slow
@pytest.mark.parametrize("family", ["animatediff-v2", "videocrafter1-512", "videocrafter2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_meta_device_keeps_what_is_kept(family, checkpointing):
    real, told = (network(family, device, checkpointing) for device in ("cpu", "meta"))
    kept = kept_by_block(*real[:2], block_of)
    shares = estimate(*told, block_of, "adamw", ema=False, dtype=torch.float32)
    assert sum(share.activations for share in shares.values()) == pytest.approx(sum(kept.values()), rel=0.05)
    for block, share in shares.items():
        assert share.activations == pytest.approx(kept[block], rel=0.1, abs=2000), block


def test_weights_and_moments_by_hand():
    unet, call, trained = network("animatediff-v2", "meta")
    count = sum(p.numel() for p in trained.values())
    frozen = sum(p.numel() for p in unet.parameters()) - count
    for optimizer, bytes in (("adamw", 8), ("adamw8bit", 2), ("muon", 4)):
        for ema in (False, True):
            shares = estimate(unet, call, trained, block_of, optimizer, ema=ema, dtype=torch.bfloat16).values()
            assert sum(share.weights for share in shares) == 4 * count + 2 * frozen
            assert sum(share.gradients for share in shares) == 4 * count
            assert sum(share.optimizer for share in shares) == (bytes + 4 * ema) * count
            assert sum(share.total for share in shares) > (12 + bytes) * count


def test_attention_keeps_no_matrix_and_products_are_narrow():
    """As on a CUDA device under autocast; the meta device itself has neither."""
    with torch.device("meta"):
        q, norm, linear = torch.empty(2, 4, 1000, 8, requires_grad=True), torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)
    kept = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    with OnDevice(torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        assert out.shape == q.shape and out.dtype == torch.bfloat16 and max(kept) == q.numel()
        assert norm(out).dtype == torch.float32 and linear(norm(out)).dtype == torch.bfloat16
    with OnDevice(torch.float32):
        assert linear(norm(q)).dtype == torch.float32
