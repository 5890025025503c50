"""Folders of weights from the Hugging Face Hub: downloads, and the client's errors explained.

Hashes are checked when tensors are read, in :mod:`cdzoo.weights.integrity`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdzoo._version import __version__
from cdzoo.errors import WeightsError
from cdzoo.weights.folder import CARD, CONFIG, TENSORS, WeightsFolder

__all__ = ["PREFIX", "download", "explained", "fetch"]

PREFIX = "hf://"


def fetch(
    url: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> WeightsFolder:
    """Fetch the weights at ``"hf://owner/name"`` or ``"hf://owner/name@revision"``.

    Args:
        url: the address.
        revision, cache_dir, token, local_files_only: as in :func:`download`.

    Raises:
        WeightsError: as :func:`download`.
        ValueError: ``url`` and ``revision`` name different revisions.
    """
    repo_id, _, in_url = url.removeprefix(PREFIX).partition("@")
    if in_url and revision not in (None, in_url):
        raise ValueError(f"{url!r} and revision={revision!r} name different revisions; give one of them")
    revision = revision or in_url or None
    path = download(repo_id, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
    # the cache names a snapshot's folder after its commit
    return WeightsFolder(path, _address(repo_id, revision), (repo_id, path.name))


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Fetch a set of weights from the Hub into the local cache; files that are there already are not fetched again.

    Args:
        repo_id: ``"owner/name"``.
        revision: branch, tag or commit; the main branch by default. All files come from one commit.
        cache_dir: where to keep files, in place of the Hub client's own cache.
        token: access token for private repositories; by default the one that the Hub client has stored.
        local_files_only: don't use the network (``HF_HUB_OFFLINE=1`` has the same effect).

    Returns:
        the folder, with ``config.json``, ``model.safetensors`` and, where the repository has one, ``README.md``.

    Raises:
        WeightsError: there is no such repository, revision or file, no access, or no connection and nothing cached.
    """
    from huggingface_hub import snapshot_download

    with explained(repo_id, revision, "the download"):
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=None if cache_dir is None else os.fspath(cache_dir),
                token=token,
                local_files_only=local_files_only,
                allow_patterns=[CONFIG, TENSORS, CARD],
                library_name="cdzoo",
                library_version=__version__,
            )
        )
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise WeightsError(
                f"{_address(repo_id, revision)}: the repository has no {name}; a folder of weights holds {CONFIG} and "
                f"{TENSORS}: was it made by cdzoo?"
            )
    return folder


def _address(repo_id: str, revision: str | None) -> str:
    return PREFIX + repo_id + (f"@{revision}" if revision else "")


@contextmanager
def explained(repo_id: str, revision: str | None, what: str) -> Iterator[None]:
    """Turn whatever the Hub client raises into a ``WeightsError`` that says what to do.

    Args:
        repo_id, revision: what was asked for.
        what: what was being done, as the subject of "failed".

    Raises:
        WeightsError: the block raised.
    """
    try:
        yield
    # all: the client's exceptions have no common base, and those of its HTTP library change with its version
    except Exception as error:
        raise WeightsError(f"{_address(repo_id, revision)}: {_explanation(error, repo_id, revision, what)}") from error


def _explanation(error: Exception, repo_id: str, revision: str | None, what: str) -> str:
    from huggingface_hub import errors as hub

    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    last_line = (str(root).strip().splitlines() or [type(root).__name__])[-1]
    if isinstance(error, hub.HFValidationError):
        return (
            f"{repo_id!r} is neither a local folder nor a repository's name, which has the form 'owner/name' "
            f"({last_line})"
        )
    if isinstance(error, hub.GatedRepoError):
        return "access to the repository has to be granted: accept its terms on its page, then pass token="
    if isinstance(error, hub.RepositoryNotFoundError):
        return "there is no such repository, or it is private; check the spelling, or pass token="
    if isinstance(error, hub.RevisionNotFoundError) or re.search("Invalid rev id", last_line):
        return f"the repository has no revision {revision!r}; name a branch, a tag or a full commit hash"
    if isinstance(error, hub.LocalEntryNotFoundError | hub.OfflineModeIsEnabled):
        cause = error.__cause__
        reason = f"the Hub cannot be reached ({cause})" if cause is not None else "the network was not to be used"
        if isinstance(cause, hub.OfflineModeIsEnabled):
            reason = "offline mode is on (HF_HUB_OFFLINE)"
        return (
            f"the repository is not in the cache, and {reason}; fetch it once with a connection, or pass the path of a "
            "folder that holds it"
        )
    return f"{what} failed: {type(root).__name__}: {last_line}; check the connection and the token, and try again"
