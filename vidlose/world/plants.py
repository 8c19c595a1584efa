"""What grows on the land. dx [1 p], dy [h 1] from the foot and a size -> how far inside and how lit, [h p] each."""

import numpy as np

from vidlose.world.layers import Plane, ramp


def round_tree(dx: Plane, dy: Plane, tall: float) -> tuple[Plane, Plane]:
    """A crown of three balls."""
    inside = _trunk(dx, dy, 8)
    for x, y, radius in ((0.0, -11.0, 5.6), (-3.6, -8.6, 4.2), (3.8, -8.8, 4.0)):
        away = np.sqrt(np.square(dx - x * tall) + np.square(dy - y * tall))
        inside = np.maximum(inside, radius * tall - away)
    return inside, ramp((-dx - dy - 4) / 12)


def cactus(dx: Plane, dy: Plane, tall: float) -> tuple[Plane, Plane]:
    """A trunk and two arms, each rounded, and the elbows that hold them."""
    inside = np.full(np.broadcast_shapes(dx.shape, dy.shape), -9, np.float32)
    for x, top, bottom, radius in ((0.0, -14.0, 2.0, 2.0), (-4.6, -10.5, -6.5, 1.3), (4.4, -12.0, -8.0, 1.3)):
        up = np.clip(dy, top * tall, bottom * tall)
        away = np.sqrt(np.square(dx - x * tall) + np.square(dy - up))
        inside = np.maximum(inside, radius - away)
    for x, y in ((-2.3, -6.5), (2.2, -8.0)):
        inside = np.maximum(inside, 1.2 - np.maximum(np.abs(dx - x * tall) - 2.2, np.abs(dy - y * tall)))
    return inside, ramp(0.45 - dx / 5)


def pine(dx: Plane, dy: Plane, tall: float) -> tuple[Plane, Plane]:
    """Three tiers, with snow on the windward side of each."""
    inside = _trunk(dx, dy, 4)
    light = np.zeros_like(inside)
    for top, bottom in ((-19.0, -11.5), (-15.0, -6.5), (-10.5, -1.5)):
        below = dy - top * tall
        tier = np.minimum(below * 0.58 - np.abs(dx), bottom * tall - dy)
        snow = ramp(1.1 - below / 4.5) * ramp(0.5 - 0.35 * dx)
        light = np.where(tier > inside, snow, light)
        inside = np.maximum(inside, tier)
    return inside, light


def _trunk(dx: Plane, dy: Plane, height: float) -> Plane:
    return 1.1 - np.abs(dx) - np.maximum(dy - 2, 0) - np.maximum(-height - dy, 0)


PLANTS = {"green": round_tree, "desert": cactus, "snowy": pine}
