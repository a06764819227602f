"""Checkpoints that are either whole or absent, and that say so when they are damaged.

    step-N.tmp/  the caller's files -> fsync -> manifest.json (sha256 of each) -> fsync -> rename to step-N

A checkpoint is used only after every file matches its manifest. This module knows nothing of what
is inside: the loop writes safetensors and JSON, a sharded trainer may write more. It protects from
kills, full disks and flipped bytes, not from someone who edits the manifest too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from fathom.errors import WorkError
from fathom.store import disk_errors, sync

MANIFEST = "manifest.json"
STEP = re.compile(r"step-(\d+)")


class Checkpoints:
    """The checkpoints of one training run, in one directory, the newest `keep` of them."""

    def __init__(self, directory: Path, keep: int = 2, say: Callable[[str], None] = print) -> None:
        self.directory = Path(directory)
        self.keep = keep
        self.say = say

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Have `write` fill a new directory, and seal it. Raises InputError when the disk is full or unwritable; what
        was there before stays usable.
        """
        temporary = self.begin(step)
        try:
            with disk_errors(self._path(step)):
                write(temporary)
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return self.seal(step)

    def begin(self, step: int) -> Path:
        """An empty directory to fill; what lies at this step goes."""
        temporary = self._temporary(step)
        with disk_errors(temporary):
            for leftover in (temporary, self._path(step)):
                if leftover.exists():
                    shutil.rmtree(leftover)
            temporary.mkdir(parents=True)
        return temporary

    def seal(self, step: int) -> Path:
        """Make what was written the checkpoint of this step, and keep the newest `keep` up to it.

        Others go only after the new one was read back and verified (a later one can only be a
        damaged one that was not used).
        """
        final, temporary = self._path(step), self._temporary(step)
        with disk_errors(final):
            try:
                _seal(temporary)
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            os.rename(temporary, final)
            sync(self.directory)
        if damage := find_damage(final):
            raise WorkError(f"{damage}: the checkpoint just written does not read back")
        kept = [saved for saved in self.steps() if saved <= step][: self.keep]
        for other in set(self.steps()) - set(kept):
            shutil.rmtree(self._path(other))
        return final

    def drop_unfinished(self) -> None:
        """Remove what was begun and never sealed. For a run's start: nothing is being written."""
        for left in self.directory.glob("step-*.tmp"):
            shutil.rmtree(left)

    def newest(self) -> Path | None:
        """The newest checkpoint that verifies, or None when there never was one.

        Damaged newer ones are named by `say` and passed over. Raises WorkError when there
        were checkpoints and none verifies: training never restarts from zero silently.
        """
        steps = self.steps()
        for step in steps:
            damage = find_damage(self._path(step))
            if damage is None:
                return self._path(step)
            self.say(f"{damage}: damaged, so checkpoint step-{step} is not used")
        if steps:
            raise WorkError(f"{self.directory}: no checkpoint verifies; remove the directory to train from the start")
        return None

    def steps(self) -> list[int]:
        """Steps of the sealed checkpoints, newest first."""
        if not self.directory.is_dir():
            return []
        found = (STEP.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _temporary(self, step: int) -> Path:
        return self.directory / f"step-{step}.tmp"

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step}"


def find_damage(checkpoint: Path) -> Path | None:
    """The first file of the checkpoint that is missing or does not match the manifest; None when all is well."""
    manifest = checkpoint / MANIFEST
    try:
        expected = json.loads(manifest.read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return manifest
    for name, digest in expected.items():
        path = checkpoint / name
        if not path.is_file() or _sha256(path) != digest:
            return path
    return None


def _seal(directory: Path) -> None:
    files = sorted(path for path in directory.iterdir())
    digests = {path.name: _sha256(path) for path in files}
    for path in files:
        sync(path)
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"sha256": digests}, indent=1), encoding="utf-8")
    sync(manifest)
    sync(directory)


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
