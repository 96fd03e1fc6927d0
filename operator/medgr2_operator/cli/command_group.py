"""How a group of commands behaves: errors in one sentence, and help that is not cut. Only typer is imported here."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from medgr2_api import command_line

CONTEXT = {"help_option_names": ["-h", "--help"]}


class CommandGroup(TyperGroup):
    """A group whose commands end with a sentence and an exit code, whatever they raise."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was chosen."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if type(error).__module__.partition(".")[0] in ("typer", "click"):  # ends, and wrong words on the line
                raise
            raise typer.Exit(command_line.report(error)) from error

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each command with the whole of its first paragraph."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, " ".join((command.help or "").split("\n\n")[0].split()))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
