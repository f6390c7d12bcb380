"""Modules within the parts of a problem, wherever a part holds them, that cannot be solved with.

Modes are nobody's but the user's: a solve flips none, for two threads may share a module. So a
module whose values depend on its mode has to be in evaluation mode before. Weights that were made
in ``torch.inference_mode`` can never take part in a gradient.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections import deque
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 10_000  # objects looked at: a part may hold a data set
_HOPS = 2  # from a function to what its globals name, and to what theirs name
_CLOSED = (Tensor, str, bytes, int, float, type, ModuleType, type(None))
_LIBRARIES = ("torch", "numpy", "scipy")  # whose functions hold no module of the user's


def fault(module: nn.Module) -> str:
    """What is wrong with a module for a solve, and what to do; "" where nothing is.

    A module in training mode counts if its class, or a hook on it, reads ``training``: dropout and
    batch normalisation do, convolutions do not.
    """
    kind = type(module).__name__
    if module.training and _depends(module):
        return f"a {kind} in training mode: call .eval() first"
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    if any(tensor.is_inference() for tensor in own):
        return f"a {kind} made within torch.inference_mode: make, copy or load it outside"
    return ""


def modules(part: Any) -> Iterator[nn.Module]:
    """The modules that a part holds: in attributes, containers, closures, the globals that a
    function names, and bound methods."""
    seen: set[int] = set()
    waiting = deque([(part, 0)])
    while waiting and len(seen) < _MOST:
        value, hops = waiting.popleft()
        if isinstance(value, _CLOSED) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            yield value
        waiting.extend((held, hops) for held in _held(value))
        if isinstance(value, FunctionType) and hops < _HOPS:
            waiting.extend((named, hops + 1) for named in _globals(value))


def _held(value: Any) -> list[Any]:
    """What an object holds."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)[:_MOST]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if inspect.ismethod(value):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return [*cells, *(value.__defaults__ or ())]
    return list(getattr(value, "__dict__", {}).values())


def _globals(function: FunctionType) -> list[Any]:
    """The globals that a function names."""
    if (function.__module__ or "").split(".")[0] in _LIBRARIES:
        return []
    return [function.__globals__.get(name) for name in _loaded(function.__code__, "GLOBAL")]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _depends(module: nn.Module) -> bool:
    """Whether a module's values depend on its mode, as far as its code tells."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    scripted = isinstance(module, torch.jit.ScriptModule)  # whose code cannot be read
    kinds: list[type] = [type(value) for value in (module, *hooks)]
    return scripted or any(map(_reads, kinds))


@functools.lru_cache(maxsize=4096)
def _reads(kind: type) -> bool:
    """Whether a method of a class reads an attribute ``training``."""
    bases = [base for base in kind.__mro__ if base not in (object, nn.Module)]
    own = [value for base in bases for value in vars(base).values()]
    methods = [getattr(value, "fget", None) or getattr(value, "__func__", value) for value in own]
    codes = [m.__code__ for m in methods if isinstance(m, FunctionType)]
    return any("training" in _loaded(code, "ATTR") for code in codes if _mentions(code))


def _mentions(code: CodeType) -> bool:
    """Whether the word ``training`` stands in a piece of code: a quick look before a slow one."""
    return "training" in code.co_names or any(_mentions(each) for each in _within(code))


def _within(code: CodeType) -> list[CodeType]:
    """The functions that stand in a piece of code."""
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


@functools.lru_cache(maxsize=4096)
def _loaded(code: CodeType, what: str) -> frozenset[str]:
    """Names that a piece of code loads, as "GLOBAL" or as "ATTR"."""
    found = {name for each in _within(code) for name in _loaded(each, what)}
    for step in dis.get_instructions(code) if code.co_names else ():
        if step.opname.startswith(f"LOAD_{what}"):
            found.add(step.argval)
    return frozenset(found)
