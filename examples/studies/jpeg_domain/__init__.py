"""The experiments of Ehrlich and Davis (ICCV 2019) on CIFAR-10 as JPEG files."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
