"""`minicelery completion`: what a shell needs to complete commands, options and names."""

from __future__ import annotations

import click

from minicelery.cli import ui
from minicelery.cli.session import Session, common_options

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_MINICELERY_COMPLETE"  # click's own, made of the program's name


@click.command(short_help="Print a script that completes commands, options and names.")
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(SHELLS))
@common_options()
@click.pass_obj
def completion(session: Session, /, *, shell: str) -> int:
    """Print a script for the shell, to be evaluated where it starts:

    \b
        bash, in ~/.bashrc:  eval "$(minicelery completion bash)"
        zsh, in ~/.zshrc:    eval "$(minicelery completion zsh)"
        fish:  minicelery completion fish > ~/.config/fish/completions/minicelery.fish

    Names of tasks, queues and workers are completed too, as the app in this directory has them.
    """
    from click.shell_completion import get_completion_class

    from minicelery.cli import group

    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(group, {}, "minicelery", VARIABLE)
    # Not its source(): that asks the installed bash for its version, wherever this runs.
    ui.say(complete.source_template % complete.source_vars())
    return 0
