"""Which images a registered version has learned and held out: on these versions are compared, and by these traced."""

from collections.abc import Collection

from components.detection.card import read_roles
from components.images.identity import LEARN, Roles
from components.registry.versions import Version, download_capsule, list_versions


def version_roles(version: Version) -> Roles | None:
    """What each good image was for, by digest, as the version's capsule says; None where it was made without."""
    return read_roles(download_capsule(version.category, version.number))


def knowing_versions(category: str, digests: Collection[str]) -> list[tuple[Version, bool]]:
    """The versions with an alias that were made with one of these images, and whether they have learned one of them.

    The latest first. The others held all of them out, to be chosen and to set the threshold by.
    """
    found = []
    for version in list_versions(category):
        roles = version_roles(version) if version.aliases else None
        if roles and (own := roles_of(roles, digests)):
            found.append((version, LEARN in own))
    return found


def roles_of(roles: Roles, digests: Collection[str]) -> set[str]:
    """The roles that these images have, as far as they are known."""
    return {role for digest, role in zip(roles.digests, roles.roles, strict=True) if digest in digests}
