"""The spool and the shipper, a system call at a time."""
