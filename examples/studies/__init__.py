"""Measure the papers' claims again: every training, every figure and the page ``docs/results.md``.

Run the modules from the folder ``examples``, for example ``python -m studies.run --list``. The recipes lie in a folder
of scripts beside this package; importing the package puts that folder on ``sys.path``.
"""

import sys
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[1] / "recipes"

if str(RECIPES) not in sys.path:
    sys.path.append(str(RECIPES))
