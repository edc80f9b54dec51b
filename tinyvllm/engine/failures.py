"""What an exception means to the requests that it ends."""

from __future__ import annotations

from tinyvllm.errors import CapacityError, InvariantError, RequestError, TinyvllmError
from tinyvllm.plugin_call import detail_of, is_fatal


def failure_of(error: BaseException) -> TinyvllmError:
    """The error of our own that says what an exception in a step means.

    Returns:
        an error of ours as it is; ``CapacityError`` for exhausted memory; ``RequestError`` for an interruption;
        ``InvariantError`` for everything that should not happen.
    """
    if isinstance(error, TinyvllmError):
        return error
    if isinstance(error, MemoryError):
        return CapacityError(f"the memory of this machine ran out{detail_of(error)}; lower scheduler.max_num_seqs")
    if is_fatal(error):
        return RequestError(f"the step was interrupted by {type(error).__name__}; send the request again")
    return InvariantError(
        f"the engine failed with {type(error).__name__}{detail_of(error)}; a bug of tinyvllm's, please report"
    )


def request_failure_of(
    request_id: str, error: BaseException, what: str = "its tokens cannot be made text"
) -> TinyvllmError:
    """The error of one request that fails alone: over its text, its log-probabilities or its stop strings."""
    if isinstance(error, TinyvllmError):
        return error
    if isinstance(error, MemoryError):
        return CapacityError(f"request {request_id!r}: the memory of this machine ran out{detail_of(error)}")
    return RequestError(f"request {request_id!r}: {what}: {type(error).__name__}{detail_of(error)}")
