"""The process of the command line: `pairlift`, and `python -m ranker.cli`."""

import signal


def main() -> None:
    """Run the command line. Ctrl-C while that is imported, a second or more, ends it without a traceback."""
    told = signal.getsignal(signal.SIGINT)
    if told is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ranker.cli.main import main as run

    signal.signal(signal.SIGINT, told)
    run()


if __name__ == "__main__":
    main()
