"""The pictures of a plan's entries: files, members of tar files, rows of parquet files."""

from __future__ import annotations

import tarfile
import threading
from collections import OrderedDict
from typing import Any

from grounding_dino.data.shard_index import member_at
from grounding_dino.labelling.parquet import EncodedRows
from grounding_dino.labelling.plan import Entry, file_state
from grounding_dino.pictures import RgbArray, decode_picture, read_picture

_MOST_OPEN = 8  # shards that a worker holds open


class PictureReader:
    """Reads pictures, in several threads; shards stay open."""

    def __init__(self) -> None:
        self._shards: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, entry: Entry) -> RgbArray:
        """The picture (H, W, 3) of an entry.

        Raises:
            FileNotFoundError, ValueError: it is not there, or is no picture.
        """
        source = entry["source"]
        if "path" in source:
            picture = read_picture(source["path"])
        else:
            picture = decode_picture(self.encoded(entry), entry["file_name"])
        if 0 in picture.shape:
            raise ValueError(f"the picture is empty: {picture.shape[1]} x {picture.shape[0]} pixels")
        return picture

    def encoded(self, entry: Entry) -> bytes:
        """The content of a picture in a shard.

        Raises:
            ValueError: it cannot be read.
        """
        source = entry["source"]
        with self._lock:  # one place in a file
            try:
                shard = self._open(source["shard"], entry["shard_state"])
                if "row" in source:
                    content: bytes = shard[source["row"]]
                else:
                    content = member_at(shard, source["start"])[1]
            except (OSError, tarfile.TarError) as error:
                raise ValueError(f"the shard {source['shard']!r} cannot be read: {error}") from error
        return content

    def _open(self, path: str, state: list[int]) -> Any:
        """
        Raises:
            ValueError: the file was changed since it was listed.
        """
        shard = self._shards.pop(path, None)
        if shard is None:
            if file_state(path) != state:
                raise ValueError(f"the shard {path!r} was changed after its pictures were listed; --restart lists anew")
            shard = open(path, "rb") if path.lower().endswith(".tar") else EncodedRows(path)
        self._shards[path] = shard
        if len(self._shards) > _MOST_OPEN:
            self._shards.popitem(last=False)[1].close()
        return shard
