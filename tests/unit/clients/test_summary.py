"""The result at a glance: limits, verdicts, and the commands that would do."""

import math

import pytest

from fakes import results
from tightfit.cli.tables import rerun_command
from tightfit.quantities import parse_bytes, parse_latency_ms
from tightfit.relaxations import option_for, relaxation_commands
from tightfit.summary import (
    accuracy_floor,
    accuracy_meaning,
    limits_of,
    metric_of,
    role_text,
    shown_trial,
    summary_table,
    verdict,
)
from tightfit.words import METRICS


def test_the_tighter_of_the_users_and_the_targets_limit_holds() -> None:
    result = results.succeeded()
    assert limits_of(result)["ram"].value == 131_072
    assert limits_of(result)["ram"].is_users
    assert limits_of(result)["size"].value == 2_097_152
    assert not limits_of(result)["size"].is_users
    result["budget"]["max_ram_bytes"] = 4 << 20
    assert limits_of(result)["ram"].value == 1 << 20
    assert "energy" not in limits_of(result)


def test_a_drop_is_a_floor_below_the_baseline() -> None:
    result = results.succeeded()
    assert accuracy_floor(result) == pytest.approx(0.9153 - 0.015)
    result["budget"]["min_accuracy"] = 0.5
    assert accuracy_floor(result) == 0.5
    assert accuracy_floor(results.succeeded() | {"baseline": None}) is None


def test_a_limit_is_met_by_the_upper_end_of_the_estimate() -> None:
    result = results.succeeded()
    row = next(row for row in summary_table(result).rows if row.quantity == "latency")
    assert [cell.met for cell in row.cells] == [False, False, True]
    result["best"]["estimated_latency_ms"]["high"] = 18.01
    row = next(row for row in summary_table(result).rows if row.quantity == "latency")
    assert row.cells[-1].met is False
    assert row.cells[-1].text == "15.9 ms"


def test_the_closest_trial_stands_where_nothing_fits() -> None:
    shown = shown_trial(results.infeasible())
    assert shown is not None
    assert shown[0] == "closest trial"
    assert shown[1]["index"] == 6
    assert summary_table(results.infeasible()).columns[-1] == "closest trial"


def test_the_verdict_compares_with_what_would_be_shipped_otherwise() -> None:
    assert verdict(results.succeeded()) == (
        "Fits nucleo-h7a3zi-q",
        "2.28 times faster than int8 alone, 1.00 points of accuracy lost.",
    )
    close = results.succeeded()
    close["best"] |= {"accuracy": 0.9108, "accuracy_high": 0.9196}
    assert verdict(close)[1].endswith(
        "0.40 points of accuracy lost, which is within the error of the evaluation set."
    )
    unmeasured = results.succeeded() | {"baseline": None, "baseline_int8": None}
    assert verdict(unmeasured)[1] == "It meets every limit."


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "FAILED", "CANCELLED"])
def test_every_state_has_a_verdict(state: str) -> None:
    headline, sentence = verdict(results.succeeded() | {"state": state, "best": None})
    assert headline
    assert sentence


def test_relaxations_become_options_that_let_the_trial_through() -> None:
    (_, _, latency), (_, _, accuracy) = relaxation_commands(results.infeasible())
    name, value = latency.split()
    assert name == "--max-latency"
    assert parse_latency_ms(value, option=name) >= 40.54
    assert accuracy == ""


@pytest.mark.parametrize("needed", [0.81234, 0.9152999, 0.9153])
def test_an_accuracy_that_would_do_is_never_rounded_past_the_trial(needed: float) -> None:
    result = results.infeasible()
    drop = float(option_for(result, "accuracy", needed).split()[1])
    assert result["baseline"]["accuracy"] - drop <= needed + 1e-9
    result["budget"] |= {"max_accuracy_drop": None, "min_accuracy": 0.95}
    floor = float(option_for(result, "accuracy", needed).split()[1])
    assert floor <= needed
    assert math.isclose(floor, needed, abs_tol=1e-4)


def test_a_command_is_repeated_with_one_limit_replaced() -> None:
    command = ["tightfit", "compress", "my net.onnx", "--max-latency", "1ms", "--min-accuracy=0.9"]
    assert rerun_command(command, "--max-latency 40.6ms") == (
        "tightfit compress 'my net.onnx' --min-accuracy=0.9 --max-latency 40.6ms"
    )
    assert rerun_command(command, "--max-accuracy-drop 0.01") == (
        "tightfit compress 'my net.onnx' --max-latency 1ms --max-accuracy-drop 0.01"
    )
    assert rerun_command([], "--max-ram 2KiB") == "--max-ram 2KiB"


def test_what_a_device_measured_stands_in_the_table_and_decides() -> None:
    result = results.succeeded()
    measured = {
        "measured_latency_ms_p50": 14.0,
        "measured_latency_ms_p90": 21.0,
        "measured_latency_ms_p99": None,
        "measured_energy_mj": 3.0,
        "measured_peak_ram_bytes": 1 << 20,
        "run_count": 500,
        "settled": False,
        "noise_ratio": 0.2,
        "throttled": False,
        "runner": "bench",
        "runtime": "tflm",
    }
    estimated = {row.quantity: row.cells[-1] for row in summary_table(result).rows}
    result["best"]["measured"] = measured
    shown = {row.quantity: row.cells[-1] for row in summary_table(result).rows}

    assert estimated["latency"].met
    assert (shown["latency"].text, shown["latency"].detail) == ("14.0 ms", "measured, p90 21.0 ms")
    assert shown["latency"].met is False
    assert (shown["energy"].text, shown["energy"].detail) == ("3.00 mJ", "measured")
    assert shown["ram"] == estimated["ram"]
    assert verdict(result)[1].endswith(
        "Measured on bench: 14.0 ms, nine of ten within 21.0 ms, 3.00 mJ, unsettled by 20%."
    )


def test_packed_files_have_a_row_where_there_are_any() -> None:
    result = results.succeeded()
    assert "download" not in {row.quantity for row in summary_table(result).rows}
    result["best"]["download_bytes"] = 41_000
    result["budget"]["max_download_bytes"] = 40_960
    row = next(row for row in summary_table(result).rows if row.quantity == "download")
    assert [cell.text for cell in row.cells] == ["unknown", "unknown", "40.0 KiB"]
    assert row.cells[-1].met is False
    assert limits_of(result)["download"].is_users


def test_a_limit_on_the_download_is_relaxed_by_its_option() -> None:
    result = results.infeasible()
    result["infeasibility"]["relaxations"] = [
        {"quantity": "download", "limit": 1000.0, "needed": 43_210.0, "trial_index": 2}
    ]
    ((_, _, option),) = relaxation_commands(result)
    name, value = option.split()
    assert name == "--max-download"
    assert parse_bytes(value, option=name) >= 43_210


def test_a_limit_on_size_is_held_against_the_file_too() -> None:
    result = results.succeeded()
    result["budget"]["max_size_bytes"] = 40 << 10
    result["best"]["flash_bytes"] = {"value": 30_000, "low": 29_000, "high": 31_000}
    result["best"]["file_bytes"] = 45_000
    cell = next(row for row in summary_table(result).rows if row.quantity == "size").cells[-1]
    assert cell.met is False
    assert cell.detail == "28.3 to 30.3 KiB, file 43.9 KiB"
    result["best"]["file_bytes"] = 40_000
    cell = next(row for row in summary_table(result).rows if row.quantity == "size").cells[-1]
    assert (cell.met, cell.detail) == (True, "28.3 to 30.3 KiB")


def test_what_accuracy_means_is_said() -> None:
    result = results.succeeded()
    assert summary_table(result).rows[0].note == "top1"
    for metric, meaning in METRICS.items():
        result["dataset"]["metric"] = metric
        assert accuracy_meaning(result) == f"{metric}, {meaning}"
    result["dataset"]["metric"] = ""
    assert (metric_of(result), accuracy_meaning(result)) == ("", "")
    result["dataset"] = None
    assert metric_of(result) == "fidelity"
    assert "there is no dataset" in accuracy_meaning(result)


def test_a_trial_that_was_only_exported_is_called_by_its_format() -> None:
    (trial,) = (t for t in results.succeeded()["trials"] if t["role"] == "baseline_int8")
    assert role_text(trial) == "int8 only"
    trial["recipe"]["steps"][-1]["parameters"]["number_format"] = "float32"
    assert role_text(trial) == "only exported, float32"
    assert role_text({"role": "finalist"}) == "finalist"
