"""Types of the compiled module, for flowinv_fast.ops: sizes, tensors by address, where to run."""

from collections.abc import Callable
from typing import Any

Tensor = tuple[int, int, int]  # address, number of elements, dtype code
Execution = tuple[int, int, int]  # CUDA device or -1, CPU threads, CUDA stream

build_info: dict[str, str]
constants: dict[str, Any]  # see _base/constants.py
fields: dict[str, tuple[tuple[str, str], ...]]  # of each operation's parameters: name, kind

# An operation takes a value for each of its fields, in order, and an Execution: ops/_kernel.py.
def __getattr__(name: str) -> Callable[..., None]: ...
def cpu_bf16() -> bool: ...
def make_frozen_flow(
    shape: tuple[int, int, int], precision: int, on_device: bool, /
) -> FrozenFlow: ...

class FrozenFlow:
    saved_bytes: int
    weight_bytes: int
    workspace: int
    words: int
    state: tuple[int, int, int]
    def add_standardise(self, mean: Tensor, std: Tensor, /) -> None: ...
    def add_squeeze(self) -> None: ...
    def add_factor_out(self) -> None: ...
    def add_mixing(self, weight: Tensor, log_size_sum: float, /) -> None: ...
    def add_coupling(
        self,
        mask: int,
        inverse: bool,
        gain: Tensor,
        convs: list[tuple[Tensor, Tensor, int, int]],
        /,
    ) -> None: ...
    def finish(self) -> None: ...
    def copy_words(self, out: Tensor, /) -> None: ...
    def forward(
        self,
        decode: bool,
        batch: int,
        in_: Tensor,
        out: Tensor,
        logdet: Tensor,
        saved: Tensor,
        words: Tensor,
        workspace: Tensor,
        execution: Execution,
        /,
    ) -> None: ...
    def backward(
        self,
        decode: bool,
        batch: int,
        grad_out: Tensor,
        grad_logdet: Tensor,
        saved: Tensor,
        grad_in: Tensor,
        words: Tensor,
        workspace: Tensor,
        execution: Execution,
        /,
    ) -> None: ...
