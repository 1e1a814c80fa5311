"""`molecule-worker`: the commands, each loaded only when it is asked for, so that `--help` answers at once."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from worker.cli import words
from worker.errors import WorkerError

#: Command → (module below worker.cli, its sentence). The sentence stands here, so that help imports nothing.
_COMMANDS: Final = {
    "up": ("daemon", "Start the embedded stack and the daemon, in the foreground."),
    "run": ("daemon", "Run the daemon on DATABASE_URL."),
    "migrate": ("daemon", "Bring the schema to head, write the catalogue of jobs."),
    "doctor": ("doctor", "Look at every dependency: ok, or how to mend it."),
    "workspaces": ("workspaces", "Create, list, show, delete workspaces; read their logs."),
    "secrets": ("secrets", "Set, list, unset what workspaces find as environment."),
    "enqueue": ("jobs", "Store a job: KIND key=value …"),
    "jobs": ("jobs", "List, explain, watch; cancel, retry, skip; pause, resume."),
    "drain": ("pauses", "Leave a node free: its jobs go on elsewhere."),
    "undrain": ("pauses", "Let a node work again."),
    "sweep": ("sweep", "List what comes round by itself, or do it now."),
}
_DEBUG: Final = "--debug"
#: What a shell shows for a program that SIGPIPE ended, as `head` ends the program before it.
_BROKEN_PIPE: Final = 141


class Commands(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(_COMMANDS)

    def get_command(self, _context: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None for an unknown name."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"worker.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a reader that has enough ends it, and a person who has: click would fail, or say an empty line."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise click.exceptions.Exit(_BROKEN_PIPE) from error
        except KeyboardInterrupt as error:
            # What was begun is said by whoever knows it.
            words.say(": ".join(("interrupted", *map(str, error.args))))
            raise click.exceptions.Exit(words.INTERRUPTED) from error

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's own sentences: asking each command would import all of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in _COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="molecule-worker", message="%(version)s")
@click.option(_DEBUG, is_flag=True, help="Show the traceback of an error; may stand anywhere.")
def molecule_worker(*, debug: bool) -> None:
    """Provision workspaces, keep their secrets, and make them disappear.

    \b
    On a fresh machine:
      molecule-worker up                                  in one terminal
      molecule-worker workspaces create --name A --wait   in another

    Words for people go to stderr, data to stdout. Exit codes: 0 done, 1 the job failed, 2 wrong usage or refused input,
    3 a dependency is unreachable, 4 refused for safety, 130 interrupted.
    """


def main() -> None:
    """Run the command and turn what went wrong into two lines and an exit code."""
    arguments, debug = _without_debug(sys.argv[1:])
    try:
        code = _answer(arguments, debug=debug)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has enough. What is still buffered goes nowhere, or Python complains of it at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _BROKEN_PIPE
    sys.exit(code)


def _without_debug(given: Sequence[str]) -> tuple[list[str], bool]:
    """Take the flag from wherever it stands, because people append it to the command that failed."""
    end = given.index("--") if "--" in given else len(given)
    options = [argument for argument in given[:end] if argument != _DEBUG]
    return [*options, *given[end:]], len(options) < end


def _answer(arguments: Sequence[str], *, debug: bool) -> int:
    try:
        code = molecule_worker.main(list(arguments), prog_name="molecule-worker", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        words.say("interrupted")
        return words.INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        words.say(error.format_message())
        return words.REFUSED
    except click.ClickException as error:
        return words.misused(error)
    except WorkerError as error:
        words.traceback(shown=debug)
        return words.explain(error)
    except Exception as error:  # noqa: BLE001  because a person gets one line and an exit code whatever happens
        words.traceback(shown=debug)
        return words.unexpected(error)
    return code if isinstance(code, int) else words.DONE
