"""Loading and publishing codecs and models: a local folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cdzoo._version import __version__
from cdzoo.transforms import InputTransform
from cdzoo.weights.building import load
from cdzoo.weights.download import PREFIX, download, explained
from cdzoo.weights.folder import CARD, CONFIG, TENSORS
from cdzoo.weights.resolve import find_weights
from cdzoo.weights.saving import save_pretrained

if TYPE_CHECKING:
    from cdzoo.coding.base import Codec

__all__ = ["download", "from_pretrained", "push_to_hub", "save_pretrained"]


def from_pretrained(
    repo_or_dir: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Any:
    """Load a codec or a model with its weights, from a local folder or from the Hub.

    Args:
        repo_or_dir: a folder as :func:`save_pretrained` writes it, ``"owner/name"``, or ``"hf://owner/name@revision"``.
            A folder that exists goes before a repository of the same name.
        revision: branch, tag or commit; the main branch by default. For repositories only, like the rest.
        cache_dir: where to keep files, in place of the Hub client's own cache.
        token: access token for private repositories; by default the one that the Hub client has stored.
        local_files_only: don't use the network (``HF_HUB_OFFLINE=1`` has the same effect).

    Returns:
        the codec or the model, in evaluation mode, as transformers' ``from_pretrained`` returns it. Builders
        (``cdzoo.get_model``, ``cdzoo.models.*``) return training mode, as torchvision's and timm's do.

    Raises:
        WeightsError: the weights cannot be had, are damaged, or need another version of cdzoo or another package.
        ValueError: a revision was given for a local folder, or two different ones for a repository.
    """
    name = os.fspath(repo_or_dir)
    local = isinstance(repo_or_dir, os.PathLike) or os.path.isdir(name)
    weights = repo_or_dir if local or name.startswith(PREFIX) else PREFIX + name
    source = find_weights(
        weights, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    assert source is not None
    return load(source)


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
        module: a codec or model that a registered builder made.
        repo_id: ``"owner/name"``.
        private: make a new repository private; one that exists stays as it is.
        token: access token with the right to write; by default the one that the Hub client has stored.
        revision: branch to commit to, made if need be; the main branch by default.
        commit_message: the message in the Hub's history.
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
        with explained(repo_id, revision, "publishing"):
            api = HfApi(token=token, library_name="cdzoo", library_version=__version__)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision not in (None, "main"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            # not upload_folder: it may spread files over several commits, and nobody should see one without the other
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(name, os.path.join(directory, name)) for name in (CONFIG, TENSORS, CARD)],
                commit_message=commit_message or f"Weights written by cdzoo {__version__}",
                revision=revision,
            )
    return str(commit.commit_url)
