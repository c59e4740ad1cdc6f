#!/bin/sh
# Installs this bundle without a network: see README.md beside this file, or sh install.sh --help.
# POSIX shell and coreutils, and a Python that may come without pip and ensurepip.
set -eu
bundle=$(cd "$(dirname "$0")" && pwd)
to=${HOME:-}/deploylab python=${PYTHON-} tried=''
target='' title='' machine='' glibc='' pythons='' contents='' extras='' needed_mb=''   # set by target.sh

usage() {
    cat <<END
Usage: sh install.sh [--to FOLDER] [--python PROGRAM]
Installs DeployLab from this bundle, without a network. Run it again at any time: what is done is left alone.

  --to FOLDER        where to (default: $to)
  --python PROGRAM   make the environment from this Python
END
}

say() { printf '%s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Version, bits, C library and its minor version of a Python, such as "3.11 64 glibc 36"; nothing if it does not run.
probe() {
    "$1" -I -c 'import platform, struct, sys
name, version = platform.libc_ver()
print("%d.%d" % sys.version_info[:2], 8 * struct.calcsize("P"), name or "none", (version + ".0").split(".")[1])' 2>/dev/null
}

fits() {
    case " $pythons " in
        *" $1 "*) return 0 ;;
        *) return 1 ;;
    esac
}

# Sets $python and what is known about it.
choose_python() {
    if [ -n "$python" ]; then
        set -- "$python"
    else
        set -- python3 python3.13 python3.12 python3.11 python3.10
    fi
    for program; do
        found=$(probe "$program") || continue
        read -r version bits libc libc_minor <<END
$found
END
        if fits "$version"; then
            python=$program
            return
        fi
        tried="$tried $program is Python $version;"
    done
    die "this bundle has packages for Python $pythons, and here${tried:- there is none;} name one with --python PROGRAM," \
        "or make a bundle with: deploylab bundle --target $target --python VERSION"
}

check_machine() {
    [ "$(uname -s)" = Linux ] || die "this bundle is for Linux, this is $(uname -s)"
    [ "$(uname -m)" = "$machine" ] || die "this bundle is for $machine ($title), this machine is $(uname -m);" \
        'deploylab bundle --target makes one for it'
    choose_python
    [ "$bits" = 64 ] || die "$python is a $bits-bit program: the packages are for a 64-bit system"
    [ "$libc" = glibc ] || die "the packages need the GNU C library; this system has none"
    [ "$libc_minor" -ge "$glibc" ] ||
        die "the packages need glibc 2.$glibc or later, this system has 2.$libc_minor; it is older than: $title"
}

# The nearest folder that exists, for df.
existing() {
    folder=$1
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    printf '%s' "$folder"
}

check_disk() {
    df -P -k "$(existing "$to")" | tail -n 1 | {
        read -r _ _ _ free _
        [ "$((free / 1024))" -ge "$needed_mb" ] ||
            die "$to has $((free / 1024)) MB free, the installation needs about $needed_mb MB; give another --to FOLDER"
    }
}

# Moved into place when complete, so that a folder with the mark holds all of the course.
copy_course() {
    id=$(sha256sum <SHA256SUMS)
    if [ -f "$to/.deploylab-bundle" ]; then
        [ "$(cat "$to/.deploylab-bundle")" = "$id" ] ||
            die "$to holds another bundle; your work there stays as it is: give another --to FOLDER"
        say "course: $to is there"
        return
    fi
    if [ -d "$to" ]; then
        rmdir "$to" 2>/dev/null || die "$to is not empty; give another --to FOLDER"
    fi
    check_disk
    say "course: copying to $to"
    rm -rf "$to.unfinished"
    mkdir -p "$to.unfinished"
    cp -R course/. "$to.unfinished/"
    [ ! -d artifacts ] || cp -R artifacts "$to.unfinished/"
    chmod +x "$to.unfinished"/hardware/*/*.sh # a memory stick may have lost it
    printf '%s\n' "$id" >"$to.unfinished/.deploylab-bundle"
    mv "$to.unfinished" "$to"
}

# Without ensurepip, which Debian keeps in a package of its own: a wheel of pip is a zip file of modules.
environment() {
    if [ ! -e "$venv/bin/python" ] || ! "$venv/bin/python" -I -c '' 2>/dev/null; then
        say "environment: making $venv with Python $version"
        rm -rf "$venv"
        "$python" -I -m venv --without-pip "$venv" ||
            die "cannot make $venv; free some space there, or name another --python"
    fi
    site=$venv/lib/python$version/site-packages
    if [ ! -f "$site/pip/__main__.py" ]; then
        "$venv/bin/python" -I -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])' \
            wheels/pip-*.whl "$site"
    fi
}

# $PIP_CONFIG_FILE and --isolated: settings of the user's own must not send it elsewhere.
pip_install() {
    PIP_CONFIG_FILE=/dev/null "$venv/bin/python" -I -m pip --isolated install --quiet --disable-pip-version-check \
        --no-input --no-index --find-links wheels --no-deps --require-hashes "$@"
}

install_runtimes() {
    say 'packages: installing'
    pip_install --no-compile --requirement "requirements/$version.txt"
    printf '%s\n' "$to/utils" >"$site/deploylab.pth"
}

# `make setup` as with a network, but from the bundle's wheels; a link, because pip splits its settings at blanks.
install_course() {
    [ -e "$venv/bin/pip" ] || pip_install --force-reinstall --requirement "$to/hardware/bundle/requirements.txt"
    ln -sfn "$bundle/wheels" "$to/wheelhouse"
    (
        cd "$to"
        unset UV_INDEX UV_DEFAULT_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_FIND_LINKS
        PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS=wheelhouse PYTHONPATH=tools "$venv/bin/python" -c '
import sys, setup_env
try:
    setup_env.Environment().ensure([extra for extra in sys.argv[1].split(",") if extra])
except setup_env.SetupError as error:
    sys.exit("error: {}".format(error))' "$extras"
    )
    rm -f "$to/wheelhouse"
}

# Every engine classifies a photograph in a process of its own; the others go on if one crashes.
try_engines() {
    [ -d "$to/artifacts" ] || return 0
    say 'proof: one photograph, each engine'
    failed=''
    for artifact in "$to"/artifacts/*/; do
        name=$(basename "$artifact")
        code=0
        said=$("$venv/bin/python" "$to/hardware/classify.py" "$artifact" \
            --source "$to/datasets/signs/samples/05_stop.jpg" 2>&1) || code=$?
        case $code:$said in
            0:*': stop ('*) say "  $name: stop" ;;
            *)
                failed="$failed $name"
                say "  $name: FAILED with exit code $code"
                say "$said" | tail -n 3
                ;;
        esac
    done
    [ -z "$failed" ] || die "does not work here:$failed. The others do"
}

while [ $# -gt 0 ]; do
    case $1 in
        --to | --python)
            [ $# -ge 2 ] || die "$1 needs a value"
            [ "$1" = --to ] && to=$2 || python=$2
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) die "unknown option $1; see sh install.sh --help" ;;
    esac
    shift
done
case $to in
    /*) ;;
    *) to=$(pwd)/$to ;;
esac
unset PYTHONPATH PYTHONHOME

cd "$bundle"
say 'bundle: checking every file'
sha256sum --check --quiet SHA256SUMS || die 'this bundle is damaged or not complete; copy it again'
# shellcheck source=/dev/null
. ./target.sh
check_machine
say "target: $title; Python $version, $machine, glibc 2.$libc_minor"
copy_course
if [ "$contents" = course ]; then
    venv=$to/.venv
    environment
    install_course
    say 'proof: what this machine can run'
    "$venv/bin/python" -m deploylab.cli doctor
    try_engines
    say "Done. To open the course: cd '$to' && make lab"
else
    venv=$to/.venv-board
    environment
    install_runtimes
    try_engines
    say "Done. Guides and the camera's set-up: $to/hardware; what it needs is in $venv"
fi
