"""Peak memory of a 50-site inline run against a 5-site run: updates are aggregated as they arrive, sites come and go.

    python benchmarks/memory.py

200 slices a site at 128 px, the 1.6 M UNet; each run is a process of its own and reports its peak resident memory.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import report, write_config, write_volumes


def child(config: str, folder: str) -> None:
    """One run; prints its peak memory in MiB."""
    from simulation.run import simulate

    simulate(Path(config), out=Path(folder))
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak(sites: int, root: Path) -> float:
    """Peak memory in MiB of a run with that many sites."""
    write_volumes(root / f"data{sites}", sites=sites, patients=10, slices=20, size_px=128)
    config = write_config(root / f"{sites}.toml", root=root / f"data{sites}", rounds=1, steps=2, labels=8)
    command = [sys.executable, __file__, str(config), str(root / f"run{sites}")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.rsplit("peak", 1)[1])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        few, many = peak(5, Path(name)), peak(50, Path(name))
    ratio = many / few
    print(f"5 sites: {few:.0f} MiB, 50 sites: {many:.0f} MiB")
    figures = {"ratio": round(ratio, 3), "sites_5_mib": round(few), "sites_50_mib": round(many)}
    report("memory", **figures, goal="ratio <= 1.25", met=ratio <= 1.25)


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
