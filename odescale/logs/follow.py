"""A file that somebody else writes, followed: every byte once, through appends, rotations, truncations and our own end."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odescale.files import whole_file
from odescale.logs.table import refuse, short_path

HEAD = 256
"""Bytes at the beginning of a file by which it is known again: a truncated one that has grown past its old length differs there."""
STATE = "state.json"


class Follower:
    """What was read of one log lies in `folder`: the bytes as `NAME.read.txt` (whole lines only), the place as `state.json`.

    `poll()` takes what is new and returns whether anything was. A rotated log (renamed, a new file under the old name) is
    first read
    to its end under its new name, found by its inode in the same folder; a truncated one begins again. The copy is written before
    the state, and the state names the copy's length: what a killed process had copied beyond it is cut off and read again.
    """

    def __init__(self, log: str | os.PathLike, folder: str | os.PathLike) -> None:
        self.log, self.folder = Path(log), Path(folder)
        if not self.log.exists() and not self.folder.exists():
            raise refuse("a log to follow", f"{short_path(self.log)}, which does not exist", "check the path")
        if self.log.is_dir():
            raise refuse("one log file to follow", f"the folder {short_path(self.log)}", "name the file that grows")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.whole_lines = True
        self.state = self._load()
        with self.copy.open("ab") as stream:  # what was copied without its place being kept
            stream.truncate(self.state["copied"])

    @property
    def copy(self) -> Path:
        """Everything read so far, in whole lines."""
        return self.folder / f"{self.log.stem}.read.txt"

    @property
    def notes(self) -> tuple[str, ...]:
        """What happened to the file meanwhile, in words."""
        return tuple(self.state["notes"])

    def poll(self) -> bool:
        """Takes what is new; whether there was anything."""
        grown = False
        try:
            for path, inode, note in self._files():
                if note:
                    self.state |= {"offset": 0, "head": "", "head_size": 0, "inode": inode}
                    self.state["notes"].append(note)
                grown |= self._take(path)
        except FileNotFoundError:  # renamed while it was looked at: the next look finds it by its inode
            pass
        return grown

    def _files(self) -> Iterator[tuple[Path, int, str]]:
        """The files to read now, in order, each with its inode when it was chosen and what is said of a new beginning."""
        self.whole_lines = True
        try:
            now = self.log.stat()
        except FileNotFoundError:  # between a rotation and the first line of the new file
            if (old := self._renamed()) is not None:
                yield old, self.state["inode"], self._truncated(old)
            return
        if self.state["inode"] == 0:
            self.keep(inode=now.st_ino)
        if self.state["inode"] == now.st_ino:
            yield self.log, now.st_ino, self._truncated(self.log)
            return
        old = self._renamed()
        if old is not None:
            between = self._between(old, now.st_ino)
            # Whoever rotates may make the new file while the writer is still at a line of the old one.
            self.whole_lines = now.st_size == 0 and not between
            yield old, self.state["inode"], self._truncated(old)
            if self.whole_lines:
                return
            # Rotated more than once while nobody looked: the files between, by age.
            for path, inode in between:
                yield path, inode, f"rotated: {path.name} read"
            self.whole_lines = True
        yield (
            self.log,
            now.st_ino,
            "rotated: the old file read to its end" if old else "replaced by another file: the old one is gone",
        )

    def _truncated(self, path: Path) -> str:
        """What is said of the followed file if its beginning is no longer the one that was read; empty if it is."""
        same = path.stat().st_size >= self.state["offset"]
        same = same and self._head(path, self.state["head_size"]) == self.state["head"]
        return "" if same else f"truncated after {self.state['offset']} bytes: read from its beginning"

    def _between(self, old: Path, current: int) -> list[tuple[Path, int]]:
        """Files named after the log that were last written after the one that was followed."""
        since, own = old.stat().st_mtime_ns, old.stat().st_ino
        found = [
            (path.stat(), path) for path in self.log.parent.glob(f"{glob.escape(self.log.name)}*") if path.is_file()
        ]
        later = [
            (s.st_mtime_ns, path, s.st_ino)
            for s, path in found
            if s.st_ino not in (own, current) and s.st_mtime_ns > since
        ]
        return [(path, inode) for _, path, inode in sorted(later)]

    def _renamed(self) -> Path | None:
        """The file that was followed, under another name in the same folder."""
        for path in self.log.parent.iterdir():
            try:
                if path != self.log and path.is_file() and path.stat().st_ino == self.state["inode"]:
                    # Truncated before it was renamed it begins differently; under any other name it is another file.
                    if path.name.startswith(self.log.name) or not self._truncated(path):
                        return path
            except FileNotFoundError:
                continue
        return None

    def _take(self, path: Path) -> bool:
        """Copies whole lines from the place on; of a file that nobody writes any more, the rest too."""
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_ino != self.state["inode"]:  # rotated since it was looked at
                return False
            stream.seek(self.state["offset"])
            data = stream.read()
            end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1 if self.whole_lines else len(data)
            if end == 0:
                return False
            data = data[:end]
            offset = self.state["offset"] + len(data)
            size = min(HEAD, offset)
            stream.seek(0)
            head = hashlib.sha256(stream.read(size)).hexdigest()
        piece = data if data.endswith((b"\n", b"\r")) else data + b"\n"
        with self.copy.open("ab") as stream:
            stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        self.state |= {
            "offset": offset, "copied": self.state["copied"] + len(piece), "head_size": size, "head": head,
        }  # fmt: skip
        self.keep()
        return True

    def keep(self, **more: Any) -> None:
        """The state to disk, whole or not at all; `more` is the caller's own."""
        self.state |= more
        with whole_file(self.folder / STATE, "w") as stream:
            json.dump(self.state, stream)

    def _load(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {
            "log": str(self.log.resolve()),
            "inode": 0,
            "offset": 0,
            "copied": 0,
            "head": "",
            "head_size": 0,
            "notes": [],
        }
        try:
            kept = json.loads((self.folder / STATE).read_text())
        except FileNotFoundError:
            return fresh
        except ValueError as error:
            raise refuse(
                "the state of a watch", f"{short_path(self.folder / STATE)}, which is damaged", "remove the folder"
            ) from error
        if not isinstance(kept, dict) or not fresh.keys() <= kept.keys() or kept["log"] != fresh["log"]:
            raise refuse(
                f"a folder that watches {short_path(self.log)}",
                f"{short_path(self.folder)} of another log",
                "pass another --out",
            )
        return kept

    @staticmethod
    def _head(path: Path, size: int) -> str:
        with path.open("rb") as stream:
            return hashlib.sha256(stream.read(size)).hexdigest() if size else ""
