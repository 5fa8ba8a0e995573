"""torchvision must import beside a torch that its wheel was not built for, and be left alone beside one that it was."""

import subprocess
import sys
from pathlib import Path

import torch

from strategies import torchvision_ops

ROOT = Path(__file__).parents[2]


def test_torchvision_and_what_needs_it_import_in_a_fresh_process() -> None:
    code = "import strategies.torchvision_ops, torchvision, segment_anything; print(torchvision.ops.nms.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "nms"


def test_operators_are_there_and_are_declared_once() -> None:
    assert hasattr(torch.ops.torchvision, "nms")
    assert hasattr(torch.ops.torchvision, "qnms")
    assert torchvision_ops.ensure() == ()
