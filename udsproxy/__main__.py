"""``python -m udsproxy``: the same as the command."""

from udsproxy.cli import main

main()
