#!python
"""The command ``udsproxy``: this file is what is installed under that name.

Rule: root runs our code and no other. A directory that PYTHONPATH names may be anybody's (so may the current one,
which an empty part of it means): before anything is imported that is not built in, root starts again without it
(python -I).
"""

# What is beneath `signal`: see `udsproxy.__main__`, of which the first thing is the first here, too.
import _signal  # type: ignore[import-not-found]
import sys

if __name__ == "__main__":
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    import posix

    if (
        posix.geteuid() == 0
        and not sys.flags.isolated
        and any(name.startswith(b"PYTHON") for name in posix.environ)
    ):
        posix.execv(sys.executable, [sys.executable, "-I", __file__, *sys.argv[1:]])

    from udsproxy.__main__ import main

    main()
