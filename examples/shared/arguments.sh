#!/usr/bin/env bash
# What the examples' run.sh share: they work from the repository, and their users from anywhere. They source this file.

# Leaves the arguments in $arguments, with the paths of --out and --into as seen from a directory.
paths_from() { # DIRECTORY [ARGUMENT ...]
    local directory=$1 argument option=
    shift
    arguments=()
    for argument; do
        case "$option $argument" in
        "--out "[!/]* | "--into "[!/]*) arguments+=("$directory/$argument") ;;
        *" --out="[!/]* | *" --into="[!/]*) arguments+=("${argument%%=*}=$directory/${argument#*=}") ;;
        *) arguments+=("$argument") ;;
        esac
        option=$argument
    done
}
