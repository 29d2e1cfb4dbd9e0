"""Creates a virtual environment with only some installed distributions and their requirements."""

import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def build_environment(folder: Path, names: list[str]) -> str:
    """
    Create a virtual environment from installed distributions, without a network and without copies.

    Args:
        folder (`Path`): Folder of the environment.
        names (`list[str]`): Names of the distributions.

    Returns:
        `str`: Path of its interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    packages = folder / "packages"
    packages.mkdir()
    for one in closure(names):
        for path in one.files:
            # The paths of scripts are outside the folder of packages and start with "..".
            top = path.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(one.locate_file(top))
    # Python searches a folder in a `.pth` file, but does not read its `.pth` files. So editable installs stay outside.
    (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (site_packages / "packages.pth").write_text(f"{packages}\n")
    return str(folder / "venv/bin/python")


def closure(names: list[str]) -> list[Distribution]:
    """The installed distributions `names` and their requirements."""
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
