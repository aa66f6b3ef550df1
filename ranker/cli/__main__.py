"""`python -m ranker.cli`."""

from ranker.cli.main import main

main()
