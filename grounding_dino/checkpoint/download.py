"""Checkpoints named by a URL: fetched once into a cache folder, checked, and then local files. Names on a hub."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.hub import fetch, hub_name, weights_of
from grounding_dino.ops.loader import cache_root

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import file_lock
from tqdm import tqdm

logger = logging.getLogger(__name__)

PACKAGE_PREFIX = "grounding_dino://"  # names files of this package: grounding_dino://assets/...
_PACKAGE = Path(__file__).resolve().parents[1]
_TIMEOUT = 30.0  # seconds without an answer
_CHUNK = 1 << 20
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[A-Za-z]+$")  # as torch.hub and mmdet name files


def is_url(path: str) -> bool:
    """Whether `path` names something on a server."""
    return urlsplit(path).scheme in ("http", "https")


def local_path(path_or_url: str | os.PathLike[str]) -> str:
    """The local file or folder for a path, a URL or a name on a hub; what is not in the cache is downloaded.

    `grounding_dino://` names files of this package, `hf://owner/name` a model on the hub, for which
    `owner/name` does as well where nothing of that name is on the disk.

    Raises:
        CheckpointError: the file cannot be fetched, or is not what its name promises.
    """
    path = os.fspath(path_or_url)
    if is_url(path):
        return str(_download(path))
    if path.startswith(PACKAGE_PREFIX):
        return str(_PACKAGE / path[len(PACKAGE_PREFIX) :])
    name = hub_name(path)
    if name is not None:
        return weights_of(fetch(name))
    if "://" in path:
        return str(PathManager.get_local_path(path))
    return os.path.expanduser(path)


def cached_path(url: str) -> Path:
    """Where the file of `url` lies, or will lie, in the cache."""
    parts = urlsplit(url)
    names = [re.sub(r"[^\w.+-]", "_", name) for name in unquote(parts.path).split("/") if name not in ("", ".", "..")]
    return cache_root().joinpath(parts.netloc.replace(":", "_"), *names)


def _download(url: str) -> Path:
    target = cached_path(url)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(target)):  # several processes of a run ask for the same file
            if not target.is_file():
                _fetch(url, target)
    except OSError as error:  # urllib's errors are OSErrors too
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(
            f"cannot download {url}: {reason}. On a machine with a network fetch it by hand (curl -LO {url}) and name "
            f"the file as MODEL.WEIGHTS, or put it at {target}"
        ) from error
    return target


def _fetch(url: str, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.fetching-{os.getpid()}")
    digest = hashlib.sha256()
    logger.info("downloading %s to %s", url, target)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "grounding_dino"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, open(temporary, "wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=total or None, unit="B", unit_scale=True, desc=target.name, file=sys.stderr) as bar:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
                received = bar.n
        if total and received != total:
            raise OSError(f"the connection ended after {received} of {total} bytes")
        _check_hash(url, target.name, digest.hexdigest())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _check_hash(url: str, name: str, digest: str) -> None:
    match = _HASH_IN_NAME.search(name)
    if match and not digest.startswith(match.group(1)):
        raise CheckpointError(
            f"what came from {url} has the SHA-256 {digest[:16]}..., but its name promises {match.group(1)}; "
            "try again later"
        )
