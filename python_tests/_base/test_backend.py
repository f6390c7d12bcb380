"""What was built, and the choice between the compiled kernels and the reference."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import flowinv_fast as ff
from flowinv_fast import ArgumentError, ops
from flowinv_fast._base import backend
from flowinv_fast._base.constants import FALLBACK, Constants


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    command, environment = [sys.executable, "-c", code], {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_show_config_tells_what_was_built():
    info, text = ff.build_info(), ff.show_config()
    assert info["cpu_kernels"] in ("AVX-512", "AVX2", "baseline")
    assert info["torch"] in text and info["compiler"] in text and info["backend"] in text
    if info["cuda"]:
        assert info["cuda_architectures"] in text
    else:
        assert info["cpu_only_reason"] and info["cpu_only_reason"] in text


@pytest.mark.parametrize("choice", ["torch", "cpu", "auto"])
def test_choices_agree(choice):
    """The same log-density from the reference and from the kernels, in processes of their own."""
    code = (
        "import torch, flowinv_fast as ff; torch.manual_seed(0);"
        "f = ff.realnvp(ff.RealNVPConfig((1, 8, 8), scales=2, hidden=4));"
        "print(f.log_prob(torch.randn(2, 1, 8, 8)).tolist(), ff.build_info()['backend'])"
    )
    done = run(code, FLOWINV_BACKEND=choice)
    assert done.returncode == 0, done.stderr
    values, backend = done.stdout.rsplit(maxsplit=1)
    assert backend == choice
    torch.manual_seed(0)
    flow = ff.realnvp(ff.RealNVPConfig((1, 8, 8), scales=2, hidden=4))
    want = flow.log_prob(torch.randn(2, 1, 8, 8)).detach()
    torch.testing.assert_close(torch.tensor(eval(values)), want)


def test_unknown_choice_is_one_clear_error():
    done = run("import flowinv_fast", FLOWINV_BACKEND="fast")
    assert done.returncode == 1
    assert "FLOWINV_BACKEND: expected one of" in done.stderr.splitlines()[-1]


def test_cuda_choice_refuses_cpu_tensors(monkeypatch):
    monkeypatch.setattr(backend, "choice", "cuda")
    with pytest.raises(ArgumentError, match="FLOWINV_BACKEND=cuda"):
        ops.squeeze(torch.zeros(1, 1, 2, 2))


def test_missing_module_says_how_to_get_it():
    code = "import sys; sys.modules['flowinv_fast._C'] = None; import flowinv_fast"
    done = run(code)
    assert "pip install" in done.stderr.splitlines()[-1]
    assert run(code, FLOWINV_BACKEND="torch").returncode == 0


def test_the_copy_of_the_constants_is_what_the_module_tells():
    assert Constants(**backend._C.constants) == FALLBACK == backend.constants
    code = "from flowinv_fast import ops; print(list(ops.MASKS), list(ops.SIGMA_KINDS))"
    without = "import sys; sys.modules['flowinv_fast._C'] = None; " + code
    assert run(without, FLOWINV_BACKEND="torch").stdout == run(code).stdout != ""


def test_a_build_without_cuda_warns_once(monkeypatch):
    """Tensors no kernel serves go to the reference, with one warning that gives the reason."""
    monkeypatch.setattr(backend, "_warned", False)
    meta = torch.zeros(1, 1, 2, 2, device="meta")
    with pytest.warns(UserWarning, match="plain torch"):
        assert not backend.native(meta)
    assert not backend.native(meta)


def test_kernels_use_torchs_thread_count():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert backend.execution(torch.zeros(1)) == (-1, 3, 0)
    finally:
        torch.set_num_threads(before)
