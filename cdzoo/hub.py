"""Saving, loading and publishing: a local folder, or a repository of the Hugging Face Hub of the same shape.

    config.json          how to build the module, which codec it belongs to, SHA-256 of the tensors, what it reaches
    model.safetensors    parameters and buffers; of a codec also its integers, under ``integer.``
    README.md            the model card

A module comes back bit for bit, or not at all: there is no partial load and no fallback to random values.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdzoo._registry import get_builder
from cdzoo._version import __version__
from cdzoo.coding.base import Codec
from cdzoo.errors import WeightsError
from cdzoo.transforms import InputTransform
from cdzoo.weights.folder import CARD, CONFIG, TENSORS, WeightsFolder
from cdzoo.weights.saving import save_pretrained

__all__ = ["download", "from_pretrained", "push_to_hub", "save_pretrained"]

PathLike = str | os.PathLike[str]


# -- loading -----------------------------------------------------------------------------------------------------


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Fetch a set of weights from the Hub into the local cache; what is there already is not fetched again.

    Args:
        repo_id: ``"owner/name"``.
        revision: branch, tag or commit; the main branch by default. All files come from the one commit that it
            stands for when the first of them is fetched.
        cache_dir: where to keep files, in place of the Hub client's own cache.
        token: access token for private repositories; by default the one that the Hub client has stored.
        local_files_only: don't use the network (``HF_HUB_OFFLINE=1`` has the same effect).

    Returns:
        the folder, with ``config.json``, ``model.safetensors`` and, where the repository has one, ``README.md``.

    Raises:
        WeightsError: no such repository, revision or file, no access, or no connection and nothing in the cache.
    """
    from huggingface_hub import hf_hub_download

    def fetch(filename: str, at: str) -> Path:
        with _explained(repo_id, revision, filename):
            return Path(
                hf_hub_download(
                    repo_id,
                    filename,
                    revision=at,
                    cache_dir=None if cache_dir is None else os.fspath(cache_dir),
                    token=token,
                    local_files_only=local_files_only,
                )
            )

    branch = revision or "main"
    # A branch may move between two requests, even between a file's metadata and its content: all requests but the
    # first name the commit. Without an answer, the cache or the error that the client raises are what counts.
    commit = None if local_files_only else _commit(repo_id, branch, token)
    folder = fetch(CONFIG, commit or branch).parent  # the cache names its folders after commits
    if not (folder / TENSORS).is_file():
        with suppress(WeightsError):  # a repository may lack the card, and nothing depends on it
            fetch(CARD, folder.name)
        fetch(TENSORS, folder.name)
    known = folder.parents[1] / "refs" / branch
    if commit not in (None, branch) and not (known.is_file() and known.read_text() == commit):
        fetch(CONFIG, branch)  # has the client note what the branch stands for, for when there is no connection
    return folder


def _commit(repo_id: str, branch: str, token: str | bool | None) -> str | None:
    """The commit that a branch stands for, or ``None`` where the Hub does not say."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if re.fullmatch("[0-9a-f]{40}", branch):
        return branch
    with suppress(Exception):  # hf_hub_download meets it again, and knows what can be done without an answer
        commit: str | None = get_hf_file_metadata(hf_hub_url(repo_id, CONFIG, revision=branch), token=token).commit_hash
        return commit
    return None


def from_pretrained(
    repo_or_dir: PathLike,
    *,
    revision: str | None = None,
    cache_dir: PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Any:
    """A codec or a model with its weights, from a local folder or from the Hub.

    Args:
        repo_or_dir: a folder as :func:`save_pretrained` writes it, ``"owner/name"``, or ``"hf://owner/name@revision"``.
            A folder that exists goes before a repository of the same name.
        revision, cache_dir, token, local_files_only: as in :func:`download`; for repositories only.

    Returns:
        the codec or the model, in evaluation mode (``module.eval()``), as a published network is used; call
        ``module.train()`` to go on training.

    Raises:
        WeightsError: the weights cannot be had, are damaged, or need another version of cdzoo.
        ValueError: a revision was given for a local folder, or two different ones for a repository.
    """
    name = os.fspath(repo_or_dir)
    is_url = name.startswith("hf://")
    if not is_url and (isinstance(repo_or_dir, os.PathLike) or os.path.isdir(name)):
        if revision is not None:
            raise ValueError(f"{name!r} is a local folder, which has no revision {revision!r}; leave revision out.")
        source = WeightsFolder.from_path(name)
    else:
        repo_id, _, in_name = name.removeprefix("hf://").partition("@")
        if in_name and revision not in (None, in_name):
            raise ValueError(f"{name!r} and revision={revision!r} name different revisions; give one of them.")
        revision = revision or in_name or None
        folder = download(
            repo_id, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
        )
        source = WeightsFolder.from_hub(folder, repo_id, revision)
    try:
        builder = get_builder(source.config["builder"], source.config["kind"])
    except ValueError as error:
        raise WeightsError(f"{source}: {error} Upgrade cdzoo if the weights are newer than {__version__}.") from error
    return builder(weights=source).eval()


# -- publishing -------------------------------------------------------------------------------------------------


def push_to_hub(
    module: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    dtype: torch.dtype | None = None,
    codec: Codec | None = None,
    transforms: InputTransform | None = None,
    meta: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> str:
    """Publish a codec or a model on the Hub, in one commit; the repository is made if need be.

    Args:
        module: a codec or model that a builder of cdzoo made.
        repo_id: ``"owner/name"``.
        private: make a new repository private; one that exists stays as it is.
        token: access token with the right to write; by default the one that the Hub client has stored.
        revision: branch to commit to, made if need be; the main branch by default.
        commit_message: what the Hub's history shows.
        dtype, codec, transforms, meta, card: as in :func:`save_pretrained`.

    Returns:
        address of the commit.

    Raises:
        TypeError, ValueError: as :func:`save_pretrained`; nothing is sent then.
        WeightsError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory() as directory:
        save_pretrained(
            module,
            directory,
            dtype=dtype,
            codec=codec,
            transforms=transforms,
            meta=meta,
            repo_id=repo_id,
            revision=revision or "main",
            card=card,
        )
        with _explained(repo_id, revision, "publishing"):
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision not in (None, "main"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            # not upload_folder: it may spread files over several commits, and nobody should see one without the other
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(name, os.path.join(directory, name)) for name in (CONFIG, TENSORS, CARD)],
                commit_message=commit_message or f"Weights of {module.builder}, written by cdzoo {__version__}",
                revision=revision,
            )
    return str(commit.commit_url)


# -- the Hub's errors, as ours -----------------------------------------------------------------------------------


@contextmanager
def _explained(repo_id: str, revision: str | None, what: str) -> Iterator[None]:
    """Turn whatever the Hub client raises into a WeightsError that says what to do."""
    try:
        yield
    # all: the client's exceptions have no common base, and those of its HTTP library change with its version
    except Exception as error:
        where = f"hf://{repo_id}" + (f"@{revision}" if revision else "")
        raise WeightsError(f"{where}: {_explanation(error, repo_id, revision, what)}") from error


def _explanation(error: Exception, repo_id: str, revision: str | None, what: str) -> str:
    from huggingface_hub import errors as hub

    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    last_line = (str(root).strip().splitlines() or [type(root).__name__])[-1]
    if isinstance(error, hub.HFValidationError):
        return (
            f"{repo_id!r} is neither a local folder nor a repository's name, which has the form 'owner/name' "
            f"({last_line})."
        )
    if isinstance(error, hub.GatedRepoError):
        return "access to the repository has to be granted: accept its terms on its page, then pass token=."
    if isinstance(error, hub.RepositoryNotFoundError):
        return "there is no such repository, or it is private; check the spelling, or pass token=."
    if isinstance(error, hub.RevisionNotFoundError):
        return f"the repository has no revision {revision!r}; name a branch, a tag or a full commit hash."
    if isinstance(error, hub.LocalEntryNotFoundError | hub.OfflineModeIsEnabled):
        cause = error.__cause__
        reason = f"the Hub cannot be reached ({cause})" if cause is not None else "the network was not to be used"
        if isinstance(cause, hub.OfflineModeIsEnabled):
            reason = "offline mode is on (HF_HUB_OFFLINE)"
        return (
            f"{what} is not in the cache, and {reason}; fetch it once with a connection, or pass the path of a folder "
            "that holds it."
        )
    if isinstance(error, hub.EntryNotFoundError):
        return f"the repository has no {what}; a folder of weights holds {CONFIG} and {TENSORS}: was it made by cdzoo?"
    return f"{what} failed: {type(root).__name__}: {last_line}; check the connection and the token, and try again."
