#!/bin/sh
# Sets up a Jetson to run converted models: see README.md beside this file, or setup.sh --help.
set -eu
hardware=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=hardware/common.sh
. "$hardware/common.sh"
parse "$@"

# "# R36 (release), REVISION: 4.3, GCID: ..." gives 36.4.3
l4t_release() {
    line=$(text_of /etc/nv_tegra_release)
    case $line in
        '# R'*' (release), REVISION: '*) ;;
        *) return 0 ;;
    esac
    major=${line#'# R'}
    revision=${line#*'REVISION: '}
    printf '%s.%s' "${major%% *}" "${revision%%,*}"
}

# Sources: the table in README.md.
jetpack_of() {
    case $1 in
        32.7.[1-5]) printf '4.6.%s' "${1#32.7.}" ;;
        32.6.*) printf '4.6' ;;
        32.*) printf '4' ;;
        35.1 | 35.1.*) printf '5.0.2' ;;
        35.2.1) printf '5.1' ;;
        35.3.1) printf '5.1.1' ;;
        35.4.1) printf '5.1.2' ;;
        35.6 | 35.6.0) printf '5.1.4' ;;
        34.* | 35.*) printf '5' ;;
        36.3 | 36.3.0) printf '6.0' ;;
        36.4 | 36.4.0) printf '6.1' ;;
        36.4.2) printf '6.1.1' ;;
        36.4.3) printf '6.2' ;;
        36.*) printf '6' ;;
        38.2 | 38.2.*) printf '7.0' ;;
        38.4 | 38.4.*) printf '7.1' ;;
        38.* | 39.*) printf '7' ;;
    esac
}

# Debian's version of the first of these packages that is installed.
first_version() {
    for package; do
        found=$(package_version "$package")
        if [ -n "$found" ]; then
            printf '%s' "${found%%-*}"
            return
        fi
    done
}

cuda_version() {
    for folder in "$sysroot"/usr/local/cuda-[0-9]*; do
        [ ! -d "$folder" ] || printf '%s ' "${folder##*/cuda-}"
    done
}

# JetPack's Python packages for TensorRT are made for one Python: a link shows them to an environment made from that one.
tensorrt_bindings() {
    version=$(version_of "$venv/bin/python") || return 0
    bindings=$sysroot/usr/lib/python$version/dist-packages/tensorrt
    link=$venv/lib/python$version/site-packages/tensorrt
    if [ ! -d "$bindings" ]; then
        note "TensorRT has no Python $version package here; its program trtexec works without"
    elif [ ! -e "$link" ]; then
        say "tensorrt: linking $bindings into the environment"
        run ln -s "$bindings" "$link"
    fi
}

model=$(text_of /proc/device-tree/model)
l4t=$(l4t_release)
jetpack=$(jetpack_of "$l4t")
tensorrt=$(first_version libnvinfer10 libnvinfer8 libnvinfer7)
memory=$(memory_mb)
choose_python

fact board "${model:-no device tree}"
fact system "$(or_none "$(os_field PRETTY_NAME)")"
fact L4T "$(or_none "$l4t")"
fact JetPack "${jetpack:-unknown}"
fact CUDA "$(or_none "$(cuda_version)")"
fact TensorRT "$(or_none "$tensorrt")"
fact memory "$memory MB"
fact python "${python:+$(version_of "$python"), $python}"

case "$model $l4t" in
    *[Jj]etson* | *NVIDIA*) ;;
    ' ') die 'this is no Jetson: there is neither a device tree nor /etc/nv_tegra_release' ;;
    *' ') die "this is no Jetson ($model); for a Raspberry Pi there is ../raspberry-pi/setup.sh" ;;
esac
require_64_bit
[ -n "$jetpack" ] || note "L4T ${l4t:-without a release file} is not in the table of the guide"
case $jetpack in
    4*) note 'JetPack 4: TensorRT works through trtexec or its own Python 3.6 only; the guide says how' ;;
    5*) note 'JetPack 5: TensorRT has bindings for Python 3.8 only; the CPU runtimes need a Python of their own' ;;
esac
[ -n "$python" ] ||
    die 'no Python 3.10 to 3.13 found. The guide says how to get one beside the system'"'"'s; then give --python PROGRAM'

if [ -z "$check_only" ]; then
    need_venv
    if [ -n "$camera" ]; then
        need_packages gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good
        [ -n "$(package_version nvidia-l4t-gstreamer)" ] ||
            note 'a CSI camera needs nvidia-l4t-gstreamer and nvidia-l4t-camera from NVIDIA'"'"'s archive'
    fi
    environment
    [ -z "$tensorrt" ] || tensorrt_bindings
fi
try_runtimes
if [ -z "$check_only" ] && [ -n "$artifact" ]; then
    service 'nvargus-daemon.service'
fi
if have nvpmodel; then
    fact power "$(nvpmodel -q 2>/dev/null | tr '\n' ' ')"
fi
if [ -n "$dry_run" ]; then
    say 'Nothing was changed.'
else
    say 'Done.'
fi
