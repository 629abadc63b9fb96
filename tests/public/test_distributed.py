"""Two processes train as one does: DDP, FSDP2, and a checkpoint from one number of processes into another."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "train_distributed.py"

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available() or sys.platform != "linux",
    reason="no gloo here",
)


def losses(processes: int, *arguments: str) -> list[float]:
    """The losses that the example prints."""
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # The package of this checkout, installed or not.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, *launch, str(EXAMPLE), *arguments],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        # A thread of gloo may still hold a tensor while the interpreter goes away (pytorch/pytorch#179291): that ends a
        # process which has done all its work, rarely, and is none of ours.
        if "terminate called without an active exception" not in run.stderr:
            break
    assert run.returncode == 0, run.stderr[-3000:]
    (line,) = re.findall(r"^losses (.*)$", run.stdout, re.MULTILINE)
    return [float(loss) for loss in line.split()]


@pytest.mark.long
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    alone = losses(1, "--updates", "12")
    assert alone[-1] < 0.8 * alone[0]
    assert losses(2, "--updates", "12") == pytest.approx(alone, abs=2e-5)
    # Sharded, and stopped half way: what two processes saved goes on in one, and the other way round.
    checkpoint = str(tmp_path / "two")
    assert losses(2, "--updates", "6", "--shard", "--save", checkpoint) == pytest.approx(alone[:6], abs=2e-5)
    assert losses(1, "--updates", "12", "--from", "6", "--load", checkpoint) == pytest.approx(alone[6:], abs=2e-5)
    checkpoint = str(tmp_path / "one")
    losses(1, "--updates", "6", "--save", checkpoint)
    found = losses(2, "--updates", "12", "--from", "6", "--shard", "--load", checkpoint)
    assert found == pytest.approx(alone[6:], abs=2e-5)
