"""The write-ahead log on disk between the app that records and the shipper that delivers.

docs/spool-format.md is the format of every file in it.
"""
