"""How the Parquet files of a span table are written: what makes a trace quick to find, and nothing that costs more."""

from __future__ import annotations

from typing import Any

from tracelake.spans import tables

# Small enough that a reader skips most of a file by the statistics and bloom filters of its row groups.
ROW_GROUP_ROWS = 128 * 1024

# What readers prune by. Statistics of all the others, attributes among them, are as much work as writing the file.
_PRUNED = sorted({name for names in tables.SKIPPING_COLUMNS.values() for name in names})
# Hardly a value comes twice, so a dictionary of them takes time and room.
_UNIQUE = (tables.TRACE_ID, tables.SPAN_ID, tables.PARENT_SPAN_ID, tables.START_TIME, tables.END_TIME, tables.RECORD_ID)


def writer_properties(spans: int) -> Any:
    """Return the `WriterProperties` of delta-rs for a file of about this many spans."""
    from deltalake import BloomFilterProperties, ColumnProperties, WriterProperties

    # Made for too few it finds too much; for too many it is only a little larger.
    bloom = BloomFilterProperties(set_bloom_filter_enabled=True, fpp=0.01, ndv=max(64, spans))
    columns = {
        name: ColumnProperties(
            dictionary_enabled=name not in _UNIQUE,
            statistics_enabled="PAGE" if name in _PRUNED else "NONE",
            bloom_filter_properties=bloom if name == tables.TRACE_ID else None,
        )
        for name in {*_PRUNED, *_UNIQUE}
    }
    return WriterProperties(
        compression="ZSTD",
        compression_level=1,
        max_row_group_size=ROW_GROUP_ROWS,
        default_column_properties=ColumnProperties(statistics_enabled="NONE"),
        column_properties=columns,
    )
