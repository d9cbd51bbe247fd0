# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# What is done to each hostile image.  A command may fail, and then says why,
# or succeed; it may not end by a signal, hang, or take more memory or time than
# there is.  Time is that of the processor (a busy machine is no failure), and
# SIGXCPU is a signal.
#
#   HOSTILE_SECONDS   of processor time for each command
#   HOSTILE_KIB       of address space, or "unlimited"
#   HOSTILE_WORK      a folder for what commands write

: "${HOSTILE_SECONDS:=2}" "${HOSTILE_KIB:=1000000}" "${HOSTILE_WORK:=$PWD}"

# hostile_run DIR COMMAND...: prints what is wrong; status 1 if something is.
# The command's status is in HOSTILE_STATUS, its output in .out and .err.
hostile_run () {
  local dir=$1 out=$HOSTILE_WORK/.out err=$HOSTILE_WORK/.err said
  shift
  HOSTILE_STATUS=0
  (
    cd "$dir" || exit 99
    ulimit -c 0
    ulimit -v "$HOSTILE_KIB"
    ulimit -t "$HOSTILE_SECONDS"
    exec timeout -k 1 $((HOSTILE_SECONDS * 20)) "$@" </dev/null >"$out" 2>"$err"
  ) || HOSTILE_STATUS=$?
  said=$(<"$err")
  if [ $HOSTILE_STATUS -ge 99 ] || [[ $said == *'runtime error:'* ]]; then
    echo "status $HOSTILE_STATUS: $*"$'\n'"${said:0:3000}"
    return 1
  fi
  if [ $HOSTILE_STATUS != 0 ] && ! [ -s "$out" ] && [ -z "$said" ]; then
    echo "status $HOSTILE_STATUS without a word: $*"
    return 1
  fi
  if LC_ALL=C grep -qa $'[\x01-\x08\x0b-\x1f\x7f]' "$out" "$err"; then
    echo "control characters: $*"
    return 1
  fi
}

hostile_try_info () {
  hostile_run "$1" "$NBDIMG" info "$2" &&
    hostile_run "$1" "$NBDIMG" info --output=json "$2" || return
  [ $HOSTILE_STATUS != 0 ] ||
    cat "$HOSTILE_WORK/.out" >>"$HOSTILE_WORK/json"
}

hostile_try_check () {
  hostile_run "$1" "$NBDIMG" check -f qcow2 "$2"
}

hostile_try_read () {
  hostile_run "$1" "$NBDIMG" io -r -f qcow2 -c 'read 1023G 64k' "$2" &&
    hostile_run "$1" "$NBDIMG" io -r -f qcow2 -c 'read 0 64k' \
      -c 'read 64k 1M' "$2"
}

# Their tables say that there are terabytes of data.
hostile_is_long () {
  case $1 in *-one-l2* | *-1-tib* | l2-in-holes.* | *-eib*) ;; *) return 1 ;;
  esac
}

# hostile_convert DIR ARGUMENT...
hostile_convert () {
  local status=0
  hostile_run "$1" "$NBDIMG" convert -f qcow2 -O raw "${@:2}" \
    "$HOSTILE_WORK/.converted" || status=1
  rm -f "$HOSTILE_WORK/.converted"
  return $status
}

hostile_try_convert () {
  ! hostile_is_long "$2" || return 0
  hostile_run "$1" "$NBDIMG" map -f qcow2 "$2" && hostile_convert "$1" "$2"
}

hostile_try_snapshot () {
  case $2 in *snap*) hostile_convert "$1" -l s1 "$2" ;; esac
}

# In a folder that nobody else reads: the data file is written to.
hostile_try_write () {
  local status=0
  cp --sparse=always "$1/$2" "$1/.writable"
  hostile_run "$1" "$NBDIMG" io -f qcow2 -c 'write -P 1 0 64k' \
    -c 'write -P 2 66k 3k' -c 'write 1M 64k' -c 'write -z 64k 64k' \
    -c 'discard 0 128k' -c 'write 1100k 500k' -c flush -c 'read 0 1M' \
    .writable || status=1
  [ $status = 0 ] || echo "(it was $2)"
  rm -f "$1/.writable"
  return $status
}

# nbdkit with its threads, and a client that reads all.  glibc would reserve 64
# MiB for each thread.
hostile_try_serve () {
  ! hostile_is_long "$2" || return 0
  hostile_run "$1" env MALLOC_ARENA_MAX=1 \
    ${config_PRELOAD:+LD_PRELOAD="$config_PRELOAD"} \
    "$config_NBDKIT" -U - -r -t 4 "$PLUGIN" file="$2" format=qcow2 --run '
      unset LD_PRELOAD
      nbdinfo --map "$uri" >/dev/null &&
      nbdcopy --connections=1 --threads=1 "$uri" null:'
}

# hostile_try_all DIR WHAT: for each image; status 1 if one was wrong
hostile_try_all () {
  local f bad=0 nr=0 good=0
  for f in "$1"/*.qcow2; do
    nr=$((nr + 1))
    HOSTILE_STATUS=0
    "hostile_try_$2" "$1" "${f##*/}" || bad=$((bad + 1))
    [ $HOSTILE_STATUS != 0 ] || good=$((good + 1))
  done
  echo "$2: $nr images, $bad wrong, $good read"
  # If all are refused the fault is ours; and these tables are not so harmless.
  [ $nr -gt 240 ] && [ $bad = 0 ] && [ $good -gt 30 ] && [ $good -lt $nr ]
}
