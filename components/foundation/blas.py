"""How many threads the linear algebra of NumPy and SciPy uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Compute inside with one thread: where each core has a task of its own, more would wait for each other."""
    with _libraries().limit(limits=1, user_api="blas"):
        yield


def blas_threads() -> int:
    """How many threads the BLAS of NumPy may use now.

    >>> blas_threads() >= 1
    True
    """
    return max((library["num_threads"] for library in _libraries().info() if library["user_api"] == "blas"), default=1)


@cache
def _libraries() -> ThreadpoolController:
    """All that are loaded: to look for them takes ten milliseconds, longer than many a computation here."""
    import scipy.linalg  # noqa: F401  # loads its BLAS, so that it is found; who only scores has no need of it

    return ThreadpoolController()
