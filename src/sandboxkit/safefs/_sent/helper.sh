# The helper for sandboxes without Python: /bin/sh, coreutils (or busybox), /proc. Arguments: nonce, operation, then
# root, path, and two more, each base64. Reads, writes, listings of one level, descriptions; all else is refused.
#
# A walk over the names says where a path leads; then the thing is opened, or gone into, and /proc/self says where that
# really is. Only if the two agree is it used: by its descriptor, or from inside the directory, never again by its path.
LC_ALL=C; export LC_ALL
nonce=$1 operation=$2
decoded() { printf %s "$1" | base64 -d; printf .; }
root=$(decoded "$3"); root=${root%.}
path=$(decoded "$4"); path=${path%.}
one=$5 two=$6
say() { printf '\n@sandboxkit:%s:sh\n' "$nonce"; printf '%s\n' "$@"; printf '@sandboxkit:%s:end\n' "$nonce"; exit 0; }
fail() { say fail "$1"; }
cd -P -- "$root" 2>/dev/null || fail 2
here=$(pwd -P; printf .); here=${here%??}
[ "$here" = "$root" ] || fail 18
identity=$(stat -c '%d:%i' .) || fail 5

# lost ERRNO: the path leads nowhere
lost() {
    [ "$operation" != exists ] || say ok "$identity" 0
    [ "$operation" != write ] || [ "$1" != 2 ] || fail 124
    fail "$1"
}

# walk PATH: sets `at` (the directory), `name` (the last name, empty for a directory), `seen` (0, or 1 where it is there)
walk() {
    at=$root todo=$1 links=0 name= seen=1
    while [ -n "$todo" ]; do
        part=${todo%%/*}
        case $todo in */*) todo=${todo#*/} ;; *) todo= ;; esac
        [ -n "$part" ] && [ "$part" != . ] || continue
        if [ -n "$name" ]; then
            [ "$seen" = 1 ] || return 0
            [ -d "$at/$name" ] || lost 20
            at=$at/$name name=
        fi
        if [ "$part" = .. ]; then
            [ "$at" != "$root" ] || fail 18
            at=${at%/*}
            continue
        fi
        if [ -L "$at/$part" ]; then
            links=$((links + 1)); [ $links -le 40 ] || lost 2
            text=$(readlink -n -- "$at/$part"; printf .); text=${text%.}
            case $text in
                "$root"|"$root"/*) at=$root text=${text#"$root"} ;;
                /*) fail 18 ;;
            esac
            [ -n "$todo" ] || through=1
            todo=$text/$todo
            continue
        fi
        name=$part
        [ -e "$at/$name" ] || { seen=0; rest=$todo; [ -z "$todo" ] || return 0; }
    done
}

# enter DIRECTORY: goes there and makes sure that it is there
enter() {
    cd -P -- "$1" 2>/dev/null || fail 116
    here=$(pwd -P; printf .); here=${here%??}
    [ "$here" = "$1" ] || fail 116
}

# describe NAME: one line of lstat, the name and what a link says, in the directory where we are
describe() {
    facts=$(stat -c '%f %s %u %g %Y' -- "./$1" 2>/dev/null) || return 1
    text=; [ -L "./$1" ] && text=$(readlink -n -- "./$1" | base64 | tr -d '\n')
    printf '%s %s %s\n' "$facts" "$(printf %s "$1" | base64 | tr -d '\n')" "$text"
}

through=
case $operation in
    read)
        walk "$path"
        [ -n "$name" ] || fail 21
        [ "$seen" = 1 ] || fail 2
        file=$at/$name
        [ -d "$file" ] && fail 21
        [ -f "$file" ] || fail 124
        exec 3<"$file" || fail 2
        is=$(readlink -n /proc/self/fd/3; printf .); is=${is%.}
        [ "$is" = "$file" ] || fail 116
        [ -f /proc/self/fd/3 ] || fail 124
        size=$(stat -L -c %s /proc/self/fd/3) || fail 5
        [ -z "$two" ] || [ "$size" -le "$two" ] || fail 27
        version=$(stat -L -c '%d:%i:%Y:%s' /proc/self/fd/3)
        say ok "$identity" "$size" "$version" "$(head -c "$one" <&3 | base64 | tr -d '\n')" ;;
    write)
        walk "$path"
        [ -n "$name" ] || fail 21
        if [ "$seen" = 0 ]; then
            [ -z "$through" ] || fail 124
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
        fi
        part=.sandboxkit-$nonce.part
        set -C
        umask 022
        if [ "$one" = input ]; then head -c "$two" | base64 -d >"./$part"; else printf %s "$two" | base64 -d >"./$part"; fi
        [ $? = 0 ] || { rm -f -- "./$part"; fail 28; }
        [ ! -e "./$name" ] || chmod "$(stat -c %a -- "./$name")" -- "./$part"
        mv -f -T -- "./$part" "./$name" 2>/dev/null || { rm -f -- "./$part"; fail 116; }
        say ok "$identity" ;;
    exists)
        walk "$path"
        say ok "$identity" "$seen" ;;
    stat)
        parent=${path%/*}; last=${path##*/}
        [ "$parent" != "$path" ] || parent=
        [ -n "$path" ] || { parent=; last=.; }
        walk "$parent"
        [ "$seen" = 1 ] || fail 2
        where=$at${name:+/$name}
        [ -d "$where" ] || fail 20
        enter "$where"
        line=$(describe "$last") || fail 2
        say ok "$identity" "$line" ;;
    list)
        walk "$path"
        [ "$seen" = 1 ] || fail 2
        where=$at${name:+/$name}
        [ -d "$where" ] || fail 20
        enter "$where"
        all=
        for entry in * .[!.]* ..?*; do
            line=$(describe "$entry") && all="$all
$line"
        done
        say ok "$identity" "${all#?}" ;;
    *) say refused ;;
esac
