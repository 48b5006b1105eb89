"""Tests of scales and rounding."""

from __future__ import annotations

import numpy as np
import pytest

from tightfit_service.graph.rounding import (
    activation_scale,
    centred,
    rounded_activation,
    rounded_bias,
    rounded_weight,
    scales_for_bias,
    weight_scales,
)


def test_ranges_of_activations() -> None:
    relu = activation_scale(0.0, 25.5, bits=8)
    assert relu.scale == pytest.approx(0.1)
    assert relu.zero_point == -128
    positive = activation_scale(3.0, 25.5, bits=8)
    assert positive == relu
    signed = activation_scale(-1.0, 127 / 128, bits=8)
    assert (signed.scale, signed.zero_point) == (1 / 128, 0)
    wide = activation_scale(-3.0, 32.767, bits=16)
    assert wide.scale == pytest.approx(0.001)
    assert wide.zero_point == 0


def test_what_is_zero_throughout_is_stored_as_if_it_reached_one() -> None:
    for high in (0.0, 1e-13):
        found = activation_scale(0.0, high, bits=8)
        assert (found.scale, found.zero_point) == (float(np.float32(1 / 255)), -128)
        assert activation_scale(0.0, high, bits=16).scale == float(np.float32(1 / 32767))


def test_a_centred_range_has_zero_point_0() -> None:
    for low, high in ((-1.0, 3.0), (-3.0, 1.0), (0.0, 2.0), (-2.0, 0.0)):
        least, most = centred(low, high)
        assert least <= low
        assert most >= high
        assert activation_scale(least, most, bits=8).zero_point == 0
        assert centred(least, most) == pytest.approx((least, most))


def test_activations_round_half_to_even_and_saturate() -> None:
    scale = activation_scale(-128.0, 127.0, bits=8)
    values = np.array([0.5, 1.5, -0.5, 500.0, -500.0], np.float32)
    assert rounded_activation(values, scale, bits=8).tolist() == [0, 2, 0, 127, -128]


@pytest.mark.parametrize(("bits", "levels"), [(8, 127), (4, 7)])
def test_weights_use_all_levels_of_their_channel(bits: int, levels: int) -> None:
    weight = np.random.default_rng(0).normal(size=(6, 3, 3, 4)).astype(np.float32)
    weight[2] *= 100
    scales = weight_scales(weight, axis=0, bits=bits)
    steps = rounded_weight(weight, scales, axis=0, bits=bits)
    assert scales.shape == (6,)
    assert (np.abs(steps).reshape(6, -1).max(axis=1) == levels).all()
    error = np.abs(steps * scales.reshape(-1, 1, 1, 1) - weight)
    assert np.median(error) < np.median(scales)
    shared = weight_scales(weight, axis=None, bits=bits)
    assert shared.shape == (1,)
    assert shared[0] == pytest.approx(scales.max(), rel=0.3)


def test_four_bits_clip_where_that_costs_less_than_it_brings() -> None:
    weight = np.random.default_rng(1).normal(size=(4, 500)).astype(np.float32)
    scales = weight_scales(weight, axis=0, bits=4)
    widest = np.abs(weight).max(axis=1) / 7

    def error(chosen: np.ndarray) -> float:
        steps = rounded_weight(weight, chosen.astype(np.float32), axis=0, bits=4)
        return float(((steps * chosen[:, None] - weight) ** 2).sum())

    assert (scales < widest).all()
    assert error(scales) < 0.8 * error(widest)
    grid = rounded_weight(weight, scales, axis=0, bits=4) * scales[:, None]
    assert weight_scales(grid.astype(np.float32), axis=0, bits=4) == pytest.approx(scales)


def test_channels_without_weights_keep_their_bias() -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[0] = 0.5
    weight[1] = 1e-11
    bias = np.array([1.0, 2.0, 3.0], np.float32)
    scales = scales_for_bias(weight_scales(weight, axis=0, bits=8), bias, 0.02)
    steps = rounded_bias(bias, 0.02, scales, bits=32)
    assert steps * 0.02 * scales == pytest.approx(bias, rel=1e-3)
    assert np.abs(steps).max() < 2**31
    assert (
        weight_scales(np.zeros((2, 2), np.float32), axis=0, bits=8).tolist()
        == [pytest.approx(1 / 127)] * 2
    )
