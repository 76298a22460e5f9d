"""A deletion vector in a table, as engines of Databricks write one, which delta-rs cannot.

Format: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#deletion-vectors, and for the bitmap within
https://github.com/RoaringBitmap/RoaringFormatSpec
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from pathlib import Path

_MAGIC, _NO_RUNS = 1681511377, 12346
# Python has another alphabet for the same base 85: https://rfc.zeromq.org/spec/32/
_PYTHONS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_Z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def delete_rows(table: Path, positions: Sequence[int]) -> None:
    """Mark rows of a table's newest file as deleted, by a commit of its own."""
    log = table / "_delta_log"
    commits = sorted(log.glob("*.json"))
    actions = [json.loads(line) for path in commits for line in path.read_text().splitlines()]
    add = [action["add"] for action in actions if "add" in action][-1]
    bitmap = struct.pack("<iqIiiHHI", _MAGIC, 1, 0, _NO_RUNS, 1, 0, len(positions) - 1, 16)
    bitmap += b"".join(struct.pack("<H", position) for position in positions)
    text = base64.b85encode(bitmap + bytes(-len(bitmap) % 4)).translate(bytes.maketrans(_PYTHONS, _Z85)).decode()
    vector = {
        "storageType": "i",
        "pathOrInlineDv": text,
        "sizeInBytes": len(bitmap),
        "cardinality": len(positions),
    }
    feature = ["deletionVectors"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": feature, "writerFeatures": feature}
    commit = [
        {"protocol": protocol},
        {"remove": {"path": add["path"], "dataChange": True, "deletionTimestamp": 1}},
        {"add": {**add, "dataChange": True, "deletionVector": vector}},
    ]
    (log / f"{len(commits):020d}.json").write_text("\n".join(map(json.dumps, commit)))
