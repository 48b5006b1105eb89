"""Runtimes and boards are recognised under their many spellings, and uncertainty adds up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tightfit_service.adapters.emulators.mcu_latency import (
    LogPrices,
    Setup,
    board_of,
    nearest_known,
    parameters_of,
    prior_kind,
    runtime_path,
)


@pytest.mark.parametrize(
    ("name", "version", "path"),
    [
        ("X-CUBE-AI", "7.3.0", ("x-cube-ai", "x-cube-ai/7.3")),
        ("X-CUBE-AI", "7.3.0 time", ("x-cube-ai", "x-cube-ai/7.3")),
        ("X-CUBE-AI", "8.1.0 time", ("x-cube-ai", "x-cube-ai/8.1")),
        ("X-CUBE-AI", "10.0.0 balanced", ("x-cube-ai", "x-cube-ai/10.0")),
        ("STEdgeAI", "1.0", ("x-cube-ai", "x-cube-ai/9.0")),
        ("X-CUBE-AI", "", ("x-cube-ai",)),
        ("TFLM+CMSIS-NN", "2.3.1", ("tflm", "tflm/cmsis-nn", "tflm/cmsis-nn/2.3.1")),
        ("TensorFlow Lite Micro", "", ("tflm", "tflm/other")),
        ("TFLM (reference kernels)", "", ("tflm", "tflm/reference")),
        ("microTVM+CMSIS-NN", "", ("microtvm", "microtvm/cmsis-nn")),
        ("Plumerai", "", ("plumerai", "plumerai/unstated")),
        ("HomeGrown NN", "", ("homegrown-nn",)),
    ],
)
def test_runtime_path(name: str, version: str, path: tuple[str, ...]) -> None:
    assert runtime_path(name, version) == path


def test_an_unknown_release_is_taken_for_the_nearest() -> None:
    known = {"x-cube-ai", "x-cube-ai/8.1", "x-cube-ai/10.2"}
    assert nearest_known(("x-cube-ai", "x-cube-ai/9.9"), known)[1] == "x-cube-ai/10.2"
    assert nearest_known(("x-cube-ai", "x-cube-ai/8.1"), known)[1] == "x-cube-ai/8.1"
    assert nearest_known(("onnc", "onnc/2.0"), known) == ("onnc", "onnc/2.0")


def test_board_of_cuts_what_is_not_the_board() -> None:
    assert board_of("NUCLEO-L4R5ZI-P") == board_of("nucleo-l4r5zi, TFLM") == "nucleo-l4r5zi"
    assert board_of("STM32L4R5ZI (NUCLEO)") == "stm32l4r5zi"


def test_prior_kinds_tell_families_releases_and_depthwise_kernels_apart() -> None:
    assert prior_kind("runtime:tflm") == "runtime"
    assert prior_kind("runtime:tflm/cmsis-nn:gemm") == "release:*"
    assert prior_kind("runtime:tflm/cmsis-nn:depthwise") == "release:depthwise"
    assert prior_kind("board:x:depthwise") == "board:*"


SETUP = Setup(core="cortex-m4", board="b", runtime=("r",))


def test_no_runtime_changes_how_long_flash_takes() -> None:
    names = parameters_of(SETUP, "weight_byte", is_float=False)
    assert names == ("base:weight_byte", "core:cortex-m4:flash", "board:b:flash")
    assert "runtime:r:dense" in parameters_of(SETUP, "dense_mac", is_float=False)


def test_prices_multiply_up() -> None:
    prices = LogPrices(
        means={
            "base:layer": math.log(100),
            "core:cortex-m4": math.log(2),
            "runtime:r:layer": math.log(3),
            "float:layer": math.log(5),
        },
        prior_sd={},
    )
    assert prices.prices(SETUP, is_float=False)["layer"] == pytest.approx(600)
    assert prices.prices(SETUP, is_float=True)["layer"] == pytest.approx(3000)


def test_what_rows_have_told_narrows_the_deviation_down_to_the_noise() -> None:
    prior_sd = {prior_kind(n): 0.2 for n in parameters_of(SETUP, "layer", is_float=False)}
    cycles = {("layer", False): 1.0}
    names = parameters_of(SETUP, "layer", is_float=False)
    ignorant = LogPrices(means={}, prior_sd=prior_sd, noise_sd=0.05)
    expected = math.sqrt(0.05**2 + len(names) * 0.2**2)
    assert ignorant.log_sd(SETUP, cycles) == pytest.approx(expected)
    taught = LogPrices(
        means={},
        prior_sd=prior_sd,
        noise_sd=0.05,
        learned={n: np.eye(len(names))[i] for i, n in enumerate(names)},
    )
    assert taught.log_sd(SETUP, cycles) == pytest.approx(0.05)
