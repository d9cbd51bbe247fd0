#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Opens that race for one image, nbdimg's and qemu-io's.  Each that gets it
# writes its own pattern, waits, and must read it back: two at once would not.
# 10,000 opens; LOCK_RACES=N for another number.  LOCK_OFF=1 leaves the locks
# out, for a look at whether the race would be seen.

set -eu
races=${LOCK_RACES:-10000}
dir=$(mktemp -d "${TMPDIR:-/tmp}/nbdimg-locks.XXXXXX")
trap 'kill $(jobs -p) 2>/dev/null || :; wait; rm -rf "$dir"' EXIT
cd "$dir"
"$NBDIMG_BUILD/nbdimg" create -q -f qcow2 disk 1M
# Its clusters are there: both write in place.
qemu-io -c 'write 0 64k' disk >/dev/null

off=file.locking=off
# racer NUMBER TIMES: its outcomes, one a line, in the file outcome.NUMBER
racer () {
  local i tool image said
  for ((i = 0; i < $2; ++i)); do
    case $((RANDOM % 2)) in
    0) tool=("$NBDIMG_BUILD/nbdimg" io) ;;
    1) tool=(qemu-io) ;;
    esac
    image=(-f qcow2 disk)
    [ -z "${LOCK_OFF:-}" ] ||
      image=(--image-opts "driver=qcow2,file.filename=disk,$off")
    # The image is read past caches of a process: by its own locks it is whole.
    said=$("${tool[@]}" -c "write -P $1 0 64k" -c 'sleep 3' \
      -c "read -P $1 0 64k" "${image[@]}" 2>&1) || :
    case $said in
    *'Pattern verification failed'*) echo "two ${tool[0]##*/}" ;;
    *lock*) echo "no ${tool[0]##*/}" ;;
    *wrote*read*) echo "yes ${tool[0]##*/}" ;;
    *) echo "odd: $said" ;;
    esac
  done >outcome.$1
}

nr=4
for ((n = 1; n <= nr; ++n)); do
  racer $n $((races / nr)) &
done
wait
sort outcome.* | uniq -c
if grep -h '^odd' outcome.*; then
  echo 'not what was expected'
  exit 1
fi
if grep -q '^two' outcome.*; then
  echo 'two writers at once'
  exit 1
fi
# Each side got it, and each was turned away.
for tool in nbdimg qemu-io; do
  for answer in yes no; do
    [ -n "${LOCK_OFF:-}" ] || grep -q "^$answer $tool" outcome.* || {
      echo "no race: no '$answer' of $tool"
      exit 1
    }
  done
done
qemu-img check -q disk
