"""``python -m udsproxy``: the same as the command, but for where modules come from: Python looks in the current
directory first, before any of our code runs. ``python -I -m udsproxy`` does not."""

import sys

if not sys.flags.safe_path and not __file__.startswith(f"{sys.path[0]}/"):
    del sys.path[0]  # nothing of ours is there; what is may be anybody's

from udsproxy.cli import main

main()
