#!/bin/sh
# sh stage0.sh ENVIRONMENT LAYERS STORE WORKER [ARG ...]
#
# Run WORKER with the packed Python that the file ENVIRONMENT describes, on a machine that needs no
# Python of its own: a POSIX shell, tar and gzip. What is unpacked stays in the folder STORE, which
# belongs to this machine, so that only the first start unpacks. This script unpacks the interpreter
# from the folder LAYERS; unpack.py, run by that interpreter, does the rest and starts WORKER.
#
# Exit codes, each with a message: 2 wrong use, 80 a layer is missing, 81 a layer is damaged, 82 no
# room, 83 STORE cannot be written, 84 glibc is too old, 85 another kind of machine, 86 tar or gzip
# is missing or broken, 87 the unpacked Python does not start, 88 ENVIRONMENT cannot be understood,
# 89 the path of STORE is too long. What was unpacked till then is removed.

if [ $# -lt 4 ]; then
    echo 'usage: sh stage0.sh ENVIRONMENT LAYERS STORE WORKER [ARG ...]' >&2
    exit 2
fi
environment=$1 layers=$2 store=$3 worker=$4
shift 4
case $store in /*) ;; *) store=$PWD/$store ;; esac
case $worker in /*) ;; *) worker=$PWD/$worker ;; esac

# The way of every start but the first: it reads a dozen lines, looks for one file, forks nothing.
format='' digest='' glibc=- machine=- interpreter='' whole=''
if [ -f "$environment" ] && [ -r "$environment" ]; then
    while IFS=' ' read -r key first _ _ name; do
        case $key in
        hepscale-environment) format=$first ;;
        digest) digest=$first ;;
        glibc) glibc=$first ;;
        machine) machine=$first ;;
        layer) [ "$first" != interpreter ] || interpreter=$layers/$name ;;
        relocate) whole=yes ;;
        esac
    done <"$environment"
fi
case $digest in *[!0-9a-f]*) digest='' ;; esac
prefix=$store/$digest

is_ready() {
    [ -f "$prefix/.hepscale-ready" ] && [ -x "$prefix/bin/python3" ]
}

start() {
    # only a forkserver needs the packages; each task waits for what is looked for in vain
    case ${1-} in
    --task | --) exec "$prefix/bin/python3" -I -S "$worker/__main__.py" "$@" ;;
    esac
    exec "$prefix/bin/python3" -I "$worker" "$@"
}

if [ "$format" = 1 ] && [ ${#digest} -eq 64 ] && is_ready; then
    start "$@"
fi

# -- the first start -------------------------------------------------------------------------------

newline='
'
new='' lock='' host=''
# another's lock is waited for so long; then we unpack too, which is a waste and nothing worse
patience_s=${HEPSCALE_UNPACK_WAIT_S:-300}

fail() { # CODE FACT ITEM CAUSE NEXT
    [ -z "$new" ] || rm -rf "$new"
    release
    {
        printf 'HepScale: %s\n' "$2"
        [ -z "$3" ] || printf '  %s\n' "${3%%"$newline"*}"
        printf 'Likely cause: %s\nNext: %s\n' "$4" "$5"
    } >&2
    exit "$1"
}

# End because of what a command said that could not write below STORE.
cannot_write() {
    case $1 in *'No space left'* | *'quota exceeded'* | *'Wrote only'*)
        fail 82 "There is no room to unpack the environment in $store." "$1" \
            'the disk or the quota is full' "df -h '$store', then give the worker another folder"
        ;;
    esac
    fail 83 "The folder $store, for unpacked environments, cannot be written." "$1" \
        'it is read-only, belongs to someone else, or its name is taken by a file' \
        "ls -ld '$store', then give the worker another folder"
}

# -- is this an environment for this machine? --

check_environment() {
    if [ ! -f "$environment" ] || [ ! -r "$environment" ]; then
        found='it cannot be read'
    elif [ -z "$format" ]; then
        found='it does not begin with "hepscale-environment"'
    elif [ "$format" != 1 ]; then
        fail 88 "$environment has format $format, this worker understands 1." '' \
            'the HepScale that packed the environment is newer than the one of this worker' \
            'take both from one version of HepScale'
    elif [ ${#digest} -ne 64 ]; then
        found='its digest is missing or not 64 hexadecimal digits'
    elif [ -z "$interpreter" ]; then
        found='it names no interpreter'
    elif [ -z "$whole" ]; then
        found='its last line is missing'
    else
        return
    fi
    fail 88 "$environment does not describe an environment." "$found" \
        'it is missing, another file, or was cut short on its way' 'submit the tasks again'
}

# The version that ends the first line of $1, or nothing.
version_in() {
    version=${1%%"$newline"*}
    version=${version##* }
    version=${version%.}
    case $version in
    [0-9]*.[0-9]*) ;;
    *) version='' ;;
    esac
}

find_glibc() {
    version_in "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
    [ -n "$version" ] || version_in "$(LC_ALL=C ldd --version 2>/dev/null)"
    [ -n "$version" ] || version_in "$(LC_ALL=C ld.so --version 2>/dev/null)"
}

# Whether version $1 is older than version $2; what follows the second number does not count.
is_older() {
    minor=${1#*.}
    minor=${minor%%[!0-9]*}
    wanted=${2#*.}
    wanted=${wanted%%[!0-9]*}
    [ "${1%%.*}" -lt "${2%%.*}" ] ||
        { [ "${1%%.*}" -eq "${2%%.*}" ] && [ "$minor" -lt "$wanted" ]; }
}

check_machine() {
    here=$(uname -m 2>/dev/null)
    if [ -n "$here" ] && [ "$machine" != - ] && [ "$here" != "$machine" ]; then
        fail 85 "This machine is $here, the environment is for $machine." '' \
            'the environment was packed on another kind of machine' \
            "run workers on $machine, or pack the environment on $here"
    fi
    case $glibc in [0-9]*.[0-9]*) find_glibc ;; *) version='' ;; esac
    if [ -n "$version" ] && is_older "$version" "$glibc"; then
        fail 84 "This machine has glibc $version, the environment needs $glibc." '' \
            'its system is older than the one on which the environment was packed' \
            "run workers where 'ldd --version' says $glibc or newer, or pack on an older system"
    fi
}

check_tools() {
    for tool in tar gzip; do
        command -v "$tool" >/dev/null 2>&1 ||
            fail 86 "This machine has no $tool." "PATH=$PATH" \
                'it is not installed, or PATH does not lead to it' \
                "install $tool, or set PATH for the worker"
    done
}

# Before anything is unpacked: files that are missing or too short are seen by their size.
check_layers() {
    while IFS=' ' read -r key kind _ size name; do
        [ "$key" = layer ] || continue
        layer=$layers/$name
        case $kind in
        interpreter | packages) ;;
        *)
            fail 88 "$environment has a layer of the unknown kind $kind." '' \
                'it is another file, or was damaged on its way' 'submit the tasks again'
            ;;
        esac
        if [ ! -f "$layer" ] || [ ! -r "$layer" ]; then
            fail 80 "A layer of the environment is missing." "$layer" \
                'it was not sent to this worker, or cannot be read' \
                "ls -l '$layers', then submit the tasks again"
        fi
        there=$(wc -c <"$layer")
        [ "$((there))" = "$size" ] ||
            damaged "$layer" "it has $((there)) bytes instead of $size"
    done <"$environment"
}

damaged() {
    fail 81 "A layer of the environment is damaged: $2." "$1" \
        'it was cut short or changed on its way to this worker' \
        "rm '$1', then submit the tasks again"
}

# -- the folder STORE --

# Set `since` to when a process was started, or - where that cannot be known; fail if it is dead.
find_since() {
    since=-
    case $1 in '' | *[!0-9]*) return 1 ;; esac
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || {
        kill -0 "$1" 2>/dev/null
        return
    }
    # after its name, which may hold spaces; field 3 is its state, field 22 its start
    line=${line##*) }
    # shellcheck disable=SC2086
    set -- $line
    since=${20}
    [ "$1" != Z ] && [ "$1" != X ]
}

# Remove what killed starts have left, before anything is written: it may be what fills the disk.
sweep() {
    # another machine's, where several share the folder, are none of ours
    for left in "$store"/.new-*"-$host-"* "$store"/.old-*"-$host-"*; do
        [ ! -d "$left" ] || find_since "${left##*-}" || rm -rf "$left" 2>/dev/null
    done
    if [ -d "$prefix" ] && ! is_ready; then
        # under another name, lest it is mixed with what somebody publishes meanwhile
        old=$store/.old-$digest-$host-$$
        mv "$prefix" "$old" 2>/dev/null || return 0
        if [ -f "$old/.hepscale-ready" ] && [ -x "$old/bin/python3" ] && [ ! -e "$prefix" ]; then
            mv "$old" "$prefix"
        else
            rm -rf "$old"
        fi
    fi
}

# -- the lock: so that starts at the same time do not all unpack; nothing else depends on it --

owner_lives() {
    [ "$there" = "$host" ] || return 0
    find_since "$owner" || return 1
    [ "$since" = - ] || [ "$begun" = - ] || [ "$since" = "$begun" ]
}

release() {
    if [ -n "$lock" ]; then
        { read -r owner _ <"$lock/owner"; } 2>/dev/null || owner=''
        [ "$owner" != "$$" ] || rm -rf "$lock"
        lock=''
    fi
}

start_if_ready() {
    if is_ready; then
        release
        start "$@"
    fi
}

take_lock() {
    lock=$store/.lock-$digest
    begun_s=$(date +%s) orphaned=0
    until said=$(LC_ALL=C mkdir "$lock" 2>&1); do
        case $said in *'File exists'*) ;; *) cannot_write "$said" ;; esac
        start_if_ready "$@"
        owner='' there='' begun=''
        { read -r owner there begun <"$lock/owner"; } 2>/dev/null
        if [ -z "$begun" ]; then
            # its owner is about to write its name, or died before it could: give it two seconds
            owner=nobody orphaned=$((orphaned + 1))
        elif owner_lives; then
            orphaned=0
        else
            orphaned=$((orphaned + 10))
        fi
        # only one of those who see this can make the folder; it is the next owner
        if [ "$orphaned" -ge 10 ] && mkdir "$lock/after-$owner" 2>/dev/null; then break; fi
        # unless it died at once
        [ "$orphaned" -lt 100 ] || rm -rf "$lock"
        if [ "$(($(date +%s) - begun_s))" -gt "$patience_s" ]; then
            lock=''
            return
        fi
        sleep 0.2 2>/dev/null || sleep 1
    done
    find_since "$$"
    if ! { echo "$$ $host $since" >"$lock/owner"; } 2>/dev/null; then
        # a full disk, which whoever unpacks will be told of
        rm -rf "$lock"
        lock=''
    fi
}

# -- unpacking --

unpack_interpreter() {
    new=$store/.new-$digest-$host-$$
    rm -rf "$new"
    said=$(LC_ALL=C mkdir "$new" 2>&1) || cannot_write "$said"
    said=$(
        unset TAR_OPTIONS GZIP
        LC_ALL=C
        export LC_ALL
        exec 2>&1
        { gzip -dc || echo "hepscale: gzip ended with $?" >&2; } <"$interpreter" |
            tar xof - -C "$new"
    ) || unpack_failed
    case $said in *'hepscale: gzip ended'*) unpack_failed ;; esac
}

unpack_failed() {
    case $said in
    *'No space left'* | *'quota exceeded'* | *'Wrote only'*) cannot_write "$said" ;;
    *'Read-only file system'* | *'Permission denied'*) cannot_write "$said" ;;
    esac
    if ! gzip -t <"$interpreter" 2>/dev/null; then
        # is it the file, or gzip?
        [ "$(echo works | gzip -c 2>/dev/null | gzip -dc 2>/dev/null)" != works ] ||
            damaged "$interpreter" 'it cannot be unpacked'
        tool=gzip
    else
        tool=tar
    fi
    fail 86 "The $tool of this machine does not work." "$(command -v "$tool"): $said" \
        'it is broken, or another program of this name comes first on PATH' \
        "install $tool, or set PATH for the worker"
}

check_python() {
    # without arguments it only imports what it needs
    said=$("$new/bin/python3" -I -S "$worker/unpack.py" 2>&1 </dev/null) ||
        fail 87 'The unpacked Python does not start.' "${said##*"$newline"}" \
            "this machine has no glibc, or $store is mounted so that no program in it may run" \
            "ldd --version; mount | grep noexec; then give the worker another machine or folder"
}

trap 'fail 129 "Stopped while unpacking." "" "a hangup" "start again"' HUP
trap 'fail 130 "Stopped while unpacking." "" "an interrupt" "start again"' INT
trap 'fail 143 "Stopped while unpacking." "" "the worker was ended" "start again"' TERM

check_environment
check_machine
check_tools
check_layers
said=$(LC_ALL=C mkdir -p "$store" 2>&1) || cannot_write "$said"
host=$(uname -n 2>/dev/null)
host=${host:-unknown}
sweep
take_lock "$@"
start_if_ready "$@"
unpack_interpreter
check_python
exec "$new/bin/python3" -I -S "$worker/unpack.py" "$environment" "$layers" "$store" "$worker" \
    "$new" "$lock" "$@"
