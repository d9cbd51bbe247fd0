# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash

# What is done to each hostile image.  A command may fail, and then says why,
# or succeed; it may not end by a signal, hang, or take more memory or time than
# there is.  Time is that of the processor (a busy machine is no failure), and
# SIGXCPU is a signal.
#
#   HOSTILE_SECONDS   of processor time for each command
#   HOSTILE_KIB       of address space, or "unlimited"

: "${HOSTILE_SECONDS:=2}" "${HOSTILE_KIB:=1000000}"

# hostile_run DIR COMMAND...: prints what is wrong; status 1 if something is
hostile_run () {
  local dir=$1 status=0
  shift
  (
    cd "$dir" || exit 99
    ulimit -c 0
    ulimit -v "$HOSTILE_KIB"
    ulimit -t "$HOSTILE_SECONDS"
    exec timeout -k 1 $((HOSTILE_SECONDS * 10)) "$@" </dev/null >.out 2>.err
  ) || status=$?
  if [ "$status" -ge 99 ]; then
    echo "status $status: $*"
    head -c 500 "$dir/.err"
    return 1
  fi
  if [ "$status" != 0 ] && ! [ -s "$dir/.err" ] && ! [ -s "$dir/.out" ]; then
    echo "status $status without a word: $*"
    return 1
  fi
}

hostile_try_info () {
  hostile_run "$1" "$NBDIMG" info "$2" &&
    hostile_run "$1" "$NBDIMG" info --output=json "$2"
}

hostile_try_check () {
  hostile_run "$1" "$NBDIMG" check -f qcow2 "$2"
}

hostile_try_read () {
  hostile_run "$1" "$NBDIMG" io -r -f qcow2 -c 'read 0 64k' -c 'read 64k 1M' \
    -c 'read 1T 64k' "$2"
}

# Not those whose tables say that there are terabytes of data.
hostile_try_convert () {
  case $2 in *-one-l2* | *-1-tib* | l2-in-holes.* | *-eib*) return ;; esac
  hostile_run "$1" "$NBDIMG" map -f qcow2 "$2" || return
  hostile_run "$1" "$NBDIMG" convert -f qcow2 -O raw "$2" .converted
  local status=$?
  rm -f "$1/.converted"
  return $status
}

hostile_try_snapshot () {
  case $2 in *snap*) ;; *) return ;; esac
  hostile_run "$1" "$NBDIMG" convert -f qcow2 -O raw -l s1 "$2" .converted
  local status=$?
  rm -f "$1/.converted"
  return $status
}

hostile_try_write () {
  cp --sparse=always "$1/$2" "$1/.writable"
  hostile_run "$1" "$NBDIMG" io -f qcow2 -c 'write -P 1 0 64k' \
    -c 'write -P 2 66k 3k' -c 'write 1M 64k' -c 'write -z 64k 64k' \
    -c 'discard 0 128k' -c 'write 1100k 500k' -c flush -c 'read 0 1M' .writable
  local status=$?
  [ $status = 0 ] || echo "(it was $2)"
  rm -f "$1/.writable"
  return $status
}

# hostile_try_all DIR WHAT: for each image; status 1 if one was wrong
hostile_try_all () {
  local f bad=0 nr=0
  for f in "$1"/*.qcow2; do
    nr=$((nr + 1))
    "hostile_try_$2" "$1" "${f##*/}" || bad=$((bad + 1))
  done
  echo "$2: $nr images, $bad wrong"
  [ $nr -gt 200 ] && [ $bad = 0 ]
}
