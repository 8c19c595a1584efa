"""Every knob of every command, with its default; no torch here. Values are checked as soon as they are set.

None means: as the model's family is usually sampled.
"""

import os.path
import re
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vidlose.errors import InputError, UsageError

C = TypeVar("C")

EMITS = ("reference", "denoised")
QUERY_ATTENTIONS = ("attn1", "attn2", "both")
QUEUE_STARTS = ("reference", "uniform")
GUIDES = ("blocks", "head")
TAILS = ("noise", "base", "coherent", "coherent-reference")
NORM_MODES = ("auto", "original", "diffusers")
DEVICES = ("auto", "cpu", "cuda", "mps")
LIMIT = 2**31 - 1
DTYPES = ("auto", "fp32", "bf16", "fp16")
LOSS_OPERATORS = ("mse", "diff", "diff_naive", "star", "diff_p", "multistride", "spectral")
LOSSES = (*LOSS_OPERATORS, "mix", "alternate", "product")
LOSS_SPACES = ("native", "eps", "v", "x0")
PENALTIES = ("square", "abs", "huber")
SKIP_SCALES = ("off", "learned", "annealed")
NORMALISERS = ("none", "trace", "lmax")
ANCHORS = ("sample", "batch", "first", "expected")
WEIGHTINGS = ("uniform", "min-snr", "truncated-snr", "sqrt-snr", "vdm-v")
CAPTION_POLICIES = ("require", "empty", "name")
BAD_FILES = ("error", "warn")
CLIPS = ("auto", "random", "start", "middle", "uniform", "every")
CROPS = ("center", "random")
CACHE_DTYPES = ("fp16", "fp32")
TRAINS = ("motion", "motion-lora", "spatial", "full")
INITS = ("pretrained", "random")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
LR_SCHEDULES = ("constant", "linear", "cosine", "trapezoid")
LEVELS = ("shared", "independent", "diagonal", "given", "first")
DENSITIES = ("uniform", "logit-normal")
PREDICTIONS = ("eps", "v", "x0")
EXPORTS = ("original", "diffusers", "lora", "none")
TRACKERS = ("none", "tensorboard", "wandb")
FORMS = ("original", "diffusers", "lora")
KEPT_DTYPES = ("keep", "fp32", "bf16", "fp16")
RANK = 64


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and of which files. lora: `PATH[:WEIGHT]` each, in order."""

    model: str = "builtin"
    motion_module: str | None = None
    lora: list[str] = field(default_factory=list)
    vae: str | None = None
    norm_mode: str = "auto"

    def __post_init__(self) -> None:
        choice(self, "norm_mode", NORM_MODES)


@dataclass(frozen=True, kw_only=True)
class SampleConfig(ModelConfig):
    """What `generate` and `fifo` share. image: the picture that an image-to-video model starts from. start: frames
    that the clip begins with; a lone one is a whole base clip of `fifo`, repeated, where the model does not go on from
    it. first_alone: the clip's first frame is drawn by itself, and the others with it in sight;
    None is as the model was trained. motion_scale: a factor on the logits of attention between frames."""

    prompt: str | None = None
    negative: str | None = None
    output: str | None = None
    image: str | None = None
    start: str | None = None
    first_alone: bool | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    fps_condition: float | None = None
    guidance_scale: float | None = None
    eta: float | None = None
    motion_scale: float = 1.0
    scheduler: str = "ddim"
    seed: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    format: str | None = None
    crf: int = 18
    overwrite: bool = False
    metadata: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "width", "height", limit=2**14)
        between(self, "fps", 0.01, 1000)
        between(self, "fps_condition", 0.01, 1000)
        between(self, "eta", 0, 1)
        positive(self, "motion_scale", limit=100)
        between(self, "crf", 0, 51)
        between(self, "seed", 0, 2**63 - 1)
        between(self, "guidance_scale", -1000, 1000)
        no_zero_bytes(self)
        if self.output == "":
            raise InputError("--output is empty: give FILE, FOLDER/ or -")
        if self.start == "":
            raise InputError("--start is empty: give an image, a video or latents")
        choice(self, "device", DEVICES)
        choice(self, "dtype", DTYPES)

    def resolved(self) -> dict[str, Any]:
        """Every field, for the card beside the result."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SampleConfig):
    """`vidlose generate`: one clip a prompt and seed."""

    prompts_file: str | None = None
    frames: int | None = None
    steps: int | None = None
    num_videos: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "frames", "steps", "num_videos")
        if self.prompt is None and self.prompts_file is None:
            raise UsageError("give a prompt with -p, or --prompts-file")
        if self.prompt is not None and self.prompts_file is not None:
            raise UsageError("-p and --prompts-file exclude each other")
        if self.start == self.prompts_file == "-":
            raise UsageError("--start and --prompts-file cannot both read stdin")


STRATEGIES: dict[str, dict[str, Any]] = {
    "fifo": {"zigzag": 1, "guide_frames": 0, "reflect": False, "refine": False, "tail": "noise"},
    "miga": {"zigzag": 4, "guide_frames": 4, "reflect": True, "refine": True, "tail": "base"},
}
"""Ways to make a long video, and what each of them makes of the options that nobody has set."""
FOR_STRATEGY = {
    "fifo": ("lookahead", "queue_start", "warmup", "guidance_every", "reuse_deep", "reuse_depth"),
    "miga": ("guide_frames", "guides", "reflect", "reflect_threshold"),
}
"""Options that one strategy alone has."""


@dataclass(frozen=True, kw_only=True)
class FifoConfig(SampleConfig):
    """`vidlose fifo`: one video of any length. frames 0 is: until interrupted.

    zigzag: frames that share a noise level. guide_frames: of a window's frames, those from far in front of it.
    reflect: draw blocks anew that are unlike those before them, by more than reflect_threshold. refine: a second stage
    at one level for all of a window. tail: what enters; reuse_noise: of so many frames of noise, again and again.
    What is None of these is as STRATEGIES has it. warmup: frames that are left out at the start, where None those in
    which the base clip stands still. base_guidance: of the base clip, base_steps: its levels, as many as
    the queue has where None; guidance_clean: of the cleanest frames of a queue, whose noisiest have guidance_scale;
    None is as that. guidance_low, guidance_high, guidance_rescale, guidance_every (blocks of as many levels as a window
    writes): see `diffusion.guidance.Guidance`. reuse_deep: sweeps that share deep features, reuse_depth: levels of the
    network that always run. query_cache: weight of the queries of the network's way down on its way up;
    query_attention: in which temporal attention; query_base: in the base clip, too. seed_frame: the picture of an
    image-to-video model is the base clip's first frame; reseed_every: every so many, the last one shown.
    """

    prompt_schedule: str | None = None
    frames: int = 100
    partitions: int | None = None
    window_frames: int | None = None
    lookahead: bool = True
    queue_start: str = "reference"
    warmup: int | None = None
    emit: str = "reference"
    scale_aware: bool = True
    strategy: str = "fifo"
    zigzag: int | None = None
    guide_frames: int | None = None
    guides: str = "blocks"
    reflect: bool | None = None
    reflect_threshold: float = 0.05
    refine: bool | None = None
    tail: str | None = None
    reuse_noise: int = 0
    seed_frame: bool = False
    reseed_every: int | None = None
    query_cache: float = 0.0
    query_attention: str = "attn1"
    query_base: bool = True
    base_guidance: float | None = None
    base_steps: int | None = None
    guidance_clean: float | None = None
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    guidance_rescale: float = 0.0
    guidance_every: int = 1
    reuse_deep: int = 1
    reuse_depth: int = 1
    window_batch: int | None = None
    decode_batch: int = 1
    state: str | None = None
    state_every: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.frames < LIMIT:
            raise InputError(f"--frames is {self.frames}; give a number of frames, or 0 for until interrupted")
        positive(self, "partitions", "window_frames", "window_batch", "decode_batch", "state_every")
        choice(self, "emit", EMITS)
        choice(self, "queue_start", QUEUE_STARTS)
        choice(self, "strategy", tuple(STRATEGIES))
        choice(self, "guides", GUIDES)
        if self.tail is not None:
            choice(self, "tail", TAILS)
        positive(self, "zigzag", "reseed_every")
        between(self, "guide_frames", 0, LIMIT)
        between(self, "reflect_threshold", 0, 2)
        between(self, "reuse_noise", 0, 2**16)
        between(self, "query_cache", 0, 1)
        choice(self, "query_attention", QUERY_ATTENTIONS)
        if not self.query_cache and (self.query_attention != "attn1" or not self.query_base):
            raise InputError("--query-attention and --no-query-base go with a --query-cache WEIGHT")
        for name in ("base_guidance", "guidance_clean"):
            between(self, name, -1000, 1000)
        positive(self, "guidance_every", "reuse_deep", "reuse_depth", limit=1000)
        between(self, "base_steps", 2, 1000)
        between(self, "warmup", 0, 10**6)
        for name in ("guidance_low", "guidance_high", "guidance_rescale"):
            between(self, name, 0, 1)
        if self.reuse_deep > 1 and (self.guidance_every > 1 or (self.guidance_low, self.guidance_high) != (0, 1)):
            raise UsageError("--reuse-deep keeps features of both branches: guide all levels with it")
        if self.reuse_depth > 1 and self.reuse_deep == 1:
            raise InputError("--reuse-depth goes with --reuse-deep SWEEPS")
        if self.guidance_low > self.guidance_high:
            raise InputError(f"--guidance-low {self.guidance_low} is above --guidance-high {self.guidance_high}")
        self._check_strategy()
        self._check_guidance()
        if self.settled()["refine"]:
            if self.guidance_every > 1:
                raise UsageError("--guidance-every counts blocks of a whole queue, and --refine ends it before")
            if self.reseed_every:
                raise UsageError("--reseed-every takes up what is shown, and with --refine that is long past")
        if self.state in ("", "-"):
            raise InputError(f"--state {self.state!r} is no file: give the name of one")
        if (self.prompt is None) == (self.prompt_schedule is None):
            raise UsageError("give either a prompt with -p or a --prompt-schedule")

    def _check_strategy(self) -> None:
        """Raises InputError for an option that the strategy does not have, or of a part that is off."""
        usual = {knob.name: knob.default for knob in fields(self)} | STRATEGIES[self.strategy]
        for strategy, options in FOR_STRATEGY.items():
            for name in options:
                value = getattr(self, name)
                if strategy != self.strategy and value is not None and value != usual[name]:
                    raise InputError(f"{flag(name, value)} goes with --strategy {strategy}, not {self.strategy}")
        chosen = self.settled()
        if not chosen["reflect"] and self.reflect_threshold != usual["reflect_threshold"]:
            raise InputError("--reflect-threshold goes with --reflect")
        if not chosen["guide_frames"] and self.guides != usual["guides"]:
            raise InputError(f"--guides {self.guides} goes with --guide-frames COUNT")

    def _check_guidance(self) -> None:
        """Raises InputError for an option of guidance where none is asked for."""
        if self.guidance_scale != 1 or self.guidance_clean not in (None, 1):
            return
        none = {"guidance_low": 0, "guidance_high": 1, "guidance_every": 1}
        if self.base_guidance in (None, 1):
            none["guidance_rescale"] = 0
        for name, usual in none.items():
            if getattr(self, name) != usual:
                raise InputError(f"{flag(name)} is of guidance, and --guidance-scale 1 is none")

    def settled(self) -> dict[str, Any]:
        """What the strategy makes of its options, those that were set included."""
        usual = STRATEGIES[self.strategy]
        return {name: usual[name] if getattr(self, name) is None else getattr(self, name) for name in usual}


@dataclass(frozen=True, kw_only=True)
class TuneConfig(ModelConfig):
    """`vidlose tune`: a run of `fifo` to find the fastest window_batch for. sweeps: measurements of each."""

    width: int | None = None
    height: int | None = None
    guidance_scale: float | None = None
    partitions: int | None = None
    window_frames: int | None = None
    lookahead: bool = True
    sweeps: int = 5
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "sweeps", limit=10**6)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned from: files, and how clips are cut from them.

    data: folders, tables, videos; without any, generated_clips of the world are drawn, with the generated_cameras in
    turn, where there are any. data_root: what relative paths in a table are relative to, its own folder where it is
    None. captions: what stands for one that is missing.
    stride: frames from one to the next, 1 where fps, which resamples, is not given either. clips: of every video,
    auto is every one where a video is given by itself, else random; clips_per_video: of random and uniform.
    clip_step: frames between the starts of every clip, a clip's own where it is None. cut_threshold: the change, in
    percent of white and above that of the frames around, that no clip crosses; off where it is None or 0.
    flip: how often a clip is mirrored, which turns its left and right around and not its caption's.
    cache: the folder of latents and texts; cache_step: only every so many frames of a video are in it.
    """

    data: list[str] = field(default_factory=list)
    generated_clips: int = 40_000
    generated_cameras: list[str] = field(default_factory=list)
    data_root: str | None = None
    captions: str = "require"
    bad_files: str = "error"
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    stride: int | None = None
    fps: float | None = None
    clips: str = "auto"
    clips_per_video: int = 1
    clip_step: int | None = None
    cut_threshold: float | None = 10.0
    crop: str = "center"
    flip: float = 0.0
    cache: str | None = None
    cache_dtype: str = "fp16"
    cache_step: int = 1
    workers: int = 2

    def __post_init__(self) -> None:
        for path in filter(None, (*self.data, self.data_root, self.cache)):
            try:
                path.encode()
            except UnicodeEncodeError:
                raise InputError(f"{path!r}: not a UTF-8 name, so no config.toml could say it; rename it") from None
        choice(self, "captions", CAPTION_POLICIES)
        choice(self, "bad_files", BAD_FILES)
        choice(self, "clips", CLIPS)
        choice(self, "crop", CROPS)
        choice(self, "cache_dtype", CACHE_DTYPES)
        positive(self, "frames", "stride", "clips_per_video", "clip_step", "cache_step", "generated_clips")
        positive(self, "width", "height", limit=2**14)
        positive(self, "workers", limit=64)
        between(self, "fps", 0.01, 1000)
        between(self, "cut_threshold", 0, 100)
        between(self, "flip", 0, 1)
        if self.stride is not None and self.fps is not None:
            raise UsageError("--stride counts frames and --fps resamples them: give one of the two")
        if self.data and self.generated_cameras:
            raise UsageError("--generated-cameras are of drawn clips, and there are none where DATA is given")
        if self.cache is not None and self.crop == "random":
            raise UsageError("the cache holds one crop of each video: --crop random and --cache exclude each other")
        if self.cache_step > 1 and (self.fps is not None or (self.stride or 1) % self.cache_step):
            raise UsageError(f"--cache-step {self.cache_step} keeps too few frames: give a --stride that it divides")


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """`vidlose world`: a data set of procedural clips."""

    output: str | None = None
    clips: int = 100
    frames: int = 16
    size: int = 128
    fps: float = 8
    seed: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        positive(self, "clips", "frames", "size", "fps")
        between(self, "seed", 0, 2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """`vidlose convert`: weights in another form. base: what the input was tuned from. rank: of a LoRA drawn from the
    two, RANK where it is None."""

    input: str
    to: str
    output: str | None = None
    base: str | None = None
    rank: int | None = None
    dtype: str = "keep"
    overwrite: bool = False

    def __post_init__(self) -> None:
        no_zero_bytes(self)
        if self.to not in FORMS:
            raise InputError(f"--to is {self.to!r}; choose from {', '.join(FORMS)}")
        choice(self, "dtype", KEPT_DTYPES)
        positive(self, "rank")
        if self.base is not None and self.to != "lora":
            raise UsageError(f"--base is what a LoRA is drawn from, and goes with --to lora, not --to {self.to}")
        if self.rank is not None and self.base is None:
            raise UsageError("--rank is of a LoRA drawn from two models: give --base too")


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """`vidlose info`: a weights file, a folder or a hub id. scan: read all of it, for NaN and hashes."""

    file: str
    scan: bool = True

    def __post_init__(self) -> None:
        if not self.file:
            raise InputError("FILE is empty: give a file, a folder or a hub id")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What training minimises: a penalty of what a frame operator makes of the error, weighted by noise level.

    loss_space: where the error is taken; native is the network's own. normalise: what divides the operator's form,
    trace (white errors then weigh as in mse), lmax (no error weighs more) or none. anchor: the frame whose place
    counts, drawn per sample or batch, the first, or the mean over all; anchor_weight multiplies it before the
    penalty. weighting: of the noise levels; None is uniform in the loss's space, and min-snr in x0. mix_weight: the
    share of mix_with beside mse, which rises from 0 over the first mix_warmup of training and falls back over the
    last mix_anneal. spectral_weights: from the slowest frequency to the fastest, at equal steps, linear in between.
    """

    loss: str = "mix"
    loss_space: str = "native"
    penalty: str = "square"
    huber_delta: float = 1.0
    normalise: str = "trace"
    anchor: str = "sample"
    anchor_weight: float = 1.0
    weighting: str | None = None
    snr_gamma: float = 5.0
    mix_with: str = "diff"
    mix_weight: float = 0.5
    mix_warmup: float = 0.1
    mix_anneal: float = 0.0
    diff_order: int = 2
    strides: list[int] = field(default_factory=lambda: [1, 2, 4])
    spectral_weights: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        choice(self, "loss", LOSSES)
        choice(self, "mix_with", LOSS_OPERATORS[1:])
        choice(self, "loss_space", LOSS_SPACES)
        choice(self, "penalty", PENALTIES)
        choice(self, "normalise", NORMALISERS)
        choice(self, "anchor", ANCHORS)
        if self.weighting is not None:
            choice(self, "weighting", WEIGHTINGS)
        positive(self, "huber_delta", "anchor_weight", "snr_gamma", "diff_order")
        between(self, "diff_order", 1, 8)
        for name in ("mix_weight", "mix_warmup", "mix_anneal"):
            between(self, name, 0, 1)
        if self.loss == "diff_naive" or self.loss == "mix" and self.mix_with == "diff_naive" and self.mix_weight == 1:
            raise InputError(
                "diff_naive alone cannot see a shift of the whole clip; use it in mix: --loss mix --mix-with diff_naive"
            )
        if self.mix_warmup + self.mix_anneal > 1:
            raise InputError("--mix-warmup and --mix-anneal together exceed the training")
        if not self.strides or min(self.strides) < 1:
            raise InputError(f"--strides is {self.strides}; give distances of 1 frame or more")
        if not all(0 < weight <= LIMIT for weight in self.spectral_weights):
            raise InputError(f"--spectral-weights is {self.spectral_weights}; every weight must be greater than 0")
        mixes = self.loss in ("mix", "alternate")
        if (self.mix_with if mixes else self.loss) == "spectral" and not self.spectral_weights:
            raise InputError("the spectral loss needs --spectral-weights, from the slowest frequency to the fastest")


@dataclass(frozen=True, kw_only=True)
class StabilityConfig:
    """What keeps training stable: tools on the network, and guards, whose thresholds these are.

    tool_blocks: where tools stand; None is wherever parameters train. block_lr: `BLOCK=FACTOR` each. tool_lr: factor
    on the rate of parameters that only tools have. probe_every: steps between two looks at attention, probe_pixels
    per clip. qk_clip: None is on, unless sigma-reparam or QK-norm bounds the logits already. qk_norm_steps: over
    which it is faded in; 0 is at once. skip_kappa: the annealed scale's base, reached after the first skip_anneal of
    training. entropy_hinge: its weight; entropy_slack: how far entropy may fall for free, as a share of its start.

    A step is a spike, and skipped, when the logarithm of the gradient's norm is beyond the median of spike_window
    steps by spike_mads times their median deviation, and the norm by spike_norm; or the loss beyond spike_loss times
    what is usual at its noise levels (forgotten at loss_decay). After spike_limit spikes in spike_span steps the block
    to blame has its rate multiplied by spike_factor. A block collapses when its entropy falls to collapse_ratio within
    collapse_span steps, and collapse_speed times as fast as before them. Beyond blowup_ratio times the usual loss for
    blowup_steps steps, or at a number that is not finite, an older state returns: of ring_size, taken every ring_every
    steps without alarm in the last ring_quiet, and ring_age old.
    """

    tool_blocks: str | None = None
    block_lr: list[str] = field(default_factory=list)
    tool_lr: float = 1.0
    probe_every: int = 50
    probe_pixels: int = 64
    qk_clip: bool | None = None
    qk_clip_factor: float = 1.5
    qk_clip_floor: float = 30.0
    sigma_reparam: bool = False
    qk_norm: bool = False
    qk_norm_steps: int = 1000
    skip_scale: str = "off"
    skip_kappa: float = 0.8
    skip_anneal: float = 0.2
    entropy_hinge: float = 0.0
    entropy_slack: float = 0.3

    guards: bool = True
    spike_window: int = 100
    spike_mads: float = 6.0
    spike_norm: float = 2.0
    spike_loss: float = 3.0
    loss_decay: float = 0.99
    spike_limit: int = 3
    spike_span: int = 50
    spike_factor: float = 0.5
    collapse_ratio: float = 0.5
    collapse_span: int = 200
    collapse_speed: float = 3.0
    collapse_factor: float = 0.3
    collapse_freeze: bool = False
    blowup_ratio: float = 10.0
    blowup_steps: int = 20
    ring_size: int = 3
    ring_every: int = 50
    ring_age: int = 50
    ring_quiet: int = 100
    restores: int = 3
    restore_factor: float = 0.5

    def __post_init__(self) -> None:
        choice(self, "skip_scale", SKIP_SCALES)
        positive(self, "probe_every", "probe_pixels", "qk_clip_factor", "qk_clip_floor", "skip_kappa", "skip_anneal")
        positive(self, "spike_window", "spike_mads", "spike_limit", "spike_span", "collapse_span", "collapse_speed")
        positive(self, "blowup_steps", "ring_size", "ring_every", "ring_age")
        for name in ("skip_kappa", "skip_anneal", "entropy_slack", "spike_factor", "collapse_ratio", "collapse_factor"):
            between(self, name, 0, 1)
        for name in ("tool_lr", "qk_norm_steps", "entropy_hinge", "ring_quiet", "restores"):
            between(self, name, 0, LIMIT)
        between(self, "restore_factor", 0, 1)
        between(self, "loss_decay", 0, 0.99999)
        for name in ("spike_norm", "spike_loss", "blowup_ratio"):
            between(self, name, 1.01, LIMIT)
        self.block_factors()
        if self.qk_clip and (self.sigma_reparam or self.qk_norm):
            raise UsageError("--qk-clip scales weights that --sigma-reparam and --qk-norm normalise: take one of them")

    @property
    def qk_clips(self) -> bool:
        """Is QK-clip on?"""
        return not (self.sigma_reparam or self.qk_norm) if self.qk_clip is None else self.qk_clip

    def block_factors(self) -> dict[str, float]:
        """`up=0.3` -> {"up": 0.3}. Raises InputError."""
        factors = {}
        for entry in self.block_lr:
            block, _, number = entry.partition("=")
            try:
                factor = float(number)
            except ValueError:
                factor = -1
            if not block or not 0 <= factor <= LIMIT:
                raise InputError(f"--block-lr is {entry!r}; give BLOCK=FACTOR, as in up=0.3")
            factors[block] = factor
        return factors


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ModelConfig, DataConfig, LossConfig, StabilityConfig):
    """`vidlose finetune`. batch_size: samples of one process at once; a step takes accumulate of them.

    prediction: what the network is to say, None is as it does. train: which layers of `blocks` train. ema: decay of
    the averaged weights, 0 is none. levels: noise levels within a clip, kinds with commas that are drawn as often as
    each other, for this share of the clips, levels_share; the others have one level. levels_density: how often each is
    drawn where they are not those of a queue, for logit-normal by logit_mean and logit_std. held_out: clips kept from
    training, that every validate_every steps are measured on. sample_every: 0 is never.
    pieces: how many frames the network sees together, drawn for every clip, which is cut (losses see it whole); () is
    whole clips.
    """

    output: str | None = None
    blocks: str = "all"
    train: str = "motion"
    lora_rank: int = 32
    lora_alpha: float | None = None
    init: str = "pretrained"
    train_text_encoder: bool = False
    prediction: str | None = None
    steps: int = 1000
    batch_size: int = 1
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    muon_rate: float = 0.01
    lr_schedule: str = "constant"
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema: float = 0.0
    caption_dropout: float = 0.1
    noise_offset: float = 0.0
    zero_terminal_snr: bool = False
    levels: str = "shared"
    levels_share: float = 1.0
    levels_partitions: list[int] = field(default_factory=lambda: [4])
    pieces: list[int] = field(default_factory=list)
    levels_density: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    gradient_checkpointing: bool = False
    held_out: int = 4
    validate_every: int = 100
    sample_every: int = 500
    sample_prompts: list[str] = field(default_factory=list)
    save_every: int = 250
    keep: int = 3
    export: list[str] = field(default_factory=list)
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    track: str = "none"

    def __post_init__(self) -> None:
        for kind in (ModelConfig, DataConfig, LossConfig, StabilityConfig):
            kind.__post_init__(self)
        no_zero_bytes(self)
        for name, choices in (
            ("train", TRAINS),
            ("init", INITS),
            ("optimizer", OPTIMIZERS),
            ("lr_schedule", LR_SCHEDULES),
            ("levels_density", DENSITIES),
            ("device", DEVICES),
            ("dtype", DTYPES),
            ("track", TRACKERS),
        ):
            choice(self, name, choices)
        if self.prediction is not None:
            choice(self, "prediction", PREDICTIONS)
        for name in self.levels.split(","):
            known("levels", name, LEVELS)
        for form in self.export:
            known("export", form, EXPORTS)
        positive(self, "steps", "batch_size", "accumulate", "learning_rate", "muon_rate", "lora_alpha")
        positive(self, "validate_every", "save_every", "keep")
        for name in ("beta1", "beta2"):
            below(self, name, 1)
        for name in ("weight_decay", "ema", "caption_dropout", "levels_share"):
            between(self, name, 0, 1)
        for name in ("max_grad_norm", "noise_offset", "warmup_steps", "held_out", "sample_every"):
            between(self, name, 0, LIMIT)
        between(self, "seed", 0, 2**63 - 1)
        between(self, "logit_mean", -10, 10)
        between(self, "logit_std", 0.01, 10)
        for name, least in (("levels_partitions", 1), ("pieces", 0)):
            counts = getattr(self, name)
            if len(counts) < least or min(counts, default=1) < 1:
                raise InputError(f"{flag(name)} is {counts}; give counts of 1 or more")
        if self.lora_rank < 1:
            raise InputError(f"--lora-rank is {self.lora_rank}; a LoRA has a rank of 1 or more")
        if self.init == "random" and (self.train, self.blocks) != ("full", "all"):
            raise InputError("--init random forgets the whole network: all of it must train, --train full --blocks all")
        if self.train_text_encoder and self.train == "motion-lora":
            raise InputError("--train-text-encoder goes with --train motion, spatial or full")
        if self.train_text_encoder and self.export and "diffusers" not in self.export:
            raise InputError("--train-text-encoder: the whole model is exported by --export diffusers alone")
        if self.train == "motion-lora" and set(self.export) - {"lora", "original"}:
            raise InputError("--train motion-lora exports a lora, or original with its update merged")
        if "lora" in self.export and self.train != "motion-lora":
            raise InputError("--export lora goes with --train motion-lora")

    def resolved(self) -> dict[str, Any]:
        """Every field, for the file beside the run."""
        return asdict(self)


def flag(name: str, value: Any = None) -> str:
    """A field's option: "guidance_scale" -> "--guidance-scale"; where it is off, "reflect" -> "--no-reflect"."""
    return ("--no-" if value is False else "--") + name.replace("_", "-")


def positive(config: Any, *names: str, limit: int = LIMIT) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value <= limit:
            raise InputError(f"{flag(name)} is {value}; it must be greater than 0 and at most {limit}")


def between(config: Any, name: str, low: float, high: float) -> None:
    value = getattr(config, name)
    if value is not None and not low <= value <= high:
        raise InputError(f"{flag(name)} is {value}; it must lie between {low} and {high}")


def below(config: Any, name: str, high: float) -> None:
    value = getattr(config, name)
    if not 0 <= value < high:
        raise InputError(f"{flag(name)} is {value}; it must be at least 0 and below {high}")


def no_zero_bytes(config: Any) -> None:
    for knob in fields(config):
        if "\0" in str(getattr(config, knob.name)):
            raise InputError(f"{flag(knob.name)} holds a zero byte")


def choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    known(name.replace("_", " "), getattr(config, name), choices)


def known(what: str, name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise InputError(f"unknown {what} {name!r}; choose from {', '.join(choices)}")


def restored(kind: type[C], values: Any) -> C:
    """A config from what `resolved` gave, maybe before it had a field that has a default.

    Raises InputError where a field is missing or of another type.
    """
    hints = get_type_hints(kind)
    knobs: tuple[Field[Any], ...] = fields(kind)  # type: ignore[arg-type]
    needed = {knob.name for knob in knobs if knob.default is MISSING and knob.default_factory is MISSING}
    if not isinstance(values, dict) or not needed <= values.keys():
        raise InputError("a config with fields missing")
    hints = {name: hint for name, hint in hints.items() if name in values}
    for name, hint in hints.items():
        kinds = (list,) if get_origin(hint) is list else get_args(hint) or (hint,)
        if type(values[name]) not in (*kinds, *((int,) if float in kinds else ())):
            raise InputError(f"{name} is {values[name]!r}")
    return kind(**{name: values[name] for name in hints})


def names(kind: type) -> set[str]:
    """The fields of a config."""
    return {knob.name for knob in fields(kind)}


ANALYSES = ("spectra", "flicker", "drift")
ANALYSIS_REPORTS = (".json", ".csv", ".npz", ".png")
EVALUATION_REPORTS = (".json", ".csv")


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """`vidlose analyze-fft`: videos measured, compared with others in pairs, and with real ones.

    output: reports, by suffix. window: frames of a spectrum. metrics: groups of figures; all where it is empty.
    resample: bring pairs to the smaller size, lower frame rate and shorter time. fail_if: METRIC>NUMBER each.
    """

    inputs: list[str] = field(default_factory=list)
    compare: str | None = None
    real: str | None = None
    output: list[str] = field(default_factory=list)
    window: int = 16
    metrics: list[str] = field(default_factory=list)
    resample: bool = False
    fail_if: list[str] = field(default_factory=list)
    overwrite: bool = False

    def __post_init__(self) -> None:
        no_zero_bytes(self)
        if not self.inputs:
            raise UsageError("give videos, folders of frames or of videos, latents, or - for stdin")
        not_empty(self, "inputs", "compare", "real", "output")
        everything = [*self.inputs, self.compare, self.real]
        if everything.count("-") > 1:
            raise InputError("stdin holds one video: give - once")
        if self.resample and "-" in everything:
            raise InputError("--resample: stdin is read once and cannot be resampled: write it to a file first")
        if not 3 <= self.window <= 512:
            raise InputError(f"--window is {self.window}; it must lie between 3 and 512")
        for group in self.metrics:
            known("group of metrics", group, ANALYSES)
        reports(self.output, ANALYSIS_REPORTS)
        self.conditions()

    def conditions(self) -> list[tuple[str, str, float]]:
        """`flicker_std>0.02` -> ("flicker_std", ">", 0.02). Raises InputError."""
        return [condition(text) for text in self.fail_if]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`vidlose evaluate`: distances between features of real and of generated videos.

    extractor: what gives the features, a name or a TorchScript file, said to be FVD's I3D by fvd=FILE; all that are
    installed where it is empty.
    frames: of a clip; clips_per_video: at most, one after the other. draws: of the bootstrap and of the floor.
    """

    real: str
    fake: str
    extractor: list[str] = field(default_factory=list)
    frames: int = 16
    clips_per_video: int = 1
    draws: int = 200
    seed: int = 0
    output: list[str] = field(default_factory=list)
    fail_if: list[str] = field(default_factory=list)
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        no_zero_bytes(self)
        not_empty(self, "real", "fake", "extractor", "output")
        positive(self, "frames", limit=1024)
        positive(self, "clips_per_video")
        between(self, "draws", 10, 100_000)
        between(self, "seed", 0, 2**63 - 1)
        choice(self, "device", DEVICES)
        if "-" in (self.real, self.fake):
            raise InputError("a distance is between sets of videos: give folders instead of -")
        reports(self.output, EVALUATION_REPORTS)
        self.conditions()

    def conditions(self) -> list[tuple[str, str, float]]:
        """`kvd_transnetv2>0.1` -> ("kvd_transnetv2", ">", 0.1). Raises InputError."""
        return [condition(text) for text in self.fail_if]


def condition(text: str) -> tuple[str, str, float]:
    """A metric, how it is compared, and with what. Raises InputError."""
    match = re.fullmatch(r"\s*([\w@.-]+?)\s*(>=|<=|>|<)\s*(\S+)\s*", text)
    try:
        number = float(match[3]) if match else float("nan")
    except ValueError:
        number = float("nan")
    if not match or not abs(number) < float("inf"):
        raise InputError(f"--fail-if is {text!r}; give METRIC>NUMBER, as in flicker_std>0.02 (also <, >=, <=)")
    return match[1], match[2], number


def not_empty(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if "" in (value if isinstance(value, list) else [value]):
            raise InputError(f"{name} is empty: give a path")


def reports(outputs: list[str], suffixes: tuple[str, ...]) -> None:
    """Raises InputError for a report of another kind, or two of one name."""
    same = [os.path.normpath(output) for output in outputs]
    if twice := [output for output, name in zip(outputs, same, strict=True) if same.count(name) > 1]:
        raise InputError(f"-o {twice[0]} is given twice")
    for output in outputs:
        if not output.lower().endswith(suffixes) or output.lower() in suffixes:
            raise InputError(f"-o {output}: a report is a file with the suffix {', '.join(suffixes)}")
