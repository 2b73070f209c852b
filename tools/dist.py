"""Wheel and sdist, looked into and used: `make dist`.

Built into build/dist, compared with the files that git knows, and installed into an empty environment, from which the
quickstart's recipe runs. `--quick` leaves the installation out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
BESIDE = (
    "PKG-INFO",
    "setup.cfg",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "constraints.txt",
)
"""What an sdist holds beside the package."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="build and look, install nothing")
    arguments = parser.parse_args()
    out = ROOT / "build" / "dist"
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True)
    wheel, sdist = next(out.glob("*.whl")), next(out.glob("*.tar.gz"))
    wanted = package_files()
    with zipfile.ZipFile(wheel) as archive:
        faults = look(archive.namelist(), wanted)
    with tarfile.open(sdist) as source:
        inside = [name.partition("/")[2] for name in source.getnames() if source.getmember(name).isfile()]
        faults += look(inside, wanted, BESIDE)
    if faults:
        sys.exit("\n".join(faults))
    print(
        f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB, no junk"
    )
    if not arguments.quick:
        use(wheel, ROOT / ".venv-dist")


def package_files() -> list[str]:
    """The package's files as git knows them."""
    listed = subprocess.run(["git", "ls-files", "posttrain"], cwd=ROOT, check=True, capture_output=True, text=True)
    return listed.stdout.split()


def look(names: Iterable[str], wanted: Sequence[str], beside: Sequence[str] = ()) -> list[str]:
    """What is in an archive and should not be, and what is not there: look(["posttrain/a.pyc"], ["posttrain/a.py"])."""
    names = [name for name in names if name and not name.endswith("/")]
    meta = [name for name in names if ".dist-info/" in name or name.startswith("posttrain.egg-info/")]
    extra = sorted(set(names) - set(meta) - set(wanted) - set(beside))
    lacking = sorted(set(wanted) - set(names))
    return [f"junk: {name}" for name in extra] + [f"missing: {name}" for name in lacking]


def unpacked(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Files of the package that no pattern of `package-data` takes into the wheel."""
    return [
        name
        for name in names
        if not name.endswith(".py")
        and not any(
            PurePosixPath(name).match(pattern) or fnmatch(name, f"posttrain/{pattern.removeprefix('**/')}")
            for pattern in patterns
        )
    ]


def package_data() -> list[str]:
    """`package-data` of pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns: list[str] = settings["tool"]["setuptools"]["package-data"]["posttrain"]
    return patterns


def use(wheel: Path, environment: Path) -> None:
    """The wheel in an environment of its own, outside of the checkout: version, help, and the quickstart."""
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin" / "pip"), "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, str(wheel)], check=True)
    elsewhere = environment / "elsewhere"
    elsewhere.mkdir()
    for words in (["--version"], ["models", "list"], ["quickstart"]):
        subprocess.run([str(environment / "bin" / "posttrain"), *words], check=True, cwd=elsewhere)


if __name__ == "__main__":
    main()
