"""The order in which ways to a smaller download are tried."""

from __future__ import annotations

from tightfit_service.application.course.download_plan import AIM, DownloadPlan
from tightfit_service.application.work.download import DownloadOffer, DownloadOption


def option(label: str, size: int, lost: float = 0.1) -> DownloadOption:
    return DownloadOption(
        sparsity={"nodes": {}},
        clustering=None,
        download_bytes=size,
        error=lost,
        lost=lost,
        label=label,
    )


def begun(*options: DownloadOption, least: DownloadOption | None = None) -> DownloadPlan:
    plan = DownloadPlan(limit=1000, packed_bytes=4000)
    assert plan.aim == AIM * 1000
    plan.take(DownloadOffer(options=options, least=least))
    return plan


def test_what_loses_too_much_gives_way_to_the_next_option() -> None:
    one, other = option("a", 940), option("b", 900)
    plan = begun(one, other)
    assert plan.aim is None
    assert plan.next() is one
    plan.learn(one, packed_bytes=940, fits_unpacked=False)
    assert plan.aim is None
    assert plan.next() is other


def test_a_file_that_grew_asks_for_smaller_ones_which_were_not_tried() -> None:
    one = option("a", 900)
    plan = begun(one)
    plan.next()
    plan.learn(one, packed_bytes=1080, fits_unpacked=True)
    assert plan.aim == int(AIM * 1000 / 1.2)
    plan.take(DownloadOffer(options=(one, option("b", 780))))
    found = plan.next()
    assert found is not None
    assert found.label == "b"
    assert plan.next() is None


def test_the_strongest_option_is_evidence_where_none_reaches_the_limit() -> None:
    strongest = option("z", 1500)
    plan = begun(least=strongest)
    assert plan.least is strongest
    assert plan.next() is strongest
    plan.learn(strongest, packed_bytes=1500, fits_unpacked=True)
    assert plan.aim is None, "its size is the smallest relaxation"
    assert plan.next() is None


def test_the_smallest_relaxation_is_looked_for_between_good_and_bad() -> None:
    one = option("a", 1000)
    plan = begun(one)
    plan.next()
    plan.learn(one, packed_bytes=1000, fits_unpacked=False)
    assert plan.aim == 2000  # between 1000, which lost too much, and 4000
    middle = option("m", 2000)
    plan.take(DownloadOffer(options=(middle, option("n", 1900))))
    assert plan.next() is middle
    plan.learn(middle, packed_bytes=2000, fits_unpacked=True)
    assert plan.aim == 1414
    assert plan.least is None


def test_there_is_an_end_where_good_and_bad_are_close() -> None:
    one = option("a", 950)
    plan = DownloadPlan(limit=1000, packed_bytes=1050)
    plan.take(DownloadOffer(options=(one,)))
    plan.next()
    plan.learn(one, packed_bytes=950, fits_unpacked=False)
    assert plan.aim is None
    assert plan.next() is None


def test_without_anything_to_change_nothing_is_tried() -> None:
    plan = begun()
    assert plan.least is None
    assert plan.next() is None
