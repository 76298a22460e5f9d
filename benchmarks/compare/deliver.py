"""Ways of getting spans from where an app leaves them to where they stay; each a process that measures itself.

`python -m benchmarks.compare.deliver WAY SPANS` prints the CPU a span of its process and the spans a second, from the
first span to the last answer. What a way loads is loaded before.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from typing import TYPE_CHECKING

from benchmarks.compare import spans

if TYPE_CHECKING:
    import pyarrow as pa

# As the batch processor hands them to its exporter.
_EXPORTED = 512


@contextmanager
def _measured(count: int) -> Iterator[None]:
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    used, lasted = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({"cpu_us": used / count * 1e6, "spans_s": count / lasted}), flush=True)


def ship(count: int) -> None:
    """tracelake's shipper, from the lines of the spool."""
    from tracelake.settings import load_settings
    from tracelake.shipper.service import Shipper, own_process
    from tracelake.spool.lane import Spool
    from tracelake.spool.ledger import read_ledger

    _load("deltalake", "pyarrow", "requests", "opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    own_process()
    settings = load_settings()
    spool = Spool(settings.spool_dir)
    shipper = Shipper(spool, settings, serves=lambda *_: True)
    with _measured(count):
        shipper.drain()
    shipper.release()
    delivered = sum(read_ledger(lane).delivered for lane in spool.lanes())
    if delivered != count:
        raise RuntimeError(f"{delivered:,} spans were delivered of {count:,}.")


def export(count: int) -> None:
    """OpenTelemetry's OTLP/HTTP exporter, from finished spans in memory."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    spans.end_spans(SimpleSpanProcessor(memory), count)
    finished = memory.get_finished_spans()
    exporter = OTLPSpanExporter()
    with _measured(count):
        for first in range(0, count, _EXPORTED):
            if exporter.export(finished[first : first + _EXPORTED]) is not SpanExportResult.SUCCESS:
                raise RuntimeError("The server did not take a request.")


def write(count: int) -> None:
    """A plain write() of the lines of the spool, half a MiB each."""
    lines = b"".join(
        _read(path) for path in sorted(glob(f"{os.environ['TRACELAKE_SPOOL_DIR']}/**/*.jsonl", recursive=True))
    )
    pieces = [lines[at : at + 2**19] for at in range(0, len(lines), 2**19)]
    with _measured(count):
        descriptor = os.open(_out(), os.O_WRONLY | os.O_CREAT)
        for piece in pieces:
            os.write(descriptor, piece)
        os.fsync(descriptor)


def parquet(count: int) -> None:
    """A plain write of finished Arrow batches as a Parquet file a batch, by pyarrow."""
    from pyarrow import parquet as pq

    batches = _batches(count)
    os.makedirs(_out())
    with _measured(count):
        for number, batch in enumerate(batches):
            pq.write_table(batch, f"{_out()}/{number}.parquet", compression="zstd", compression_level=1)


def delta(count: int) -> None:
    """A plain append of finished Arrow batches to a Delta table, by delta-rs."""
    from deltalake import WriterProperties, write_deltalake

    batches = _batches(count)
    properties = WriterProperties(compression="ZSTD", compression_level=1)
    with _measured(count):
        for batch in batches:
            write_deltalake(_out(), batch, mode="append", writer_properties=properties)


def _batches(count: int) -> list[pa.Table]:
    import pyarrow as pa

    from benchmarks.compare.feed import POOL
    from tracelake.spans import rows, tables

    schema = tables.arrow_schema(tables.delta_schema(1))
    made = []
    pool = spans.records(min(POOL, count))
    for first in range(0, count, POOL):
        spans.renew(pool, first)
        made.append(pa.Table.from_batches([rows.to_arrow(pool[: count - first], schema)]))
    return made


def _load(*names: str) -> None:
    for name in names:
        importlib.import_module(name)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _out() -> str:
    return os.environ["HOME"] + "/out"


WAYS: dict[str, Callable[[int], None]] = {way.__name__: way for way in (ship, export, write, parquet, delta)}

if __name__ == "__main__":
    WAYS[sys.argv[1]](int(sys.argv[2]))
