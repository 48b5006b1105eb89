"""The report without a browser: complete in itself, and safe whatever a model's nodes are called."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fakes import results
from tightfit.report import render_report, write_report
from tightfit.report.markup import element, joined
from tightfit.report.page import embedded_json
from tightfit.report.plot_data import plot_data, recipe_lines
from tightfit.result_file import build_result
from tightfit.v1 import job_pb2


class Outline(HTMLParser):
    """Collects the tags and the addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("result", [results.succeeded(), results.infeasible()])
def test_the_page_is_well_formed_and_refers_to_nothing(result: results.Result) -> None:
    page = render_report(result)
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.addresses == ["data:,"]
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert "eval(" not in page


def test_what_is_in_another_number_format_is_listed_with_the_reason() -> None:
    result = results.succeeded()
    result["best"]["notes"] = ["in the end rolled back"]
    result["best"]["format_notes"] = ["in float32 for want of a kernel in int8: gru"]
    page = render_report(result)
    assert "In another number format" in page
    assert "<li>in float32 for want of a kernel in int8: gru</li>" in page
    assert "<li>in the end rolled back</li>" not in page
    assert "In another number format" not in render_report(results.succeeded())


def test_a_cut_that_nothing_predicts_is_not_said_to_follow_its_inputs() -> None:
    result = results.succeeded()
    for row in result["layers"]:
        row["accuracy_cost"] = None
    page = render_report(result)
    assert "not predicted" in page
    assert "follows its inputs" not in page


def test_what_was_predicted_of_a_layer_alone_stands_beside_what_was_measured() -> None:
    result = results.succeeded()
    assert "2.10 | 3.40 points" in render_report(result)
    assert "int8: 0.12 points measured, 0.07 in the result" in render_report(result)
    for row in result["layers"]:
        row["measured_cost_alone"] = None
    assert "2.10 | - points" in render_report(result)
    for row in result["layers"]:
        del row["measured_cost_alone"], row["predicted_cost_alone"], row["format_cost_after"]
    page = render_report(result)
    assert "| - points" not in page
    assert "int8: 0.12 points measured<" in page


def test_the_data_in_the_page_is_that_of_the_result() -> None:
    page = render_report(results.succeeded())
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert match is not None
    assert json.loads(match.group(1)) == plot_data(results.succeeded())


def test_json_cannot_leave_its_element() -> None:
    hostile = {"</script>": "<!--<script>&amp;\u2028"}
    text = embedded_json(hostile)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == hostile


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = element("b", "<x>")
    assert element("p", inner, " & ", None, ["a", 3], title='"<') == (
        '<p title="&quot;&lt;"><b>&lt;x&gt;</b> &amp; a3</p>'
    )
    assert joined(()) == ""


def test_points_say_what_they_are() -> None:
    points = {point["caption"]: point for point in plot_data(results.succeeded())["points"]}
    assert points["best: trial #8"]["mark"] == "best"
    assert points["baseline, trial #0"]["mark"] == "baseline"
    assert points["trial #5"]["mark"] == "missed"
    assert points["trial #2"]["facts"][0] == ["accuracy", "89.40 % on the selection set"]
    assert "trial #9" not in points


def test_baselines_that_are_no_trials_are_drawn_too() -> None:
    result = results.succeeded()
    result["trials"] = result["trials"][2:]
    captions = [point["caption"] for point in plot_data(result)["points"]]
    assert captions[:2] == ["baseline", "int8 only"]


def test_a_recipe_is_told_in_words() -> None:
    steps = [
        {"pass_name": "structured_pruning", "parameters": {"keep": {"conv1": [0, 2, 5]}}},
        {"pass_name": "quantization", "parameters": {"per_channel": True, "float_nodes": ["fc"]}},
        {"pass_name": "recovery", "parameters": {"epochs": 0.5, "learning_rate": None}},
    ]
    assert recipe_lines(steps) == [
        ["structured pruning", "channels kept: conv1 3"],
        ["quantization", "per channel; float nodes fc"],
        ["recovery", "epochs 0.5"],
    ]


def test_what_is_done_to_single_nodes_is_told_in_words() -> None:
    steps = [
        {
            "pass_name": "low_rank",
            "parameters": {"nodes": {"conv1": {"method": "svd", "rank": 8}, "conv2": {"rank": 4}}},
        },
        {
            "pass_name": "quantization",
            "parameters": {"node_formats": {"fc": "int4"}, "bias_correction": False},
        },
        {"pass_name": "quantization", "parameters": {"node_formats": {}}},
    ]
    assert recipe_lines(steps) == [
        ["low rank", "nodes: conv1 method svd rank 8, conv2 rank 4"],
        ["quantization", "node formats: fc int4"],
        ["quantization", ""],
    ]


def test_the_size_of_packed_files_is_in_the_plot_and_in_the_table_of_trials() -> None:
    result = results.succeeded()
    assert "download" not in {axis["key"] for axis in plot_data(result)["axes"]}
    result["budget"]["max_download_bytes"] = 40 << 10
    for trial in (result["best"], result["trials"][8]):
        trial["download_bytes"] = 20 << 10
    data = plot_data(result)
    (axis,) = (axis for axis in data["axes"] if axis["key"] == "download")
    assert axis["limit"] == 40 << 10
    (best,) = (point for point in data["points"] if point["mark"] == "best")
    assert best["values"]["download"] == {"value": 20480, "low": 20480, "high": 20480}
    assert ["download", "20.0 KiB"] in best["facts"]
    assert '<th scope="col">download</th>' in render_report(result)


def test_a_trial_that_was_cut_short_is_not_said_to_fit() -> None:
    result = results.succeeded() | {"state": "CANCELLED", "best": None}
    result["trials"] = result["trials"][:3]
    result["trials"][2] |= {"state": "running", "role": "finalist"} | results.no_figures()
    rows = render_report(result).split('<table class="trials">')[1]
    row = rows.split('id="trial-2"')[1].split("</tr>")[0]
    assert "not finished" in row
    assert "fits" not in row


def test_what_was_asked_for_is_told() -> None:
    result = results.succeeded()
    page = render_report(result)
    assert "share of samples whose highest score is that of their label" in page
    assert "techniques" not in page
    result |= {"techniques": ["low_rank", "precision"], "importance": "fisher", "packed": True}
    result |= {"teachers": ["projects/default/models/t"], "teacher_digests": ["c4" * 32]}
    page = render_report(result | {"verification": "required"})
    for told in ("low_rank, precision", "fisher", "packed for download", "c4" * 32, "required"):
        assert told in page


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "FAILED", "CANCELLED"])
def test_a_job_with_nothing_to_show_still_has_a_page(tmp_path: Path, state: str) -> None:
    number = job_pb2.CompressionJob.State.Value(f"STATE_{state}")
    result = build_result(job_pb2.CompressionJob(name="projects/p/jobs/j", state=number), (), ())
    write_report(result, tmp_path / "report.html")
    assert state.lower() in (tmp_path / "report.html").read_text()


def test_very_long_models_are_cut_in_the_page_and_say_so() -> None:
    result = results.succeeded()
    result["layers"] = result["layers"] * 50
    assert "100 more layers are in result.json" in render_report(result)
