"""How many threads the BLAS may use in each step on the CPU.

A product that is shared between threads waits for the slowest of them. On a machine with other work that is a thread
which the system has taken off its core, for milliseconds at a time. So only products that take much longer than that by
themselves are shared.
"""

from __future__ import annotations

from tinyvllm.devices.blas import Blas, blas_name, find_blas
from tinyvllm.errors import ConfigError
from tinyvllm.request import SamplingParams, SamplingRules
from tinyvllm.shapes import ModelShape
from tinyvllm.step import Pending, Runner, Step

# Ten milliseconds of arithmetic of one core, and three of reading float32 weights. Measured on two cores: see "Threads"
# in docs/benchmarks.md.
MIN_SHARED_PRODUCTS = 2**29
MIN_SHARED_WEIGHTS = 2**24


class ThreadedRunner:
    """A runner whose steps use one thread for small matrix products, and several for large ones.

    Args:
        runner: computes with NumPy.
        blas: what NumPy computes with.
        shape: the sizes of the model.
        num_threads: for every step; None: as the sizes of the step say.
        batch_invariant: the number does not depend on the rows of a step, since the last bits of a product may depend
            on the number of threads.
    """

    def __init__(
        self, runner: Runner, blas: Blas, shape: ModelShape, num_threads: int | None, *, batch_invariant: bool
    ) -> None:
        self._runner = runner
        self._blas = blas
        num_weights = shape.hidden_size * shape.intermediate_size
        if num_threads is None and num_weights < MIN_SHARED_WEIGHTS:
            self._few, self._many = 1, blas.num_threads
            self._min_rows = None if batch_invariant else -(-MIN_SHARED_PRODUCTS // num_weights)
        else:
            self._few = self._many = num_threads or blas.num_threads
            self._min_rows = None

    def __str__(self) -> str:
        """The numbers, for a report."""
        if self._min_rows is None or self._few == self._many:
            return f"{self._few}"
        return f"{self._few}, {self._many} in steps of {self._min_rows} tokens or more"

    def can_run_ahead(self, params: SamplingParams, rules: SamplingRules) -> bool:
        """As the runner within."""
        return self._runner.can_run_ahead(params, rules)

    def launch(self, step: Step) -> Pending:
        """Launch the step of the runner within."""
        is_large = self._min_rows is not None and step.batch.num_tokens >= self._min_rows
        with self._blas.threads(self._many if is_large else self._few):
            return self._runner.launch(step)

    def recover(self) -> None:
        """Let the runner within recover."""
        self._runner.recover()


def with_threads(runner: Runner, shape: ModelShape, num_threads: int | None, *, batch_invariant: bool) -> Runner:
    """``runner`` with the number of BLAS threads that suits each step; as it is where the BLAS cannot be told.

    Args:
        runner: computes with NumPy.
        shape: the sizes of the model.
        num_threads: the key of that name.
        batch_invariant: the key of that name.
    Raises:
        ConfigError: ``num_threads`` was given, and the BLAS cannot be told.
    """
    blas = find_blas()
    if blas is not None:
        return ThreadedRunner(runner, blas, shape, num_threads, batch_invariant=batch_invariant)
    if num_threads is not None:
        raise ConfigError(
            f"num_threads is {num_threads}, but NumPy computes with {blas_name()}, and only OpenBLAS can be told while "
            "it runs; leave it out and set MKL_NUM_THREADS or OMP_NUM_THREADS before Python starts"
        )
    return runner
