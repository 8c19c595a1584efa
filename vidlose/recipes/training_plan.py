"""What a training is to be: the model, its clips, what of it learns, and in which dtypes it computes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vidlose import __version__, checkpoints
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import FinetuneConfig
from vidlose.errors import InputError
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet
from vidlose.parallel import Processes
from vidlose.recipes import runtime
from vidlose.recipes.output import check_ffmpeg
from vidlose.recipes.training_data import Window
from vidlose.recipes.watching import check_tracker
from vidlose.training import levels
from vidlose.training.optimizers import check_optimizer
from vidlose.training.stability import Tools
from vidlose.training.trainable import Selection, rates, select


@dataclass(frozen=True)
class Plan:
    """A run, decided: the model (perhaps not yet read), what its clips are, and in which dtypes it computes."""

    config: FinetuneConfig
    model: VideoModel
    window: Window
    prediction: str
    device: torch.device
    dtype: torch.dtype
    processes: Processes

    @staticmethod
    def of(config: FinetuneConfig, device: torch.device, processes: Processes) -> "Plan":
        """Raises InputError for clips that the model cannot take, and what cannot be exported."""
        if config.sample_every:
            check_ffmpeg()
        model = checkpoints.load(config)
        usual = model.defaults
        window = Window(config.frames or usual.frames, (config.width or usual.width, config.height or usual.height))
        model.latent_size(*window.size)
        model.check_frames(window.frames)
        for length in config.pieces:
            if window.frames % length:
                raise InputError(f"--pieces {length} does not divide the clips' {window.frames} frames")
        if model.image_encoder is not None:
            raise InputError(f"{config.model} makes videos of pictures, which cannot be trained yet")
        if not config.data and window.size[0] != window.size[1]:
            raise InputError(
                f"generated clips are square: give DATA, or --width {window.size[0]} and --height the same"
            )
        prediction = config.prediction or model.prediction
        if config.zero_terminal_snr:
            if prediction == "eps":
                raise InputError("--zero-terminal-snr leaves no signal to find noise in: give --prediction v or x0")
            model = model.zero_terminal()
        model = replace(model, prediction=prediction)
        whole = isinstance(model.unet.family, AnimateDiff) and config.train in ("spatial", "full")
        if not config.export:
            config = replace(config, export=["diffusers" if whole or config.train_text_encoder else "original"])
        if "diffusers" in config.export and not isinstance(model.unet.family, AnimateDiff):
            text = ", where alone a text encoder has its place" if config.train_text_encoder else ""
            raise InputError(f"{config.model} has no form of diffusers'{text}: leave --export diffusers out")
        folder = config.train in ("spatial", "full") or config.train_text_encoder  # whose scheduler says it
        if prediction != "eps" and set(config.export) - {"original", "none", "diffusers" if folder else ""}:
            raise InputError(
                f"--prediction {prediction} can be exported as original alone: other tools take eps for it"
            )
        if prediction != "eps" and whole and "original" in config.export:
            raise InputError(
                f"--prediction {prediction}: no file of AnimateDiff's whole network can say so: give --export diffusers"
            )
        if config.qk_norm and config.export != ["none"]:
            raise InputError("--qk-norm changes the network, which no exported file can say: give --export none")
        dtype = runtime.DTYPES[runtime.dtype(config.dtype, device)]
        plan = Plan(config, model, window, prediction, device, dtype, processes)
        plan.check()
        return plan

    def check(self) -> None:
        """What would else be found after hours of encoding: blocks, rates, packages that are missing. InputError."""
        config = self.config
        with torch.device("meta"):
            blank = UNet(self.model.unet.family)
        rates(select(blank, config.blocks, config.train, rank=config.lora_rank, alpha=config.lora_alpha), config)
        check_optimizer(config.optimizer)
        check_tracker(config.track)

    def text_parameters(self) -> dict[str, nn.Parameter]:
        """Of the text encoder, where it trains."""
        if not self.config.train_text_encoder:
            return {}
        return {f"text_encoder.{name}": p for name, p in self.model.text_encoder.named_parameters()}

    @property
    def frozen(self) -> torch.dtype:
        """Of what does not train."""
        return self.dtype

    def reset(self) -> None:
        """--init random: the network as it was first made, by the seed."""
        if self.config.init == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                fresh = UNet(self.model.unet.family).state_dict()
            self.model.unet.load_state_dict(fresh)

    def select(self, look: Callable[..., object] | None = None) -> tuple[Tools, Selection]:
        """Put the tools on and choose what trains, which is in fp32 from then on."""
        config, unet = self.config, self.model.unet
        tools = Tools(unet, config, config.blocks, config.steps, look)
        chosen = select(
            unet, config.blocks, config.train, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed
        )
        for parameter in chosen.parameters.values():
            parameter.data = parameter.data.float()
        return tools, chosen

    def metadata(self) -> dict[str, Any]:
        """What a file has to say, for its tensors to be read rightly."""
        family = self.model.unet.family
        said: dict[str, Any] = {"prediction": self.prediction, "zero_terminal_snr": self.zero_terminal}
        said["first_alone"] = self.model.defaults.first_alone or "first" in self.config.levels.split(",")
        if isinstance(family, AnimateDiff):
            norms = "diffusers" if family.motion_joint_norm else "original"
            said |= {"motion_heads": family.motion_heads, "heads": family.heads, "norm_mode": norms}
        return said

    @property
    def zero_terminal(self) -> bool:
        """Does the schedule end in noise alone, by the config or because the model was taught so?"""
        return bool(self.model.schedule.alpha[-1] == 0)

    def facts(self, selection: Selection) -> dict[str, Any]:
        """Of the run, for its card and its files."""
        return {
            "version": __version__,
            "base": self.config.model,
            "prediction": self.prediction,
            "zero_terminal_snr": self.zero_terminal,
            "loss": self.config.loss,
            "blocks": self.config.blocks,
            "train": self.config.train,
            "frames": self.window.frames,
            "width": self.window.size[0],
            "height": self.window.size[1],
            "parameters": sum(p.numel() for p in (*selection.parameters.values(), *self.text_parameters().values())),
        }

    def levels(self) -> levels.Levels:
        of = self.config
        density = {"uniform": levels.uniform, "logit-normal": levels.logit_normal(of.logit_mean, of.logit_std)}
        shared = levels.shared(density[of.levels_density])
        kinds = {
            "shared": shared,
            "independent": levels.independent(density[of.levels_density]),
            "diagonal": levels.diagonal(*of.levels_partitions),
            "given": levels.given(density[of.levels_density]),
            "first": levels.first(density[of.levels_density]),
        }
        chosen = levels.one_of(*(kinds[kind] for kind in of.levels.split(",")))
        return levels.mixture(chosen, shared, of.levels_share) if of.levels_share < 1 else chosen
