"""`make bench`: the tables of docs/benchmarks.md and docs/kernels.md, each in its short form, in under 20 minutes on two cores.

    python -m benchmarks [NAME …]

The pages quote longer runs, with the command. Studies, which train for minutes and write pages of their own, are run by themselves:
`python -m benchmarks.planted`, `regularisers`, `rasp`, `lens_quality`.
"""

from __future__ import annotations

import subprocess
import sys
import time

import torch

SHORT = {
    "compiled": "",
    "kernels": "--rounds 2",
    "untaken": "--rounds 2",
    "store": "--rows 131072 --rounds 2",
    "record": "--groups residuals --rounds 60 --passes 4",
    "lens": "--tokens 512 --peer-tokens 128 --rounds 3",
    "train": "--kinds topk --peers sparsify --theirs bfloat16 --lrs 1e-3 --blocks 3 --steps 2",
    "bigram": "--rounds 4 --steps 1",
    "scale": "",
}


def main() -> None:
    """Run those asked for, or all, one after the other; on a machine with a GPU its table too."""
    known = SHORT | ({"gpu": ""} if torch.cuda.is_available() else {})
    for name in sys.argv[1:] or known:
        print(f"== {name} {known[name]}".rstrip(), flush=True)
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *known[name].split()], check=True)
        print(f"== {name} took {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
