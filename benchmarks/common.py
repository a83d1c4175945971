"""What every benchmark needs: to print its rows, and to write them with where and when they were measured."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from components.foundation.files import write_json

Row = Mapping[str, Any]


def write_results(out: Path, rows: Sequence[Row]) -> None:
    """Write {"commit", "machine", "date", "rows"} as JSON to `out`, making its folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(out, {"commit": commit(), "machine": machine(), "date": date, "rows": [dict(row) for row in rows]})


def print_table(rows: Sequence[Row]) -> None:
    """Print rows as a table; columns in the order in which rows first name them."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    Console().print(table)


def commit() -> str:
    """The git commit of the code that runs, with "+changes" when files differ from it; "" outside a repository."""
    revision = _git("rev-parse", "HEAD")
    return f"{revision}+changes" if revision and _git("status", "--porcelain") else revision


def machine() -> str:
    """Processor, cores that this process may use, and system."""
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
