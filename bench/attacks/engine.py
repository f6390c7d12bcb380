"""Cases in child processes: counted, timed, and survived when they crash or hang.

A campaign runs its cases in batches, each in a fork of this process, which has loaded everything. A
case ends in one of three ways: refused clearly, right, or wrong. What a child cannot report itself,
a crash or a case that takes too long, is wrong too, and the next batch goes on. What was counted is
kept after every batch, so that a campaign that is stopped goes on where it was.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import math
import mmap
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import flowinv_fast as ff

OUTCOMES = ("refused", "right", "wrong")
_SHARED = struct.Struct("4qd")  # case, and how many ended each way; when the case began
_MOST_KEPT = 40  # descriptions of wrong cases that a campaign keeps


class Wrong(Exception):
    """What a case should not have done; its message begins with a few words that name the kind."""


class Refused(Exception):
    """A case that was refused the way the documentation says."""


class Report:
    """Where a child says how its cases end; its parent reads along."""

    def __init__(self, log: Path):
        self.log, self._memory = log, mmap.mmap(-1, _SHARED.size)
        self.write(0, 0, 0, 0, 0.0)

    def write(self, *values: float) -> None:
        self._memory[:] = _SHARED.pack(*values)

    def read(self) -> tuple[int, list[int], float]:
        """The case that runs, how many ended each way, and when the case began."""
        case, refused, right, wrong, began = _SHARED.unpack(self._memory[:])
        return case, [refused, right, wrong], began

    def count(self, outcome: str, number: int = 1) -> None:
        """Cases that ended this way."""
        case, counts, _ = self.read()
        counts[OUTCOMES.index(outcome)] += number
        self.write(case + number, *counts, time.monotonic())

    def tell(self, kind: str, what: str) -> None:
        """A case that ended wrong."""
        case, _, _ = self.read()
        with open(self.log, "a") as log:
            log.write(json.dumps({"case": case, "kind": kind, "what": what[-1500:]}) + "\n")
        self.count("wrong")

    @contextmanager
    def case(self, about: Callable[[], str] = str) -> Iterator[None]:
        """A case: right at the end of the block, unless it raises Refused or anything else.

        ``about`` describes the case where it ends wrong.
        """
        _, counts, _ = self.read()
        self.write(sum(counts), *counts, time.monotonic())
        try:
            yield
        except Refused:
            self.count("refused")
        except Wrong as error:
            self.tell(str(error).split(":")[0], f"{error}\n{about()}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            lines = traceback.format_exception(error, limit=-4)
            self.tell(f"other exception, {type(error).__name__}", f"{about()}\n{''.join(lines)}")
        else:
            self.count("right")


Run = Callable[[Report, int, int, Path], None]  # (report, seed of the batch, cases, own folder)


@dataclass(frozen=True)
class Campaign:
    """One row of the table.

    Args:
        name, title: for the command line and for the page.
        count: cases of a full run. quick: of the tests'.
        rate: cases a second on one core, to share time by.
        run: a batch of cases, in a child.
        batch: cases in a batch.
        limit: seconds after which a case has hung.
        memory: bytes of address space that a child may take beyond what it starts with; 0: any.
        once: whether one batch holds all cases there are.
    """

    name: str
    title: str
    count: int
    quick: int
    rate: float
    run: Run
    batch: int = 100
    limit: float = 60.0
    memory: int = 0
    once: bool = False


@dataclass
class Tally:
    """What a campaign has counted so far; ``tried`` is what was run."""

    campaign: str
    seed: int
    code: str
    next: int = 0  # number of the next batch
    tried: int = 0
    refused: int = 0
    right: int = 0
    wrong: int = 0
    seconds: float = 0.0
    commit: str = ""
    kinds: dict[str, int] = field(default_factory=dict)
    examples: list[dict] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, campaign: str, seed: int) -> Tally:
        """What was counted of this very code with this seed; else nothing."""
        fresh = cls(campaign, seed, code_hash(), commit=commit())
        kept = cls.read(folder, campaign)
        return kept if kept and (kept.seed, kept.code) == (seed, fresh.code) else fresh

    @classmethod
    def read(cls, folder: Path, campaign: str) -> Tally | None:
        """What was counted last, of whatever code."""
        try:
            return cls(**json.loads((folder / f"{campaign}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        temporary = folder / f"{self.campaign}.json.tmp"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(temporary, folder / f"{self.campaign}.json")

    def add(self, counts: list[int], wrongs: list[dict]) -> None:
        """A batch's."""
        refused, right, wrong = counts
        self.refused, self.right = self.refused + refused, self.right + right
        self.wrong, self.tried = self.wrong + wrong, self.tried + sum(counts)
        for found in wrongs:
            kind = found["kind"]
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            if len(self.examples) < _MOST_KEPT and self.kinds[kind] <= 4:
                self.examples.append({"batch": self.next, **found})


def commit() -> str:
    """The commit of this source tree, in short."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    folder = Path(__file__).parent
    return subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout.strip()


def code_hash() -> str:
    """A hash of the package's files, compiled module included."""
    root, seen = Path(ff.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".so", ".safetensors"):
            seen.update(path.read_bytes())
    return seen.hexdigest()[:16]


def run(
    campaign: Campaign, folder: Path, count: int, seconds: float = math.inf, seed: int = 0
) -> Tally:
    """Run a campaign until it has tried ``count`` cases or its time is over.

    Args:
        folder: where partial counts, logs and what a case needs on disk go.
        seconds: of this call; what an earlier call counted stays.
        seed: fixes every case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tally = Tally.load(folder, campaign.name, seed)
    started = time.monotonic()
    while tally.tried < count and time.monotonic() - started < seconds:
        if campaign.once and tally.next:
            break
        began = time.monotonic()
        left = seconds - (began - started)
        size = min(campaign.batch, count - tally.tried)
        own = hashlib.sha256(f"{seed}/{campaign.name}/{tally.next}".encode()).digest()
        counts, wrongs = _batch(campaign, folder, int.from_bytes(own[:4], "big") >> 1, size, left)
        tally.add(counts, wrongs)
        tally.next += 1
        tally.seconds += time.monotonic() - began
        tally.save(folder)
    return tally


def _batch(
    campaign: Campaign, folder: Path, seed: int, size: int, left: float
) -> tuple[list[int], list[dict]]:
    """A batch in a child; how many cases ended each way, and the wrong ones."""
    work = folder / f"{campaign.name}.work"
    work.mkdir(exist_ok=True)
    log, output = work / "wrong.jsonl", work / "output.txt"
    log.unlink(missing_ok=True)
    report = Report(log)
    report.write(0, 0, 0, 0, time.monotonic())
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _child(campaign, report, seed, size, work, output)
    status, hung = _watch(pid, report, campaign.limit, left)
    case, counts, _ = report.read()
    wrongs = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if hung or status:
        tail = output.read_text(errors="replace")[-1000:] if output.exists() else ""
        kind = f"hang, over {campaign.limit:g} s" if hung else f"crash, {_ended(status)}"
        wrongs.append({"case": case, "kind": kind, "what": f"batch seed {seed}\n{tail}"})
        counts[2] += 1
    return counts, wrongs


def _child(
    campaign: Campaign, report: Report, seed: int, size: int, work: Path, output: Path
) -> None:
    """Run a batch and leave the process."""
    status = 1
    try:
        os.setpgid(0, 0)
        faulthandler.disable()  # pytest's writes to its own terminal
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(target, 1), os.dup2(target, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if campaign.memory:
            most = virtual_memory() + campaign.memory
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        campaign.run(report, seed, size, work)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def _watch(pid: int, report: Report, limit: float, left: float) -> tuple[int, bool]:
    """Wait for a child; its status, and whether a case ran too long. It ends when time is over."""
    started = time.monotonic()
    try:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status, False
            now = time.monotonic()
            hung = now - report.read()[2] > limit
            if hung or now - started > left:
                _kill(pid)
                os.waitpid(pid, 0)
                return 0, hung
            time.sleep(0.005)
    except BaseException:  # Ctrl-C: nothing of ours goes on
        _kill(pid)
        raise


def _kill(pid: int) -> None:
    """End a child and whatever it has started."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def virtual_memory() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def refused_clearly(error: BaseException, *names: str) -> bool:
    """Whether an error is one that the package raises on purpose, in a sentence that can be read.

    An ArgumentError, a DataError among them, names a function and an argument; with ``names``
    it is one of these arguments, or begins with one of them.
    """
    if isinstance(error, ff.SolverError):
        return len(str(error)) > 10
    if not isinstance(error, ff.ArgumentError):
        return False
    form = re.compile(r"^[\w.]+: [\w.\[\]-]+: expected .+, got .*", re.DOTALL)
    known = not names or any(str(error.argument).startswith(name) for name in names)
    return bool(form.match(str(error))) and known
