"""Tables on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from components.errors import printable

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


def _cell(value: Any) -> str:
    match value:
        case None:
            return "–"
        case float():
            return f"{value:.4f}"
        case _:
            return str(value)
