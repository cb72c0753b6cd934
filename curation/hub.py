"""The model hub as huggingface_hub knows it: what its cache holds, which commit a name stands for, how much a download would be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shards.errors import InfrastructureError

# Weights that hold nothing but numbers, and what tokenizers, configs and chat templates are kept in. Never *.py, never pickles.
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
# The same weights for other engines, beside the ones that are loaded.
OTHER_ENGINES = ("onnx/*", "openvino/*", "original/*", "coreml/*", "flax_model*", "tf_model*")
ASK_SECONDS = 10.0

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit hash, which never moves; branches and tags may."""
    return _COMMIT.fullmatch(revision) is not None


def cached_commit(repo: str, revision: str = "") -> str | None:
    """The commit that a branch or tag ("" = main) stands for in the local cache (its refs/), or None. A commit stands for itself."""
    if is_commit(revision):
        return revision
    path = _storage(repo) / "refs" / (revision or "main")
    commit = path.read_text().strip() if path.is_file() else ""
    return commit if is_commit(commit) else None


def asked_commit(repo: str, revision: str = "") -> str:
    """The commit that a branch or tag ("" = main) stands for on the hub now. Raises InfrastructureError."""
    return str(_info(repo, revision, files=False).sha)


def cached_folder(repo: str, revision: str, wants: Sequence[str]) -> Path | None:
    """The snapshot in the local cache, if all its files of these patterns are there as far as the cache can tell; asks no network."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        found = huggingface_hub.snapshot_download(
            repo, revision=revision or None, local_files_only=True, allow_patterns=list(wants), ignore_patterns=list(OTHER_ENGINES)
        )
    except (LocalEntryNotFoundError, IncompleteSnapshotError, HFValidationError):
        return None
    return Path(found)


def download(repo: str, revision: str, wants: Sequence[str]) -> Path:
    """The snapshot, downloaded where it is not in the cache yet. Raises InfrastructureError with the mend."""
    import huggingface_hub

    _info(repo, revision, files=False)  # says at once that there is no network, where a download tries for half a minute
    try:
        found = huggingface_hub.snapshot_download(
            repo, revision=revision or None, allow_patterns=list(wants), ignore_patterns=list(OTHER_ENGINES)
        )
    except Exception as error:
        raise _unreachable(repo, revision, error) from error
    return Path(found)


def download_bytes(repo: str, revision: str, wants: Sequence[str]) -> int:
    """Bytes of the files of these patterns on the hub. Raises InfrastructureError."""
    found = 0
    for file in _info(repo, revision, files=True).siblings or ():
        if any(fnmatchcase(file.rfilename, p) for p in wants) and not any(fnmatchcase(file.rfilename, p) for p in OTHER_ENGINES):
            found += file.size or 0
    return found


def _info(repo: str, revision: str, files: bool) -> Any:
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().model_info(repo, revision=revision or None, timeout=ASK_SECONDS, files_metadata=files)
    except Exception as error:
        raise _unreachable(repo, revision, error) from error


def _unreachable(repo: str, revision: str, error: Exception) -> InfrastructureError:
    """What to do about an error of the hub's client; errors that are none of the hub's are raised as they are."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    told = f"model {repo}" + (f" at {revision}" if revision else "")
    why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, GatedRepoError):
        return InfrastructureError(f"{told} is gated: accept its terms on the hub and set the environment variable HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return InfrastructureError(f"{told}: the hub has no such revision; give a branch, a tag or a commit that is there")
    if isinstance(error, RepositoryNotFoundError):
        return InfrastructureError(
            f"{told} is not on the hub, or is private: check the id (a directory that is meant must exist), or set HF_TOKEN"
        )
    if isinstance(error, HFValidationError):
        return InfrastructureError(f"{told}: {why}")
    if not isinstance(error, OSError | HfHubHTTPError | httpx2.HTTPError | TimeoutError):
        raise error
    version = f" --revision {revision}" if revision else ""
    return InfrastructureError(
        f"{told} is not in the local cache and the hub cannot be reached ({why}); give a directory, or fill the cache with "
        f"`hf download {repo}{version}` on a machine with a network and copy it (HF_HOME says where it is)",
        retryable=True,  # a worker that meets this in the midst of a run waits a little: the network may be back
    )


def _storage(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
