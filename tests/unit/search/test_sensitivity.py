"""The sensitivity model is monotone, zero at full width, and gets better by being corrected."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightfit_service.search.sensitivity import Probe, SensitivityModel

IMPORTANCES = st.dictionaries(
    st.sampled_from("abcde"),
    st.lists(st.floats(0.0, 1e6, allow_subnormal=False), min_size=1, max_size=20),
    min_size=1,
)


def example_model() -> SensitivityModel:
    rng = np.random.default_rng(1)
    return SensitivityModel.from_importance(
        {
            "a": rng.exponential(1.0, 16).tolist(),
            "b": rng.exponential(4.0, 32).tolist(),
            "c": rng.exponential(0.2, 8).tolist(),
        }
    )


def squared_error(model: SensitivityModel, trials: Mapping[tuple[int, int, int], float]) -> float:
    return sum((model.predict(as_kept(levels)) - loss) ** 2 for levels, loss in trials.items())


def as_kept(levels: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip("abc", levels, strict=True))


@given(importance=IMPORTANCES)
def test_curves_are_zero_at_full_width_and_rise_ever_faster(
    importance: dict[str, list[float]],
) -> None:
    model = SensitivityModel.from_importance(importance)
    assert model.predict({group: len(scores) for group, scores in importance.items()}) == 0.0
    for group, scores in importance.items():
        losses = [model.loss(group, kept) for kept in range(len(scores), 0, -1)]
        steps = np.diff(losses)
        assert (steps >= 0).all()
        assert (np.diff(steps) >= -1e-9 * max(losses)).all()


def test_half_width_costs_what_was_assumed_whatever_the_unit_of_the_scores() -> None:
    scores = {"a": [1.0, 2.0, 3.0, 4.0], "b": [10.0, 20.0, 30.0, 40.0]}
    larger = {group: [1e4 * score for score in values] for group, values in scores.items()}
    for importance in (scores, larger):
        model = SensitivityModel.from_importance(importance, loss_at_half=0.03)
        assert model.predict({"a": 2, "b": 2}) == pytest.approx(0.03)
        assert model.loss("b", 2) > model.loss("a", 2)


def test_groups_not_named_are_whole() -> None:
    model = example_model()
    assert model.predict({"a": 8}) == model.predict({"a": 8, "b": 32, "c": 8}) == model.loss("a", 8)


@given(
    trials=st.dictionaries(
        st.tuples(st.integers(1, 15), st.integers(1, 31), st.integers(1, 7)),
        st.floats(0.0, 0.9),
        min_size=1,
        max_size=8,
    )
)
@settings(deadline=None)
def test_correction_keeps_curves_monotone_and_zero_at_full_width(
    trials: dict[tuple[int, int, int], float],
) -> None:
    model = example_model()
    for levels, loss in trials.items():
        model = model.observe(as_kept(levels), loss)
    for group, units in (("a", 16), ("b", 32), ("c", 8)):
        losses = [model.loss(group, kept) for kept in range(1, units + 1)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] == 0.0
        assert losses[-2] > 0.0


def test_trials_teach_how_much_recovery_regains() -> None:
    model = example_model()
    kept = {"a": 8, "b": 16, "c": 4}
    before = model.predict(kept)
    one = model.observe(kept, before / 4)
    assert before / 4 < one.predict(kept) < before / 2
    many = one
    for scale in (0.7, 0.8, 0.9):
        other = {group: round(units * scale * 1.5) for group, units in kept.items()}
        many = many.observe(other, model.predict(other) / 4)
    assert many.predict(kept) == pytest.approx(before / 4, rel=0.2)
    # A group that no trial touched gains from it too.
    assert model.observe({"a": 8}, 0.0).loss("b", 16) < model.loss("b", 16)


def test_correction_reduces_the_error_on_the_observed_trials_and_on_others() -> None:
    model = example_model()
    truth = {"a": 3.0, "b": 0.4, "c": 1.0}
    rng = np.random.default_rng(5)

    def trials(count: int) -> dict[tuple[int, int, int], float]:
        drawn = {}
        for _ in range(count):
            levels = (int(rng.integers(4, 16)), int(rng.integers(8, 32)), int(rng.integers(2, 8)))
            exact = sum(truth[g] * model.loss(g, k) for g, k in as_kept(levels).items())
            drawn[levels] = 0.5 * exact * (1 + 0.1 * float(rng.standard_normal()))
        return drawn

    seen, unseen = trials(10), trials(30)
    corrected = model
    for levels, loss in seen.items():
        corrected = corrected.observe(as_kept(levels), loss)
    assert squared_error(corrected, seen) < 0.2 * squared_error(model, seen)
    assert squared_error(corrected, unseen) < 0.2 * squared_error(model, unseen)
    assert corrected.factors["a"] > 1.0 > corrected.factors["b"]


def test_the_order_of_trials_does_not_matter() -> None:
    trials = [({"a": 8}, 0.02), ({"b": 10, "c": 2}, 0.05), ({"a": 4, "b": 4}, 0.2)]
    one, other = example_model(), example_model()
    for kept, loss in trials:
        one = one.observe(kept, loss)
    for kept, loss in reversed(trials):
        other = other.observe(kept, loss)
    kept = {"a": 3, "b": 7, "c": 5}
    assert one.predict(kept) == pytest.approx(other.predict(kept), rel=1e-6)


def test_a_trial_that_removed_nothing_teaches_nothing() -> None:
    model = example_model()
    assert model.observe({"a": 16, "b": 32, "c": 8}, 0.01).predict({"a": 8}) == model.predict(
        {"a": 8}
    )


def test_probes_weigh_groups_against_each_other_and_keep_the_scale() -> None:
    model = example_model()
    half = {"a": 8, "b": 16, "c": 4}
    probes = [
        Probe(group_id="a", kept=8, accuracy_loss=0.6),
        Probe(group_id="b", kept=16, accuracy_loss=0.02),
        Probe(group_id="c", kept=4, accuracy_loss=0.02),
    ]
    probed = model.probe(probes)
    assert probed.predict(half) == pytest.approx(model.predict(half))
    assert probed.loss("a", 8) > model.loss("a", 8)
    assert probed.loss("b", 16) < model.loss("b", 16)
    assert model.probe(probes[:1]) == model
    assert probed.probe(probes) == probed
    # What trials taught stays, whichever came first.
    before = model.observe(half, 0.01).probe(probes)
    after = model.probe(probes).observe(half, 0.01)
    assert before.predict({"a": 4}) == pytest.approx(after.predict({"a": 4}))


def test_probes_tell_what_cuts_cost_before_recovery() -> None:
    half = {"a": 8, "b": 16}
    model = example_model()
    probes = [Probe(group_id=group, kept=kept, accuracy_loss=0.3) for group, kept in half.items()]
    ratio = model.untrained_ratio(probes)
    assert ratio is not None
    assert ratio * model.predict(half) == pytest.approx(0.6)
    assert model.untrained_ratio([]) is None
    gains = [Probe(group_id="a", kept=8, accuracy_loss=-0.1)]
    assert model.untrained_ratio(gains) == 0.0


def test_choices_are_ready_for_the_solver() -> None:
    choice = example_model().choice("a", [4, 8, 16])
    assert choice.levels == (4, 8, 16)
    assert choice.accuracy_loss[0] > choice.accuracy_loss[1] > choice.accuracy_loss[2] == 0.0


def test_dead_groups_are_cheap_but_not_free() -> None:
    model = SensitivityModel.from_importance({"a": [1.0, 1.0], "dead": [0.0, 0.0, 0.0]})
    assert 0.0 < model.loss("dead", 1) < 1e-6 * model.loss("a", 1)


def test_bad_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="no units"):
        SensitivityModel.from_importance({"a": []})
    for score in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="negative or not finite"):
            SensitivityModel.from_importance({"a": [1.0, score]})
    model = example_model()
    with pytest.raises(ValueError, match="cannot keep 17 of 16"):
        model.predict({"a": 17})
    with pytest.raises(ValueError, match="measured loss"):
        model.observe({"a": 8}, math.nan)
