"""Tables over seeds, and verdicts against numbers made by hand."""

import json
import math

import pytest

from clipjax.recipe import Column, table
from clipjax.recipe.results import Results, flat_numbers, merge, read
from clipjax.recipe.tables import beats, collect, markdown, standard_error


def test_standard_error_by_hand():
    assert standard_error([1, 2, 3]) == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(standard_error([1]))


def test_beats_needs_more_than_both_standard_errors():
    # Standard errors 1 / sqrt(3) each: together 1.1547.
    a, b = [1.0, 2.0, 3.0], [-0.1, 0.9, 1.9]
    assert beats(a, b).winner == ""  # difference 1.1
    assert beats(a, [x - 0.1 for x in b]).winner == "A"  # 1.2
    assert beats([x - 0.1 for x in b], a).winner == "B"
    assert beats(a, [x - 0.1 for x in b], lower_is_better=True).winner == "B"
    verdict = beats(a, [x - 0.1 for x in b])
    assert verdict.difference == pytest.approx(1.2)
    assert verdict.error == pytest.approx(2 / math.sqrt(3))
    assert verdict.sentence("x", "y") == "x beats y"
    assert beats(b, a).sentence("x", "y") == "no difference between x and y"


def test_equal_seeds_have_no_error_and_the_same_mean_no_winner():
    assert beats([0.5, 0.5], [0.5, 0.5]).winner == ""
    assert beats([0.5, 0.5], [0.4, 0.4]).winner == "A"


def test_one_seed_or_a_diverged_one_says_nothing():
    assert beats([1.0], [0.0, 0.1]).winner is None
    assert beats([1.0, math.nan], [0.0, 0.1]).winner is None
    assert "needs two seeds" in beats([1.0], [0.0]).sentence("x", "y")


def of(value, length=None, speed=None):
    values = {"acc": value} | ({} if length is None else {"length": length})
    return Results(values, {"acc": 0.1}, {"length": "words"}, speed)


def test_a_table_says_mean_spread_chance_speed_and_verdicts():
    rows = {"a": [of(0.5, 6.1, 100.0), of(0.7, 6.3, 110.0)], "b": [of(0.1, speed=50.0)], "c": []}
    columns = {"accuracy": Column("acc"), "words": Column("length", lower_is_better=True)}
    data = collect(rows, columns, "a", [("a", "b", "accuracy"), ("a", "c", "words")])
    assert data["columns"]["accuracy"]["unit"] == "%"
    assert data["columns"]["words"]["unit"] == "words"
    lines = markdown(data).splitlines()
    assert lines[0] == "| run | seeds | accuracy (%) | words (words) | speed |"
    assert lines[1] == "|---|---|---|---|---|"
    assert lines[2] == "| chance |  | 10.0 |  |  |"
    assert lines[3] == "| a | 2 | 60.0 ± 14.1 | 6.20 ± 0.14 | 1.00 |"
    assert lines[4] == "| b | 1 | 10.0 |  | 0.48 |"
    assert lines[5] == "| c | 0 |  |  |  |"
    assert lines[7] == "- accuracy: a against b: needs two seeds of each (difference 50.0)."
    json.dumps(data)


def test_numbers_outside_0_and_1_have_no_percent_and_units_can_be_set():
    data = collect({"a": [of(1.5)]}, {"x": Column("acc"), "y": Column("acc", unit="m", digits=0)})
    assert data["columns"]["x"]["unit"] == ""
    assert "| a | 1 | 1.50 | 2 |" in markdown(data)


def test_results_of_several_steps_are_merged(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"a": {"b": 1, "c": True}, "d": "text"}))
    assert flat_numbers({"a": {"b": 1, "c": True}, "d": "text"}) == {"a/b": 1.0}
    found = merge([read(tmp_path), of(0.5, speed=3.0)])
    assert found.values == {"a/b": 1.0, "acc": 0.5}
    assert found.speed == 3.0


def test_rows_may_name_one_step_or_several_a_seed():
    step = table("t", {"a": "x", "b": ["x", ("y", "z")]}, {"c": "m"})
    assert step.settings["rows"] == {"a": [("x",)], "b": [("x",), ("y", "z")]}
