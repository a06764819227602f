"""Where the models of a recipe's `models` table live: in the package, in a local directory, or on the hub.

`identity` is what enters a key (content of local files; name and revision on the hub, so that
planning needs no network); `locate` gives the directory, downloading when it must.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from fathom.errors import InputError, WorkError, first_line
from fathom.store import hash_path

_HUB = re.compile(r"^(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?$")
_EMBEDDED = "embedded:"


def identity(spec: str, where: str) -> str:
    """Identity of a model for content keys. Raises InputError when a local one isn't a model directory."""
    local = local_directory(spec, where)
    if local is None:
        return f"hub:{spec}"
    return f"files:{hash_path(local)}"


def locate(spec: str, where: str) -> Path:
    """The model's directory; a hub model is downloaded (safetensors, configuration and tokenizer only)."""
    local = local_directory(spec, where)
    if local is not None:
        return local
    match = _HUB.match(spec)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                match["name"],
                revision=match["revision"],
                allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*"],
            )
        )
    except RepositoryNotFoundError:
        raise InputError(
            f"{where}: {spec}: no such directory, and the hub has no model {match['name']!r} (or wants a token in HF_TOKEN)"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = first_line(error)
        raise WorkError(f"{where}: {spec}: no such directory, and downloading it from the hub failed ({why})") from None


def local_directory(spec: str, where: str) -> Path | None:
    """The directory of an embedded or local model, checked; None for a hub name."""
    if spec.startswith(_EMBEDDED):
        path = Path(str(resources.files("fathom") / "data" / spec.removeprefix(_EMBEDDED)))
        if not path.is_dir():
            known = sorted(p.parent.name for p in path.parent.glob("*/config.json"))
            raise InputError(
                f"{where}: no model {spec!r} is shipped with Fathom; shipped: {', '.join(known) or 'none'}"
            )
    else:
        try:
            path = Path(spec).expanduser()
        except RuntimeError:
            raise InputError(f"{where}: {spec}: there is no such user") from None
        local = spec.startswith((".", "/", "~")) or path.parent.is_dir()  # runs/typo, where there are runs
        if not path.exists() and _HUB.match(spec) and not (local and "/" in spec):
            return None
        if not path.exists():
            raise InputError(f"{where}: {spec}: no such directory, and not a hub name (org/name[@revision])")
    check_model(path, where)
    return path


def check_model(path: Path, where: str) -> None:
    """Raises InputError unless a directory is in Hugging Face layout with safetensors weights."""
    if not path.is_dir():
        raise InputError(f"{where}: {path}: not a model directory (it is a file)")
    if not (path / "config.json").is_file():
        raise InputError(f"{where}: {path}: not a model directory (no config.json)")
    if not any(path.glob("*.safetensors")):
        raise InputError(f"{where}: {path}: not a model directory (no *.safetensors)")
