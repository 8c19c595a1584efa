"""Flicker told from motion: every pixel is compared with itself, along its path, not with what moves over its place.

Pixels are 0..1, lengths are in pixels, times in frames. All of it is made from a stream, in constant memory.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vidlose.analysis.drift import ROUNDING, TEXTURE, UNSHARP, gradient, sharpness
from vidlose.analysis.fft import hann_spectrum, high_share
from vidlose.analysis.flow import SMALLEST, Flow, FlowPair, Grey, Mask, Picture, Places, camera, targets, visible, warp

Frame = NDArray[np.uint8]
Array = NDArray[np.float64]
Started = Callable[[], tuple[Flow, Flow]]

WHITE = 1.5  # E r^2 / a^2 of white flicker of variance a^2: 1 + 2 / 4
PATH = 9  # frames of a trajectory
SHORTEST_PATH = 5
HOP = 4
COVERAGE = 0.5  # of the pixels that flow must hold for, over the video
LEAST = 0.3  # and in a frame that is to count: over a cut, flow can hold for a tenth or two by chance
FLOOR = 2**0.5 * ROUNDING  # of flicker_std: rounding to 8 bits, and as much variance again from moving such frames
UNTEXTURED = "black or without texture"
VBENCH = {"dynamic": (0.05, 6.0, 4), "static": (0.02, 3.0, 2)}  # share of pixels, speed at 256, pairs of 16 frames

METRICS = {
    "flicker_std": "flicker's deviation, of values 0..1: sqrt(MC3 / 1.5), exact for white noise",
    "flicker_typical": "the same by medians over pixels: not misled where the flow is, at edges; blind to small parts",
    "mc3": "mean square of a frame less the mean of its neighbours, both moved along the flow to it",
    "e_warp": "mean square of a frame less the next one moved to it (Lai et al. 2018)",
    "mc3_texture": "MC3 by the mean squared gradient: what blurs does not win",
    "trajectory_high_share": "power from a quarter cycle a frame up, along trajectories; white: 0.5 of 9 frames",
    "coverage": "share of the pixels that were followed",
    "flow": "mean length of the flow, pixels a frame",
    "dynamic_degree_flow": "VBench's dynamic degree, with this flow in place of RAFT's",
    "camera_motion": "mean length of the affine motion that most of the picture follows, pixels a frame",
    "object_motion": "mean distance of the flow from it, pixels a frame",
    "camera_share": "camera motion by the sum of both",
    "sharpness": "variance of the Laplacian",
    "vbench_temporal_flickering": "VBench's (255 - mean absolute change) / 255; of a static video alone",
    "texture": "mean squared gradient",
    "vbench_static": "is the video one, by VBench's filter with this flow?",
    "jerk_ratio": "second differences by first, squared; secondary, as fast motion raises it too; white: 3",
}
# What is added to a figure before its logarithm is taken: zero is a figure too. Of the deviations in squares.
FLOORS = {
    "flicker_std": FLOOR,
    "flicker_typical": FLOOR,
    "mc3": WHITE * FLOOR**2,
    "e_warp": 2 * FLOOR**2,
    "flow": 0.01,
    "camera_motion": 0.01,
    "object_motion": 0.01,
    "sharpness": UNSHARP,
}
FLOW_METRICS = tuple(name for name in METRICS if name not in ("sharpness", "texture", "jerk_ratio"))


@dataclass
class Mean:
    """A mean that grows."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, total: float, weight: float = 1.0) -> None:
        self.total += float(total)
        self.weight += weight

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight else None


@dataclass(frozen=True, eq=False)
class Step:
    """What is known between a frame and the next: flows, where they hold, and the frame before as the next sees it."""

    there: Flow
    back: Flow
    seen_next: Mask  # of the first frame, what the second still shows
    seen_before: Mask  # of the second, what the first showed
    carried: Picture  # the first, moved to where the second has it


class Flicker:
    """All figures of one video; `add` its frames, uint8 `[H W 3]` of one size, and ask for the `result`."""

    def __init__(self, height: int, width: int) -> None:
        self._size = (height, width)
        self._flow = FlowPair(height, width) if min(height, width) >= SMALLEST else None
        self._colours: deque[Frame] = deque(maxlen=3)
        self._pictures: deque[Picture] = deque(maxlen=2)
        self._grey: deque[Grey] = deque(maxlen=PATH)
        self._steps: deque[Step] = deque(maxlen=PATH - 1)
        self._started: Started | None = None
        self._seen = self._pairs = 0
        self._mc3, self._typical, self._warping = Mean(), Mean(), Mean()
        self._coverage, self._texture = Mean(), Mean()
        self._change, self._jerk, self._steps_squared, self._sharp = Mean(), Mean(), Mean(), Mean()
        self._speed, self._camera, self._object = Mean(), Mean(), Mean()
        self._fast = {name: 0 for name in VBENCH}
        self._paths: list[Any] = [0.0, 0]  # power [PATH//2+1] summed over pixels, and their number
        self.residual: list[float] = []  # of every frame but the first and last
        self.speed: list[float] = []  # of every pair

    def add(self, frame: Frame) -> None:
        """One more. Its flow is found beside, while what the frame before brought is worked up."""
        self._colours.append(frame)
        self._seen += 1
        grey = _grey(frame)
        if self._flow and self._grey:
            started, self._started = self._started, self._flow.start(self._grey[-1], grey)
            self._finish(started)
        self._without_flow(grey)
        self._grey.append(grey)
        self._pictures.append(frame.astype(np.float32) / 255)

    def _without_flow(self, grey: Grey) -> None:
        frames = self._colours
        self._sharp.add(sharpness(grey))
        self._texture.add(gradient(grey))
        if len(frames) > 1:
            self._change.add(cv2.norm(frames[-1], frames[-2], cv2.NORM_L1) / frames[-1].size)
            self._steps_squared.add(cv2.norm(frames[-1], frames[-2], cv2.NORM_L2SQR) / frames[-1].size)
        if len(frames) > 2:
            around = cv2.addWeighted(frames[0], 0.5, frames[2], 0.5, 0, dtype=cv2.CV_32F)
            self._jerk.add(4 * cv2.norm(around, frames[1].astype(np.float32), cv2.NORM_L2SQR) / around.size)

    def _finish(self, started: Started | None) -> None:
        """The pair of the last two frames kept, whose flow was started one frame ago."""
        if started is None:
            return
        first, second = self._pictures
        there, back = started()
        onward, backward = targets(there), targets(back)
        seen_next, seen_before = visible(there, back, onward), visible(back, there, backward)
        ahead = warp(second, onward)
        if (residual := _residual(first, ahead, seen_next)) is not None:
            self._warping.add(residual)
        if self._steps:
            self._triple(first, self._steps[-1], ahead, seen_next)
        self._steps.append(Step(there, back, seen_next, seen_before, warp(first, backward)))
        self._motion(there)
        self._pairs += 1
        if len(self._grey) == PATH and (self._pairs + 1 - PATH) % HOP == 0:
            self._trajectories()

    def _flush(self) -> None:
        """No frame comes after these."""
        started, self._started = self._started, None
        self._finish(started)

    def _triple(self, middle: Picture, before: Step, ahead: Picture, seen_next: Mask) -> None:
        """A frame against the mean of its neighbours, both moved to it."""
        seen = cv2.bitwise_and(seen_next, before.seen_before)
        expected = cv2.addWeighted(before.carried, 0.5, ahead, 0.5, 0)
        residual = _residual(middle, expected, seen)
        if residual is not None:
            self._mc3.add(residual)
            self._typical.add(_typical(middle, expected, seen))
        self.residual.append(float("nan") if residual is None else residual)
        self._coverage.add(cv2.countNonZero(seen) / seen.size)

    def _motion(self, flow: Flow) -> None:
        lengths = cv2.magnitude(*cv2.split(flow))
        self.speed.append(float(lengths.mean()))
        self._speed.add(self.speed[-1])
        of_camera, of_objects = camera(flow)
        self._camera.add(of_camera)
        self._object.add(of_objects)
        kept = lengths.ravel()
        for name, (share, speed, _) in VBENCH.items():  # the larger share first: the smaller is within it
            count = max(1, int(lengths.size * share))
            kept = np.partition(kept, -count)[-count:]
            self._fast[name] += bool(kept.mean() > speed * min(self._size) / 256)

    def _trajectories(self) -> None:
        """The spectrum along the paths through the middle frame that stay in sight over the whole window; none over a
        cut."""
        assert len(self._grey) % 2 and len(self._steps) == len(self._grey) - 1
        if not all(map(_enough, (step.seen_next for step in self._steps))):
            return
        middle = len(self._grey) // 2
        pictures = {middle: self._grey[middle].astype(np.float32)}
        seen: Mask = np.full(self._size, 255, np.uint8)
        for way in (1, -1):
            at: Places | None = None
            for i in range(middle, len(self._grey) - 1 if way > 0 else 0, way):
                step = self._steps[i if way > 0 else i - 1]
                holds, onward = (step.seen_next, step.there) if way > 0 else (step.seen_before, step.back)
                seen = cv2.bitwise_and(seen, holds if at is None else warp(holds, at, cv2.INTER_NEAREST))
                at = targets(onward, at)
                pictures[i + way] = warp(self._grey[i + way].astype(np.float32), at)
        followed = np.flatnonzero(seen)
        if followed.size:
            paths = np.stack([pictures[i].ravel()[followed] for i in sorted(pictures)]) / np.float32(255)
            self._paths[0] = self._paths[0] + hann_spectrum(paths) * followed.size
            self._paths[1] += followed.size

    @property
    def path_frames(self) -> int:
        """Of a trajectory: 9, or fewer in a shorter video; always odd."""
        return min(PATH, self._seen - 1 + self._seen % 2)

    def path_spectrum(self) -> Array | None:
        """Power `[path_frames//2+1]` along trajectories; None where there is none of 5 frames or more."""
        self._flush()
        if self._flow and SHORTEST_PATH <= self._seen < PATH and not self._paths[1]:
            while len(self._grey) > self.path_frames:
                self._grey.popleft(), self._steps.popleft()
            self._trajectories()
        return self._paths[0] / self._paths[1] if self._paths[1] else None

    def result(self) -> dict[str, float | None]:
        """By name; see METRICS. None is what cannot be measured."""
        self._flush()
        squares = self._steps_squared.value
        found: dict[str, float | None] = {
            "sharpness": self._sharp.value,
            "jerk_ratio": self._jerk.value / squares if squares and self._jerk.value is not None else None,
            "texture": self._texture.value,
        }
        if self.why_not():
            return found
        mc3, texture = self._mc3.value or 0.0, self._texture.value or 0.0
        paths = self.path_spectrum()
        moving, still = self._speed.value or 0.0, (self._camera.value or 0.0) + (self._object.value or 0.0)
        dynamic, static = (count * self._seen / 16 for _, _, count in VBENCH.values())
        is_static = self._fast["static"] <= round(static)
        return {
            "flicker_std": float(np.sqrt(mc3 / WHITE)),
            "flicker_typical": float(np.sqrt((self._typical.value or 0.0) / WHITE)),
            "mc3": mc3,
            "e_warp": self._warping.value,
            "mc3_texture": mc3 / texture,
            "trajectory_high_share": None if paths is None else high_share(paths, self.path_frames),
            "coverage": self._coverage.value,
            "flow": moving,
            "dynamic_degree_flow": float(self._fast["dynamic"] >= dynamic),
            "camera_motion": self._camera.value,
            "object_motion": self._object.value,
            "camera_share": (self._camera.value or 0.0) / still if still > FLOORS["flow"] else None,
            "vbench_static": float(is_static),
            "vbench_temporal_flickering": 1 - (self._change.value or 0) / 255 if is_static else None,
            **found,
        }

    def why_not(self) -> str | None:
        """Why flicker cannot be told from motion here; None where it can."""
        self._flush()
        if not self._flow:
            return f"frames of {self._size[1]}x{self._size[0]} are too small for optical flow"
        if (self._texture.value or 0) < TEXTURE:
            return UNTEXTURED
        coverage = self._coverage.value or 0
        return None if coverage >= COVERAGE else f"the flow holds on {100 * coverage:.0f} % of the pixels alone"


def _grey(frame: Frame) -> Grey:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _residual(one: Picture, other: Picture, seen: Mask) -> float | None:
    """Mean square where `seen`; None where that is too little, as at a cut.

    Frames count alike: one that jumps hides more of itself, and would count less if pixels did.
    """
    if not _enough(seen):
        return None
    return cv2.norm(one, other, cv2.NORM_L2SQR, seen) / (cv2.countNonZero(seen) * one.shape[2])


def _enough(seen: Mask) -> bool:
    """For a figure."""
    return cv2.countNonZero(seen) > LEAST * seen.size


def _typical(one: Picture, other: Picture, seen: Mask) -> float:
    """What the mean square would be, if all pixels were like most: median^2 + (1.4826 median absolute deviation)^2.

    The first is what a whole frame has in common, the second what differs from pixel to pixel; exact for normal ones.
    """
    step = max(1, min(seen.shape) // 128)
    apart = (one[::step, ::step] - other[::step, ::step])[seen[::step, ::step] > 0].T.copy()
    if not apart.size:
        return 0.0
    shared = _medians(apart)
    spread = 1.4826 * _medians(np.abs(apart - shared))
    return float((shared**2 + spread**2).mean())


def _medians(rows: Picture) -> Picture:
    """`[C N]` -> `[C 1]`; to sort floats takes a fifth of np.median's time."""
    half = rows.shape[1] // 2
    return np.sort(rows, axis=1)[:, half - 1 + rows.shape[1] % 2 : half + 1].mean(1, keepdims=True)
