"""Tables and lists of names on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from components.foundation.errors import printable

MAX_NAMED = 10  # names in a line of prose
PIPE_WIDTH = 10_000  # characters; a table takes what it needs of them
JustifyMethod = Literal["left", "right"]


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print rows (one at least) as a table; `columns`: title of each key, in their order.

    Nothing is cut: a terminal gets long cells in several lines, a pipe gets lines of any length. Names of files and
    folders may be among them: nothing in a cell or a title is taken for markup or a terminal's code.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    for name, title in columns.items():
        justify: JustifyMethod = "right" if isinstance(rows[0].get(name), int | float) else "left"
        table.add_column(Text(printable(title)), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(_cell(row.get(name)))) for name in columns))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def say_names(words: str, names: Sequence[str]) -> None:
    """Print a line of prose with names, the first of them where there are many; nothing where there is none."""
    if names:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        print(f"{words}: {', '.join(map(printable, names[:MAX_NAMED]))}{more}")


def say_lost(category: str, names: Sequence[str]) -> None:
    """Say which files of the versions before have no bytes any more, see `flows.data.versions.Committed`."""
    say_names(
        f"lost for the versions of {category} before this one, as they were changed in place while they were hard "
        "links into DVC's cache, and no remote has them",
        names,
    )


def _cell(value: Any) -> str:
    match value:
        case None:
            return "–"
        case float():
            return f"{value:.4f}"
        case _:
            return str(value)
