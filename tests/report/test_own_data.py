"""What a run says of clients' own data: alone, with the common model, and with personal answers."""

from typing import Any

import pytest

from fftmoe.report.answer import gains_of_clients, who_gains
from fftmoe.report.metric import Metric, own_values
from fftmoe.report.own_data import own_data_lines
from fftmoe.report.record import RunRecord
from fftmoe.report.sections import clients
from fftmoe.rounds.own_data import own_data

ALONE, SHARED, PERSONAL = [0.75, 0.5, 0.25], [0.5, 0.625, 0.25], [0.75, 0.875, 0.5]


def summary(rows: str = "client", **lists: list[float]) -> dict[str, Any]:
    key = "accuracy" if rows == "client" else "reweighted_accuracy"
    listed = {key if name == "shared" else name: values for name, values in lists.items()}
    found: dict[str, Any] = {
        "metric": "accuracy",
        "accuracy": 0.5,
        f"{rows}_accuracy": {"mean": 0.4, "worst_decile": 0.25},
        "clients": {"name": ["ann", "bob", "cy"], "tier": ["small", "small", "large"], **listed},
    }
    if "alone" in lists:
        found[f"{'local_only_client' if rows == 'client' else 'reweighted_local_only'}_accuracy"] = {
            "mean": 0.5,
            "worst_decile": 0.25,
        }
    return {**found, "own_data": own_data(found["clients"], key, True)}


@pytest.mark.parametrize("rows", ["client", "reweighted"])
def test_the_lines_have_all_three_and_who_loses(rows: str):
    found = summary(rows, shared=SHARED, personal=PERSONAL, alone=ALONE)
    where = (
        "on each client's own test rows" if rows == "client" else "on all test rows, reweighted to each client's labels"
    )
    assert own_data_lines(found, Metric("accuracy")) == [
        f"  {where}:",
        "                       mean    worst client",
        "    training alone     0.500   0.250",
        "    the common model   0.458   0.250",
        "    personal answers   0.708   0.500",
        "  3 of 3 clients lose nothing by taking part; the gain over training alone is +0.208 in the mean and +0.000 "
        "for the worst client",
    ]
    # These values are said once.
    assert own_values(found, Metric("accuracy"), beside=found["own_data"]) == {}
    assert len(own_values(found, Metric("accuracy"))) == 2


def test_the_choices_of_clients_are_counted_and_listed():
    found = summary(shared=SHARED, personal=PERSONAL, alone=ALONE)
    found["clients"]["answer"] = ["private part", "corrected", "private part"]
    line = own_data_lines(found, Metric("accuracy"))[-2]
    assert line == (
        "  personal answers are, by each client's own rows: 1 corrected for its labels, 2 with a private part"
    )
    view = clients(RunRecord({}, [], found, "run"))
    assert view is not None
    assert view.header[:3] == ("client", "tier", "its personal answers")
    assert {row[0]: row[2] for row in view.each} == {
        "ann": "with a private part",
        "bob": "corrected for its labels",
        "cy": "with a private part",
    }


def test_without_personal_answers_the_common_model_is_compared():
    found = summary(shared=SHARED, alone=ALONE)
    lines = own_data_lines(found, Metric("accuracy"))
    assert not any("personal" in line for line in lines)
    assert lines[-1].startswith("  2 of 3 clients lose nothing by taking part")
    assert who_gains(found).startswith("1 of 3 clients gains over training alone, each on its own test rows, and 1 is")


def test_the_answer_counts_personal_answers():
    found = summary(shared=SHARED, personal=PERSONAL, alone=ALONE)
    assert gains_of_clients(found) == (["bob", "cy"], [], 3)
    assert who_gains(found) == (
        "2 of 3 clients gain over training alone, each with its personal answers on its own test rows (1 is level), "
        "and chance alone could give such numbers"
    )


def test_without_training_alone_nothing_is_gained():
    found = summary(shared=SHARED, personal=PERSONAL)
    assert [line.split()[0] for line in own_data_lines(found, Metric("accuracy"))[2:]] == ["the", "personal"]
    assert own_data_lines({"metric": "accuracy", "accuracy": 0.5}, Metric("accuracy")) == []


def test_the_page_lists_who_gains_least_first():
    found = summary(shared=SHARED, personal=PERSONAL, alone=ALONE)
    view = clients(RunRecord({}, [], found, "run"))
    assert view is not None
    assert view.header == ("client", "tier", "accuracy", "personal answers", "trained alone")
    assert [row[0] for row in view.each] == ["ann", "cy", "bob"]  # by 0, .25 and .375
    assert view.own_data == [
        ("training alone", "0.500", "0.250"),
        ("the common model", "0.458", "0.250"),
        ("personal answers", "0.708", "0.500"),
    ]
