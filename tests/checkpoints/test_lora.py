"""LoRA files in every form: against the original's outputs, against one another, and what is refused."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vidlose.checkpoints import animatediff, keymap, lora, videocrafter
from vidlose.errors import CheckpointError, InputError
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet
from vidlose.models.videocrafter import VideoCrafter

TOLERANCE = 2e-5
TINY = AnimateDiff(
    channels=(32, 64),
    blocks=1,
    heads=2,
    motion_heads=2,
    text_width=8,
    attention=(True, False),
    positions=8,
    motion_middle=True,
)
RANK = 4
PROJECTIONS = (
    "down.0.0.temporal.attn1.to_q",
    "middle.temporal.attn2.to_out",
    "down.0.0.spatial.attn2.to_k",
    "up.1.1.spatial.attn1.to_out",
)
OTHERS = (
    "down.1.0.res.conv1",
    "down.0.0.spatial.proj_in",
    "down.0.0.temporal.proj_in",
    "up.0.0.temporal.ff.out",
    "upsample.0.conv",
)


def all_targets(unet: UNet, text=None) -> lora.Targets:
    table = animatediff.unet_table(unet)
    return lora.targets(
        unet, table, animatediff.ldm_table(unet), animatediff.motion_table(unet, "diffusers"), text=text
    )


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(TINY).requires_grad_(False)


@pytest.fixture(scope="module")
def text():
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(config).requires_grad_(False)


def halves(shape: torch.Size) -> tuple[Tensor, Tensor]:
    """down `[r I k k]` and up `[O r 1 1]` for a weight `[O I k k]`."""
    down = torch.randn(RANK, *shape[1:])
    return down, torch.randn(shape[0], RANK, *(1 for _ in shape[2:]))


def synthetic(unet: UNet, names: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    table = animatediff.unet_table(unet)
    weights = unet.state_dict()
    return {name: halves(table[f"{name}.weight"].shape(weights[f"{name}.weight"].shape)) for name in names}


def processor(path: str) -> str:
    head, _, leaf = path.removesuffix(".0").rpartition(".")
    return f"{head}.processor.{leaf}"


def dotted(prefix: str, down: str, up: str, rewrite=lambda path: path):
    return lambda path, role: f"{prefix}{rewrite(path)}{down if role == 'down' else up}.weight"


def kohya(path: str, role: str) -> str:
    return f"lora_unet_{path.replace('.', '_')}.lora_{role}.weight"


ATTENTION_FORMS = {
    "animatediff": ("original", dotted("", "_lora.down", "_lora.up", processor)),
    "animatediff, wrapped": ("original", dotted("module.", "_lora.down", "_lora.up", processor)),
    "diffusers, processors": ("diffusers", dotted("unet.", "_lora.down", "_lora.up", processor)),
}
FORMS = {
    "diffusers, old": ("diffusers", dotted("unet.", ".lora.down", ".lora.up")),
    "diffusers": ("diffusers", dotted("unet.", ".lora_A", ".lora_B")),
    "peft": ("original", dotted("base_model.model.", ".lora_A", ".lora_B")),
    "peft, named": ("diffusers", dotted("base_model.model.", ".lora_A.default", ".lora_B.default")),
    "kohya": ("diffusers", kohya),
    "kohya, original motion": ("original", kohya),
    "kohya, latent-diffusion": ("ldm", kohya),
}


def spelled(unet: UNet, form: str, parts: dict[str, tuple[Tensor, Tensor]], alpha: float | None = None):
    """The synthetic LoRA as a file of that form."""
    names = animatediff.unet_table(unet)
    names |= {"diffusers": animatediff.motion_table(unet, "diffusers"), "ldm": animatediff.ldm_table(unet, "")}.get(
        (ATTENTION_FORMS | FORMS)[form][0], {}
    )
    key = (ATTENTION_FORMS | FORMS)[form][1]
    tensors = {}
    for name, (down, up) in parts.items():
        path = names[f"{name}.weight"].name.removesuffix(".weight")
        tensors |= {key(path, "down"): down, key(path, "up"): up}
        if alpha is not None:
            tensors[key(path, "down").partition(".lora_")[0] + ".alpha"] = torch.tensor(alpha)
    return tensors


def state(*modules) -> dict[str, Tensor]:
    return {
        f"{i}.{name}": value.clone() for i, module in enumerate(modules) for name, value in module.named_parameters()
    }


def expected(unet: UNet, parts, factor: float) -> dict[str, Tensor]:
    """Each weight + factor * up @ down, the convolutions by summing over the rank."""
    after = state(unet)
    for name, (down, up) in parts.items():
        weight = after[f"0.{name}.weight"]
        delta = torch.einsum("or,ri...->oi...", up.reshape(len(up), RANK).double(), down.double())
        after[f"0.{name}.weight"] = (weight + factor * delta.reshape(weight.shape)).float()
    return after


def assert_state(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("version", ["mm_v2", "mm_v3"])
@pytest.mark.parametrize("file", ["motion_lora", "domain_adapter"])
@pytest.mark.parametrize("scale", ["0.6", "1.0"])
@torch.no_grad()
def test_originals_outputs(golden, version, file, scale):
    io = golden(f"animatediff/{version}/io").tensors
    weights = {
        **golden(f"animatediff/{version}/unet2d").tensors,
        **golden(f"animatediff/{version}/motion_module").tensors,
    }
    facts = AnimateDiff(
        channels=(32, 64, 64, 64),
        blocks=1,
        heads=4,
        motion_heads=4,
        text_width=16,
        motion_middle=version == "mm_v2",
    )
    with torch.device("meta"):
        unet = UNet(facts).eval()
    # Read before the model is filled, as a bad LoRA should be refused before gigabytes are read.
    updates = lora.read(golden(f"animatediff/{version}/{file}").tensors, file, all_targets(unet))
    keymap.load(unet, weights, animatediff.unet_table(unet), "golden")
    lora.apply([(updates, float(scale))])
    x, timestep = io["std.sample"], io["std.timestep"][:, None].expand(2, 6)
    out, wanted = unet(x, timestep, io["std.encoder_hidden_states"]), io[f"std.out_{file}_scale{scale}"]
    assert (wanted - io["std.out"]).abs().max() > 0.01
    torch.testing.assert_close(out, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("manifest", "facts"),
    [
        ("animatediff_v2_motion_lora", AnimateDiff(motion_middle=True)),
        ("animatediff_v3_domain_adapter", AnimateDiff()),
    ],
)
def test_published_names_and_shapes(manifest, facts):
    root = Path(__file__).parents[1] / "goldens" / "manifests"
    shapes = json.loads(gzip.decompress((root / f"{manifest}.json.gz").read_bytes()))["keys"]
    with torch.device("meta"):
        unet = UNet(facts)
    updates = lora.read({key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}, "x", all_targets(unet))
    assert 2 * len(updates) == len(shapes)
    assert lora.repack(updates).keys() == shapes.keys()


@pytest.mark.parametrize("form", [*ATTENTION_FORMS, *FORMS])
def test_forms_agree(unet, form):
    parts = synthetic(unet, PROJECTIONS + OTHERS if form in FORMS else PROJECTIONS)
    wanted = expected(unet, parts, 0.5)
    lora.apply([(lora.read(spelled(unet, form, parts), form, all_targets(unet)), 0.5)])
    assert_state(state(unet), wanted)


@pytest.mark.parametrize("form", [*ATTENTION_FORMS, *FORMS])
def test_repack_gives_one_form(unet, form):
    """AnimateDiff's names for projections, peft's for the rest, whatever the file said; the same tensors."""
    parts = synthetic(unet, PROJECTIONS + OTHERS if form in FORMS else PROJECTIONS)
    packed = lora.repack(lora.read(spelled(unet, form, parts), form, all_targets(unet)))
    others = {name: parts[name] for name in OTHERS if name in parts}
    projections = {name: parts[name] for name in PROJECTIONS}
    wanted = spelled(unet, "animatediff", projections) | {
        key.removeprefix("base_model.model."): value for key, value in spelled(unet, "peft", others).items()
    }
    assert packed.keys() == wanted.keys()
    assert all(torch.equal(packed[key], wanted[key]) for key in wanted)
    again = lora.repack(lora.read(packed, "again", all_targets(unet)))
    assert again.keys() == packed.keys() and all(again[key] is packed[key] for key in packed)


@pytest.mark.parametrize("form", ["kohya", "kohya, latent-diffusion"])
def test_alpha(unet, form):
    parts = synthetic(unet, PROJECTIONS + OTHERS)
    updates = lora.read(spelled(unet, form, parts, alpha=1.0), form, all_targets(unet))
    wanted = expected(unet, parts, 0.5 / RANK)
    packed = lora.read(lora.repack(updates), "packed", all_targets(unet))
    assert {update.scale for update in updates} == {1 / RANK} and {update.scale for update in packed} == {1.0}
    twin = UNet(TINY)
    twin.load_state_dict(unet.state_dict())
    lora.apply([(lora.read(lora.repack(updates), "packed", all_targets(twin)), 0.5)])
    lora.apply([(updates, 0.5)])
    assert_state(state(unet), wanted)
    assert_state(state(twin), wanted)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (None, 1.0),
        ({}, 1.0),
        ({"r": RANK, "lora_alpha": 8}, 2.0),
        ({"r": RANK, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 64, "lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 1, "ff": 3}}, 0.25),
    ],
)
def test_peft_config(unet, config, scale):
    tensors = spelled(unet, "peft", synthetic(unet, PROJECTIONS))
    updates = lora.read(tensors, "x", all_targets(unet), config)
    assert next(update.scale for update in updates if update.target.name.endswith("attn2.to_k")) == scale


@pytest.mark.parametrize(
    "key",
    [
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{}.weight",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_{}.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{}.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.{}.weight",
        "text_encoder.encoder.layers.0.self_attn.q_proj.lora.{}.weight",
        "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight",
    ],
)
def test_text_encoder(unet, text, key):
    torch.manual_seed(1)
    down, up = torch.randn(2, 8), torch.randn(8, 2)
    before = state(unet, text)
    roles = ("A", "B") if key.startswith("base_model") else ("down", "up")
    tensors = {key.format(roles[0]): down, key.format(roles[1]): up}
    updates = lora.read(tensors, "x", all_targets(unet, text))
    assert lora.repack(updates).keys() == {
        f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{role}.weight" for role in "AB"
    }
    lora.apply([(updates, 1.0)])
    after = state(unet, text)
    name = "1.encoder.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(after[name], before[name] + up @ down)
    lora.apply([(updates, -1.0)])
    assert all(torch.equal(after[other], before[other]) for other in before if other != name)


def test_videocrafter():
    """Its own names, with and without prefix, and temporal convolutions, whose shape is not ours."""
    torch.manual_seed(0)
    unet = UNet(
        VideoCrafter(channels=(32, 64), blocks=1, head_width=16, text_width=8, attention=(True, False))
    ).requires_grad_(False)
    targets = lora.targets(unet, videocrafter.unet_table(unet))
    down, up = torch.randn(2, 32, 3, 1, 1), torch.randn(32, 2, 1, 1, 1)
    before = unet.down[0][0]["res"].temporal_conv.convs[0].weight.clone()
    for number, path in enumerate(
        (
            "lora_unet_input_blocks_1_0_temopral_conv_conv1_2",
            "model.diffusion_model.input_blocks.1.0.temopral_conv.conv1.2",
        )
    ):
        updates = lora.read({f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up}, "x", targets)
        lora.apply([(updates, 1.0)])
        delta = (up.flatten(1) @ down.flatten(1)).reshape(before.shape)
        after = unet.down[0][0]["res"].temporal_conv.convs[0].weight
        torch.testing.assert_close(after, before + (number + 1) * delta, atol=1e-5, rtol=0)
    motion = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor"
    with pytest.raises(CheckpointError, match="^x: 2 tensors update motion modules, and the model has none$"):
        lora.read({f"{motion}.to_q_lora.{role}.weight": torch.ones(2, 2) for role in ("down", "up")}, "x", targets)


def test_several_are_summed_before_rounding(unet):
    """Two updates, each too small to change fp16, change it together; parameters are replaced, not written."""
    unet.half()
    for parameter in unet.parameters():
        parameter.data = torch.ones(1, dtype=torch.float16).expand(parameter.shape)  # cannot be written
    name = PROJECTIONS[0]
    target = all_targets(unet)["down_blocks_0_motion_modules_0_transformer_blocks_0_attn1_to_q"]
    one = lora.Update(target, torch.full((1, 32), 4e-4), torch.ones(32, 1))
    lora.apply([([one], 1.0)])
    assert unet.get_parameter(f"{name}.weight").eq(1).all()
    lora.apply([([one], 1.0), ([one], 1.0)])
    changed = unet.get_parameter(f"{name}.weight")
    assert changed.dtype == torch.float16 and changed.eq(1 + 2**-10).all()


def test_order_of_weights(unet):
    one, two = ({name: parts} for name, parts in synthetic(unet, PROJECTIONS[:2]).items())
    wanted = expected(unet, one, 0.25)
    wanted |= {key: value for key, value in expected(unet, two, -2.0).items() if PROJECTIONS[1] in key}
    read = [lora.read(spelled(unet, "kohya", parts), "x", all_targets(unet)) for parts in (one, two)]
    lora.apply([(read[0], 0.25), (read[1], -2.0)])
    assert_state(state(unet), wanted)


def renamed(old: str, new: str):
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def replaced(end: str, tensor: Tensor):
    def change(tensors):
        found = next(key for key in tensors if key.endswith(end))
        return {**tensors, found: tensor}

    return change


def without(end: str):
    return lambda tensors: {key: value for key, value in tensors.items() if not key.endswith(end)}


TO_K_DOTTED = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TO_K = f"lora_unet_{TO_K_DOTTED.replace('.', '_')}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {}, "not a LoRA, none of its 0 tensors"),
        (lambda _: {"conv_in.weight": torch.ones(1)}, "not a LoRA, none of its 1 tensors is half of a low-rank update"),
        (
            renamed("down_blocks_0", "down_blocks_7"),
            "12 tensors match nothing in the model: lora_unet_down_blocks 12; for example lora_unet_down",
        ),
        (renamed("lora_unet_mid", "lora_te2_mid"), "3 tensors match nothing .*lora_te2_mid_block_motion_modules"),
        (lambda t: {**t, "extra.key": torch.ones(1)}, "1 tensors match nothing .*: extra.key 1; for example extra.key"),
        (lambda t: {**t, f"{TO_K}.lora_down.bias": torch.ones(1)}, "1 tensors match nothing"),
        (without("to_k.lora_up.weight"), "attn2_to_k.alpha comes without its up"),
        (without("to_k.lora_down.weight"), "attn2_to_k.alpha comes without its down"),
        (lambda _: {f"{TO_K}.alpha": torch.ones(1)}, "alpha comes without its down and up"),
        (
            lambda t: {**t, f"unet.{TO_K_DOTTED}.lora_A.weight": t[f"{TO_K}.lora_down.weight"]},
            "lora_unet_down.*attn2_to_k.lora_down.weight and unet.*lora_A.weight are the same part",
        ),
        (
            replaced("to_k.lora_down.weight", torch.ones(RANK, 9)),
            r"down \(4, 9\) and up \(32, 4\) do not fit down_blocks.0.*attn2.to_k, which is \(32, 8\)",
        ),
        (replaced("to_k.lora_up.weight", torch.ones(8, RANK)), r"and up \(8, 4\) do not fit .*which is \(32, 8\)"),
        (replaced("to_k.lora_up.weight", torch.ones(32, 3)), r"and up \(32, 3\) do not fit"),
        (replaced("to_k.lora_down.weight", torch.ones(RANK)), r"down \(4,\) and up"),
        (replaced("conv1.lora_down.weight", torch.ones(RANK, 32, 1, 1)), r"conv1, which is \(64, 32, 3, 3\)"),
        (replaced("conv1.lora_up.weight", torch.ones(64, RANK, 3, 3)), r"conv1, which is \(64, 32, 3, 3\)"),
        (replaced("to_k.lora_down.weight", torch.ones(0, 8)), r"lora_down.weight is \(0, 8\), of rank 0"),
        (replaced("to_k.lora_down.weight", torch.tensor(1.0)), r"lora_down.weight is \(\), of rank 0"),
        (
            replaced("to_k.lora_up.weight", torch.full((32, RANK), torch.nan)),
            "lora_up.weight holds values that are not",
        ),
        (replaced("to_k.lora_down.weight", torch.full((RANK, 8), -torch.inf)), "lora_down.weight holds values"),
        (replaced("to_k.lora_up.weight", torch.ones(32, RANK, dtype=torch.int8)), "lora_up.weight holds values"),
        (
            replaced("to_k.lora_up.weight", torch.full((32, RANK), 1e300, dtype=torch.float64)),
            "lora_up.weight holds values",
        ),
        (replaced("to_k.alpha", torch.tensor(torch.nan)), "attn2_to_k.alpha is not one finite number"),
        (replaced("to_k.alpha", torch.ones(2)), "attn2_to_k.alpha is not one finite number"),
        (lambda t: {**t, f"{TO_K}.hada_w1_a": torch.ones(1)}, "a LoHa, which cannot be applied"),
        (lambda t: {**t, f"{TO_K}.lokr_w1": torch.ones(1)}, "a LoKr, which cannot be applied"),
        (lambda t: {**t, f"{TO_K}.dora_scale": torch.ones(1)}, "a DoRA, which cannot be applied"),
        (lambda t: {**t, f"{TO_K}.lora_magnitude_vector": torch.ones(1)}, "a DoRA, which cannot be applied"),
        (lambda t: {**t, f"{TO_K}.lora_mid.weight": torch.ones(1)}, r"a LoRA with a middle part \(Tucker\), which"),
    ],
)
def test_refused_in_one_line_and_nothing_changed(unet, change, message):
    before = state(unet)
    tensors = change(spelled(unet, "kohya", synthetic(unet, PROJECTIONS + OTHERS), alpha=1.0))
    with pytest.raises(CheckpointError, match=f"^bad: .*{message}") as caught:
        lora.apply([(lora.read(tensors, "bad", all_targets(unet)), 1.0)])
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in state(unet).items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "a DoRA, which cannot"),
        ({"lora_alpha": "much"}, "adapter config cannot be used"),
        ({"lora_alpha": float("inf")}, "adapter config cannot be used: alpha is inf"),
        ({"alpha_pattern": ["to_k"]}, "adapter config cannot be used"),
        ({"alpha_pattern": {"(": 1}}, "adapter config cannot be used"),
    ],
)
def test_bad_config(unet, config, message):
    tensors = spelled(unet, "peft", synthetic(unet, PROJECTIONS))
    with pytest.raises(CheckpointError, match=f"^bad: .*{message}"):
        lora.read(tensors, "bad", all_targets(unet), config)


def test_names_are_checked_before_anything_is_read(unet):
    class Unread(dict):
        def __getitem__(self, key):
            raise AssertionError(f"{key} was read")

    tensors = Unread(renamed("attn1", "attn9")(spelled(unet, "kohya", synthetic(unet, PROJECTIONS))))
    with pytest.raises(CheckpointError, match="match nothing"):
        lora.read(tensors, "x", all_targets(unet))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, float("nan")), "the weight of a LoRA must be a finite number, not nan"),
        ((1.0, 1e7), r"with these LoRAs and weights .* leaves the range of torch.float16"),
    ],
)
def test_all_or_nothing_at_the_end_too(unet, weights, message):
    unet.half()
    before = state(unet)
    updates = lora.read(spelled(unet, "peft", synthetic(unet, PROJECTIONS)), "x", all_targets(unet))
    with pytest.raises(InputError, match=message):
        lora.apply([(updates[:2], weights[0]), (updates[2:], weights[1])])
    assert all(torch.equal(before[name], value) for name, value in state(unet).items())


def test_extract_recovers_a_true_low_rank_difference(unet):
    parts = synthetic(unet, PROJECTIONS + OTHERS)
    table = animatediff.unet_table(unet)
    base = {key: value.clone() for key, value in keymap.export(unet, table).items()}
    lora.apply([(lora.read(spelled(unet, "peft", parts), "x", all_targets(unet)), 0.01)])
    tuned = {key: value.clone() for key, value in keymap.export(unet, table).items()}
    tuned["conv_in.bias"] += 1
    tensors, residuals = lora.extract(base, tuned, RANK)
    assert all(tensor.is_contiguous() for tensor in tensors.values())  # safetensors insists
    assert residuals.pop("conv_in.bias") == 1
    assert residuals.keys() == {table[f"{name}.weight"].name for name in parts}
    assert max(residuals.values()) < 1e-5
    assert tensors.keys() == lora.repack(lora.read(tensors, "x", all_targets(unet))).keys()
    assert sum(".processor." in key for key in tensors) == 2 * len(PROJECTIONS)

    keymap.load(unet, base, table, "base")
    lora.apply([(lora.read(tensors, "x", all_targets(unet)), 1.0)])
    after = keymap.export(unet, table)
    del tuned["conv_in.bias"]
    for key, value in tuned.items():
        torch.testing.assert_close(after[key], value, atol=1e-5, rtol=0)


def test_extract_reports_what_a_lower_rank_loses():
    torch.manual_seed(0)
    base = {"a.weight": torch.randn(12, 8), "same.weight": torch.ones(3, 3), "b.weight": torch.ones(4, 3, 2, 2)}
    u, _ = torch.linalg.qr(torch.randn(12, 2))
    v, _ = torch.linalg.qr(torch.randn(8, 2))
    tuned = {**base, "a.weight": base["a.weight"] + u @ torch.diag(torch.tensor([4.0, 3.0])) @ v.T}
    tensors, residuals = lora.extract(base, tuned, 1)
    assert residuals == {"a.weight": pytest.approx(3 / 5, abs=1e-6)}
    assert tensors["a.lora_A.weight"].norm() == pytest.approx(2, abs=1e-5) == tensors["a.lora_B.weight"].norm()
    # A rank above the matrix's is the whole difference; tiny differences have a residual too.
    tensors, residuals = lora.extract(base, {**base, "b.weight": base["b.weight"] * 2}, 99)
    assert tensors["b.lora_A.weight"].shape == (4, 3, 2, 2) and tensors["b.lora_B.weight"].shape == (4, 4, 1, 1)
    zeros = {"a.weight": torch.zeros(12, 8)}
    tensors, residuals = lora.extract(zeros, {"a.weight": u @ v.T * 1e-30}, 2)
    assert residuals["a.weight"] < 1e-5
    # Rounding to fp16 is no difference.
    with pytest.raises(CheckpointError, match="same weights"):
        lora.extract(base, {key: value.half() for key, value in base.items()}, 1)


@pytest.mark.parametrize(
    ("tuned", "rank", "message"),
    [
        ({"w.weight": torch.ones(2, 2)}, 0, "the rank of a LoRA must be at least 1, not 0"),
        ({"w.weight": torch.ones(2, 2)}, -3, "at least 1, not -3"),
        ({"v.weight": torch.ones(2, 2)}, 1, "no tensor in common"),
        ({}, 1, "no tensor in common"),
        ({"w.weight": torch.zeros(2, 2)}, 1, "the same weights"),
        ({"w.weight": torch.ones(2, 3)}, 1, r"w.weight is \(2, 2\) in one model, \(2, 3\) in the other"),
        ({"w.weight": torch.full((2, 2), torch.nan)}, 1, "the difference in w.weight holds NaN or infinity"),
        ({"w.bias": torch.ones(2)}, 1, "only w.bias 1; for example w.bias differ, of which no LoRA"),
    ],
)
def test_nothing_to_extract(tuned, rank, message):
    with pytest.raises(InputError, match=message):
        lora.extract({"w.weight": torch.zeros(2, 2), "w.bias": torch.zeros(2)}, tuned, rank)
