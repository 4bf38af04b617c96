"""Hashing the token shards while the run goes on: damage is found without holding up the start."""

import threading
from pathlib import Path

from data.shards import Shards


class ShardVerification(threading.Thread):
    """Compares every file of the folders of shards with the sha256 in its manifest, once, in the background.

    `error` is None until a file differs; then it is the line that names it. Reading at the disk's speed, it takes about
    as long as copying the shards; it ends with the process.
    """

    def __init__(self, folders: list[str]) -> None:
        super().__init__(name="shard verification", daemon=True)
        paths = [Path(folder) for folder in folders]
        # A single source lies in the folder whose manifest covers it; Megatron pairs have none.
        roots = {root for path in paths for root in (path, path.parent) if (root / "manifest.json").is_file()}
        self.roots = sorted(roots)
        self.error: str | None = None

    def run(self) -> None:
        for root in self.roots:
            try:
                Shards(root).verify()
            except (ValueError, OSError) as error:
                self.error = str(error)
                return
