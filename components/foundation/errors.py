"""The one exception that is meant for a person's eyes, and text that is fit for them."""

import errno
import os


class UserError(Exception):
    """An error that the user can mend: one sentence that says what is wrong, where, and what to do."""


class ServerError(UserError):
    """A server did not do what it was asked for: the same may succeed later, when it is back."""


def error_sentence(error: UserError | OSError) -> str:
    """Say an error that a person can mend, or one of the operating system, in one sentence."""
    return os_error_sentence(error) if isinstance(error, OSError) else str(error)


def os_error_sentence(error: OSError) -> str:
    """Say an operating-system error in one sentence, with the file it concerns and the remedy where there is one."""
    where = f" at {os.fspath(error.filename)}" if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"The disk is full{where}: free some space and run again; nothing was left half-made."
        case errno.EFBIG:
            return f"A file{where} is larger than this system lets one be: raise the limit (ulimit -f) and run again."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"Writing or reading is not permitted{where}: check the owner and the mode of the file."
        case errno.ENOENT:
            return f"There is no such file{where}."
        case _:
            return f"{error.strerror or error}{where}."


def printable(text: str) -> str:
    """The text with every character that does not print (control, direction, unpaired surrogate) as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
