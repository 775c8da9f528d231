"""``sfumato completion``: completion in shells."""

from __future__ import annotations

from sfumato.errors import InputError

_SCRIPT = r"""
[ -n "$ZSH_VERSION" ] && autoload -Uz bashcompinit && bashcompinit
_sfumato() {
    local word="${COMP_WORDS[COMP_CWORD]}" choices=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        choices="COMMANDS"
    elif [[ "$word" == -* ]]; then
        # what the help of the command says, which knows the run and the kinds that are named before
        choices="$(sfumato "${COMP_WORDS[@]:1:COMP_CWORD-1}" --help 2>/dev/null | grep -oE -- '--[a-z][a-z0-9.-]*')"
    fi
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}
complete -o default -F _sfumato sfumato
"""


def completion(arguments: list[str]) -> int:
    from sfumato.cli import COMMANDS

    if arguments and {"-h", "--help"} & set(arguments):
        print('usage: eval "$(sfumato completion)"\n\nLets bash or zsh complete commands, options and paths.')
        return 0
    if arguments:
        raise InputError('There are no options; put eval "$(sfumato completion)" into the file that your shell reads.')
    print(_SCRIPT.replace("COMMANDS", " ".join(COMMANDS)).strip())
    return 0
