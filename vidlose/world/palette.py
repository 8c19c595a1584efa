"""The colours of the world, RGB in 0..1.

The object's six have a saturation of 0.85 and more, and hues far apart; sky and land stay under 0.62 wherever they
are not dark. So neither can be taken for the other, in any light.
"""

from dataclasses import dataclass

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Sky:
    """Stops of the gradient at the top, at 0.3 and at 0.6 of the height; what stands in it; the light it gives.

    light: the factor on land colours. thing: the factor on the object's, which must stay recognisable.
    """

    top: RGB
    middle: RGB
    horizon: RGB
    disc: RGB
    puff: RGB
    puff_shade: RGB
    light: RGB
    thing: float


@dataclass(frozen=True)
class Land:
    """far, cap: hills at the back and their lit or snowy parts. near, deep: at the crest and at the lower edge."""

    far: RGB
    cap: RGB
    near: RGB
    deep: RGB
    plant: RGB
    plant_lit: RGB


SKIES: dict[str, Sky] = {
    "day": Sky(
        top=(0.40, 0.64, 0.90),
        middle=(0.62, 0.80, 0.94),
        horizon=(0.90, 0.95, 0.96),
        disc=(1.00, 0.96, 0.80),
        puff=(1.00, 1.00, 1.00),
        puff_shade=(0.78, 0.85, 0.93),
        light=(1.00, 1.00, 1.00),
        thing=1.0,
    ),
    "sunset": Sky(
        top=(0.33, 0.27, 0.47),
        middle=(0.76, 0.46, 0.52),
        horizon=(0.99, 0.78, 0.57),
        disc=(1.00, 0.90, 0.68),
        puff=(0.99, 0.72, 0.60),
        puff_shade=(0.60, 0.40, 0.50),
        light=(0.92, 0.76, 0.72),
        thing=0.95,
    ),
    "night": Sky(
        top=(0.04, 0.05, 0.13),
        middle=(0.08, 0.11, 0.24),
        horizon=(0.20, 0.25, 0.40),
        disc=(0.93, 0.94, 0.88),
        puff=(1.00, 1.00, 1.00),
        puff_shade=(1.00, 1.00, 1.00),
        light=(0.40, 0.43, 0.56),
        thing=0.94,
    ),
}

LANDS: dict[str, Land] = {
    "green": Land(
        far=(0.36, 0.53, 0.40),
        cap=(0.55, 0.71, 0.48),
        near=(0.47, 0.70, 0.33),
        deep=(0.24, 0.47, 0.25),
        plant=(0.15, 0.33, 0.19),
        plant_lit=(0.31, 0.52, 0.27),
    ),
    "desert": Land(
        far=(0.72, 0.53, 0.42),
        cap=(0.92, 0.74, 0.55),
        near=(0.94, 0.80, 0.58),
        deep=(0.75, 0.57, 0.40),
        plant=(0.24, 0.38, 0.25),
        plant_lit=(0.40, 0.55, 0.36),
    ),
    "snowy": Land(
        far=(0.47, 0.54, 0.68),
        cap=(0.94, 0.96, 1.00),
        near=(0.96, 0.98, 1.00),
        deep=(0.74, 0.83, 0.93),
        plant=(0.19, 0.30, 0.31),
        plant_lit=(0.86, 0.92, 0.96),
    ),
}

COLOURS: dict[str, RGB] = {
    "red": (0.91, 0.10, 0.12),
    "yellow": (1.00, 0.84, 0.06),
    "teal": (0.02, 0.76, 0.68),
    "blue": (0.13, 0.29, 1.00),
    "purple": (0.60, 0.10, 0.88),
    "pink": (1.00, 0.14, 0.65),
}
