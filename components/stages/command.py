"""The command line of every stage, `python -m components.stages.NAME CATEGORY`: its parameters, its errors."""

import atexit
import gc
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from components.foundation.errors import UserError, error_sentence
from components.foundation.libraries import check_libraries
from components.foundation.making import check_unchanged
from components.foundation.mlflow_store import check_place
from components.foundation.names import check_category_name
from components.foundation.owner import end_with_owner
from components.foundation.params import Params, load_params

REASON = "FLAWLINE_REASON"  # the file into which a stage writes why it failed, besides saying so


def run_stage(main: Callable[[str, Params], None], reads: Sequence[str]) -> None:
    """Call `main(category, params)` for the command line's category; exit 1 with one sentence on a user's error.

    reads: the sections of the parameters that the stage depends on, as dvc.yaml says. If they are changed in
    params.yaml meanwhile the stage fails, so that DVC does not record them with a result of the old ones.
    """

    end_with_owner()

    def whole() -> None:
        category, params = _category(sys.argv), _params_with_threads()
        check_libraries()
        main(category, params)
        check_unchanged(params, reads)

    run_guarded(whole)


def run_guarded(action: Callable[[], None]) -> None:
    """Run `action`; a UserError or an operating-system error becomes one sentence on stderr and exit code 1."""
    atexit.register(gc.freeze)  # a process that ends need not look for garbage in all its libraries first
    try:
        action()
    except (UserError, OSError) as error:
        _fail(error_sentence(error))


def _fail(sentence: str) -> None:
    """Exit with the sentence, which a flow that has named a file for it gets as well."""
    if path := os.environ.get(REASON):
        with suppress(OSError):
            Path(path).write_text(sentence, encoding="utf-8", errors="backslashreplace")  # a path may be no UTF-8
    sys.exit(f"flawline: {sentence}")


def _category(arguments: list[str]) -> str:
    if len(arguments) != 2:
        raise UserError(f"usage: python -m components.stages.NAME CATEGORY (got {len(arguments) - 1} arguments).")
    check_category_name(arguments[1])
    return arguments[1]


def _params_with_threads() -> Params:
    """Read params.yaml and fix the number of threads before any numerical library starts its own."""
    check_place(Path.cwd())
    params = load_params()
    os.environ.update(params.thread_variables)
    return params
