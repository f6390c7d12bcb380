"""Weights files of strangers: what they claim is checked before memory is taken for it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flowinv_fast import ArgumentError, GlowConfig, RealNVPConfig
from flowinv_fast._base.errors import DataError
from flowinv_fast.flows import build_flow, load_flow, save_flow
from flowinv_fast.generators import GeneratorConfig, load_generator, save_generator
from flowinv_fast.generators.nets import make

REALNVP = RealNVPConfig((1, 4, 4), scales=2, hidden=3, blocks=1)
GLOW = GlowConfig((1, 4, 4), scales=2, hidden=3, blocks=1, prior_hidden=2)
DCGAN = GeneratorConfig((1, 8, 8), "dcgan", latent_dim=2, width=4)


class Hangs(BaseException):
    """What no parser may catch."""


@contextlib.contextmanager
def bounded(seconds: int = 10, more: int = 2**30):
    """Little time and memory; a fault is then a failure and no dead machine."""

    def stop(*_):
        raise Hangs

    kept = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (size + more, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, kept)
        signal.setitimer(signal.ITIMER_REAL, 0)


def refused(path: Path, load=load_flow) -> str:
    with bounded(), pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.argument == "name_or_path" and str(path) in str(caught.value)
    return str(caught.value)


def saved(path: Path, config, **header) -> tuple[dict, dict]:
    """A file; its tensors and what its header holds."""
    if isinstance(config, GeneratorConfig):
        kind = {"format": "flowinv_fast.generator.1"}
        save_generator(make(config), path)
    else:
        kind = {"format": "flowinv_fast.flow.1", "architecture": type(config).__name__[:-6].lower()}
        save_flow(build_flow(config), path)
    return load_file(path), {**kind, "config": config.to_dict(), "info": {}, **header}


def rewritten(path: Path, tensors: dict, header: dict | str) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={"flowinv_fast": text})


HUGE = [
    (REALNVP, {"hidden": 20_000}),
    (REALNVP, {"blocks": 10**9}),
    (REALNVP, {"shape": [1, 65_536, 65_536]}),
    (REALNVP, {"shape": [10**15, 4, 4]}),
    (REALNVP, {"scales": 10**10}),
    (GLOW, {"prior_hidden": 10**6}),
    (GLOW, {"prior_blocks": 10**9}),
    (GLOW, {"hidden": 10**30}),
    (DCGAN, {"width": 100_000}),
    (DCGAN, {"latent_dim": 10**8}),
    (DCGAN, {"shape": [1, 2**80, 2**80]}),
]


@pytest.mark.parametrize("config,change", HUGE, ids=lambda x: str(x) if type(x) is dict else "")
def test_configurations_of_huge_networks(tmp_path, config, change):
    path = tmp_path / "huge.safetensors"
    tensors, header = saved(path, config)
    rewritten(path, tensors, {**header, "config": {**header["config"], **change}})
    load = load_generator if isinstance(config, GeneratorConfig) else load_flow
    message = refused(path, load)
    assert "memory" not in message and "alloc" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("config", [GLOW, DCGAN], ids=["flow", "generator"])
def test_weights_that_are_not_finite(tmp_path, config, value):
    path = tmp_path / "a.safetensors"
    tensors, header = saved(path, config)
    floats = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())
    name = floats[int(torch.randint(len(floats), ()))]
    tensors[name].view(-1)[-1] = value
    rewritten(path, tensors, header)
    load = load_generator if isinstance(config, GeneratorConfig) else load_flow
    assert f"{name} has values that are not finite" in refused(path, load)


def test_weights_of_other_dtypes(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors, header = saved(path, DCGAN)
    counter = next(name for name, tensor in tensors.items() if tensor.dtype == torch.int64)
    weight = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    for name, dtype in ((counter, torch.float32), (weight, torch.int32), (weight, torch.uint8)):
        rewritten(path, {**tensors, name: tensors[name].to(dtype)}, header)
        assert f"tensor {name} is of" in refused(path, load_generator)
    rewritten(path, {**tensors, weight: tensors[weight].bfloat16()}, header)
    assert load_generator(path).dtype == torch.float32


def test_headers_that_are_no_facts(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors, header = saved(path, REALNVP)
    whole = json.dumps(header)
    texts = {
        "twice": whole.replace('"info": {}', '"info": {}, "info": {}'),
        "NaN": whole.replace('"alpha": 0.05', '"alpha": NaN'),
        "nested": "[" * 100_000,
        "at most": json.dumps({**header, "info": {"text": "x" * 2**21}}),
        "no JSON object": json.dumps({**header, "info": [1]}),
        "format": json.dumps({**header, "format": "flowinv_fast.generator.1"}),
        "digits": whole.replace('"hidden": 3', f'"hidden": {"9" * 5000}'),
    }
    for word, text in texts.items():
        rewritten(path, tensors, text)
        assert word in refused(path)


def test_headers_longer_than_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    saved(path, REALNVP)
    good = path.read_bytes()
    for length in (2**62, 2**40, len(good), 2**24 + 1):
        path.write_bytes(struct.pack("<Q", length) + good[8:])
        assert "header of" in refused(path)
    path.write_bytes(struct.pack("<Q", 2**24 + 8) + b" " * (2**24 + 8))
    assert "header of" in refused(path)


def test_places_that_are_no_files(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    assert "it is a pipe" in refused(tmp_path / "pipe")
    assert "it is a device" in refused(Path("/dev/zero"))
    for name in ("a\0b", "a" * 300, 5, None):
        with pytest.raises(ArgumentError, match="fashion-28"):
            load_flow(name)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    for variable in ("FLOWINV_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert load_flow("digits-noise-28").shape == (1, 28, 28), "a user without a home has these too"


def test_weights_that_could_not_be_loaded_are_not_saved(tmp_path):
    flow = build_flow(REALNVP)
    path = tmp_path / "a.safetensors"
    with torch.no_grad():
        flow.layers[1].conditioner.first.bias[0] = 1e6
    save_flow(flow, path)
    with pytest.raises(ArgumentError, match="finite ones.*first.bias.*float16"):
        save_flow(flow, path, dtype=torch.float16)
    with pytest.raises(ArgumentError, match="info"):
        save_flow(flow, path, {"log": "x" * 2**21})
    assert load_flow(path).layers[1].conditioner.first.bias[0] == 1e6


def test_facts_that_are_not_finite_are_kept_as_null(tmp_path):
    """What can be saved can be loaded."""
    path = tmp_path / "a.safetensors"
    save_flow(build_flow(REALNVP), path, {"bits": float("nan"), "all": [1, float("inf")]})
    assert load_flow(path).info == {"bits": None, "all": [1, None]}


def test_generators_are_float32_whatever_torchs_default(tmp_path):
    path = tmp_path / "a.safetensors"
    saved(path, DCGAN)
    torch.set_default_dtype(torch.float64)
    try:
        generator = load_generator(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert generator.dtype == torch.float32


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    saved(path, GLOW)
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_bytes(file, tmp_path_factory, data):
    """A file that is cut, longer, or changed in places: it is refused, or what it says is used."""
    raw = bytearray(file.read_bytes())
    end = int.from_bytes(raw[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(
            st.one_of(st.integers(0, 7), st.integers(8, end), st.integers(end, len(raw)))
        )
        if place < len(raw):
            raw[place] = data.draw(st.integers(0, 255))
    tail = data.draw(st.one_of(st.just(b""), st.binary(max_size=9)))
    cut = data.draw(st.one_of(st.just(0), st.integers(1, len(raw))))
    bad = file.with_name("bad.safetensors")
    bad.write_bytes(bytes(raw[: len(raw) - cut]) + tail)
    try:
        flow = load_flow(bad)
    except DataError as error:
        assert str(bad) in str(error)
    else:
        assert all(tensor.isfinite().all() for tensor in flow.state_dict().values())
        assert not cut and not tail


def test_a_number_that_the_wanted_dtype_cannot_hold(tmp_path):
    """It is finite in the file, and infinite where it is used."""
    path = tmp_path / "flow.safetensors"
    tensors, header = saved(path, REALNVP)
    name = next(name for name in tensors if name.endswith("gain"))
    wide = {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}
    wide[name][0] = 1e300
    save_file(wide, path, metadata={"flowinv_fast": json.dumps(header)})
    assert name in refused(path)
    assert load_flow(path, dtype=torch.float64).state_dict()[name][0] == 1e300
