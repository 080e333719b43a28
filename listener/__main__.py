"""``python -m listener``: the same as ``push-listener``."""

from listener.cli.main import main

main(prog_name="push-listener")
