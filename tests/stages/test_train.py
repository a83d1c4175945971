"""Stage train writes down what its learners say of their steps."""

import csv
import io

from components.stages.train import history_csv


def test_the_history_has_its_columns_and_those_that_a_learner_adds() -> None:
    rows = [{"step": 1, "loss": 0.5, "accuracy": 0.75, "rate": 0.1}, {"step": 2, "loss": 0.4, "rate": 0.1, "dice": 0.2}]
    text = history_csv(rows)
    assert text.splitlines()[0] == "step,loss,accuracy,rate,dice"
    read = list(csv.DictReader(io.StringIO(text)))
    assert [{k: float(v) for k, v in row.items() if v} for row in read] == rows


def test_without_steps_the_columns_are_there() -> None:
    assert history_csv([]) == "step,loss,accuracy,rate\n"
