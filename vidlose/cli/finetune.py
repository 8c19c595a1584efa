"""`vidlose finetune`: one option for every field of its config, so that none is written twice."""

from typing import Annotated, Any

import typer

from vidlose.cli import options
from vidlose.cli.options import option
from vidlose.config import FinetuneConfig, names

PANELS = {
    "Options": {
        "loss": "What is minimised: mse, diff, star, diff_p, multistride, spectral, mix, product or alternate.",
        "blocks": "Where layers train: all, or down,mid, or finer: down.1,up.2.0.",
        "train": "motion (layers between frames), motion-lora, spatial or full.",
        "output": "The run's folder; else a new one, runs/DATE-LOSS.",
        "steps": "Optimizer steps.",
        "batch_size": "Clips at once, of each process.",
        "accumulate": "Batches to a step.",
        "learning_rate": "Of AdamW, after the warm-up.",
        "seed": "Of everything drawn.",
    },
    "Model": {
        "model": "As in generate.",
        "motion_module": "AnimateDiff's v1, v2 or v3, in original or diffusers form; new:v3 is one to train.",
        "lora": "PATH[:WEIGHT] of a LoRA that is merged before training; repeatable.",
        "vae": "Another autoencoder: file or folder.",
        "norm_mode": "Whose group norms: auto (by the motion module's form), original or diffusers.",
        "init": "pretrained, or random: forget the network's weights and train all of it.",
        "train_text_encoder": "Train the text encoder too.",
        "prediction": "What the network is to predict: eps, v or x0; another than its own has to be learnt anew.",
        "lora_rank": "Of --train motion-lora.",
        "lora_alpha": "Of --train motion-lora; its update is scaled by alpha / rank. The rank if not given.",
    },
    "Data": {
        "data_root": "Folder that relative paths of a table start from; else the table's own.",
        "captions": "Without a caption: require (an error), empty, or name (the file's).",
        "bad_files": "A file that cannot be read: error, or warn and go on without it.",
        "frames": "Of a clip, where it is not the model's own number.",
        "width": "Pixels, where it is not the model's own.",
        "height": "Pixels, where it is not the model's own.",
        "stride": "Frames of the video from one of the clip's to the next; 1 if not given.",
        "fps": "Resample to so many frames a second instead.",
        "clips": "Which of a video: auto, random, start, middle, uniform or every.",
        "clips_per_video": "Of clips uniform and random.",
        "clip_step": "Frames between the starts of --clips every; those of a clip if not given.",
        "cut_threshold": "Change, in percent of white, that is a cut no clip may cross; 0 is off.",
        "crop": "center or random.",
        "flip": "Share of clips mirrored.",
        "cache": "Folder for latents and texts, encoded once.",
        "cache_dtype": "fp16 or fp32.",
        "generated_clips": "Clips to an epoch, where they are drawn for want of DATA.",
        "generated_cameras": "Of drawn clips, in turn (repeat; one named twice is twice as often); all if not given.",
        "cache_step": "Cache only every so many frames.",
        "workers": "Threads that decode.",
    },
    "Loss": {
        "loss_space": "Where the error is taken: native (the network's own), eps, v or x0.",
        "penalty": "square, abs or huber.",
        "huber_delta": "Where huber turns straight.",
        "normalise": "The operator by its trace, its lmax, or none.",
        "anchor": "Of diff and star: drawn per sample or batch, first, or expected (the mean over all).",
        "anchor_weight": "Of the anchor frame itself.",
        "weighting": "Of noise levels: uniform, min-snr (both by the loss's space), truncated-snr, sqrt-snr or vdm-v.",
        "snr_gamma": "Of min-snr.",
        "mix_with": "The operator beside mse in mix and alternate.",
        "mix_weight": "Its share.",
        "mix_warmup": "Share of training over which it rises.",
        "mix_anneal": "Share of training over which it falls back at the end.",
        "diff_order": "Of diff_p.",
        "strides": "Of multistride; repeatable.",
        "spectral_weights": "Of spectral, slowest frequency first; repeatable.",
    },
    "Training": {
        "optimizer": "adamw, adamw8bit (bitsandbytes), or muon (matrices by Muon, the rest by AdamW).",
        "muon_rate": "Muon's own learning rate.",
        "lr_schedule": "constant, linear, cosine or trapezoid.",
        "warmup_steps": "Steps over which the rate rises.",
        "beta1": "Of AdamW.",
        "beta2": "Of AdamW.",
        "weight_decay": "Of AdamW and Muon.",
        "max_grad_norm": "Clip gradients to this norm; 0 is off.",
        "ema": "Decay of the averaged weights, which are then what is exported; 0 is off.",
        "caption_dropout": "Share of captions left out, for guidance.",
        "noise_offset": "A shift shared by all pixels of a frame and channel.",
        "zero_terminal_snr": "Rescale the schedule so that its last step is noise alone (v and x0 only).",
        "levels": "Noise levels of a clip's frames: shared, independent, diagonal as in FIFO's queue, given (some"
        " frames nearly clean, the others at one level) or first (the first ones). Several, with commas, are mixed.",
        "levels_share": "Share of clips that have them; the others have one level.",
        "levels_density": "How often each level is drawn: uniform, or logit-normal, which prefers those in the middle.",
        "logit_mean": "Of logit-normal, in logits of t/T: below 0 towards clean frames.",
        "logit_std": "Of logit-normal, in logits of t/T.",
        "levels_partitions": "Of the queue that diagonal is a window of, drawn where there are several; repeatable.",
        "pieces": "Cut clips into pieces of so many frames, each a clip of its own; of several, one is drawn for every"
        " clip; repeatable: 16, 4 and 1 train for long, short and no motion.",
        "gradient_checkpointing": "Less memory, a third more time.",
        "device": "auto, cpu, cuda or mps.",
        "dtype": "Of the computation: auto, fp32, bf16 or fp16; what trains is kept in fp32.",
    },
    "Watching": {
        "held_out": "Clips kept from training, to measure on.",
        "validate_every": "Steps between measurements on them.",
        "sample_every": "Steps between sample videos; 0 is never.",
        "sample_prompts": "What the samples show; repeatable.",
        "save_every": "Steps between checkpoints.",
        "keep": "Checkpoints that stay.",
        "export": "Forms of the result: original, diffusers, lora or none; repeatable. If not given: diffusers where"
        " more than AnimateDiff's motion modules trains, else original.",
        "track": "none, tensorboard or wandb, beside metrics.jsonl.",
    },
    "Stability": {
        "tool_blocks": "Blocks the tools stand on; those of --blocks if not given.",
        "block_lr": "BLOCK=FACTOR on the learning rate; repeatable.",
        "tool_lr": "Factor on the rate of what tools add.",
        "probe_every": "Steps between looks at attention.",
        "probe_pixels": "Pixels a look takes.",
        "qk_clip": "Rescale queries and keys where logits grow too large; on, unless another tool bounds them.",
        "qk_clip_factor": "Of the largest logit at the start.",
        "qk_clip_floor": "The least limit.",
        "sigma_reparam": "Reparametrise temporal attention by spectral norms; folded back at export.",
        "qk_norm": "Fade QK-norm in; needs its own form of export.",
        "qk_norm_steps": "Over so many steps.",
        "skip_scale": "Scales on skip connections: off, learned, or annealed (ScaleLong).",
        "skip_kappa": "Of ScaleLong.",
        "skip_anneal": "Share of training over which they fade in.",
        "entropy_hinge": "Weight of a penalty on entropy below its start.",
        "entropy_slack": "How far below is free.",
    },
    "Guards": {
        "guards": "Watch for spikes, collapse and overflow, and act on them.",
        "spike_window": "Steps whose median gradient norm is the measure.",
        "spike_mads": "Median absolute deviations above it that are a spike.",
        "spike_norm": "And at least so many times the median.",
        "spike_loss": "Times the mean loss that are a spike.",
        "loss_decay": "Of that mean.",
        "spike_limit": "Skipped steps after which the block's rate is lowered,",
        "spike_span": "within so many steps,",
        "spike_factor": "by this factor.",
        "collapse_ratio": "Of a block's entropy at the start, below which it collapses,",
        "collapse_span": "within so many steps,",
        "collapse_speed": "and so many times faster than the run's mean.",
        "collapse_factor": "The factor on its rate then,",
        "collapse_freeze": "or freeze it.",
        "blowup_ratio": "Times the mean loss,",
        "blowup_steps": "for so many steps: the last good state is restored.",
        "ring_size": "Good states kept,",
        "ring_every": "so many steps apart,",
        "ring_age": "usable at this age,",
        "ring_quiet": "after so many steps without alarm.",
        "restores": "Restores before the run is given up.",
        "restore_factor": "On the learning rate at each.",
    },
}

SHORT = {"output": "-o", "model": "-m"}
EXTRA = {
    "resume": Annotated[
        str | None,
        option("--resume", help="Go on with the run in this folder, or `auto`: the newest in runs/.", panel="Resume"),
    ],
    "override_lr": Annotated[
        float | None, option("--override-lr", help="With --resume: another learning rate from here on.", panel="Resume")
    ],
    "list_params": Annotated[bool, option("--list-params", help="Print what would train, and stop.", panel="Options")],
    "dry_run": Annotated[
        bool, option("--dry-run", help="Two steps, one to warm up: time, memory, what would be saved.", panel="Options")
    ],
    "cache_only": Annotated[bool, option("--cache-only", help="Fill --cache, and stop.", panel="Data")],
    "json": options.Json,
    "config": options.Config,
}


def finetune(context: typer.Context, **given: Any) -> None:
    """Train a video model, or its layers between frames, on clips of your own.

    vidlose finetune clips/ -m sd15/ --motion-module mm_sd_v15_v2.ckpt --loss mix --blocks down,mid

    Without DATA it trains on generated clips, to try things out.
    """
    context.obj.json = given["json"]
    from vidlose.recipes import finetune as recipe

    asked = recipe.Asked(
        resume=given["resume"],
        override_lr=given["override_lr"],
        list_params=given["list_params"],
        dry_run=given["dry_run"],
        cache_only=given["cache_only"],
        said=options.given(context, names(FinetuneConfig), said=given["resume"] is not None),
    )
    context.obj.result(*recipe.finetune(asked, context.obj))


options.from_config(
    finetune,
    FinetuneConfig,
    PANELS,
    short=SHORT,
    arguments={"data": "Folders of videos or images with .txt captions, csv or jsonl tables, or one long video."},
    extra=EXTRA,
)
