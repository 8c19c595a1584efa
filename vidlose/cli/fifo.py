"""`vidlose fifo`."""

from typing import Annotated

import typer

from vidlose.cli import options
from vidlose.cli.options import option
from vidlose.config import FifoConfig, names
from vidlose.errors import UsageError


def fifo(
    context: typer.Context,
    prompt: options.Prompt = None,
    negative: options.Negative = FifoConfig.negative,
    output: options.Output = None,
    frames: Annotated[int, option("--frames", help="Length of the video; 0 is until interrupted.")] = FifoConfig.frames,
    uniform_latents: Annotated[
        bool,
        option(
            "--uniform-latents",
            help="Fill the first queue with the base clip extended uniformly; nothing of the clip is shown.",
        ),
    ] = False,
    prompt_schedule: Annotated[
        str | None,
        option(
            "--prompt-schedule",
            help="'0: calm sea | 240: storm', or a file of it. The whole queue turns at that frame, so what is"
            " shown changes over the next partitions x window frames.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        option(
            "--start",
            help="Begin with this video, image or latents; fewer frames than a window are gone on from (--first-alone),"
            " or a lone one is repeated.",
        ),
    ] = None,
    guidance_scale: options.Guidance = None,
    width: options.Width = None,
    height: options.Height = None,
    fps: options.Fps = None,
    seed: options.Seed = None,
    model: options.Model = FifoConfig.model,
    motion_module: options.MotionModule = None,
    lora: options.Lora = None,
    vae: options.Vae = None,
    norm_mode: options.NormMode = FifoConfig.norm_mode,
    image: options.Image = None,
    seed_frame: Annotated[
        bool,
        option(
            "--seed-frame",
            help="An image-to-video model sees the base clip's first frame; the clip itself is made of --image, or of"
            " text alone.",
            panel="Model",
        ),
    ] = FifoConfig.seed_frame,
    reseed_every: Annotated[
        int | None,
        option(
            "--reseed-every",
            help="Every so many frames an image-to-video model sees the last one in place of the picture before.",
            panel="Model",
            show_default="never",
        ),
    ] = None,
    overwrite: options.Overwrite = FifoConfig.overwrite,
    json: options.Json = False,
    resume: Annotated[
        str | None,
        option(
            "--resume",
            help="Finish the interrupted run of this state file. Beside it only the command line counts.",
            panel="Resume",
        ),
    ] = None,
    extend: Annotated[
        int | None,
        option(
            "--extend",
            help="With --resume: so many more frames of a finished run, to a new -o.",
            panel="Resume",
        ),
    ] = None,
    state: Annotated[
        str | None,
        option(
            "--state",
            help="Where the run's state is kept.",
            panel="Resume",
            show_default="NAME.fifo.safetensors beside the output; none for stdout",
        ),
    ] = None,
    state_every: Annotated[
        int, option("--state-every", help="Frames between two states.", panel="Resume")
    ] = FifoConfig.state_every,
    strategy: Annotated[
        str,
        option(
            "--strategy",
            help="fifo: every frame at a level of its own. miga: blocks of frames share one, windows look ahead and"
            " see guide frames from far before, and a second stage refines what leaves.",
            panel="Strategy",
        ),
    ] = FifoConfig.strategy,
    zigzag: Annotated[
        int | None,
        option(
            "--zigzag",
            help="Frames that share a noise level; it divides the window's.",
            panel="Strategy",
            show_default="fifo 1, miga 4",
        ),
    ] = None,
    guide_frames: Annotated[
        int | None,
        option(
            "--guide-frames",
            help="Frames of a window that come from far before it, to remind it of the scene.",
            panel="Strategy",
            show_default="miga 4",
        ),
    ] = None,
    guides: Annotated[
        str,
        option(
            "--guides",
            help="blocks: one of each block just before the window. head: evenly from all of the queue before it.",
            panel="Strategy",
        ),
    ] = FifoConfig.guides,
    reflect: Annotated[
        bool | None,
        option(
            "--reflect/--no-reflect",
            help="Draw a block anew, five times, that is less like those before it than the last one was.",
            panel="Strategy",
            show_default="miga on",
        ),
    ] = None,
    reflect_threshold: Annotated[
        float, option("--reflect-threshold", help="The fall in likeness (cosine) that is one.", panel="Strategy")
    ] = FifoConfig.reflect_threshold,
    refine: Annotated[
        bool | None,
        option(
            "--refine/--no-refine",
            help="Frames leave the queue with some noise, and a second stage denoises them at one level for all of a"
            " window. The first is seen some 280 frames later, or at the end of a shorter video.",
            panel="Strategy",
            show_default="fifo off, miga on",
        ),
    ] = None,
    tail: Annotated[
        str | None,
        option(
            "--tail",
            help="What enters the queue: noise; base, the base clip's last frame under noise; coherent, noise with"
            " the low frequencies of the newest frame, or coherent-reference, with the filter of its original.",
            panel="Strategy",
            show_default="fifo noise, miga base",
        ),
    ] = None,
    reuse_noise: Annotated[
        int,
        option(
            "--reuse-noise",
            help="The noise of new frames is of so many frames, again and again in other orders; 0 is always fresh.",
            panel="Strategy",
        ),
    ] = FifoConfig.reuse_noise,
    partitions: Annotated[
        int | None,
        option(
            "--partitions",
            help="Latent partitions n: n x window frames denoising steps, and as many frames in flight.",
            panel="Queue",
            show_default=options.FAMILY,
        ),
    ] = None,
    lookahead: Annotated[
        bool,
        option(
            "--lookahead/--no-lookahead",
            help="Denoise every frame with half a window of cleaner ones before it, at twice the work.",
            panel="Queue",
        ),
    ] = FifoConfig.lookahead,
    window_frames: Annotated[
        int | None,
        option(
            "--window-frames",
            help="Frames the model sees at once.",
            panel="Queue",
            show_default=options.FAMILY,
        ),
    ] = None,
    queue_start: Annotated[
        str,
        option("--queue-start", help="reference, or uniform as --uniform-latents.", panel="Queue"),
    ] = FifoConfig.queue_start,
    warmup: Annotated[
        int | None,
        option(
            "--warmup",
            help="Frames left out at the start; fewer, and the first comes sooner.",
            panel="Queue",
            show_default="those in which the base clip stands still",
        ),
    ] = FifoConfig.warmup,
    emit: Annotated[
        str,
        option(
            "--emit",
            help="reference: frames keep the last level's noise (3 %). denoised: the estimate without it.",
            panel="Queue",
        ),
    ] = FifoConfig.emit,
    scale_aware: Annotated[
        bool,
        option(
            "--scale-aware/--no-scale-aware",
            help="Where a model was trained with a scaled signal (VideoCrafter 1 at 1024, and 2), scale the queue"
            " likewise: the network then sees the amplitudes it knows. FIFO-Diffusion itself does not.",
            panel="Queue",
        ),
    ] = FifoConfig.scale_aware,
    query_cache: Annotated[
        float,
        option(
            "--query-cache",
            help="How far temporal attention on the network's way up asks with the queries of its way down, which"
            " holds the layout: 0.9 of a weighted Q-cache, 0 is off.",
            panel="Network",
        ),
    ] = FifoConfig.query_cache,
    query_attention: Annotated[
        str,
        option(
            "--query-attention", help="In which of a block's temporal attentions: attn1, attn2, both.", panel="Network"
        ),
    ] = FifoConfig.query_attention,
    query_base: Annotated[
        bool, option("--query-base/--no-query-base", help="In the base clip, too.", panel="Network")
    ] = FifoConfig.query_base,
    reuse_deep: Annotated[
        int,
        option(
            "--reuse-deep",
            help="Compute deep features of frames on every so many-th sweep only: less work, at some cost in quality.",
            panel="Queue",
        ),
    ] = FifoConfig.reuse_deep,
    reuse_depth: Annotated[
        int,
        option("--reuse-depth", help="Levels of the network that always run, with --reuse-deep.", panel="Queue"),
    ] = FifoConfig.reuse_depth,
    base_steps: Annotated[
        int | None,
        option(
            "--base-steps",
            help="Denoising steps of the base clip: fewer, and the first frame comes sooner.",
            panel="Queue",
            show_default="partitions x window frames",
        ),
    ] = None,
    base_guidance: Annotated[
        float | None,
        option(
            "--base-guidance",
            help="Guidance of the base clip, which nothing is built on twice.",
            panel="Guidance of the queue",
            show_default="as --guidance-scale",
        ),
    ] = None,
    guidance_clean: Annotated[
        float | None,
        option(
            "--guidance-clean",
            help="Guidance of the cleanest frames; it rises or falls to --guidance-scale at the noisiest.",
            panel="Guidance of the queue",
            show_default="as --guidance-scale",
        ),
    ] = None,
    guidance_low: Annotated[
        float,
        option(
            "--guidance-low",
            help="No guidance of frames with less noise: 0 clean, 1 noise alone.",
            panel="Guidance of the queue",
        ),
    ] = FifoConfig.guidance_low,
    guidance_high: Annotated[
        float, option("--guidance-high", help="Nor of frames with more.", panel="Guidance of the queue")
    ] = FifoConfig.guidance_high,
    guidance_rescale: Annotated[
        float,
        option(
            "--guidance-rescale",
            help="How far contrast that guidance adds is taken back: 0 not at all, 1 all the way.",
            panel="Guidance of the queue",
        ),
    ] = FifoConfig.guidance_rescale,
    guidance_every: Annotated[
        int,
        option(
            "--guidance-every",
            help="Guide every so many-th block of levels only, so much more: less work, at some cost in quality.",
            panel="Guidance of the queue",
        ),
    ] = FifoConfig.guidance_every,
    window_batch: Annotated[
        int | None,
        option(
            "--window-batch",
            help="Windows in one batch; fewer take less memory, for the same result.",
            panel="Advanced",
            show_default="all; on a CPU as many as pay",
        ),
    ] = None,
    decode_batch: Annotated[
        int,
        option("--decode-batch", help="Frames decoded together; more wait longer.", panel="Advanced"),
    ] = FifoConfig.decode_batch,
    eta: options.Eta = None,
    first_alone: options.FirstAlone = None,
    motion_scale: options.MotionScale = FifoConfig.motion_scale,
    scheduler: options.Scheduler = FifoConfig.scheduler,
    fps_condition: options.FpsCondition = None,
    device: options.Device = FifoConfig.device,
    dtype: options.Dtype = FifoConfig.dtype,
    compile: options.Compile = FifoConfig.compile,
    format: options.Format = None,
    crf: options.Crf = FifoConfig.crf,
    metadata: options.Metadata = FifoConfig.metadata,
    config: options.Config = None,
) -> None:
    """Make one video of any length, streamed as it is made, in constant memory.

    vidlose fifo -p "a river" --frames 500 --uniform-latents -o river.mp4

    vidlose fifo -p "a river" --frames 0 -o - | ffplay -

    vidlose fifo --resume river.fifo.safetensors
    """
    context.obj.json = json
    given = options.given(context, names(FifoConfig), said=resume is not None)
    if uniform_latents and (resume is None or options.given(context, {"uniform_latents"}, said=True)):
        if options.given(context, {"queue_start"}, said=True).get("queue_start", "uniform") != "uniform":
            raise UsageError(f"--uniform-latents and --queue-start {queue_start} exclude each other")
        given["queue_start"] = "uniform"
    if extend is not None and resume is None:
        raise UsageError("--extend goes with --resume STATE")
    if resume is None:
        resolved = FifoConfig(**given)
    from vidlose.recipes import fifo as recipe
    from vidlose.recipes import fifo_state

    saved = None
    if resume is not None:
        resolved, saved = fifo_state.resume(resume, extend, given)
    written = recipe.fifo(resolved, context.obj, saved)
    if written is not None:
        context.obj.result(written)
