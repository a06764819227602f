"""`fathom publish`: what of a run would go to the Hugging Face hub, and, when told to, its way there.

    scan      files -> what must not leave the machine      tree      files -> what a person looks at
    push      files, repository, token -> a commit

The files are those of `RUN/model`, which the report writes. Nothing leaves the machine without a
repository and a token, and nothing while the scan finds something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fathom.config import StageConfig
from fathom.document import with_sets
from fathom.errors import InputError
from fathom.publish.push import check_repo, push
from fathom.publish.scan import Finding, scan
from fathom.report import write
from fathom.report.read import read_run
from fathom.store import damage

TOKEN = "HF_TOKEN"


class PublishConfig(StageConfig):
    """What `--set` may set. private: of a repository that the push creates. message: of the commit."""

    private: bool = True
    message: str = "Model made by Fathom"
    branch: str = "main"


@dataclass(frozen=True)
class Publication:
    """files: (path in the repository, bytes), sorted. commit: its address on the hub, None when nothing was sent."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    findings: tuple[Finding, ...]
    commit: str | None


def publish(run_dir: Path, repo: str | None, sets: Sequence[str], environment: Mapping[str, str]) -> Publication:
    """Lay out a run's model with its cards and, where `repo` is given, push it.

    Raises InputError for a run without a finished final model, and with `repo` for a name that is none, a missing
    token and anything that the scan finds: before anything is sent.
    """
    config = with_sets(PublishConfig, "fathom publish", {}, sets)
    if repo is not None:
        check_repo(repo)
        if not environment.get(TOKEN):
            raise InputError(f"--repo {repo}: no token in {TOKEN}; nothing was sent (without --repo nothing ever is)")
    folder = _folder(run_dir)
    files = tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in _files(folder))
    findings = tuple(scan(folder, [name for name, _ in files], environment))
    if repo is None:
        return Publication(folder, files, findings, None)
    if findings:
        more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
        raise InputError(f"{folder / findings[0].file}: {findings[0].told}{more}; nothing was sent")
    return Publication(folder, files, findings, push(folder, repo, environment[TOKEN], **config.model_dump()))


def _folder(run_dir: Path) -> Path:
    """The directory of the final model, written again from the run's files."""
    run = read_run(run_dir)
    if run.final is None:
        raise InputError(f"{run_dir}: its recipe names no `final` stage, so there is no model to publish")
    final = run.stage(run.final)
    if final is None:
        raise InputError(f"{run_dir}: its final stage {run.final!r} has not finished")
    if broken := damage(final.directory, final.manifest, thorough=True):
        raise InputError(f"{final.directory}: damaged: {broken}; `fathom run` makes it again")
    write(run_dir)
    return run_dir / "model"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
