"""Programs in processes that have imported PyTorch and nothing else: its import takes seconds, and is made once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import IO

_TEMPLATE = """
import json, os, subprocess, sys, traceback
import torch

for line in sys.stdin:
    code, paths, files = json.loads(line)
    if not hasattr(os, "fork"):  # Windows: a process that has imported nothing
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
        with open(files[0], "w") as out, open(files[1], "w") as err:
            done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=out, stderr=err)
        print(done.returncode, flush=True)
        continue
    child = os.fork()
    if child == 0:
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.path[:0] = paths
        try:
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class FreshProcesses:
    """Call it with a program to run that in a new copy of one process, which has imported PyTorch only.

    Args:
        folder: for what the programs print.
    """

    def __init__(self, folder: Path) -> None:
        self._files = [folder / "stdout", folder / "stderr"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TEMPLATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, code: str, *, paths: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run a program, with further folders in front of ``sys.path``."""
        sending, receiving = self._pipes()
        print(json.dumps([code, [*map(str, paths)], [*map(str, self._files)]]), file=sending, flush=True)
        status = int(receiving.readline())
        return subprocess.CompletedProcess(code, status, *(file.read_text() for file in self._files))

    def close(self) -> None:
        """End the process."""
        for pipe in self._pipes():
            pipe.close()
        self._process.wait()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout
