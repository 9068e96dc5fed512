"""A repository of the hub at one commit: which files it holds, and what the hub says of them."""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from stemma.checkpoints.remote import answers
from stemma.checkpoints.remote.names import COMMIT, RemoteName, check_address, endpoint, is_offline
from stemma.errors import MissingExtraError, RemoteError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MOST_FILES = 20_000
"""Files of a repository that are listed."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub lists it.

    Attributes:
        path: Path in the repository.
        size: Its bytes.
        sha256: What the hub says that its SHA-256 is, of large files; empty for others. A claim, not what was read.
        identity: What identifies this state of it: that digest, or the one of git.
    """

    path: str
    size: int
    sha256: str
    identity: str


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit.

    Attributes:
        name: `ORG/NAME`.
        commit: The commit that the revision led to.
        files: Its files.
    """

    name: str
    commit: str
    files: tuple[HubFile, ...]

    def url(self, path: str) -> str:
        """The address of a file at this commit."""
        return f"{endpoint()}/{self.name}/resolve/{self.commit}/{quote(path)}"


def token() -> str | None:
    """The token of the hub that is stored on this machine or in `HF_TOKEN`."""
    _hub()
    from huggingface_hub import get_token

    return get_token()


def commit_of(name: RemoteName) -> str:
    """The commit that a revision leads to now; a commit is not asked for.

    Args:
        name: The repository and revision.

    Returns:
        Forty hexadecimal digits.

    Raises:
        RemoteError: If there is no such repository or revision, or it cannot be asked.
    """
    if COMMIT.fullmatch(name.revision):
        return name.revision
    found = _asked(name, lambda api: api.model_info(name.repository, revision=name.revision or None, timeout=30.0).sha)
    if not isinstance(found, str) or not COMMIT.fullmatch(found):
        raise RemoteError(f"{name}: the hub does not say which commit this is")
    return found


def repository(name: RemoteName) -> Repository:
    """List a repository at the commit that its revision leads to now."""
    commit = commit_of(name)

    def listing(api: "HfApi") -> list[HubFile]:
        out: list[HubFile] = []
        for item in api.list_repo_tree(name.repository, recursive=True, revision=commit):
            size = getattr(item, "size", None)
            if size is None:  # a folder
                continue
            lfs = getattr(item, "lfs", None)
            sha256 = str(lfs.sha256) if lfs is not None else ""
            size = int(lfs.size if lfs is not None else size)
            out.append(HubFile(str(item.path), size, sha256, sha256 or str(getattr(item, "blob_id", ""))))
            if len(out) > MOST_FILES:
                raise RemoteError(f"{name} holds more than {MOST_FILES:,} files, which is no model")
        return out

    return Repository(name.repository, commit, tuple(_asked(name, listing)))


def download(name: RemoteName, files: tuple[str, ...], commit: str) -> str:
    """Fetch files through the hub's own cache; returns the folder of the snapshot."""
    _hub()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return snapshot_download(
            name.repository, revision=commit, allow_patterns=list(files), endpoint=endpoint(), token=token()
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        raise RemoteError(f"{name} could not be fetched: {_sentence(e)}") from e


def _hub() -> None:
    try:
        import huggingface_hub  # noqa: F401 - whether it is there
    except ImportError as e:
        raise MissingExtraError("reading models of a hub", "huggingface-hub", "hub") from e


def _asked(name: RemoteName, ask):
    """Ask the hub, and say in one sentence why it does not answer."""
    if is_offline():
        raise RemoteError(f"{name} is on a server, and HF_HUB_OFFLINE is set. Unset it, or give a local path")
    _hub()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    check_address(endpoint())
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return _patiently(lambda: ask(HfApi(endpoint=endpoint(), token=token(), library_name="stemma")))
    except GatedRepoError as e:
        raise RemoteError(f"{name} is gated: accept its terms on the hub, then log in with: hf auth login") from e
    except RevisionNotFoundError as e:
        raise RemoteError(f"{name}: there is no such revision") from e
    except RepositoryNotFoundError as e:
        raise RemoteError(
            f"{name}: there is no such repository on {endpoint()}, or it is private: log in with hf auth login"
        ) from e
    except OfflineModeIsEnabled as e:
        raise RemoteError(f"{name} is on a server, and HF_HUB_OFFLINE was set. Unset it, or give a local path") from e
    except RemoteError:
        raise
    except HfHubHTTPError as e:
        raise RemoteError(f"{name}: the hub does not answer as it should: {_sentence(e)}") from e
    except Exception as e:  # whatever the library's transport raises, a connection above all
        raise RemoteError(f"{name}: the hub at {endpoint()} cannot be asked: {_sentence(e)}") from e


def _patiently(ask):
    """Ask again, a few times, a hub that is busy or wants its rate limit respected."""
    from huggingface_hub.errors import HfHubHTTPError

    waited = 0.0
    for tries in range(answers.TRIES):
        try:
            return ask()
        except HfHubHTTPError as e:
            response = getattr(e, "response", None)
            if response is None or response.status_code not in answers.BUSY or tries + 1 == answers.TRIES:
                raise
            wait = answers.retry_after(response.headers.get("Retry-After"))
            pause = answers.PAUSE * 2**tries if wait is None else wait
            waited += pause
            if waited > answers.PATIENCE:
                raise
            time.sleep(pause)
    raise AssertionError


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
