"""A solver step as one CUDA graph: a thousand launches for the price of one."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UP = 3
_one_at_a_time = threading.Lock()  # torch captures one graph at a time in a process


def capture(step: Callable[[], None], changed: list[Tensor]) -> Callable[[], None]:
    """A callable that does what ``step`` does, replayed from a graph where it can be captured.

    A step that reads values back, or calls into code that does, cannot be captured: it is returned
    as it is, with a warning that names the reason.

    Args:
        step: works in place on CUDA tensors whose addresses stay.
        changed: all tensors that it changes; they are put back after the trial runs.
    """
    kept = [t.clone() for t in changed]
    with torch.cuda.device(changed[0].device):
        before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        try:
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    step()
            before.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with (
                _one_at_a_time,
                torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            ):
                step()
            return graph.replay
        except (RuntimeError, KeyboardInterrupt) as error:
            torch.cuda.set_stream(before)  # a capture that fails to end leaves its own
            torch.cuda.synchronize()
            # The step's error, not that of ending the capture.
            cause = error if isinstance(error, KeyboardInterrupt) else error.__context__ or error
            if isinstance(cause, (torch.cuda.OutOfMemoryError, KeyboardInterrupt)):
                raise cause from None
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            warnings.warn(f"solver: no CUDA graph, slower: {reason}", stacklevel=2)
            return step
        finally:
            with torch.no_grad():
                for tensor, value in zip(changed, kept):
                    tensor.copy_(value)
