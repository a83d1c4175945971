"""All that is known of one version of a category's model, for `flawline status CATEGORY`."""

import json
from dataclasses import asdict

from components.registry import versions as registry
from components.registry.versions import Version
from components.tracking.connection import shown_uri, tracking_uri
from flows.commands.tables import print_table
from flows.common.figures import TITLES

KINDS = {"kind": "kind of defect", "image_auroc": "image AUROC", "found": "found", "pixel_auroc": "pixel AUROC"}


def print_version(category: str, number: int | None, as_json: bool = False) -> None:
    """Print a version (None: the champion, or the latest where there is none) as JSON, or for reading."""
    version = registry.find_version(category, number)
    if as_json:
        print(json.dumps(asdict(version), indent=2, ensure_ascii=False))
        return
    print(f"{category} version {version.number}, {version.verdict or ', '.join(version.aliases) or 'without alias'}")
    print_table([{name: version.metrics.get(name) for name in TITLES}], TITLES)
    if version.by_kind:
        print_table([{"kind": kind, **figures} for kind, figures in version.by_kind.items()], KINDS)
    for title, words in facts(version).items():
        print(f"{title + ':':<14}{words or 'not known'}")


def facts(version: Version) -> dict[str, str]:
    """What a version was made of, and where to look further, by title."""
    held = f" (commit {version.data_commit[:10]})" if version.data_commit else ""
    return {
        "method": version.method,
        **({"updated": version.updated} if version.updated else {}),
        "threshold": f"{version.threshold:.4g}",
        "promise": version.promise or "–",
        "data version": f"{version.data_version}{held}" if version.data_version else "",
        "code commit": version.commit,
        "commit": f"{version.git_commit} ({version.git_branch})" if version.git_commit else "",
        "run": _address(version),
        "capsule": version.digest,
    }


def _address(version: Version) -> str:
    """Where the run is seen: under the server's address, or else by its id alone, for `mlflow ui`."""
    uri = tracking_uri()
    if uri.startswith("http") and version.run_page:
        return f"{shown_uri(uri)}{version.run_page}"
    return f"{version.run_id} (in `mlflow ui`: {version.run_page})" if version.run_page else version.run_id
