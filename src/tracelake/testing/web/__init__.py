"""How requests come in and answers go out: HTTP, in this process, routes, faults."""
