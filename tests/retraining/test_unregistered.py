"""What is computed and not registered is noted until it is, or until a person has been told why it cannot be."""

import os
import signal
from pathlib import Path

import pytest

from components.foundation.errors import ServerError, UserError
from components.foundation.files import held_lock, write_json
from components.foundation.places import Places
from flows.retraining import running, unregistered
from flows.retraining.pipeline import catch_up
from flows.retraining.stages import StageFailedError


@pytest.fixture
def computed(workspace: Path) -> None:
    write_json(Places("widget").capsule / "capsule.json", {"digest": "1" * 64})
    write_json(Places("widget").figures, {"capsule_digest": "1" * 64})


@pytest.mark.parametrize("error", [None, UserError("no"), StageFailedError("no"), ServerError("away"), OSError("full")])
def test_what_ends_or_fails_is_noted_no_more_but_what_may_pass_is(computed: None, error: Exception | None) -> None:
    def register() -> None:
        with unregistered.noted("widget"):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            register()
    else:
        register()
    assert unregistered.categories() == (["widget"] if isinstance(error, (ServerError, OSError)) else [])


def test_what_was_killed_stays_noted_and_is_left_alone_while_another_run_is_at_work(
    computed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    child = os.fork()
    if child == 0:
        with unregistered.noted("widget"):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert unregistered.is_current("widget")
    with held_lock(running.FOLDER / "lock", 0, AssertionError("it is held")):
        catch_up()
    assert unregistered.categories() == ["widget"]
    assert capsys.readouterr().err == ""
