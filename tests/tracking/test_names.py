"""Whatever a person calls a kind of defect, MLflow takes it as part of a name, and the text can be had back."""

import os

from hypothesis import given
from hypothesis import strategies as st

from components.tracking.names import MOST, chosen_text, fit_name


def is_taken_by_mlflow(name: str) -> bool:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric

    try:
        _validate_metric(name, 1.0, 1, 0)
    except MlflowException:
        return False
    return True


WORDS = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=40)
BYTES = st.binary(min_size=1, max_size=40).filter(lambda name: not {0, ord("/")} & set(name)).map(os.fsdecode)
FOLDER_NAMES = st.one_of(WORDS, BYTES).filter(lambda name: name not in (".", ".."))


@given(FOLDER_NAMES)
def test_any_folder_name_fits_and_comes_back(text: str) -> None:
    name = fit_name(text)
    assert is_taken_by_mlflow(f"kinds/found {name}")
    assert len(name) > MOST - 1 or chosen_text(name) == text


def test_common_names_stay_readable() -> None:
    assert fit_name("bent_lead-2.old scratch") == "bent_lead-2.old scratch"
    assert fit_name("Kratzer übrig") == "Kratzer übrig"
    assert [fit_name(text) for text in ("#2", "50% worn", "a&b, c", "12:30")] == [
        ":232",
        "50:25 worn",
        "a:26b:2C c",
        "12:3A30",
    ]


def test_long_names_are_cut_and_stay_apart() -> None:
    one, other = fit_name("x" * 240 + "a"), fit_name("x" * 240 + "b")
    assert one != other
    assert len(one) == len(other) == MOST
