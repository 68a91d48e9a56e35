# What zsh would offer for each of the lines that are the arguments: one line of output each, words parted by
# tabs. Completion works on a terminal alone, so an interactive zsh gets one.
#
# usage: zsh -f capture.zsh FOLDER LINE...      FOLDER holds the completion and is written to

zmodload zsh/zpty
folder=$1
shift
zpty inner zsh -f -i
until_said() {
    local seen chunk
    while zpty -r inner chunk; do
        seen+=$chunk
        [[ $seen == *"$1"* ]] && return
    done
    exit 1
}
zpty -w inner "PS1= PS2=; unsetopt zle_bracketed_paste list_ambiguous; fpath=($folder \$fpath)"
zpty -w inner "autoload -Uz compinit; compinit -u -D; bindkey '^I' complete-word"
cat >"$folder/hooks" <<'END'
zstyle ':completion:*' completer _complete
compadd() {
    # A call that fills arrays offers nothing.
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then
        builtin compadd "$@"
        return
    fi
    typeset -a hits
    local hit
    builtin compadd -A hits "$@"
    for hit in "$hits[@]"; do print -rn -- "$hit"$'\t' >>$offered; done
}
ended() { print -rn -- done >>$offered.done; compstate[insert]= compstate[list]= }
comppostfuncs=(ended)
END
# The hooks are forgotten after each completion.
n=0
for line; do
    offered=$folder/offered.$((++n))
    : >$offered
    zpty -w inner "offered=$offered; source $folder/hooks; print rea''dy$n"
    until_said "ready$n"
    zpty -w -n inner "$line"$'\t'
    for ((tries = 0; tries < 500; tries++)); do
        [[ -e $offered.done ]] && break
        sleep 0.02
    done
    [[ -e $offered.done ]] || exit 1
    print -r -- "$(<$offered)"
    zpty -w -n inner $'\C-u'
done
zpty -d inner
