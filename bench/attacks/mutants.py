"""Files that are attacked with mutants of valid ones, by atheris' mutations.

A mutant is either refused with an error that names the file, or means what an independent reading
of its bytes says: our own parsers here, Pillow for pixels, tomllib for TOML. It takes no more time
and memory than a file of its size needs.
"""

from __future__ import annotations

import hashlib
import os
import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .engine import Campaign, Refused, Report, Wrong, refused_clearly
from .readers import KINDS

_SPACE = 1 << 30  # address space


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Args:
        title: for the table.
        name: what a mutant is called on disk; the folder is given to ``load`` where it ends in /.
        seeds: valid files.
        load: what the package makes of the file.
        check: (bytes, what the package made of it): raises Wrong where they differ.
        must: whether these bytes are valid beyond doubt, so that they must not be refused.
        edit: a mutation that knows the format, (bytes, provider) to bytes.
        rate: mutants a second.
        megabytes: that a mutant's peak may lie above what the child held before.
    """

    title: str
    name: str
    seeds: Callable[[], list[bytes]]
    load: Callable[[Path], object]
    check: Callable[[bytes, object], None]
    must: Callable[[bytes], bool]
    edit: Callable
    rate: float
    count: int = 20_000
    megabytes: int = 96


def campaign(name: str, kind: Kind) -> Campaign:
    """The campaign of a kind of files."""

    def run(report: Report, seed: int, size: int, work: Path) -> None:
        _fuzz(kind, report, seed, size, work)

    return Campaign(
        name, kind.title, kind.count, 30, kind.rate, run, batch=1000, limit=30, memory=_SPACE
    )


def _fuzz(kind: Kind, report: Report, seed: int, size: int, work: Path) -> None:
    """Run ``size`` mutants; atheris leaves the process at the end."""
    import atheris

    seeds = kind.seeds()
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else work
    folder = base / f"flowinv-mutants-{os.getppid()}"
    path = folder / kind.name
    path.parent.mkdir(parents=True, exist_ok=True)
    for data in seeds:  # warm: what is loaded lazily is no mutant's memory
        _attack(kind, data, path)

    def mutator(data: bytes, most: int, number: int) -> bytes:
        words = hashlib.shake_128(struct.pack("<2I", number, seed)).digest(512)
        provider = atheris.FuzzedDataProvider(words)
        mutant = seeds[provider.ConsumeIntInRange(0, len(seeds) - 1)]
        for _ in range(provider.PickValueInList([1, 1, 1, 2, 4])):
            how = provider.ConsumeIntInRange(0, 2)
            if how == 0:
                mutant = kind.edit(mutant, provider)
            elif how == 1:
                mutant = atheris.Mutate(mutant, len(mutant) + 64)
            else:  # some bytes in place, mostly far behind a header
                first = int((1 - provider.ConsumeProbability() ** 2) * len(mutant))
                part = mutant[first : first + 8]
                new = atheris.Mutate(part, len(part)) if part else b""
                mutant = mutant[:first] + new.ljust(len(part), b"\x01") + mutant[first + 8 :]
        return mutant

    def one(data: bytes) -> None:
        if sum(report.read()[1]) >= size:
            os._exit(0)
        if len(data) < 2:  # libFuzzer begins with an empty file and a line break
            data = seeds[0]
        with report.case(lambda: f"{kind.title}: {data[:700]!r}"):
            _attack(kind, data, path)

    options = [f"-runs={size + 2}", f"-seed={seed}", "-max_len=1000000", "-verbosity=0"]
    options += ["-timeout=100000", "-rss_limit_mb=0", f"-artifact_prefix={work}/"]
    atheris.Setup(["mutants", *options], one, custom_mutator=mutator)
    atheris.Fuzz()


def _attack(kind: Kind, data: bytes, path: Path) -> None:
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = kind.load(path.parent if kind.name.startswith("pictures/") else path)
    except Exception as error:
        if not refused_clearly(error):
            raise
        _within(before, kind.megabytes)
        cause = error.__context__
        while cause is not None:
            if isinstance(cause, MemoryError):
                raise Wrong(f"memory over the limit: {error}") from error
            cause = cause.__context__
        if kind.must(data):
            raise Wrong(f"a valid file refused: {error}") from error
        if path.name not in str(error):
            raise Wrong(f"an error that does not name the file: {error}") from error
        raise Refused from error
    _within(before, kind.megabytes)
    kind.check(data, found)


def _within(before: int, most: int) -> None:
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if grown > most:
        raise Wrong(f"memory over the limit: {grown} MB more")


CAMPAIGNS = [campaign(name, Kind(**parts)) for name, parts in KINDS.items()]
