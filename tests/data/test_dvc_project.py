"""What DVC writes in place is written whole in a project: a kill leaves the file before or the file after."""

from pathlib import Path

import pytest

from flows.data.versions import commit_folder
from tests.arriving import ended, started
from tests.dying import die_before
from tests.project import Project


def commit_widget() -> None:
    commit_folder("widget")


@pytest.mark.slow
def test_who_holds_what_is_readable_after_a_kill_while_dvc_writes_it(git_project: Project) -> None:
    commit_widget()
    held = Path(".dvc/tmp/rwlock").read_bytes()
    Path("data/tiny/widget/train/good/003.png").unlink()
    assert ended(started(git_project, commit_widget, die_before, r"os\.rename .*rwlock$")) == -9
    assert Path(".dvc/tmp/rwlock").read_bytes() == held
    commit_widget()
    assert git_project.git("rev-list", "--count", "HEAD") == "3"
