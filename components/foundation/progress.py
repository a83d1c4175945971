"""A progress bar on stderr: a moving one on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 15.0


class ProgressBar:
    """Shows the steps of one long computation, as a context manager."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self._values: dict[str, float] = {}
        self._step, self._words = 0, ""
        self._line_at = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[values]}"), console=Console(file=sys.stderr))
        self._live = sys.stderr.isatty()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Say that `step` is done, with the newest of each named value."""
        self._values |= {name: value for name, value in values.items() if name != "rate"}
        self._words = " ".join(f"{name} {value:.3f}" for name, value in self._values.items())
        self._step = step
        if self._live:
            self._bar.update(self._task, completed=step, values=self._words)
        elif time.monotonic() - self._line_at >= LINE_SECONDS:
            self._print_line()

    def __enter__(self) -> Self:
        if self._live:
            self._task = self._bar.add_task(self.title, total=self.total, values="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()
        elif self._step:
            self._print_line()

    def _print_line(self) -> None:
        self._line_at = time.monotonic()
        print(f"{self.title} {self._step}/{self.total} {self._words}", file=sys.stderr, flush=True)
