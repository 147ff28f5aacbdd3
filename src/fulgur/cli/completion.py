"""Completion of the command ``fulgur`` in bash and zsh: a script that the shell reads once.

Programs and the Trainer's options are in the script. The options of a module are asked for when they are completed for
the first time: ``fulgur fit train.py:Model --completion-words``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

SHELLS = ("bash", "zsh")

_SCRIPT = """\
_fulgur_words() {{
    case "$1" in
        {runs})
            echo {options} ;;
        *)
            echo --help ;;
    esac
}}
_fulgur_of_module() {{
    # Asked once for each module: it is imported for that.
    local key="$*"
    if [ "$key" != "$_fulgur_asked" ]; then
        _fulgur_asked="$key"
        _fulgur_found="$(fulgur "$@" --completion-words 2>/dev/null)"
    fi
    echo "$_fulgur_found"
}}
_fulgur() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" program="${{COMP_WORDS[1]}}" target="${{COMP_WORDS[2]}}" words=""
    local line="${{COMP_LINE:0:COMP_POINT}}"
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=( $(compgen -W "{programs}" -- "$word") )
        return
    fi
    case "$word" in
        --model*|--data*|--optimizer*|--lr_scheduler*)
            # `train.py:Model` is several words where the shell breaks at colons, so the line itself is read.
            target="$(printf '%s' "$line" | awk '{{print $3}}')"
            local data="$(printf '%s' "$line" | sed -n 's/.*--data[= ]\\([^ ]*\\) .*/\\1/p')"
            words="$(_fulgur_of_module "$program" "$target" ${{data:+--data "$data"}})" ;;
        -*)
            words="$(_fulgur_words "$program") --model --data --optimizer --lr_scheduler" ;;
    esac
    if [ -n "$words" ]; then
        COMPREPLY=( $(compgen -W "$words" -- "$word") )
    else
        COMPREPLY=( $(compgen -f -- "$word") )
    fi
}}
complete -o nospace -F _fulgur fulgur
"""


def completion_script(shell: str, programs: Iterable[str], runs: Iterable[str]) -> str:
    """The script that `shell` reads to complete words of ``fulgur``.

    Args:
        shell: "bash" or "zsh".
        programs: Words that may stand first.
        runs: Those of them that take the Trainer's options.

    Raises:
        ValueError: Another shell.
    """
    if shell not in SHELLS:
        raise ValueError(f"There is no completion for {shell!r}. It is one of {', '.join(SHELLS)}.")
    script = _SCRIPT.format(programs=" ".join(programs), runs="|".join(runs), options=" ".join(_static_options()))
    if shell == "bash":
        return script
    return f"autoload -U +X compinit bashcompinit && compinit && bashcompinit\n{script}"


def _static_options() -> list[str]:
    from fulgur.trainer import Trainer

    named = [p.name for p in inspect.signature(Trainer).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return ["--help", "--config", "--print_config", "--seed_everything", "--ckpt_path"] + [
        f"--trainer.{name}" for name in named
    ]
