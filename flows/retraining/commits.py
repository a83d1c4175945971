"""The commits of retrainings: the branch `flawline/CATEGORY/VERSION` of each model's version, and what it says.

Their messages end with facts, one `Flawline-Name: value` a line, so that git alone leads from a version to its data,
its run and its capsule, also where no MLflow answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from components.foundation.names import check_category_name
from flows.data import git

BRANCHES = "refs/heads/"
REMOTES = "refs/remotes/"
FOLDER = "flawline"
PREFIX = "Flawline-"
CATEGORY, VERSION, CAPSULE, DATA, RUN = "Category", "Version", "Capsule", "Data", "Run"
THRESHOLD_OF, FALSE_ALARM_RATE, CONFIDENCE = "Threshold-Of", "False-Alarm-Rate", "Confidence"
LOCK, PROCESSOR, THREADS, LIBRARIES, LACKING, DIRTY = (
    *("Lock", "Processor", "Threads", "Libraries", "Not-In-Commit", "Also-Changed"),
)


@dataclass(frozen=True)
class Commit:
    """The commit of a version.

    Attributes:
        branch: such as "flawline/bottle/7"; with its remote in front where this clone has it from there alone.
        commit: 40 hex digits.
        facts: what its message says, by the names above; empty where it is not said.
    """

    branch: str
    commit: str
    facts: Mapping[str, str]

    @property
    def is_here(self) -> bool:
        """Whether this clone has a branch of its own for it."""
        return self.branch.startswith(f"{FOLDER}/")

    @property
    def own_branch(self) -> str:
        """The name that its branch has, or gets, in this clone."""
        return self.branch[self.branch.index(f"{FOLDER}/") :]

    def __getitem__(self, name: str) -> str:
        return self.facts.get(name, "")


def branch_of(category: str, number: int) -> str:
    """The branch of a version, as one types it."""
    check_category_name(category)
    return f"{FOLDER}/{category}/{number}"


def list_commits(category: str = "") -> list[Commit]:
    """The commits of all versions of a category, or of all categories; this clone's own first, then its remotes'."""
    if not git.has_commit():
        return []
    below = f"{FOLDER}/{category or '*'}/*"
    listed = git.list_refs(f"{BRANCHES}{below}", f"{REMOTES}*/{below}")
    return sorted((_read(*entry) for entry in listed), key=lambda one: not one.is_here)


def find_commit(category: str, number: int, capsule: str = "") -> Commit | None:
    """The commit of a version; None where this clone has none.

    capsule: digest of the version's capsule, where that is known: only a commit that names it is the version's.
    """
    check_category_name(category)
    found = [one for one in list_commits(category) if one[VERSION] == str(number) and one[CATEGORY] == category]
    return next((one for one in found if not capsule or one[CAPSULE] == capsule), None)


def models_by_data(category: str = "") -> dict[tuple[str, str], list[int]]:
    """(category, DVC's digest of a data version) -> the numbers of the model's versions that were made with it."""
    found: dict[tuple[str, str], set[int]] = {}
    for one in list_commits(category):
        if one[VERSION].isdecimal():
            found.setdefault((one[CATEGORY], one[DATA]), set()).add(int(one[VERSION]))
    return {key: sorted(numbers) for key, numbers in found.items()}


def as_facts(facts: Mapping[str, str]) -> str:
    """The last paragraph of a commit's message."""
    return "\n".join(f"{PREFIX}{name}: {' '.join(value.split())}" for name, value in facts.items() if value)


def _read(ref: str, commit: str, message: str) -> Commit:
    lines = (line.partition(": ") for line in message.splitlines() if line.startswith(PREFIX))
    facts = {name.removeprefix(PREFIX): value for name, _, value in lines}
    return Commit(ref.removeprefix(BRANCHES).removeprefix(REMOTES), commit, facts)
