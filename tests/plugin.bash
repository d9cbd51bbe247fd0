# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash

# Helpers for the tests of the plugin and of serve, beside lib.bash.

# libnbd's Python module belongs to the system's Python, whatever other one
# comes first in PATH; nbdsh takes the first.
PATH=/usr/bin:$PATH

# captive [NBDKIT-OPTION]... -- [PARAMETER]... -- COMMAND: a server for the
# time of a shell command, which finds it as $uri.
captive () {
  local options=() parameters=()
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  while [ "$1" != -- ]; do parameters+=("$1"); shift; done
  nbdkit_env -U - "${options[@]}" "$PLUGIN" "${parameters[@]}" --run "$2"
}

# nbdkit hangs in exit under gcc's AddressSanitizer once it has looked up the text
# of an error number, with any plugin and with none ("nbdkit --nosuch" does).
need_clean_exit () {
  [[ $config_PRELOAD != *asan* ]] || skip "nbdkit cannot exit under ASan here"
}

# make_disk FORMAT NAME SIZE: an image with nothing in it.
make_disk () {
  qemu-img create -q -f "$1" "$2" "$3"
}

# is_clean IMAGE: no error and no leak, and not marked dirty.
is_clean () {
  local format
  format=$(qemu-img info --output=json "$1" | sed -n 's/^    "format": "\(.*\)".*/\1/p')
  case $format in raw | qcow) return 0 ;; esac    # have no check
  qemu-img check -q "$1" &&
    ! qemu-img info --output=json "$1" | grep -q '"dirty-flag": true'
}

# kill_server IMAGE: kill -9, and wait until its threads have let go of IMAGE.
kill_server () {
  kill -9 "$SERVER_PID"
  poll 10 has_no_locks "$1"
}
has_no_locks () { [ -z "$(held_locks "$1")" ]; }

# held_locks FILE: the bytes of QEMU's locks that are taken on it, in order.
held_locks () {
  local inode
  inode=$(stat -c %i "$1")
  awk -v inode="$inode" '$2 == "OFDLCK" {
      split ($6, id, ":")
      if (id[3] == inode) for (b = $7; b <= $8; ++b) print b
    }' /proc/locks | sort -n | uniq | tr '\n' ' ' | sed 's/ $//'
}
