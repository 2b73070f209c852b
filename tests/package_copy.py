"""A copy of the package that a test may edit as a developer would: new files, and rows in its tables.

What a test writes and inserts is all that it takes to add a kind, so these tests say what an addition costs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class PackageCopy:
    """PackageCopy.into(tmp_path): the package under `tmp_path`, its data files linked."""

    folder: Path

    @classmethod
    def into(cls, folder: Path) -> PackageCopy:
        package = ROOT / "posttrain"
        for path in package.rglob("*"):
            place = folder / "posttrain" / path.relative_to(package)
            if path.suffix == ".py":
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
            elif path.is_file() and "__pycache__" not in path.parts:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(path)
        return cls(folder)

    def write(self, name: str, text: str) -> None:
        """A new file of the package."""
        path = self.folder / "posttrain" / name
        assert not path.exists(), f"{name} is there already"
        path.write_text(text, encoding="utf-8")

    def insert(self, name: str, before: str, rows: str) -> None:
        """`rows` in front of a line that occurs once in a file of the package."""
        path = self.folder / "posttrain" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{before!r} occurs {text.count(before)} times in {name}"
        path.write_text(text.replace(before, rows + before), encoding="utf-8")

    def run(self, program: str, folder: Path) -> str:
        """What a program prints that imports the copy; its failure fails the test."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout
