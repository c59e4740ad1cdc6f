# shellcheck shell=sh disable=SC2034  # variables are used by setup.sh
# What the boards' setup.sh have in common. POSIX shell and coreutils only, so that it runs on the smallest system.
# Nothing is changed but: Debian packages that are missing, the virtual environment, the unit if --service asks for it.

hardware=${hardware:?set by setup.sh}
sysroot=${DEPLOYLAB_SYSROOT-}   # the tests' own /proc, /etc and /usr
dry_run='' check_only='' camera='' artifact='' source=auto wheels='' runtimes='' python=${PYTHON-}
requirements=$hardware/requirements.txt
venv=$(dirname "$hardware")/.venv-board

usage() {
    cat <<END
Usage: setup.sh [options]
Sets up this board to run models that DeployLab converted. Run it again at any time: what is done is left alone.

  --dry-run            show what would be done, change nothing
  --check              only detect the board and try the runtimes of the environment, or of this Python without one
  --camera             also install the programs that read a camera
  --service ARTIFACT   also install a systemd service that classifies what the camera sees
  --source SOURCE      camera of the service (default: auto); see classify.py --help
  --venv FOLDER        the virtual environment (default: $venv)
  --python PROGRAM     make it from this Python, 3.10 to 3.13
  --runtimes NAMES     only these, with commas between: onnxruntime, ncnn, mnn, ai-edge-litert, openvino
  --wheels FOLDER      install from wheels in a folder, without a network
  --requirements FILE  pinned packages with hashes (default: $requirements)
END
}

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
            --dry-run) dry_run=yes ;;
            --check) check_only=yes ;;
            --camera) camera=yes ;;
            --service | --source | --venv | --python | --wheels | --requirements | --runtimes)
                [ $# -ge 2 ] || die "$1 needs a value"
                case $1 in
                    --service) artifact=$2 ;;
                    --source) source=$2 ;;
                    --venv) venv=$2 ;;
                    --python) python=$2 ;;
                    --wheels) wheels=$2 ;;
                    --requirements) requirements=$2 ;;
                    --runtimes) runtimes=$2 ;;
                esac
                shift
                ;;
            -h | --help)
                usage
                exit 0
                ;;
            *) die "unknown option $1; see setup.sh --help" 2 ;;
        esac
        shift
    done
    [ -z "$artifact" ] || [ -f "$artifact/manifest.json" ] || die "--service $artifact: no converted model there"
    [ -z "$wheels" ] || [ -d "$wheels" ] || die "--wheels $wheels: no such folder"
    [ -f "$requirements" ] || die "--requirements $requirements: no such file"
}

say() { printf '%s\n' "$*"; }
fact() { printf '%-10s %s\n' "$1:" "$2"; }
or_none() { printf '%s' "${1:-none found}"; }
note() { printf 'note: %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$1" >&2
    exit "${2:-1}"
}

# Runs a command, or shows it.
run() {
    if [ -n "$dry_run" ]; then
        printf 'would run: %s\n' "$*"
    else
        "$@"
    fi
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        run "$@"
    else
        run sudo "$@"
    fi
}

# A file of the system as text, without the zero byte that ends a device-tree string; nothing if it is missing.
text_of() {
    [ ! -f "$sysroot$1" ] || tr -d '\0' <"$sysroot$1"
}

os_field() {
    # shellcheck disable=SC1091  # a file of the system
    (
        PRETTY_NAME='' VERSION_CODENAME='' VERSION_ID=''
        [ ! -f "$sysroot/etc/os-release" ] || . "$sysroot/etc/os-release"
        eval "printf '%s' \"\$$1\""
    )
}

memory_mb() {
    while read -r key value _; do
        [ "$key" != MemTotal: ] || printf '%s' "$((value / 1024))"
    done <"$sysroot/proc/meminfo"
}

have() { command -v "$1" >/dev/null 2>&1; }

package_version() {
    have dpkg-query || return 0
    status=$(dpkg-query -W -f='${db:Status-Abbrev}${Version}' "$1" 2>/dev/null) || return 0
    case $status in
        ii\ *) printf '%s' "${status#ii }" ;;
    esac
}

# Debian packages that are not installed yet; one call for all of them.
need_packages() {
    missing=''
    for package; do
        [ -n "$(package_version "$package")" ] || missing="$missing $package"
    done
    if [ -z "$missing" ]; then
        say "packages: all there ($*)"
    elif ! have apt-get; then
        [ -n "$dry_run" ] || die "these Debian packages are needed and there is no apt-get here:$missing"
        say "packages: missing, and there is no apt-get here:$missing"
    else
        say "packages: installing$missing"
        # shellcheck disable=SC2086  # a list of words
        as_root apt-get install --yes --no-install-recommends $missing
    fi
}

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

fits() {
    case $1 in
        3.10 | 3.11 | 3.12 | 3.13) return 0 ;;
        *) return 1 ;;
    esac
}

# Sets $python to one that the pinned packages are made for, or to nothing.
choose_python() {
    if [ -n "$python" ]; then
        have "$python" || die "--python $python: no such program"
        fits "$(version_of "$python")" || die "--python $python is Python $(version_of "$python"); 3.10 to 3.13 fit"
        return
    fi
    for program in python3 python3.13 python3.12 python3.11 python3.10; do
        if have "$program" && fits "$(version_of "$program")"; then
            python=$program
            return
        fi
    done
}

# Debian and Ubuntu keep what makes environments in a package of its own.
need_venv() {
    if [ ! -e "$venv/bin/python" ] && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        case $python in
            python3 | python3.*) need_packages "$python-venv" ;;
            *) die "$python cannot make virtual environments: it has no ensurepip" ;;
        esac
    fi
}

require_64_bit() {
    machine=$(uname -m)
    bits=$(if have dpkg; then dpkg --print-architecture 2>/dev/null; fi)
    [ "$machine" = aarch64 ] || die "this CPU is $machine; the runtimes' wheels are for aarch64, a 64-bit system"
    [ -z "$bits" ] || [ "$bits" = arm64 ] ||
        die "the kernel is 64-bit, the system is not ($bits): most runtimes have no 32-bit wheels. Install a 64-bit system"
}

environment() {
    if [ -e "$venv/bin/python" ]; then
        say "environment: $venv is there"
    else
        say "environment: making $venv with Python $(version_of "$python")"
        run "$python" -m venv "$venv" ||
            die "cannot make $venv; free some space, or remove what is left of it, and run this again"
    fi
    set -- --requirements "$requirements"
    [ -z "$wheels" ] || set -- "$@" --wheels "$wheels"
    [ -z "$runtimes" ] || set -- "$@" --runtimes "$runtimes"
    run "$venv/bin/python" "$hardware/install.py" "$@"
}

try_runtimes() {
    say 'runtimes:'
    set -- --check
    [ -z "$runtimes" ] || set -- "$@" --runtimes "$runtimes"
    if [ -e "$venv/bin/python" ] && [ -z "$dry_run" ]; then
        "$venv/bin/python" "$hardware/install.py" "$@"
    elif [ -n "$dry_run" ]; then
        run "$venv/bin/python" "$hardware/install.py" "$@"
    else
        "$python" "$hardware/install.py" "$@"
    fi
}

# systemd.unit(5): outside quotes a blank separates, a percent sign begins a specifier, a dollar sign a variable.
unit() {
    cat <<END
[Unit]
Description=DeployLab: road signs in front of the camera
After=$1
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=notify
User=$(id -un)
SupplementaryGroups=video
WorkingDirectory=$(dirname "$hardware")
ExecStart="$venv/bin/python" "$hardware/classify.py" "$artifact" "--source=$source"
# Told to systemd after every picture: a camera or an engine that hangs is ended and started again.
WatchdogSec=30
TimeoutStartSec=180
Restart=on-failure
RestartSec=5
StandardOutput=journal
StandardError=journal
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=read-only

[Install]
WantedBy=multi-user.target
END
}

service() {
    artifact=$(realpath "$artifact")
    hardware=$(realpath "$hardware")
    case "$venv$artifact$hardware$source" in
        *[\"%\$\\]*) die 'the folders and the source of a service may not contain quotes, %, $ or backslashes' ;;
    esac
    path=$sysroot/etc/systemd/system/deploylab-camera.service
    wanted=$(unit "$1")
    if [ -f "$path" ] && [ "$(cat "$path")" = "$wanted" ]; then
        say "service: $path is up to date"
        return
    fi
    say "service: writing $path"
    if [ -n "$dry_run" ]; then
        say "$wanted"
        return
    fi
    draft=$(mktemp)
    say "$wanted" >"$draft"
    as_root install -D -m 644 "$draft" "$path"
    rm -f "$draft"
    if [ -d /run/systemd/system ] && [ -z "$sysroot" ]; then
        as_root systemctl daemon-reload
        as_root systemctl enable --now deploylab-camera.service
        say 'service: started; see it with: journalctl -f -u deploylab-camera'
    fi
}
