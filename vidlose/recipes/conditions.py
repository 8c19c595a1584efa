"""What the frames of an endless video are drawn from: a prompt, and a picture where the model reads one."""

from functools import lru_cache

import torch
from torch import Tensor

from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import FifoConfig
from vidlose.diffusion.denoiser import Condition, Denoise
from vidlose.diffusion.sampling import Sampler
from vidlose.errors import InputError
from vidlose.recipes.runtime import Settled

SEED = "seed"  # in a state: the latent that the picture is of, [C h w]
PICTURE = "picture"  # the pixels of one that is of no latent, [1 3 H W]


class Conditions:
    """Prompts, and the picture of an image-to-video model: the one that was given, or a frame of the video itself.

    A new picture takes the place of the one before; it counts from the next step on.
    """

    def __init__(
        self, config: FifoConfig, settled: Settled, model: VideoModel, sampler: Sampler, picture: Tensor | None
    ) -> None:
        self.config, self.settled, self.model, self.sampler = config, settled, model, sampler
        self.picture = picture
        self.seed: Tensor | None = None
        self.denoise = lru_cache(maxsize=8)(self._denoise)  # what is refined lags behind the queue by some prompts

    def of(self, prompt: str) -> Condition:
        """The condition of a prompt, with the picture as it is now; text alone where there is none yet."""
        return self.model.condition(prompt, self.settled.negative, self.settled.fps_condition, self.picture)

    def _denoise(self, prompt: str) -> Denoise:
        return self.sampler.bind(self.of(prompt))

    @torch.no_grad()
    def see(self, latent: Tensor) -> None:
        """From now on a frame of the video, a clean latent `[C h w]`, is the picture."""
        self.seed = latent.clone()
        self.picture = self.model.vae.decode(latent[None]).clamp(-1, 1)
        self.denoise.cache_clear()

    def state(self) -> dict[str, Tensor]:
        """The seed if the picture is of one, else the picture if there is one: its file may be gone by then."""
        if self.seed is not None:
            return {SEED: self.seed}
        return {} if self.picture is None else {PICTURE: self.picture}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up `state`. Raises InputError where a picture is missing, or one too many, or of another shape."""
        seed, picture = state.get(SEED), state.get(PICTURE)
        if seed is None and (self.config.seed_frame or self.config.image is not None and picture is None):
            raise InputError("the picture that its frames are drawn from is missing")
        if seed is not None:
            if not (self.config.seed_frame or self.config.reseed_every) or not seed.isfinite().all():
                raise InputError("its picture is of a frame that cannot be")
            self.see(seed.to(self.model.device))
        elif picture is not None:
            size = (1, 3, self.settled.height, self.settled.width)
            if self.config.image is None or picture.shape != size or not picture.isfinite().all():
                raise InputError(f"its picture, {tuple(picture.shape)}, is not that of such a run")
            self.picture = picture


def check_picture(config: FifoConfig, model: VideoModel) -> None:
    """Raises InputError where a model that reads no picture is to be given one of the video."""
    if model.image_encoder is None and (config.seed_frame or config.reseed_every):
        option = "--seed-frame" if config.seed_frame else "--reseed-every"
        raise InputError(f"{option}: {model.name} reads no picture; it goes with an image-to-video model")
