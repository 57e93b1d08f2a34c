"""What a folder's outputs were made from: hashes of source and output, the checkpoint, the keyword.

A name and a time do not say whether a file is what is asked for: a folder of full pictures looks like one of protected
pictures, and a copied photo keeps its time.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from psic_core import keys

NAME = ".psic-record.jsonl"


class Record:
    """What is known of the outputs in a folder: a line of JSON each, the last one of a name counts.

    Args:
        out: The folder.
        how: What this run makes files of, besides their sources, in JSON types: task, checkpoint, quality.
        keyword: Kept as a mark that takes as long to guess from as a slot.
    """

    def __init__(self, out: Path, how: dict[str, Any], keyword: str | None) -> None:
        self.out, self.path = out, out / NAME
        self.lines: dict[str, Any] = {}
        for line in self.path.read_text().splitlines() if self.path.is_file() else ():
            try:
                self.lines |= json.loads(line)
            except (ValueError, TypeError):
                continue  # a run was killed while it wrote the line
        self.salt = bytes.fromhex(self.lines.get("salt", os.urandom(keys.SALT_BYTES).hex()))
        self.how = how | {"keyword": keys.mark(keyword, self.salt).hex() if keyword else None}

    def fault(self, source: Path, output: Path) -> str:
        """Why an output that is there is not what is asked for, or nothing."""
        found, name = self.lines.get(output.relative_to(self.out).as_posix()), repr(str(output))
        if not isinstance(found, dict):
            return f"{name} is there already, and nothing says from what"
        if found.get("output") != facts(output):
            return f"{name} was changed since it was made"
        other = [k for k, v in self.how.items() if found.get("how", {}).get(k) != v]
        other += ["source"] if found.get("source") != facts(source) else []
        return f"{name} is there already, made with another {', another '.join(other)}" if other else ""

    def add(self, output: Path, made: dict[str, Any]) -> None:
        """Append what is about to take its place: what is done is known even if the run is killed."""
        line = {"salt": self.salt.hex(), output.relative_to(self.out).as_posix(): made | {"how": self.how}}
        with self.path.open("a") as file:  # of several processes too: a line is written at once
            file.write(json.dumps(line) + "\n")


def facts(path: Path) -> list[int | str]:
    """A file's size and SHA-256."""
    data = path.read_bytes()
    return [len(data), hashlib.sha256(data).hexdigest()]
