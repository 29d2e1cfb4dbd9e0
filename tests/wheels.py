"""Writes packages for tests."""

import hashlib
import zipfile


def write_wheel(path, package: str, data: dict[str, bytes]) -> str:
    """Write a wheel that pip accepts to the folder `path`, and return its sha256."""
    wheel = path / f"{package}-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = f"{package}-1.0.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for name, content in data.items():
            archive.writestr(f"{package}/data/{name}", content)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()
