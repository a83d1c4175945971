"""An old version of the data, checked out and computed again, gives the old figures; and what is pending is known."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from components.data.version import good_images
from flows.data.versions import commit_folder, commit_images
from flows.retraining.pending import Pending, find_pending
from tests.project import Project, surface, write_image

METRICS = Path("metrics/widget.json")


def reproduce(project: Project) -> bytes:
    done = project.dvc("repro")
    assert done.returncode == 0, done.stderr[-2000:]
    return METRICS.read_bytes()


@pytest.mark.slow
def test_checking_out_an_old_version_gives_the_old_metrics_byte_for_byte(git_project: Project, tmp_path: Path) -> None:
    git_project.set_params({"data": {"categories": ["widget"]}, "training": {"head_steps": 1, "steps": 2}})
    git_project.git("commit", "-qam", "One category")
    commit_folder("widget")
    assert find_pending() == [Pending("widget", 22, None)]
    old = reproduce(git_project)
    assert find_pending() == []
    git_project.git("add", "dvc.lock", "metrics")
    git_project.git("commit", "-qm", "Models of the first version")
    git_project.git("tag", "first")

    write_image(tmp_path / "in" / "bright.png", surface(np.random.default_rng(8)) // 2 + 90)
    commit_images("widget", good_images([tmp_path / "in" / "bright.png"]))
    (pending,) = find_pending()
    assert (pending.category, pending.images) == ("widget", 1)
    assert pending.since is not None
    assert abs(pending.since - datetime.now(UTC)) < timedelta(hours=1)
    new = reproduce(git_project)
    git_project.git("add", "dvc.lock", "metrics")
    git_project.git("commit", "-qm", "Models of the second version")
    assert new != old

    git_project.git("checkout", "-q", "first")
    assert git_project.dvc("checkout").returncode == 0
    assert not Path("data/tiny/widget/train/good/bright.png").exists()
    METRICS.unlink()
    forced = git_project.dvc("repro", "--force")  # every stage is computed, none is taken from the cache
    assert forced.returncode == 0, forced.stderr[-2000:]
    assert METRICS.read_bytes() == old
    assert git_project.git("status", "--porcelain", "dvc.lock", "metrics") == ""


NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("images", "hours", "is_due"), [(10, 0, True), (9, 23, False), (9, 24, True), (1, None, True), (0, 1, False)]
)
def test_retraining_waits_for_enough_images_or_long_enough(images: int, hours: int | None, is_due: bool) -> None:
    since = None if hours is None else NOW - timedelta(hours=hours)
    assert Pending("bolt", images, since).is_due(min_images=10, max_hours=24, now=NOW) is is_due
