"""The loop's side of the contract: denoising stands without any network."""

from __future__ import annotations

import subprocess
import sys


def test_denoising_imports_no_network_and_no_ray() -> None:
    program = (
        "import sys, musev.denoise.conditioning, musev.denoise.solvers, musev.denoise.noise\n"
        "heavy = {'diffusers', 'transformers', 'ray', 'musev.models'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
