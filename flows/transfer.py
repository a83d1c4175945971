"""Send versions of the data to the remote, and get them from there."""

import os

from components.errors import UserError
from components.names import check_category_name
from flows.dvc_project import open_project
from flows.history import recorded_digests, versioned_files
from flows.stores import remote_store
from flows.versions import read_manifest


def push(category: str | None = None) -> int:
    """Send what the remote lacks of every version (of one category, or of all); the number of objects sent.

    A version whose list of files this machine's cache does not hold is left to the machine that made it.
    Raises UserError where no remote is set, or not all could be sent.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.transfer import transfer

    digests = recorded_digests(category)
    with open_project() as repo:
        remote = remote_store(repo)
        if remote is None:
            raise UserError("No remote is set: run `flawline data remote s3://BUCKET/PREFIX`, or give it a folder.")
        cache = repo.cache.local
        held = [HashInfo(cache.hash_name, digest) for digest in digests if read_manifest(repo, digest) is not None]
        with remote.errors_said():
            done = transfer(cache, remote.database, held, shallow=False, cache_odb=cache)
    if done.failed:
        raise UserError(
            f"{len(done.failed)} objects could not be sent to the remote: check that it is there and that you may "
            "write to it, and run this again; what was sent is not sent twice."
        )
    return len(done.transferred)


def pull(category: str | None = None) -> int:
    """Bring the project's images (of one category, or of all) to what the .dvc files name; the number of files fetched.

    Raises UserError where no remote is set but needed, or files of the project that are in no version would be lost.
    """
    if category is not None:
        check_category_name(category)
    files = [path for path in versioned_files() if path.is_file() and category in (None, path.stem)]
    if not files:
        raise UserError(
            f"There is no version of {category or 'any category'} here: `flawline data versions` lists them."
        )
    fetched = 0
    with open_project() as repo:
        targets = [os.fspath(path) for path in files]
        remote = remote_store(repo)
        if remote:
            with remote.errors_said():
                fetched = repo.fetch(targets)
        repo.checkout(targets)
    return int(fetched)
