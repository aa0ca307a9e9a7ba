"""What bearerd costs, beside nginx and HAProxy doing the same work on the same machine.

`machine` and `processes` know the system, `origin`, `peers` and `daemon` start what is measured, `load` and `open_loop`
send requests, `rounds`, `rates` and `memory` measure, `instructions` and `syscalls` count, `report` prints.
"""


class BenchError(Exception):
    """Why there is no figure. The text is for whoever runs the benchmark."""
