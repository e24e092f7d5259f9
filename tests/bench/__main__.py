"""All benchmarks, one after another: ``make bench``. Prints their tables and keeps what they print in ``build/bench``.

Refuses a machine that is busy with something else: its figures would be noise. ``--anyway`` runs and marks them. Other
options (``--sizes=…``) go to the benchmarks that are named.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "bench"
QUIET = 0.15
"""Largest share of the processor that may be busy before the start."""


def main() -> None:
    """Run the benchmarks named on the command line, or all of them."""
    if {"-h", "--help"} & set(sys.argv):
        sys.exit(__doc__)
    scripts = {path.stem.removeprefix("bench_"): path for path in sorted(Path(__file__).parent.glob("bench_*.py"))}
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
    if unknown := set(wanted) - set(scripts):
        sys.exit(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(scripts)}")
    options = [word for word in sys.argv[1:] if word.startswith("--") and word != "--anyway"] if wanted else []
    busy = psutil.cpu_percent(interval=3.0) / 100
    if busy > QUIET and "--anyway" not in sys.argv:
        sys.exit(f"the processor is {busy:.0%} busy with other work; end it, or say --anyway to get marked figures")
    OUT.mkdir(parents=True, exist_ok=True)
    machine = f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    mark = " BUSY MACHINE" if busy > QUIET else ""
    failed = []
    for name, script in scripts.items():
        if wanted and name not in wanted:
            continue
        print(f"\n== {name} ({machine}; {busy:.0%} busy at the start{mark})", flush=True)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        command = [sys.executable, str(script), *options]
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        print(f"({time.monotonic() - began:.0f} s)")
        (OUT / f"{name}.txt").write_text(f"{machine}{mark}\n{done.stdout}")
        if done.returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
