"""The command line, `turnout …`. It finds services and commands by entry point and imports none of them."""

from __future__ import annotations


def main() -> None:
    """Run the command that `sys.argv` asks for; errors become a message and an exit code."""
    from turnout.common.cli.app import run  # noqa: PLC0415 (worker processes import this module, not the commands)

    run()
