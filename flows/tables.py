"""Tables on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print rows (one at least) as a table; `columns`: title of each key, in their order."""
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold")
    for name, title in columns.items():
        table.add_column(title, justify="right" if isinstance(rows[0].get(name), int | float) else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    width = None if sys.stdout.isatty() else 140
    Console(width=width).print(table)


def _cell(value: Any) -> str:
    match value:
        case None:
            return "–"
        case float():
            return f"{value:.4f}"
        case _:
            return str(value)
