"""For every test: signals as a terminal would have them.

A shell that starts this in the background, or nohup, has its children ignore SIGINT and SIGHUP, and no shell script can
trap what was ignored when it began. Tests that end a process by them need the defaults.
"""

from __future__ import annotations

import signal

for _name in ("SIGHUP", "SIGINT", "SIGQUIT"):
    _number = getattr(signal, _name, None)
    if _number is not None and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _name == "SIGINT" else signal.SIG_DFL)
