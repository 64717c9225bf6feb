"""The entry point of the command ``udsproxy``, and of ``python -m udsproxy``.

Rule: the first thing that it does is to have a Ctrl-C among the imports, which take most of the start, end the
process without a word, as SIGTERM does. Nothing is imported before that.
"""

# What is beneath `signal`, which takes 5 ms to import, as it makes enumerations.
import _signal  # type: ignore[import-not-found]


def main() -> None:
    """Never returns."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # (a shell's `&` ignores it)
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from udsproxy import cli

    cli.main()


if __name__ == "__main__":
    main()
