"""Temporal spectra: against numpy's FFT, against known signals, and as a stream."""

import numpy as np
import pytest

from vidlose.analysis.fft import (
    Spectra,
    author_spectrum,
    dct_spectrum,
    frequencies,
    hann_spectrum,
    high_share,
)


def clip(frames: int = 16, pixels: int = 500, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (frames, pixels)).astype(np.float32)


@pytest.mark.parametrize("frames", [3, 8, 15, 16, 60, 200])
def test_the_authors_recipe(frames):
    x = clip(frames).reshape(frames, 10, 50)
    wanted = np.abs(np.fft.fft(x.astype(np.float64), axis=0)).mean((1, 2))[: frames // 2 + 1]
    np.testing.assert_allclose(author_spectrum(x), wanted, rtol=1e-5)


def test_the_seeds_own_example_is_seen_by_both():
    """[127, 129, 127] flickers, [129, 129, 129] does not."""
    flat, flicker = (np.array(values, np.float32)[:, None] for values in ([129, 129, 129], [127, 129, 127]))
    assert author_spectrum(flat)[1] == pytest.approx(0, abs=1e-4) and author_spectrum(flicker)[1] == pytest.approx(2)
    assert hann_spectrum(flat)[1] == 0 and hann_spectrum(flicker)[1] > 0.5


@pytest.mark.parametrize("spectrum", [hann_spectrum, dct_spectrum])
def test_white_noise_has_its_variance_in_every_bin(spectrum):
    x = 0.5 + 0.1 * np.random.default_rng(0).standard_normal((16, 40_000)).astype(np.float32)
    power = spectrum(x)
    assert power[0] == 0
    np.testing.assert_allclose(power[2:], 0.01, rtol=0.03)


def test_dct_keeps_the_power():
    """Parseval, and a cosine of its own basis alone in one bin."""
    x = clip(12)
    np.testing.assert_allclose(dct_spectrum(x).sum(), ((x - x.mean(0)) ** 2).sum(0).mean(), rtol=1e-4)
    wave = np.cos(np.pi * 5 * (np.arange(12) + 0.5) / 12).astype(np.float32)[:, None]
    power = dct_spectrum(wave)
    assert power[5] == pytest.approx(6, rel=1e-5) and np.delete(power, 5).max() < 1e-10


def test_drift_leaks_into_the_raw_spectrum_and_not_into_the_sound_ones():
    """A clip that only grows brighter has no flicker: 1/k in all bins of the raw FFT."""
    ramp = np.linspace(0, 0.5, 16, dtype=np.float32)[:, None]
    raw = author_spectrum(ramp)
    assert raw[8] / raw[1] > 0.15
    assert hann_spectrum(ramp)[8] / hann_spectrum(ramp)[1] < 1e-4
    assert dct_spectrum(ramp)[-1] / dct_spectrum(ramp)[1] < 1e-4


def test_flicker_from_frame_to_frame_is_in_the_last_bin():
    flicker = (0.5 + 0.1 * (-1.0) ** np.arange(16)).astype(np.float32)[:, None]
    for spectrum in (author_spectrum, hann_spectrum, dct_spectrum):
        power = spectrum(flicker)
        assert power[1:].argmax() == len(power) - 2
    assert high_share(hann_spectrum(flicker), 16) > 0.99
    assert high_share(np.zeros(9), 16) is None
    assert frequencies("hann", 9, 16)[-1] == 0.5 and frequencies("dct", 16, 16)[-1] == 15 / 32


@pytest.mark.parametrize(("frames", "starts"), [(5, [0]), (16, [0]), (17, [0, 1]), (24, [0, 8]), (29, [0, 8, 13])])
def test_a_stream_is_the_mean_of_its_windows(frames, starts):
    """Half-overlapping, the last one ends with the last frame; more pixels than a block."""
    x = clip(frames, 10_000)
    stream = Spectra(16)
    for frame in x:
        stream.add(frame)
    found = stream.result()
    assert stream.frames == min(frames, 16)
    for kind, spectrum in (("author", author_spectrum), ("hann", hann_spectrum), ("dct", dct_spectrum)):
        wanted = np.mean([spectrum(x[start : start + 16]) for start in starts], axis=0)
        np.testing.assert_allclose(found[kind], wanted, rtol=1e-5, atol=1e-12)


def test_small_amplitudes_are_not_lost():
    """A thousandth of a grey level, on white: fp32 has it."""
    x = np.float32(0.9) + np.float32(4e-6) * (-1.0) ** np.arange(16, dtype=np.float32)[:, None]
    assert hann_spectrum(x)[8] == pytest.approx(16 * 16e-12 * 2 / 3, rel=0.1)


@pytest.mark.parametrize("shade", [0.1, 1 / 3, 200.7])
def test_rounding_is_no_change(shade):
    """What fp32 makes of values that stay has neither a last bin nor shares."""
    spectra = Spectra(16)
    for _ in range(40):
        spectra.add(np.full((30, 40), shade, np.float32) * np.linspace(0.5, 1, 40, dtype=np.float32))
    found = spectra.result()
    assert not any(found[kind][1:].any() for kind in found) and found["author"][0] > 0
    assert high_share(found["hann"], 16) is None
