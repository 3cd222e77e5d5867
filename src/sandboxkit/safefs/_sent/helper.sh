# The helper for sandboxes without Python: /bin/sh, coreutils (or busybox), /proc. Arguments: nonce, operation, root and
# path in base64, two of the operation's, the root's identity where it is known, and letters: l refuses links, h files
# with more names. Reads, writes, listings of one level, descriptions; all else is refused.
#
# A walk over the names says where a path leads; then the thing is opened, or gone into, and /proc/self says where that
# really is. Only if the two agree is it used: by its descriptor, or from inside the directory, never again by its path.
LC_ALL=C; export LC_ALL
nonce=$1 operation=$2
decoded() { printf %s "$1" | base64 -d; printf .; }
root=$(decoded "$3"); root=${root%.}
path=$(decoded "$4"); path=${path%.}
one=$5 two=$6 known=$7 asked=$8
say() { printf '\n@sandboxkit:%s:sh\n' "$nonce"; printf '%s\n' "$@"; printf '@sandboxkit:%s:end\n' "$nonce"; exit 0; }
fail() { say fail "$1"; }
cd -P -- "$root" 2>/dev/null || fail 2
here=$(pwd -P; printf .); here=${here%??}
[ "$here" = "$root" ] || fail 18
root=${root%/}

# facts FILE [-L]: mode in hex, size, uid, gid, time, device:inode, names. Where GNU stat may not call statx, find does it.
if stat -c %i . >/dev/null 2>&1; then
    facts() { stat $2 -c '%f %s %u %g %Y %d:%i %h' -- "$1" 2>/dev/null; }
else
    facts() {
        told=$(find ${2:--P} "$1" -maxdepth 0 -printf '%y %m %s %U %G %T@ %D:%i %n' 2>/dev/null) || return 1
        [ -n "$told" ] || return 1
        kind=${told%% *} told=${told#* }
        case $kind in f) kind=32768 ;; d) kind=16384 ;; l) kind=40960 ;; p) kind=4096 ;; c) kind=8192 ;; b) kind=24576 ;;
            *) kind=49152 ;; esac
        bits=${told%% *} told=${told#* }
        head=${told%.*} rest=${told##*.}
        printf '%x %s %s\n' $((kind + 0$bits)) "$head" "${rest#* }"
    }
fi
# fact NUMBER FILE [-L]: one of them
fact() {
    number=$1; shift
    told=$(facts "$@") || return 1
    while [ "$number" -gt 1 ]; do told=${told#* } number=$((number - 1)); done
    printf %s "${told%% *}"
}
identity=$(fact 6 .) || fail 5
[ -z "$known" ] || [ "$known" = "$identity" ] || fail 116

# The mount points below the root become the script's arguments; blanks and backslashes are octal in mountinfo.
set --
while read -r _ _ _ _ point _; do
    case $point in *\\*) point=$(printf %b "$point"; printf .); point=${point%.} ;; esac
    case $point in "$root"/*) set -- "$@" "$point" ;; esac
done </proc/self/mountinfo || fail 18

# lost ERRNO: the path leads nowhere
lost() {
    [ "$operation" != exists ] || say ok "$identity" 0
    [ "$operation" != write ] || [ "$1" != 2 ] || { [ -z "$outer" ] && fail 124; fail 20; }
    fail "$1"
}

# outside PLACE MOUNT...: whether a mount lies at the place
outside() {
    place=$1; shift
    for point do [ "$point" != "$place" ] || return 0; done
    return 1
}

# walk PATH MOUNT...: sets `at` (the directory), `name` (the last name, empty for a directory), `seen` (0, or 1 where it is there)
walk() {
    at=$root todo=$1 links=0 name= seen=1 outer=-; shift
    while [ -n "$todo" ]; do
        part=${todo%%/*}
        case $todo in */*) todo=${todo#*/} ;; *) todo= ;; esac
        [ ${#part} -le 255 ] || fail 36
        if [ -n "$name" ]; then
            [ -d "$at/$name" ] || lost 20
            at=$at/$name name=
        fi
        [ -n "$part" ] && [ "$part" != . ] || continue
        if [ "$part" = .. ]; then
            [ "$at" != "$root" ] || fail 18
            at=${at%/*}
            continue
        fi
        if [ -L "$at/$part" ]; then
            case $asked in *l*) fail 18 ;; esac
            links=$((links + 1)); [ $links -le 40 ] || lost 2
            text=$(readlink -n -- "$at/$part"; printf .); text=${text%.}
            case $text in /*) begins_at_root ;; esac
            within || outer=$todo
            todo=$text/$todo
            continue
        fi
        name=$part
        outside "$at/$name" "$@" && fail 18
        [ -e "$at/$name" ] && continue
        within && lost 2
        seen=0 rest=$todo
        return 0
    done
}

# within: whether the names at hand are still those of a link; `outer` is the path after it
within() {
    [ "$links" -gt 0 ] && [ "$outer" != - ] && [ ${#todo} -ge ${#outer} ]
}

# begins_at_root: an absolute link counts from the root, where its text begins with the root's own path
begins_at_root() {
    left=${root#/}
    while [ -n "$left" ]; do
        while :; do case $text in /*) text=${text#/} ;; ./*) text=${text#./} ;; *) break ;; esac; done
        wanted=${left%%/*}
        case $left in */*) left=${left#*/} ;; *) left= ;; esac
        case $text in "$wanted") text= ;; "$wanted"/*) text=${text#"$wanted"} ;; *) fail 18 ;; esac
    done
    at=$root
}

# enter DIRECTORY: goes there and makes sure that it is there
enter() {
    cd -P -- "${1:-/}" 2>/dev/null || fail 116
    here=$(pwd -P; printf .); here=${here%??}
    [ "$here" = "${1:-/}" ] || fail 116
}

# sole FILE: refuses one with more names, where that is asked
sole() {
    case $asked in *h*) [ "$(fact 7 "$1" -L)" = 1 ] || fail 31 ;; esac
}

# describe NAME: one line of lstat, the name and what a link says, in the directory where we are
describe() {
    told=$(facts "./$1") || return 1
    text=; [ -L "./$1" ] && text=$(readlink -n -- "./$1" | base64 | tr -d '\n')
    printf '%s %s %s\n' "${told% * *}" "$(printf %s "$1" | base64 | tr -d '\n')" "$text"
}

case $operation in
    read)
        walk "$path" "$@"
        [ -n "$name" ] || fail 21
        [ "$seen" = 1 ] || fail 2
        file=$at/$name
        [ -d "$file" ] && fail 21
        [ -f "$file" ] || fail 124
        [ -r "$file" ] || fail 13
        command exec 3<"$file" || fail 11
        is=$(readlink -n /proc/self/fd/3; printf .); is=${is%.}
        [ "$is" = "$file" ] || fail 116
        [ -f /proc/self/fd/3 ] || fail 124
        sole /proc/self/fd/3
        size=$(fact 2 /proc/self/fd/3 -L) || fail 5
        [ -z "$two" ] || [ "$size" -le "$two" ] || fail 27
        version=$(fact 6 /proc/self/fd/3 -L):$(fact 5 /proc/self/fd/3 -L):$size
        say ok "$identity" "$size" "$version" "$(head -c "$one" <&3 | base64 | tr -d '\n')" ;;
    write)
        walk "$path" "$@"
        [ -n "$name" ] || fail 21
        if [ "$seen" = 0 ]; then
            enter "$at"
            while [ -n "$rest" ]; do
                mkdir -- "./$name" 2>/dev/null
                enter "$at/$name"
                at=$at/$name name=${rest%%/*}
                case $rest in */*) rest=${rest#*/} ;; *) rest= ;; esac
            done
        else
            enter "$at"
            [ -d "./$name" ] && [ ! -L "./$name" ] && fail 21
            [ -f "./$name" ] && [ ! -L "./$name" ] || fail 124
            sole "./$name"
        fi
        part=.sandboxkit-$nonce.part
        set -C
        umask 022
        case $one in
            input:*) head -c "$two" | base64 -d >"./$part" ;;
            *) printf %s "$two" | base64 -d >"./$part" ;;
        esac || { rm -f -- "./$part"; fail 28; }
        case $one in input:*) [ "$(fact 2 "./$part")" = "${one#input:}" ] || { rm -f -- "./$part"; fail 32; } ;; esac
        bits=$(fact 1 "./$name") && chmod "$(printf %o $((0x$bits & 511)))" -- "./$part"
        mv -f -T -- "./$part" "./$name" 2>/dev/null || { rm -f -- "./$part"; fail 116; }
        say ok "$identity" ;;
    exists)
        walk "$path" "$@"
        say ok "$identity" "$seen" ;;
    stat)
        parent=${path%/*}; last=${path##*/}
        [ "$parent" != "$path" ] || parent=
        [ -n "$path" ] || { parent=; last=.; }
        walk "$parent" "$@"
        [ "$seen" = 1 ] || fail 2
        where=$at${name:+/$name}
        [ -d "${where:-/}" ] || fail 20
        enter "$where"
        outside "$where/$last" "$@" && fail 18
        line=$(describe "$last") || fail 2
        say ok "$identity" "$line" ;;
    list)
        walk "$path" "$@"
        [ "$seen" = 1 ] || fail 2
        where=$at${name:+/$name}
        [ -d "${where:-/}" ] || fail 20
        enter "$where"
        all=
        for entry in * .[!.]* ..?*; do
            if outside "$where/$entry" "$@"; then
                line="0 0 0 0 0 $(printf %s "$entry" | base64 | tr -d '\n') "
            else
                line=$(describe "$entry") || continue
            fi
            all="$all
$line"
        done
        say ok "$identity" "${all#?}" ;;
    *) say refused ;;
esac
