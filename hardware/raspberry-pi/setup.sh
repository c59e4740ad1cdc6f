#!/bin/sh
# Sets up a Raspberry Pi to run converted models: see README.md beside this file, or setup.sh --help.
set -eu
hardware=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=hardware/common.sh
. "$hardware/common.sh"
parse "$@"

model=$(text_of /proc/device-tree/model)
release=$(os_field VERSION_CODENAME)
memory=$(memory_mb)
choose_python

fact board "${model:-no device tree}"
fact system "$(or_none "$(os_field PRETTY_NAME)")"
fact memory "$memory MB"
fact python "${python:+$(version_of "$python"), $python}"

case $model in
    *'Raspberry Pi'*) ;;
    *) die "this is no Raspberry Pi (${model:-it has no device tree}); for a Jetson there is ../jetson/setup.sh" ;;
esac
require_64_bit
case $release in
    bookworm | trixie | '') ;;
    buster | bullseye) note "Raspberry Pi OS $release has a Python before 3.10; a newer Pi OS has one that fits" ;;
    *) note "$release was not tried; Raspberry Pi OS bookworm and trixie are what the guide is about" ;;
esac
[ -n "$python" ] || die 'no Python 3.10 to 3.13 found; install a newer Raspberry Pi OS, or name one with --python'
case $model in
    *'Pi 3'* | *'Zero 2'* | *'Pi 4'*)
        note 'this CPU has no half-precision and no dot-product instructions: int8 and fp16 save memory more than time' ;;
esac
[ "$memory" -ge 900 ] || note 'with 512 MB use one runtime at a time, and Raspberry Pi OS Lite'
if [ "$(id -u)" -eq 0 ] && [ -n "$artifact" ]; then
    note 'run as root: the service will run as root too; run setup.sh as the user it should belong to'
fi

if [ -z "$check_only" ]; then
    need_venv
    if [ -n "$camera" ]; then
        need_packages rpicam-apps gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good
    fi
    environment
fi
try_runtimes
if [ -z "$check_only" ] && [ -n "$artifact" ]; then
    service basic.target
fi
if have vcgencmd; then
    fact throttled "$(vcgencmd get_throttled)"
fi
if [ -n "$dry_run" ]; then
    say 'Nothing was changed.'
else
    say 'Done.'
fi
