# SPDX-License-Identifier: GPL-2.0-or-later
"""The man page, the shell completion and docs/errors.md, made from the parsers and the errors.

    python3 -I -m migrator.manual [FOLDER]    man page and bash completion below FOLDER (default: /usr/local/share)
    python3 -m migrator.manual --errors       docs/errors.md, to stdout
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
PAGE = Path("man/man1/migrator.1")
COMPLETION = Path("bash-completion/completions/migrator")

FILES = (
    ("/var/lib/migrator/journal.db", "the journal: what this host knows of each migration (SQLite)"),
    ("/var/log/migrator/", "CRIU's logs of dumps and restores that failed"),
    ("/run/migrator/", "locks, and memory images while a migration is under way"),
    ("LXCPATH/.migrator/NAME/", "snapshots that the next move can start from"),
    ("LXCPATH/.migrator/NAME+/", "what has arrived and is not used yet"),
)
EXAMPLE = """\
on the source        migrator check web -d root@hostb
on the source        migrator prepare-data web -d root@hostb
on the destination   migrator import-data web
on the source        migrator create-dump web -d root@hostb
on the destination   migrator restore-dump web
on the source        migrator finish web
"""


# --- what there is --------------------------------------------------------------------------------------------


def commands(parser: argparse.ArgumentParser | None = None, above: str = "") -> dict[str, argparse.ArgumentParser]:
    """Each command's parser, in the order of the help text; those that have actions stand before them: `peer list`."""
    found: dict[str, argparse.ArgumentParser] = {}
    # argparse has no public way to walk through a parser.
    for action in (parser or cli.make_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found |= {f"{above}{name}": below} | commands(below, f"{above}{name} ")
    return found


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a parser takes that begins with a dash."""
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
    """A message or cure whose fields, written `{so}`, stand between `left` and `right` instead."""
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


# --- the man page ---------------------------------------------------------------------------------------------


def roff(text: str) -> str:
    """Text as roff shows it: nothing in it is taken for a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in text.splitlines())


def bold(text: str) -> str:
    return f"\\fB{roff(text)}\\fR"


def italic(text: str) -> str:
    return f"\\fI{roff(text)}\\fR"


def man_page() -> str:
    """migrator(1) in roff (man(7))."""
    parts: list[str] = [
        f'.TH MIGRATOR 1 "" "migrator {__version__}" "User Commands"',
        ".SH NAME", f"migrator \\- {roff(cli.DESCRIPTION.rstrip('.')[0].lower() + cli.DESCRIPTION.rstrip('.')[1:])}",
        ".SH SYNOPSIS", f".B migrator\n{italic('COMMAND')} [{italic('OPTION')}]... [{italic('NAME')}]",
        ".br", ".B migrator \\-\\-version",
        ".SH DESCRIPTION",
        "The disk travels by btrfs send and receive, the memory by CRIU, both over SSH. The move is made of stages,",
        "each a command that is run on the host where it belongs:",
        ".PP", ".nf", ".RS", roff(EXAMPLE.rstrip()), ".RE", ".fi",
        ".PP", "Until the last stage the container can be given back to the source with "
        f"{bold('migrator rollback')} there. At any time {bold('migrator status')} says where a migration stands, who",
        "owns the container, and which command comes next.",
        ".SH COMMANDS",
    ]
    everywhere = set.intersection(*({action.dest for action in options(parser)} for parser in commands().values()))
    for name, parser in commands().items():
        parts += [f'.SS "migrator {roff(name)}"', _usage(parser), ".PP",
                  *_paragraphs(parser.description or "")]
        for action in parser._actions:
            if action.dest not in everywhere and not isinstance(action, argparse._SubParsersAction):
                parts += _described(action)
    parts += [".SH OPTIONS OF EVERY COMMAND"]
    for action in options(parser):
        if action.dest in everywhere:
            parts += _described(action)
    parts += [".SH EXIT STATUS", *_bands(), ".SS Causes", "Each error with its exit status, its code, and its cure."]
    for cls in documented():
        parts += [".TP", f"{bold(shown_status(cls))}  {cls.code()}", _field_text(cls.__doc__ or "")]
        if cls.cure:
            parts += [".br", _field_text(cls.cure)]
    parts.append(".SH FILES")
    for path, text in FILES:
        parts += [".TP", italic(path), roff(text)]
    parts += [
        ".SH ENVIRONMENT", ".TP", bold("NO_COLOR"), "No colour, whatever the terminal can do.",
        ".SH SEE ALSO", ".BR lxc (7),", ".BR lxc\\-checkpoint (1),", ".BR criu (8),", ".BR btrfs\\-send (8)",
    ]
    return "\n".join(parts) + "\n"


def _usage(parser: argparse.ArgumentParser) -> str:
    words = [bold(parser.prog), f"[{italic('OPTION')}]..."]
    words += [f"{bold(action.option_strings[0])} {italic(str(action.metavar))}" for action in options(parser)
              if action.required]
    for action in parser._actions:
        if not action.option_strings:
            word = italic(str(action.metavar))
            words.append(word if parser.get_default("name_required") else f"[{word}]")
    return " ".join(words)


def _described(action: argparse.Action) -> list[str]:
    return [".TP", _flags(action), roff((action.help or "") % vars(action))]


def _flags(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {italic(str(action.metavar or action.dest.upper()))}"
    if not action.option_strings:
        return value.strip()
    return ", ".join(f"{bold(flag)}{value}" for flag in action.option_strings)


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield re.sub(r"\\\(ga(.*?)\\\(ga", r"\\fB\1\\fR", roff(paragraph))


def _bands() -> Iterator[str]:
    for line in arguments.STATUSES.splitlines()[1:]:
        number, text = line.split(maxsplit=1)
        yield from (".TP", bold(number), roff(text))


def _field_text(template: str) -> str:
    return re.sub(r"\x01(.*?)\x02", r"\\fI\1\\fR", roff(with_fields(template, "\x01", "\x02")))


# --- the shell completion -------------------------------------------------------------------------------------

_COMPLETION = r"""# bash completion for migrator(1), made by migrator.manual

_migrator() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    local command="" path="" options="" containers="" word number
    COMPREPLY=()
    for ((number = 1; number < COMP_CWORD; number++)); do
        word=${COMP_WORDS[number]}
        case ${COMP_WORDS[number-1]} in -P | --lxcpath) path=$word ;; esac
        case $command in
        "") [[ $word == -* ]] || command=$word ;;
        @GROUPS@) [[ $word == -* ]] || command+=" $word" ;;
        esac
    done
    case $command in
    "") options="@TOP@" ;;
@CASES@
    esac
    case $previous in
    -P | --lxcpath | --destination-lxcpath)
        mapfile -t COMPREPLY < <(compgen -d -- "$current")
        return ;;
    -d | --destination)
        mapfile -t COMPREPLY < <(compgen -A hostname -- "${current#*@}")
        [[ $current == *@* ]] && COMPREPLY=("${COMPREPLY[@]/#/${current%%@*}@}")
        return ;;
    @VALUES@)
        return ;;
    esac
    if [[ -n $containers && ( $current != -* || $previous == -n || $previous == --name ) ]]; then
        options=$(lxc-ls -1 ${path:+-P "$path"} 2>/dev/null)
    fi
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
}
complete -F _migrator migrator
"""


def completion() -> str:
    """A script for bash that completes commands, options, containers and hosts."""
    known = {"-P", "--lxcpath", "--destination-lxcpath", "-d", "--destination", "-n", "--name"}
    values: dict[str, None] = {}
    cases, groups = [], ["-"]
    for name, parser in commands().items():
        flags = [flag for action in options(parser) for flag in action.option_strings]
        actions = [below.removeprefix(f"{name} ") for below in commands() if below.startswith(f"{name} ")]
        if actions:
            groups.append(name)
        takes = " containers=yes" if parser.get_default("name_required") is not None else ""
        cases.append(f'    "{name}") options="{" ".join([*actions, *flags])}"{takes} ;;')
        for action in options(parser):
            if action.nargs != 0:
                values |= dict.fromkeys(flag for flag in action.option_strings if flag not in known)
    top = [name for name in commands() if " " not in name]
    top += [flag for action in options(cli.make_parser()) for flag in action.option_strings]
    text = _COMPLETION.replace("@TOP@", " ".join(top)).replace("@CASES@", "\n".join(cases))
    return text.replace("@GROUPS@", " | ".join(groups)).replace("@VALUES@", " | ".join(values))


# --- as a program ---------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    if argv == ["--errors"]:
        print(errors_page(), end="")
        return 0
    if len(argv) > 1 or any(word.startswith("-") for word in argv):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(argv[0]) if argv else DEFAULT_FOLDER
    for name, text in ((PAGE, man_page()), (COMPLETION, completion())):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        print(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
