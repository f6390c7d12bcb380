"""Registers, spills and shared memory of every CUDA kernel, as ptxas reports them; needs nvcc only.

python bench/ptxas.py [--archs sm_80 sm_90a] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from harness import conditions, write

ROOT = Path(__file__).parent.parent
ENTRY = re.compile(
    r"Compiling entry function '(\S+)' for '\w+'.*?(\d+) bytes stack frame, (\d+) bytes spill "
    r"stores, (\d+) bytes spill loads.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
    re.DOTALL,
)


def kernels(source: Path, arch: str) -> list[dict]:
    """One entry per kernel instance of a source file."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-std=c++17", "-cubin", "-Xptxas=-v", "-Werror=all-warnings"]
        flags += ["--expt-relaxed-constexpr", "-DFI_ISA=cuda", f"-I{ROOT / 'csrc'}"]
        command = ["nvcc", f"-arch={arch}", *flags, str(source), "-o", f"{folder}/out.cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = []
    for part in done.stderr.split("ptxas info    : Compiling")[1:]:
        match = ENTRY.search("Compiling" + part)
        if match:
            name, stack, stores, loads, registers, shared = match.groups()
            name = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout
            counts = {"registers": int(registers), "stack": int(stack)}
            counts |= {"spills": int(stores) + int(loads), "shared": int(shared or 0)}
            found.append({"kernel": name.strip(), **counts})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archs", nargs="+", default=["sm_80", "sm_90a"])
    parser.add_argument("--out", help="folder of the JSON; default bench/results")
    arguments = parser.parse_args()
    rows = []
    for source in sorted((ROOT / "csrc").glob("*/*.cu")):
        for arch in arguments.archs:
            found = kernels(source, arch)
            row = {"source": f"{source.parent.name}/{source.name}", "arch": arch}
            row |= {"instances": len(found), "registers": max(k["registers"] for k in found)}
            rows.append({**row, "spills": sum(k["spills"] for k in found), "kernels": found})
            print({k: v for k, v in rows[-1].items() if k != "kernels"}, flush=True)
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    where = conditions("cpu", nvcc=nvcc.strip().splitlines()[-1])
    print("wrote", write("ptxas", {"conditions": where, "rows": rows}, arguments.out))


if __name__ == "__main__":
    main()
