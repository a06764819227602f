"""Builds a wheelhouse: everything that extras of Fathom need, for machines without a network.

    python scripts/wheelhouse.py build --python 3.12 --torch 2.11.0+cu130 --extra gpu --extra vllm \\
        --exclude-present installed.txt --piece-size 60MB --out wheelhouse/

pip chooses the wheels (constraints.txt keeps the versions that are tested), they are downloaded and verified, and
put into one archive that is cut into pieces with checksums. `install.py` beside them (`wheelhouse_install.py` here)
does the rest on the other machine. It compiles nothing: what has no wheel is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
TORCH_INDEX = "https://download.pytorch.org/whl/"
BLOCK = 1 << 20
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1, "": 1}


class Refused(Exception):
    """What keeps the wheelhouse from being built, in words for the user."""


@dataclass(frozen=True)
class Wheel:
    """One file of the wheelhouse. bytes and sha256 are the file's; name is normalized."""

    file: str
    name: str
    version: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Chosen:
    """A wheel that pip chose: where it is, before it is here."""

    name: str
    version: str
    url: str
    sha256: str | None

    @property
    def file(self) -> str:
        return unquote(urlparse(self.url).path.rpartition("/")[2])


@dataclass(frozen=True)
class Target:
    """The machine that it is for. glibc: of its system, as (2, minor)."""

    python: str
    machine: str
    glibc: int

    def arguments(self) -> list[str]:
        """pip's words for it. (It reads the markers of requirements as the Python that runs it.)"""
        tag = f"cp{self.python.replace('.', '')}"
        platforms = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, 4, -1)]
        old = [f"{name}_{self.machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
        words = ["--python-version", self.python, "--implementation", "cp"]
        words += [word for abi in (tag, "abi3", "none") for word in ("--abi", abi)]
        return words + [word for platform in (*platforms, *old) for word in ("--platform", platform)]


# ------------------------------------------------------------------------------ what is wanted


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(pyproject: Path, extras: Sequence[str]) -> list[str]:
    """The project's own and those of its extras. Raises Refused for an extra that it doesn't have."""
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{pyproject}: not a readable pyproject.toml ({error})") from None
    known = project.get("optional-dependencies", {})
    for extra in extras:
        if extra not in known:
            raise Refused(f"--extra {extra}: {pyproject.name} has {', '.join(known) or 'none'}")
    return [*project.get("dependencies", []), *(line for extra in extras for line in known[extra])]


def pins(path: Path) -> dict[str, str | None]:
    """Version by name from a file in the form of `pip freeze`; None where a line names no version."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    found: dict[str, str | None] = {}
    for line in (line.partition("#")[0].strip() for line in lines):
        if not line or line.startswith("-"):
            continue
        match = re.match(r"([\w.-]+)\s*(?:==\s*([^\s;]+))?", line)
        if match is None:
            raise Refused(f"{path}: not a line of pip freeze: {line!r}")
        found[normalized(match[1])] = match[2]
    return found


def constraints(
    locked: Path | None, present: dict[str, str | None], torch: str | None, free: Sequence[str]
) -> list[str]:
    """Versions that pip must keep: the other machine's, then the given torch, then the locked ones. free: names without one."""
    versions = {name: version for name, version in (pins(locked) if locked else {}).items() if version}
    if torch:
        versions = {name: v for name, v in versions.items() if name not in ("torch", "triton")} | {"torch": torch}
    versions |= {name: version for name, version in present.items() if version}
    lifted = {normalized(name) for name in free}
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items() if name not in lifted]


# ------------------------------------------------------------------------------ choosing


def choose(wanted: Sequence[str], kept: Sequence[str], target: Target, places: Sequence[str]) -> list[Chosen]:
    """The wheels that together give what is wanted, by pip's resolver. Raises Refused with pip's reason."""
    with tempfile.TemporaryDirectory() as scratch:
        lists = [Path(scratch, name) for name in ("requirements.txt", "constraints.txt")]
        for path, lines in zip(lists, (wanted, kept), strict=True):
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        report = Path(scratch, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += [
            "--disable-pip-version-check",
            "--only-binary",
            ":all:",
            "--target",
            scratch,
            "--report",
            str(report),
        ]
        command += [*target.arguments(), *places, "-r", str(lists[0]), "-c", str(lists[1])]
        environment = {**os.environ, "TMPDIR": scratch}  # what pip downloads to look at goes with it
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(f"pip: {reason(done.stdout + done.stderr)}")
        rows = json.loads(report.read_text(encoding="utf-8"))["install"]
    return sorted((_chosen(row) for row in rows), key=lambda wheel: wheel.name)


def _chosen(row: dict) -> Chosen:
    download = row["download_info"]
    hashes = download.get("archive_info", {}).get("hashes", {})
    return Chosen(
        normalized(row["metadata"]["name"]), row["metadata"]["version"], download["url"], hashes.get("sha256")
    )


def reason(said: str) -> str:
    """What pip says of a conflict, in one line: who asked for what, of many versions that say the same the first."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    conflict: dict[tuple[str, str], str] = {}
    for line in lines:
        if " depends on " in line or line.startswith("The user requested"):
            conflict.setdefault((line.split()[0], line.rpartition(" depends on ")[2]), line)
    if conflict:
        return f"{'; '.join(conflict.values())} (--free NAME lifts a version)"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return "; ".join(errors or lines[-1:]) or "failed without a word"


def without(chosen: Iterable[Chosen], present: dict[str, str | None]) -> list[Chosen]:
    """Those that the other machine lacks, or has in another version (local labels aside)."""

    def there(wheel: Chosen) -> bool:
        if wheel.name not in present:
            return False
        version = present[wheel.name]
        return version is None or version.partition("+")[0] == wheel.version.partition("+")[0]

    return [wheel for wheel in chosen if not there(wheel)]


# ------------------------------------------------------------------------------ downloading


def size_of(wheel: Chosen) -> int:
    """Bytes, asked of the index without a download."""
    if wheel.url.startswith("file:"):
        return Path(unquote(urlparse(wheel.url).path)).stat().st_size
    try:
        with urlopen(Request(wheel.url, method="HEAD"), timeout=60) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, HTTPException, TypeError) as error:
        raise Refused(f"{wheel.url}: {error}") from None


def fetch(wheel: Chosen, folder: Path) -> Wheel:
    """The file in `folder`, verified; what is there already and right is not fetched again. Raises Refused otherwise."""
    path = folder / wheel.file
    if not path.is_file() or (wheel.sha256 and sha256(path) != wheel.sha256):
        partial = path.with_suffix(".part")
        try:
            with urlopen(wheel.url, timeout=60) as answer, open(partial, "wb") as out:
                shutil.copyfileobj(answer, out, BLOCK)
                length = answer.headers.get("Content-Length")
        except (OSError, HTTPException) as error:
            raise Refused(f"{wheel.url}: {error}") from None
        if length is not None and partial.stat().st_size != int(length):
            raise Refused(f"{wheel.url}: cut off after {partial.stat().st_size:,} of {int(length):,} bytes")
        found = sha256(partial)
        if wheel.sha256 and found != wheel.sha256:
            raise Refused(f"{wheel.url}: sha256 {found}, the index says {wheel.sha256}")
        partial.rename(path)
    return Wheel(wheel.file, wheel.name, wheel.version, path.stat().st_size, sha256(path))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------------------------ pieces


class Pieces:
    """A stream to write to that ends up in numbered files of `size` bytes each (the last one less)."""

    def __init__(self, folder: Path, size: int):
        self.done: list[dict[str, str | int]] = []
        self._folder, self._size, self._left = folder, size, 0
        self._out, self._digest = None, hashlib.sha256()

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            if not self._left:
                self._next()
            part = view[: self._left]
            self._out.write(part)
            self._digest.update(part)
            self._left -= len(part)
            view = view[len(part) :]
        return len(data)

    def _next(self) -> None:
        self.close()
        self._out, self._digest, self._left = open(self._path(), "wb"), hashlib.sha256(), self._size

    def _path(self) -> Path:
        return self._folder / f"piece-{len(self.done) + 1:04d}"

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
            size = self._size - self._left
            self.done.append({"file": self._path().name, "bytes": size, "sha256": self._digest.hexdigest()})
            self._out = None


def pack(wheels: Sequence[Wheel], folder: Path, out: Path, size: int) -> list[dict[str, str | int]]:
    """Write the archive of the wheels in pieces; same wheels, same bytes. Pieces of an earlier build go."""
    for old in out.glob("piece-*"):
        old.unlink()
    pieces = Pieces(out, size)
    with tarfile.open(fileobj=pieces, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for wheel in wheels:
            entry = tarfile.TarInfo(wheel.file)
            entry.size = wheel.bytes
            with open(folder / wheel.file, "rb") as stream:
                archive.addfile(entry, stream)
    pieces.close()
    return pieces.done


def parse_size(text: str) -> int:
    """Bytes of 60MB, 1.5GiB, 4096."""
    match = re.fullmatch(r"([\d.]+)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS or int(float(match[1]) * UNITS[match[2].upper()]) < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 60MB or 1GiB, got {text!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])


# ------------------------------------------------------------------------------ the command


def glibc_minor(text: str) -> int:
    """35 of "2.35"."""
    found = re.fullmatch(r"2\.(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a version such as 2.35, got {text!r}")
    return int(found[1])


def build(arguments: argparse.Namespace) -> Iterator[str]:
    """Does it, and says what was done."""
    present = pins(arguments.exclude_present) if arguments.exclude_present else {}
    target = Target(arguments.python, arguments.machine, arguments.glibc)
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if running != target.python:
        yield f"note: pip reads requirements' markers as Python {running}; run this with Python {target.python} to be exact"
    places = ["--no-index"] if arguments.no_index else []
    places += [word for folder in arguments.find_links for word in ("--find-links", str(folder))]
    label = (arguments.torch or "").partition("+")[2]
    if label and "torch" not in present:
        places += ["--extra-index-url", TORCH_INDEX + label]
    kept = constraints(arguments.constraints, present, arguments.torch, arguments.free)
    yield "pip is choosing; where the index tells nothing of a wheel, it downloads it to look: seconds to many minutes"
    asked = [*requirements(arguments.pyproject, arguments.extra), *arguments.require]
    chosen = choose(asked, kept, target, places)
    wanted = without(chosen, present)
    yield f"{len(chosen)} packages, {len(wanted)} of them not on the other machine"
    if arguments.dry_run:
        sizes = {wheel: size_of(wheel) for wheel in wanted}
        for wheel in sorted(wanted, key=sizes.get, reverse=True):
            yield f"{sizes[wheel] / 1e6:10,.1f} MB  {wheel.name} {wheel.version}"
        yield f"{sum(sizes.values()) / 1e6:10,.1f} MB  in {-(-sum(sizes.values()) // arguments.piece_size)} pieces"
        return
    folder = arguments.out / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    wheels = [fetch(wheel, folder) for wheel in wanted] + [_own(path, folder) for path in arguments.wheel]
    manifest = arguments.out / "manifest.json"
    manifest.unlink(missing_ok=True)  # a wheelhouse that has one is whole
    pieces = pack(wheels, folder, arguments.out, arguments.piece_size)
    shutil.copyfile(ROOT / "scripts" / "wheelhouse_install.py", arguments.out / "install.py")
    lock = "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)
    (arguments.out / "lock.txt").write_text(lock, encoding="utf-8")
    facts = {"python": target.python, "machine": target.machine, "torch": arguments.torch, "extras": arguments.extra}
    facts |= {"pieces": pieces, "wheels": [asdict(wheel) for wheel in wheels]}
    manifest.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    yield f"{sum(wheel.bytes for wheel in wheels) / 1e6:,.1f} MB of {len(wheels)} wheels in {len(pieces)} pieces in {arguments.out}"
    yield f"copy {arguments.out}/piece-*, manifest.json and install.py; {folder} is only needed for another build"


def _own(path: Path, folder: Path) -> Wheel:
    """A wheel that the user brings."""
    if not path.is_file() or path.suffix != ".whl" or path.name.count("-") < 4:
        raise Refused(f"--wheel {path}: no such wheel")
    shutil.copyfile(path, folder / path.name)
    name, version, *_ = path.name.split("-")
    return Wheel(path.name, normalized(name), version, path.stat().st_size, sha256(path))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command = parser.add_subparsers(required=True).add_parser("build", help="choose, download, pack and cut")
    add = command.add_argument
    add(
        "--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="version of the other machine's Python"
    )
    add("--machine", default="x86_64", help="its processor, as `uname -m` says")
    add("--glibc", type=glibc_minor, default="2.35", help="its C library, as `ldd --version` says")
    add(
        "--torch",
        help="version to keep, as 2.11.0+cu130; the label names PyTorch's own index where torch is not present",
    )
    add("--extra", action="append", default=[], help="extra of Fathom (repeatable)")
    add("--require", action="append", default=[], metavar="SPEC", help="beside them, as vllm==0.24.0 (repeatable)")
    add("--exclude-present", type=Path, metavar="FILE", help="`pip freeze` of the other machine: kept, and left out")
    add("--free", action="append", default=[], metavar="NAME", help="package that may get another version (repeatable)")
    add(
        "--constraints",
        type=Path,
        default=ROOT / "constraints.txt",
        help="versions to keep; default: the development lock",
    )
    add("--pyproject", type=Path, default=ROOT / "pyproject.toml", help="whose requirements; default: Fathom's")
    add(
        "--wheel", type=Path, action="append", default=[], help="a wheel to put in beside, as Fathom's own (repeatable)"
    )
    add("--find-links", type=Path, action="append", default=[], help="folder of wheels to choose from (repeatable)")
    add("--no-index", action="store_true", help="ask no package index")
    add("--piece-size", type=parse_size, default=parse_size("500MB"), help="of a piece at most, as 60MB or 1GiB")
    add("--out", type=Path, default=Path("wheelhouse"), help="folder to write")
    add("--dry-run", action="store_true", help="choose and tell sizes, download nothing")
    arguments = parser.parse_args()
    try:
        for line in build(arguments):
            print(line, flush=True)
    except Refused as told:
        print(f"wheelhouse: {told}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
