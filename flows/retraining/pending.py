"""Which categories have data that their latest model does not know: DVC is asked, by the category's last stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from components.data import version as data_version
from components.foundation.params import Params, load_params
from flows.data.dvc_project import open_project
from flows.data.history import version_log
from flows.data.versions import dvc_file, read_manifest
from flows.retraining.stages import STAGES, target_of


@dataclass(frozen=True)
class Pending:
    """A category whose data differ from those that its last stage was computed from.

    Attributes:
        category: its name.
        images: number of images added, changed or removed since; all images where nothing was computed yet.
        since: when the first version was committed that is not learned yet; None where no commit tells, as for data
            that were never learned or were changed by hand.
    """

    category: str
    images: int
    since: datetime | None

    def is_due(self, min_images: int, max_hours: float, now: datetime) -> bool:
        """Whether it is time to retrain: enough images, or the first of them waits for long (both bounds included)."""
        waits_long = self.since is None or now - self.since >= timedelta(hours=max_hours)
        return self.images >= min_images or waits_long


def find_pending(categories: Sequence[str] | None = None) -> list[Pending]:
    """The categories (of those given, or of all in params.yaml) with changed data, in that order."""
    params = load_params()
    with open_project() as repo:
        found = [_pending(repo, category, params) for category in categories or params.data.categories]
    return [one for one in found if one is not None]


def _pending(repo: Any, category: str, params: Params) -> Pending | None:
    folder = Path(params.data.root) / category
    stage = repo.stage.load_one("dvc.yaml", target_of(STAGES[-1], category))
    (data,) = [dep for dep in stage.deps if Path(dep.def_path) == folder]
    learned = data.hash_info.value if data.hash_info else None
    if not folder.is_dir() or not data.workspace_status():
        return None
    before = (read_manifest(repo, learned) if learned else None) or {}
    present = read_manifest(repo, data.get_hash().value)
    if present is None:  # changed by hand, and in no version yet: names alone are compared
        present = data_version.current_manifest(folder, before, params.threads)
    difference = data_version.compare(before, present)
    count = len(difference.added) + len(difference.removed) + len(difference.changed)
    return Pending(category, count, _first_after(learned, category, params))


def _first_after(learned: str | None, category: str, params: Params) -> datetime | None:
    """When the version after the learned one was committed."""
    later: str | None = None
    for _, date, _, digest in version_log(dvc_file(category, params)):
        if digest == learned:
            return datetime.fromisoformat(later) if later else None
        later = date
    return None
