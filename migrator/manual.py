# SPDX-License-Identifier: GPL-2.0-or-later
"""The man pages, the shell completions and docs/errors.md, made from the parsers and the errors.

    python3 -I -m migrator.manual [FOLDER]    man pages and completions below FOLDER (default: /usr/local/share)
    python3 -m migrator.manual --errors       docs/errors.md, to stdout

argparse-manpage sets the options in roff, and shtab writes the completions: both come with `migrator[manual]`, and
nothing else needs them.
"""

from __future__ import annotations

import argparse
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path

from migrator import __version__, cli, errors
from migrator.errors import convert
from migrator.errors.documented import DocumentedError
from migrator.errors.outcomes import OutcomeError
from stages.steps import arguments
from tunnel.tunnel_errors import TunnelError

DEFAULT_FOLDER = Path("/usr/local/share")
PAGES = Path("man/man1")
COMPLETIONS = {
    "bash": Path("bash-completion/completions/migrator"),
    "zsh": Path("zsh/site-functions/_migrator"),
    "fish": Path("fish/vendor_completions.d/migrator.fish"),
}

FILES = (
    ("/etc/migrator/tunnel.conf", "which rendezvous this host uses"),
    ("/var/lib/migrator/journal.db", "the journal: what this host knows of each migration (SQLite)"),
    ("/var/log/migrator/", "CRIU's logs of dumps and restores that failed"),
    ("/run/migrator/", "locks, and memory images while a migration is under way"),
    ("LXCPATH/.migrator/NAME/", "snapshots that the next move can start from"),
    ("LXCPATH/.migrator/NAME+/", "what has arrived and is not used yet"),
)
OVERVIEW = """\
A move consists of stages. `migrator migrate` runs them all in one go; each is also a command of its own, to be run on
the host it belongs to:"""
EXAMPLE = """\
on the source        migrator check web -d root@hostb
on the source        migrator prepare-data web -d root@hostb
on the destination   migrator import-data web
on the source        migrator create-dump web -d root@hostb
on the destination   migrator restore-dump web
on the source        migrator finish web
"""
GIVEN_BACK = """\
The disk travels by btrfs send and receive, the memory by CRIU: over SSH, or through a tunnel between two hosts behind
NAT.

Until `restore-dump` has succeeded, `migrator rollback` on the source gives the container back to it. At any time,
`migrator status` tells where a migration stands, which host owns the container, and which command comes next."""


# --- what there is --------------------------------------------------------------------------------------------


def commands(parser: argparse.ArgumentParser | None = None, above: str = "") -> dict[str, argparse.ArgumentParser]:
    """Each command's parser, in the order of the help text; those that have actions come before them: `peer list`."""
    found: dict[str, argparse.ArgumentParser] = {}
    # argparse has no public way to walk through a parser.
    for action in (parser or cli.make_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found |= {f"{above}{name}": below} | commands(below, f"{above}{name} ")
    return found


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options of a parser: what begins with a dash."""
    return [action for action in parser._actions if action.option_strings]


def documented() -> list[type[DocumentedError]]:
    """Every error that a user can meet, by exit status."""
    bases = {errors.MigratorError, OutcomeError, TunnelError}
    found: dict[str, type[DocumentedError]] = {}
    waiting: list[type[DocumentedError]] = [*convert.by_code().values(), *DocumentedError.__subclasses__()]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls not in bases and cls.__module__.startswith(("migrator.errors", "tunnel.")):
            found[cls.code()] = cls
    return sorted(found.values(), key=lambda cls: (cls.status, cls.code()))


def shown_status(cls: type[DocumentedError]) -> str:
    return "128+N" if cls is errors.Interrupted else str(cls.status)


def with_fields(template: str, left: str, right: str) -> str:
    """A message or cure in which each field, written `{so}`, is put between `left` and `right` instead."""
    parts = string.Formatter().parse(" ".join(template.split()))
    return "".join(text + (f"{left}{field}{right}" if field is not None else "") for text, field, _, _ in parts)


# --- docs/errors.md -------------------------------------------------------------------------------------------


def errors_page() -> str:
    """docs/errors.md."""
    lines = [
        "# Exit statuses and errors", "",
        "Made from the code with `python3 -m migrator.manual --errors > docs/errors.md`; a test compares them.", "",
        "Words *in italics* stand for what the error was about. With `--json` an error is an object with its code,",
        "message, cure and status (docs/json.md).", "",
        *(errors.__doc__ or "").partition("Exit statuses\n")[2].splitlines(), "",
        "| status | code | message | cure |", "| --- | --- | --- | --- |",
    ]
    for cls in documented():
        cells = (shown_status(cls), f"`{cls.code()}`", with_fields(cls.__doc__ or "", "*", "*"),
                 with_fields(cls.cure, "*", "*"))
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


# --- the man pages --------------------------------------------------------------------------------------------


def roff(text: str) -> str:
    """Text for roff, escaped so that nothing in it is taken for a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in text.splitlines())


def bold(text: str) -> str:
    return f"\\fB{roff(text)}\\fR"


def page_of(command: str) -> str:
    """The name of the page about a command: `migrator-peer-invite`."""
    return "-".join(["migrator", *command.split()])


def man_pages() -> dict[str, str]:
    """Each page in roff (man(7)), by its name: migrator(1), and one for each command."""
    found = commands()
    return {"migrator": overview(found)} | {page_of(name): command_page(name, found) for name in found}


def overview(found: dict[str, argparse.ArgumentParser]) -> str:
    """migrator(1)."""
    top = [name for name in found if " " not in name]
    return _page(
        argparse.ArgumentParser("migrator", add_help=False), "migrator", cli.DESCRIPTION,
        synopsis=".B migrator\n\\fICOMMAND\\fR [\\fIOPTION\\fR]... [\\fINAME\\fR]\n.br\n.B migrator \\-\\-version",
        description=[*_paragraphs(GIVEN_BACK), ".PP", *_paragraphs(OVERVIEW), ".PP", ".nf", ".RS",
                     roff(EXAMPLE.rstrip()), ".RE", ".fi"],
        commands=_listed(top),
        exit_status=[*_bands(), ".SS Causes", "Each error with its exit status, its code, and its cure.", *_causes()],
        files=[line for path, text in FILES for line in (".TP", f"\\fI{roff(path)}\\fR", roff(text))],
        environment=[".TP", bold("NO_COLOR"), "No colour, whatever the terminal can do."],
        see_also=[_references([page_of(name) for name in top]) + ",",
                  ".BR lxc (7),", ".BR lxc\\-checkpoint (1),", ".BR criu (8),", ".BR btrfs\\-send (8)"],
    )


def command_page(name: str, found: dict[str, argparse.ArgumentParser]) -> str:
    """The page of one command. One with actions lists them, and each of those has a page of its own."""
    parser = found[name]
    actions = [below for below in found if below.startswith(f"{name} ")]
    vars(parser)["color"] = False  # from Python 3.14 on, argparse adds colours on a terminal
    usage = roff(" ".join(parser.format_usage().split()[1:]).removeprefix(f"{parser.prog} "))
    text = [*_paragraphs(parser.description or "")]
    parser.epilog = parser.description = None  # we format these ourselves
    parser._positionals.title = "ARGUMENTS"
    for group in parser._action_groups:
        group._group_actions = [one for one in group._group_actions if not isinstance(one, argparse._SubParsersAction)]
    above = [page_of(name.rpartition(" ")[0])] if " " in name else []
    return _page(
        parser, page_of(name), _summaries()[name],
        synopsis=f".nh\n.ad l\n.B {roff(f'migrator {name}')}\n{usage}", description=text,
        commands=_listed(actions), exit_status=[*_bands(), ".PP", "The causes are listed in", ".BR migrator (1)."],
        see_also=[_references(["migrator", *above, *(page_of(action) for action in actions)])],
    )


def _page(parser: argparse.ArgumentParser, page: str, summary: str, **sections: str | list[str]) -> str:
    from argparse_manpage.manpage import Manpage

    made = Manpage(parser)
    made.prog, made.description = page, summary[0].lower() + summary[1:].rstrip(".")
    made.date, made.source, made.manual = "", f"migrator {__version__}", "User Commands"
    for heading, content in sections.items():
        text = content if isinstance(content, str) else "\n".join(content)
        if text:
            made.add_section(heading.replace("_", " "), "=", text)
    return str(made)


def _summaries() -> dict[str, str]:
    """The line about each command in the help text of its parent."""
    found: dict[str, str] = {}
    for above, parser in {"": cli.make_parser(), **commands()}.items():
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{above} {choice.dest}".strip(): choice.help or "" for choice in action._choices_actions}
    return found


def _listed(names: list[str]) -> list[str]:
    told = _summaries()
    return [line for name in names for line in (".TP", f".BR {roff(page_of(name))} (1)", roff(told[name]))]


def _references(pages: list[str]) -> str:
    return ",\n".join(f".BR {roff(page)} (1)" for page in pages)


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield re.sub(r"\\\(ga(.*?)\\\(ga", r"\\fB\1\\fR", roff(paragraph), flags=re.DOTALL)


def _bands() -> Iterator[str]:
    for line in arguments.STATUSES.splitlines()[1:]:
        number, text = line.split(maxsplit=1)
        yield from (".TP", bold(number), roff(text))


def _causes() -> Iterator[str]:
    for cls in documented():
        yield from (".TP", f"{bold(shown_status(cls))}  {cls.code()}", _field_text(cls.__doc__ or ""))
        if cls.cure:
            yield from (".br", _field_text(cls.cure))


def _field_text(template: str) -> str:
    return re.sub(r"\x01(.*?)\x02", r"\\fI\1\\fR", roff(with_fields(template, "\x01", "\x02")))


# --- the shell completions ------------------------------------------------------------------------------------

CONTAINERS = {"bash": "_migrator_containers", "zsh": "($(lxc-ls -1 2>/dev/null))", "fish": "(lxc-ls -1 2>/dev/null)"}
HOSTS = {"bash": "_migrator_hosts", "zsh": "_user_at_host", "fish": "(__fish_complete_user_at_hosts)"}
FOR_BASH = """\
_migrator_containers() {
    local number path=""
    for ((number = 1; number < COMP_CWORD; number++)); do
        case ${COMP_WORDS[number - 1]} in -P | --lxcpath) path=${COMP_WORDS[number]} ;; esac
    done
    compgen -W "$(lxc-ls -1 ${path:+-P "$path"} 2>/dev/null)" -- "$1"
}
_migrator_hosts() {
    local user=""
    case $1 in *@*) user=${1%%@*}@ ;; esac
    compgen -P "$user" -A hostname -- "${1#*@}"
}
"""


def completion(shell: str) -> str:
    """The shell code that completes commands, options, containers, directories and hosts."""
    import shtab

    parser = cli.make_parser()
    for action in [action for below in commands(parser).values() for action in below._actions]:
        if action.dest == "name_word" or "-n" in action.option_strings:
            vars(action)["complete"] = CONTAINERS
        elif action.dest == "destination":
            vars(action)["complete"] = HOSTS
        elif action.metavar == "PATH":
            vars(action)["complete"] = shtab.DIRECTORY
    return shtab.complete(parser, shell, preamble=FOR_BASH if shell == "bash" else "")


# --- as a program ---------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    if argv == ["--errors"]:
        print(errors_page(), end="")
        return 0
    if len(argv) > 1 or any(word.startswith("-") for word in argv):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(argv[0]) if argv else DEFAULT_FOLDER
    made = {PAGES / f"{name}.1": text for name, text in man_pages().items()}
    made |= {path: completion(shell) for shell, path in COMPLETIONS.items()}
    for path, text in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    print(f"{len(made)} files in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
