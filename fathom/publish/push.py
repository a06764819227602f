"""One commit on the Hugging Face hub with the files of a folder. The hub's own client does the work; errors become lines."""

from __future__ import annotations

from pathlib import Path

from fathom.errors import InputError, WorkError, first_line


def check_repo(repo: str) -> None:
    """Raises InputError unless `repo` is a name that the hub takes, with its owner: org/name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--repo {repo}: {first_line(error)}") from None
    if repo.count("/") != 1:
        raise InputError(f"--repo {repo}: expected org/name")


def push(folder: Path, repo: str, token: str, private: bool, message: str, branch: str) -> str:
    """Create the repository if it isn't there, and commit every file of the folder; returns the commit's address.

    private: of a repository that this creates; one that exists stays as it is. Raises WorkError where the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="fathom")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if branch != "main":
            api.create_branch(repo, branch=branch, exist_ok=True)
        return api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, revision=branch).commit_url
    except Exception as error:  # refusals, bad metadata, transport: the client's errors share no base of their own
        raise WorkError(f"publishing {repo} failed ({first_line(error)}); the same command tries again") from error
