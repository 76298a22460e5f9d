"""Input that is made to break the recorder, the shipper or the reader: huge, deep, endless, or full of oddities."""
