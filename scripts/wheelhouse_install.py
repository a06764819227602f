"""Installs a wheelhouse on a machine without a network. Needs Python alone; `scripts/wheelhouse.py` puts it beside the pieces as install.py.

    python install.py --check                  are all pieces here and whole?
    python install.py --venv ~/fathom          a new environment that also sees the packages of this Python
    python install.py --here                   into this Python's environment, by its pip
    python install.py --target ./packages      into a folder for PYTHONPATH; works without pip

Pieces are verified, wheels unpacked and verified, then installed. What is done already is not done again. It builds
nothing, changes nothing that is installed but by pip, and never asks a package index.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import importlib.util
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

BLOCK = 1 << 20


class Refused(Exception):
    """What keeps the wheelhouse from being installed, in words for the user."""


# ------------------------------------------------------------------------------ pieces


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the build wrote last. Raises Refused where it is not there or not whole."""
    path = folder / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(f"{path}: no such file; it belongs beside the pieces") from None
    except ValueError:
        raise Refused(f"{path}: damaged; copy it again") from None


def check_python(manifest: dict[str, Any]) -> None:
    """Raises Refused on another Python or machine than the wheels were chosen for."""
    here = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}", "machine": platform.machine()}
    for name, value in here.items():
        if manifest[name] != value:
            raise Refused(f"made for {name} {manifest[name]}, and this is {value}")


def check_pieces(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises Refused naming every piece that is missing or is not what was built."""
    missing, corrupt = [], []
    for piece in manifest["pieces"]:
        path = folder / piece["file"]
        if not path.is_file():
            missing.append(piece["file"])
        elif path.stat().st_size != piece["bytes"] or sha256(path) != piece["sha256"]:
            corrupt.append(piece["file"])
    told = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("corrupt", corrupt)) if names]
    if told:
        raise Refused(f"{'; '.join(told)} (of {len(manifest['pieces'])} pieces); copy these again")


class Joined(io.RawIOBase):
    """The pieces as one stream that is read once, so that the archive itself never takes space."""

    def __init__(self, paths: Sequence[Path]):
        self._left = list(paths)
        self._stream: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream is None:
                if not self._left:
                    return 0
                self._stream = open(self._left.pop(0), "rb")
            if count := self._stream.readinto(buffer):
                return count
            self._stream.close()
            self._stream = None


def unpack(folder: Path, manifest: dict[str, Any], wheels: Path) -> list[Path]:
    """The wheels, each verified. Those that are there already are left as they are; no piece is read for them alone."""
    wanted = {wheel["file"]: wheel for wheel in manifest["wheels"]}
    paths = {name: wheels / name for name in wanted}
    absent = {name for name, path in paths.items() if not path.is_file() or sha256(path) != wanted[name]["sha256"]}
    if absent:
        check_pieces(folder, manifest)
        wheels.mkdir(parents=True, exist_ok=True)
        stream = io.BufferedReader(Joined([folder / piece["file"] for piece in manifest["pieces"]]), BLOCK)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for entry in archive:
                if entry.name in absent:
                    partial = paths[entry.name].with_suffix(".part")
                    with open(partial, "wb") as out:
                        shutil.copyfileobj(archive.extractfile(entry), out, BLOCK)
                    if sha256(partial) != wanted[entry.name]["sha256"]:
                        raise Refused(f"{entry.name}: not the wheel that was put in; build the wheelhouse again")
                    partial.rename(paths[entry.name])
    return list(paths.values())


# ------------------------------------------------------------------------------ with pip


def pip_install(python: Path | str, manifest: dict[str, Any], wheels: Path, paths: Sequence[Path]) -> None:
    """By the pip of that Python, which also sees whether what the wheels need is there. Raises Refused where it fails."""
    names = [f"{wheel['name']}=={wheel['version']}" for wheel in manifest["wheels"]]
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--find-links", str(wheels), *names], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        raise Refused(f"pip: {' '.join(lines)}")


def make_venv(folder: Path) -> Path:
    """The Python of a new (or half-made) environment that sees this one's packages, its pip too where there is one."""
    import venv

    python = folder / "bin" / "python"
    venv.create(folder, system_site_packages=True, with_pip=False)
    if not has_pip(python) and importlib.util.find_spec("ensurepip") is not None:
        subprocess.run([str(python), "-m", "ensurepip", "--default-pip"], capture_output=True, check=False)
    return python


def has_pip(python: Path | str) -> bool:
    return subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


# ------------------------------------------------------------------------------ without pip


def unzip(wheel: Path, target: Path, scripts: Path) -> None:
    """What installing a wheel is: its files in place, those of `.data` where they belong, its commands in `scripts`.

    RECORD is written last, so a wheel that has one under `target` is there. Raises Refused for a wheel that would write elsewhere.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = next((n for n in names if n.count("/") == 1 and n.endswith(".dist-info/RECORD")), None)
        if record is None:
            raise Refused(f"{wheel.name}: not a wheel (no RECORD)")
        if (target / record).is_file():
            return
        commands = f"{record.rpartition('/')[0]}/entry_points.txt"
        if commands in names:
            _write_commands(archive.read(commands).decode(), scripts)
        for name in sorted(names, key=lambda name: name == record):
            if not name.endswith("/"):
                _put(archive, name, _place(wheel, name, target, scripts))


def _place(wheel: Path, name: str, target: Path, scripts: Path) -> Path:
    """Where a member of a wheel goes."""
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts:
        raise Refused(f"{wheel.name}: would write to {name}")
    if not parts[0].endswith(".data") or len(parts) < 3:
        return target.joinpath(*parts)
    homes = {"purelib": target, "platlib": target, "scripts": scripts, "data": scripts.parent}
    homes["headers"] = scripts.parent / "include" / parts[0].partition("-")[0]
    if parts[1] not in homes:
        raise Refused(f"{wheel.name}: {name}: unknown kind of data {parts[1]!r}")
    return homes[parts[1]].joinpath(*parts[2:])


def _put(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as stream, open(path, "wb") as out:
        start = stream.read(len(b"#!python"))
        is_script = start == b"#!python" and ".data/scripts/" in name
        out.write(f"#!{sys.executable}".encode() if is_script else start)
        shutil.copyfileobj(stream, out, BLOCK)
    if is_script or archive.getinfo(name).external_attr >> 16 & 0o100:
        path.chmod(0o755)


def _write_commands(entry_points: str, scripts: Path) -> None:
    """A file for each command that a package declares."""
    declared = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    declared.optionxform = str
    declared.read_string(entry_points)
    for name, value in declared.items("console_scripts") if declared.has_section("console_scripts") else ():
        module, _, function = value.partition("[")[0].strip().partition(":")
        scripts.mkdir(parents=True, exist_ok=True)
        text = f"#!{sys.executable}\nimport sys\n\nfrom {module} import {function.partition('.')[0]}\n\nsys.exit({function}())\n"
        (scripts / name).write_text(text, encoding="utf-8")
        (scripts / name).chmod(0o755)


# ------------------------------------------------------------------------------ the command


def install(folder: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """Does what was asked for, and says what was done."""
    manifest = read_manifest(folder)
    if arguments.check:
        check_pieces(folder, manifest)
        yield f"all {len(manifest['pieces'])} pieces are whole; {len(manifest['wheels'])} wheels in them"
        return
    check_python(manifest)
    wheels = arguments.wheels or folder / "wheels"
    paths = unpack(folder, manifest, wheels)
    yield f"{len(paths)} wheels are whole in {wheels}"
    if arguments.target:
        for path in paths:
            unzip(path, arguments.target, arguments.target / "bin")
        yield f"unpacked into {arguments.target}: put it on PYTHONPATH, and {arguments.target / 'bin'} on PATH"
        return
    python = make_venv(arguments.venv) if arguments.venv else sys.executable
    if has_pip(python):
        pip_install(python, manifest, wheels, paths)
    else:
        base = arguments.venv or Path(sys.prefix)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(base), "platbase": str(base)}))
        for path in paths:
            unzip(path, site, base / "bin")
    yield f"installed for {python}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Install a wheelhouse without a network.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--check", action="store_true", help="verify the pieces and stop")
    where.add_argument("--here", action="store_true", help="into this Python's environment")
    where.add_argument("--venv", type=Path, help="into a new environment that sees this Python's packages")
    where.add_argument("--target", type=Path, help="into a folder, without pip")
    parser.add_argument("--wheels", type=Path, help="where the wheels are unpacked; default: wheels beside this file")
    arguments = parser.parse_args()
    try:
        for line in install(Path(os.path.abspath(__file__)).parent, arguments):
            print(line)
    except Refused as reason:
        print(f"install: {reason}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
