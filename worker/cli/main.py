"""`molecule-worker`: the commands, each loaded only when it is asked for, so that `--help` answers at once."""

import importlib
import sys
from typing import Final

import click

from worker.cli import words
from worker.errors import WorkerError

#: Command → (module below worker.cli, its sentence). The sentence stands here, so that help imports nothing.
_COMMANDS: Final = {
    "up": ("daemon", "Start the embedded stack and the daemon, in the foreground."),
    "run": ("daemon", "Run the daemon on DATABASE_URL."),
    "migrate": ("daemon", "Bring the schema to head and write the catalogue of job kinds."),
    "doctor": ("doctor", "Look at every dependency: ok, or what is wrong and how to mend it."),
    "workspaces": ("workspaces", "Create, list, show and delete workspaces, and read their logs."),
    "secrets": ("secrets", "Set, list and unset what workspaces find in their environment."),
    "enqueue": ("jobs", "Store a job: KIND key=value …"),
    "jobs": ("jobs", "List, show, watch, cancel and retry jobs."),
}


class Commands(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None for an unknown name."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"worker.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's own sentences: asking each command would import all of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in _COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def molecule_worker(ctx: click.Context, *, debug: bool) -> None:
    """Provision workspaces, keep their secrets, and make them disappear.

    Exit codes: 0 done, 1 the job failed, 2 wrong usage or refused input, 3 a dependency is unreachable,
    4 refused for safety, 130 interrupted.
    """
    ctx.obj = {"debug": debug}


def main() -> None:
    """Run the command and turn what went wrong into two lines and an exit code."""
    debug = "--debug" in sys.argv
    try:
        code = molecule_worker.main(prog_name="molecule-worker", standalone_mode=False)
    except click.exceptions.Abort:
        words.say("interrupted")
        sys.exit(words.INTERRUPTED)
    except KeyboardInterrupt:
        words.say("interrupted")
        sys.exit(words.INTERRUPTED)
    except click.ClickException as error:
        words.say(f"error: {error.format_message()}")
        if isinstance(error, click.UsageError) and error.ctx is not None:
            words.say(f"hint: {error.ctx.command_path} --help")
        sys.exit(words.REFUSED)
    except WorkerError as error:
        if debug:
            raise
        sys.exit(words.explain(error))
    except Exception as error:
        if debug:
            raise
        sys.exit(words.unexpected(error))
    sys.exit(code if isinstance(code, int) else 0)
