#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Crash replay of the write paths, ours and QEMU's by the same generator:
# for each kind of image a random workload, and every state a crash could leave
# of it (crash-eval.c); and short sequences of operations, up to all there are
# of three (crash.h).  In the last kinds the structure changes meanwhile:
# snapshots, size, backing file, commit, bitmaps, amend, rebase; or the image is
# to be repaired first.
# Prints a table; fails if we have a single finding.
#
#   CRASH_SEEDS   how many workloads for each kind (2)
#   CRASH_OPS     operations in each (60)
#   CRASH_STATES  states for each workload at most (4000)
#   CRASH_STEP    every so manyth sequence of three (37); 0 = none
#   CRASH_QEMU    0 = without QEMU's figures
#   CRASH_KINDS   a pattern of kinds to run

set -u
build=${NBDIMG_BUILD:?the folder that was built in}
here=$(cd "$(dirname "$0")" && pwd)
seeds=${CRASH_SEEDS:-2} ops=${CRASH_OPS:-60} max=${CRASH_STATES:-4000}
step=${CRASH_STEP:-37}
[ -n "${TMPDIR:-}" ] || [ ! -w /dev/shm ] || TMPDIR=/dev/shm
work=$(mktemp -d "${TMPDIR:-/tmp}/nbdimg-crash.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT

# name | [FORMAT:]-o options, qcow2 by default | extras: base, other (a second
# one), data, snapshot, bitmaps, packed, discard, threads, large, huge,
# encrypted, can=LETTERS (structure.h), dirty (left so by a killed QEMU), wrong
# (refcounts or map entries that check -r has to mend), leaky (clusters that it
# has to free), alone (QEMU cannot do that), full (the map of a VDI image has no
# room for more than its 128 blocks: slow, and only where there are many states)
kinds='
4k            |cluster_size=4k                       |discard packed
4k-nodiscard  |cluster_size=4k                       |packed
4k-backing    |cluster_size=4k                       |base discard packed
4k-snapshot   |cluster_size=4k                       |snapshot discard
v2            |compat=0.10,cluster_size=4k           |discard
v2-512        |compat=0.10,cluster_size=512          |discard packed
v2-backing    |compat=0.10,cluster_size=4k           |base discard packed
512           |cluster_size=512                      |discard
512-1bit      |cluster_size=512,refcount_bits=1      |base discard packed
512-64bit     |cluster_size=512,refcount_bits=64     |base discard
4k-1bit       |cluster_size=4k,refcount_bits=1       |discard packed
64k           |cluster_size=64k                      |discard
64k-64bit     |refcount_bits=64                      |snapshot discard
64k-backing   |cluster_size=64k                      |base discard packed
extended-l2   |cluster_size=16k,extended_l2=on       |base discard packed
lazy          |cluster_size=4k,lazy_refcounts=on     |discard
zstd          |cluster_size=4k,compression_type=zstd |discard packed
data-file     |cluster_size=4k                       |data discard
data-file-raw |cluster_size=4k,data_file_raw=on      |data discard
8-threads     |cluster_size=4k                       |threads discard
8-threads-1k  |cluster_size=1k,refcount_bits=64      |base threads discard
8-threads-64k |cluster_size=64k                      |base threads discard large
8-threads-snap|cluster_size=4k                       |snapshot threads discard
qed-4k        |qed:cluster_size=4k,table_size=2      |discard
qed-backing   |qed:cluster_size=4k,table_size=2      |base discard
qed-64k       |qed:cluster_size=64k                  |base discard
qed-8-threads |qed:cluster_size=4k,table_size=2      |base threads discard
qcow          |qcow:                                 |discard packed
qcow-backing  |qcow:                                 |base discard packed
qcow-8-threads|qcow:                                 |threads discard
qcow-8-backing|qcow:                                 |base threads discard
vdi           |vdi:static=off                        |discard large
vdi-8-threads |vdi:static=off                        |threads discard huge
raw           |raw:                                  |discard
luks          |luks:iter-time=1                      |encrypted
luks-qcow2    |cluster_size=4k,encrypt.format=luks   |encrypted base discard
luks-discard  |cluster_size=4k,encrypt.format=luks   |encrypted discard
luks-extended |cluster_size=16k,extended_l2=on,encrypt.format=luks|encrypted base discard
luks-threads  |cluster_size=4k,encrypt.format=luks   |encrypted threads base
aes           |cluster_size=4k,encrypt.format=aes    |encrypted base discard
aes-qcow      |qcow:encrypt.format=aes               |encrypted base discard
qed-dirty     |qed:cluster_size=4k,table_size=2      |dirty base discard
snapshots     |cluster_size=4k                       |snapshot can=s discard
snapshots-v2  |compat=0.10,cluster_size=4k           |snapshot can=s discard
snapshots-512 |cluster_size=512,refcount_bits=64     |snapshot can=s base
snapshots-64k |cluster_size=64k                      |snapshot can=sr discard
snapshots-el2 |cluster_size=16k,extended_l2=on       |snapshot can=srb base
resize        |cluster_size=4k                       |can=r discard
resize-v2-512 |compat=0.10,cluster_size=512          |can=r discard
resize-1bit   |cluster_size=4k,refcount_bits=1       |can=rb base discard
resize-qed    |qed:cluster_size=4k,table_size=2      |can=gb base
resize-vdi    |vdi:static=off                        |can=g full alone
commit        |cluster_size=4k                       |can=cb base discard
commit-64k    |cluster_size=64k                      |can=crs base
commit-qed    |qed:cluster_size=4k,table_size=2      |can=c base
commit-qcow   |qcow:                                 |can=c base
dirty         |cluster_size=4k,lazy_refcounts=on     |dirty discard
dirty-snapshot|cluster_size=4k,lazy_refcounts=on     |dirty snapshot
repair        |cluster_size=4k                       |wrong discard
repair-64bit  |cluster_size=4k,refcount_bits=64      |wrong snapshot can=s
repair-leaks  |cluster_size=4k                       |leaky discard
repair-vdi    |vdi:static=off                        |wrong large alone
repair-bitmaps|cluster_size=4k                       |wrong bitmaps can=t
bitmaps       |cluster_size=4k                       |bitmaps can=t discard
bitmaps-512   |cluster_size=512,refcount_bits=64     |bitmaps can=t base
bitmaps-64k   |cluster_size=64k                      |bitmaps can=tr discard
bitmaps-el2   |cluster_size=16k,extended_l2=on       |snapshot can=trsb base
bitmaps-commit|cluster_size=4k                       |bitmaps can=tc base
amend         |cluster_size=4k                       |can=a discard
amend-512     |cluster_size=512                      |can=abs base snapshot
amend-backing |cluster_size=4k                       |can=a base discard
amend-bitmaps |cluster_size=64k                      |can=atr base
rebase        |cluster_size=4k                       |can=o base other
rebase-512    |compat=0.10,cluster_size=512          |can=or base other
rebase-bitmaps|cluster_size=64k                      |can=ot base other bitmaps
'

# The passphrase of tests/unit/harness.h.
secret=(--object "secret,id=s,data=open")

has () { case " $extras " in *" $1 "*) return 0;; esac; return 1; }
same_base=the-same-base-by-a-name-that-is-longer

# The first image: some clusters written, and with a snapshot some of them
# shared.
make_image () {
  local o=$options size=1M at=128k
  [ "$format" != vdi ] || at=1M         # its blocks are that large
  # Eight threads need room for their chunks of three and a half clusters.
  if has large; then size=4M; fi
  if has huge; then size=32M; fi
  if has full; then size=130900k; fi
  if has base; then
    head -c 768k /dev/zero | tr '\0' '\373' >"$dir/base"
    truncate -s $size "$dir/base"
    o="$o,backing_file=base,backing_fmt=raw"
  fi
  if has other; then
    head -c 700k /dev/zero | tr '\0' '\374' >"$dir/other"
    dd if=/dev/zero of="$dir/other" bs=4k seek=50 count=40 conv=notrunc \
      status=none
    truncate -s 900k "$dir/other"
  fi
  if has data; then
    o="$o,data_file=data"
    touch "$dir/data"
  fi
  local create=(qemu-img create -q) opened=(-f "$format" image)
  if has encrypted; then
    # QEMU would time itself for longer than the whole run may take.
    create=("$build/nbdimg" create -q "${secret[@]}")
    opened=("${secret[@]}" --image-opts
      "driver=$format,$key=s,file.filename=image")
    o="$o,$key=s"
    case $o in *format=luks*) o="$o,encrypt.iter-time=1" ;; esac
  fi
  ( cd "$dir" &&
    "${create[@]}" -f "$format" ${o:+-o "${o#,}"} image $size &&
    # What nobody wrote to reads as noise there.
    if [ "$format" = luks ]; then
      qemu-io -c "write -q -z 0 $size" "${opened[@]}"
    fi &&
    qemu-io -c "write -q -P 251 $at 256k" "${opened[@]}" &&
    if has snapshot; then
      qemu-img snapshot -c s1 image &&
      qemu-img convert -O raw -l snapshot.name=s1 image content-s1 &&
      qemu-io -c "write -q -P 251 160k 64k" image
    fi &&
    if has dirty; then
      # The shell that runs it would say that it was killed.
      bash -c 'qemu-io -c "write -q -P 251 512k 300k" -c "sigraise 9" image
        true' 2>/dev/null
    fi &&
    if has bitmaps; then
      qemu-img bitmap --add -g 4k image b1 &&
      qemu-img bitmap --add -g 16k image b2 &&
      qemu-io -f "$format" -c "write -q -P 251 200k 30k" image &&
      qemu-img bitmap --disable image b2
    fi &&
    if has wrong; then break_$format; fi &&
    if has leaky; then leak_clusters; fi &&
    mkdir -p state &&
    if has base; then
      ln -s base "$same_base" && ln -s ../base state/base &&
      ln -s base "state/$same_base"
    fi &&
    if has other; then ln -s ../other state/other; fi
  ) >/dev/null || exit 1
}

# Clusters that are in use have no references: the first refcount block, which
# qemu-img creates in the third cluster of 4 KiB, loses some.
break_qcow2 () {
  local bytes=2
  case $options in *refcount_bits=64*) bytes=8 ;; esac
  dd if=/dev/zero of=image bs=1 seek=$((0x2000 + 8 * bytes)) \
    count=$((20 * bytes)) conv=notrunc status=none
  ! qemu-img check image >/dev/null 2>&1
}

# Blocks 0 and 2 share the place of block 1; that of block 2 is nobody's.
break_vdi () {
  qemu-io -f vdi -c 'write -q -P 251 2M 256k' -c 'write -q -P 251 3M 256k' image
  printf '\0\0\0\0\0\0\0\0\0\0\0\0' |
    dd of=image bs=1 seek=512 conv=notrunc status=none
  ! qemu-img check image >/dev/null 2>&1
}

# Clusters 200 to 202 have references, and nothing refers to them.
leak_clusters () {
  truncate -s 832k image
  printf '\0\1\0\1\0\1' |
    dd of=image bs=1 seek=$((0x2000 + 2 * 200)) conv=notrunc status=none
  qemu-img check image >/dev/null 2>&1
  [ $? = 3 ]
}

# letters WHO: what the kind can.  QEMU's log has no second file, so no commits.
letters () {
  local can=${extras##*can=}
  [ "$can" != "$extras" ] || return 0
  can=${can%% *}
  if [ "$1" = ours ]; then echo "$can"; else echo "${can//c/}"; fi
}

declare -a args
one () {                # one WHO SEED [SEQUENCE]: a line of figures
  local all=() loud=() how=() can
  if [ "$1" = ours ]; then loud=(-v); fi
  args=(-f "$format" -s "$2" -n "$ops" -t 1)
  if [ -n "${3:-}" ]; then args+=(-e "$3") all=(-a 10 -r 64); fi
  # qemu-io's compressed writes fail over blklogwrites.
  if has packed && [ "$1" = ours ]; then args+=(-c); fi
  has discard && args+=(-D)
  if has threads; then args+=(-t 8); fi
  can=$(letters "$1")
  if [ -n "$can" ]; then args+=(-S "$can"); fi
  case $can in *c*) all+=(-b) ;; esac
  if has wrong || has leaky; then args+=(-R); fi
  if has encrypted; then all+=(-k "$key") how=("$key" "${secret[1]}"); fi
  if [ "$1" = qemu ]; then all+=(-u); fi
  rm -f "$dir/log" "$dir/ledger" "$dir/versions"
  if [ "$1" = ours ]; then
    "$build/tests/crash/crash-run" "${args[@]}" "$dir" || return 2
  else
    "$build/tests/crash/crash-run" -p "${args[@]}" "$dir" \
      | /usr/bin/python3 "$here/qemu-run.py" "$dir" "$format" "${how[@]}" ||
      return 2
  fi
  "$build/tests/crash/crash-eval" -f "$format" -m "$max" -s "$2" "${all[@]}" \
    "${loud[@]}" "$dir"
}

# figures WHO SEED [SEQUENCE]: added to the array sum.
figures () {
  local line r i=0 n
  dir=$work/$name-$1
  mkdir -p "$dir"
  [ -e "$dir/image" ] || make_image    # no run changes it
  line=$(one "$@")
  r=$?
  [ $r -le 1 ] || { echo "$name $1: the run failed" >&2; exit 1; }
  for n in $line; do sum[i]=$((sum[i] + n)); i=$((i + 1)); done
  if [ $r = 1 ] && [ "$1" = ours ]; then
    echo "$name: seed $2${3:+, sequence $3}: a finding" >&2
  fi
}

status=0
total_ours=0 bad_ours=0 total_qemu=0 third_qemu=0 bad_qemu=0
printf '%-15s %-5s %8s %6s %6s %6s %8s %9s %6s\n' kind who states third lost \
  errors corrupt snapshots qemu
while IFS='|' read -r name options extras; do
  read -r name <<<"$name"       # without blanks at its ends
  read -r options <<<"$options"
  [ -n "$name" ] || continue
  format=qcow2
  case $options in *:*) format=${options%%:*} options=${options#*:} ;; esac
  key=encrypt.key-secret
  [ "$format" != luks ] || key="key-secret"
  # shellcheck disable=SC2254
  case $name in ${CRASH_KINDS:-*}) ;; *) continue ;; esac
  if has full && [ "$max" -lt 500 ]; then continue; fi
  for who in ours qemu; do
    if [ $who = qemu ]; then
      [ "${CRASH_QEMU:-1}" = 1 ] || continue
      # One thread only; and qemu-io has no log for a second file.
      if has threads || has data || has can=c || has alone; then continue; fi
    fi
    sum=(0 0 0 0 0 0 0)
    for ((seed = 1; seed <= seeds; seed++)); do figures $who $seed; done
    if [ "$step" -gt 0 ] && ! has threads; then
      # 52: a write to a new cluster, and one with FUA to the same place.
      for ((i = 52 % step; i < 1000; i += step)); do figures $who $i $i; done
    fi
    rm -rf "${work:?}/$name-$who"
    printf '%-15s %-5s %8d %6d %6d %6d %8d %9d %6d\n' "$name" $who "${sum[@]}"
    bad=$((sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6]))
    if [ $who = ours ]; then
      total_ours=$((total_ours + sum[0]))
      bad_ours=$((bad_ours + bad))
      [ $bad = 0 ] || status=1
    else
      total_qemu=$((total_qemu + sum[0]))
      third_qemu=$((third_qemu + sum[1] + sum[2]))
      bad_qemu=$((bad_qemu + bad))
    fi
  done
done <<<"$kinds"
printf 'ours: %d states, %d findings; qemu %s: %d states, %d findings' \
  $total_ours $bad_ours \
  "$(qemu-img --version | sed -n '1s/.*version \([^ ]*\).*/\1/p')" \
  $total_qemu $bad_qemu
[ $total_qemu = 0 ] || printf ', %d third or lost values (%d.%02d %%)' \
  $third_qemu $((third_qemu * 100 / total_qemu)) \
  $((third_qemu * 10000 / total_qemu % 100))
echo
[ $total_ours -gt 0 ] || status=1
exit $status
