"""A virtual environment that holds some installed distributions and what they need, and nothing else."""

import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def build_environment(folder: Path, names: list[str]) -> str:
    """
    Make a virtual environment out of what is installed here, so that it takes no network and no copies.

    Args:
        folder (`Path`): Where to make it.
        names (`list[str]`): Distributions.

    Returns:
        `str`: Path of its interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    packages = folder / "packages"
    packages.mkdir()
    for one in closure(names):
        for path in one.files:
            # Scripts lie outside of the packages' folder, and begin with "..".
            top = path.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(one.locate_file(top))
    # A folder in a `.pth` file is searched, and its own `.pth` files are not read: editable installs stay outside.
    (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (site_packages / "packages.pth").write_text(f"{packages}\n")
    return str(folder / "venv/bin/python")


def closure(names: list[str]) -> list[Distribution]:
    """Distributions that are installed, and those that they require."""
    found: dict[str, Distribution] = {}
    wanted = list(names)
    while wanted:
        one = distribution(wanted.pop())
        if one.name in found:
            continue
        found[one.name] = one
        for requirement in map(Requirement, one.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    return list(found.values())
