"""A solver step as one CUDA graph: a thousand launches for the price of one."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UP = 3


def capture(step: Callable[[], None], changed: list[Tensor]) -> Callable[[], None]:
    """A callable that does what ``step`` does, replayed from a graph where it can be captured.

    A step that reads values back, or calls into code that does, cannot be captured: it is returned
    as it is, with a warning that names the reason.

    Args:
        step: works in place on CUDA tensors whose addresses stay.
        changed: all tensors that it changes; they are put back after the trial runs.
    """
    kept = [t.clone() for t in changed]
    stream = torch.cuda.Stream()
    try:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(f"solver: no CUDA graph, slower: {reason}", stacklevel=2)
        return step
    finally:
        with torch.no_grad():
            for tensor, before in zip(changed, kept):
                tensor.copy_(before)
