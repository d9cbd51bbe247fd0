#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# convert from and to servers of which some reads or writes fail, as they did
# for nbdcopy in CVE-2022-0485: it may fail, but when it says that it has copied,
# the target is the source.  200 runs; COPY_RUNS=1000 for more.

set -eu
# shellcheck source=/dev/null
. "$NBDIMG_BUILD/config.tests"
runs=${COPY_RUNS:-200}
nbdimg=$NBDIMG_BUILD/nbdimg
dir=$(mktemp -d "${TMPDIR:-/tmp}/nbdimg-copy.XXXXXX")
trap 'rm -rf "$dir"' EXIT
cd "$dir"
perl -e 'srand 1; print pack "L*", map { rand 2**32 } 1 .. 2**20' >src.raw
truncate -s 12M src.raw
perl -e 'srand 2; print pack "L*", map { rand 2**32 } 1 .. 2**20' >>src.raw
size=$(stat -c %s src.raw)

die () {
  echo "copy-errors: $*" >&2
  exit 1
}

# failing OPERATION RATE FILE: arguments of a server that fails so often
failing () {
  echo "$config_NBDKIT --exit-with-parent --filter=error file $3" \
    "error-$1-rate=$2"
}

# copy SOURCE-OF-ERRORS RATE OPTION...: one run.  Sets STATUS and TARGET.
copy () {
  local where=$1 rate=$2
  shift 2
  STATUS=0
  rm -f target
  case $where in
  pread)
    # shellcheck disable=SC2046
    "$nbdimg" convert "$@" -f raw [ $(failing pread "$rate" src.raw) ] \
      target 2>err || STATUS=$? ;;
  extents)
    # shellcheck disable=SC2046
    "$nbdimg" convert "$@" -f raw [ $(failing extents "$rate" src.raw) ] \
      target 2>err || STATUS=$? ;;
  *)
    perl -e 'print "stale" x ($ARGV[0] / 5 + 1)' "$size" |
      head -c "$size" >target
    # shellcheck disable=SC2046
    "$nbdimg" convert -n "$@" -f raw src.raw \
      [ $(failing "$where" "$rate" target) ] 2>err || STATUS=$? ;;
  esac
}

is_same () {
  case $* in
  *qcow2*)
    rm -f flat
    "$nbdimg" convert -f qcow2 -O raw target flat && cmp -s src.raw flat ;;
  *) cmp -s src.raw target ;;
  esac
}

good=0 bad=0
for ((i = 0; i < runs; ++i)); do
  rate=$((1 + i * 7 % 40))%
  case $((i % 8)) in
  0) where=pread options="-O raw" ;;
  1) where=pread options="-O qcow2" ;;
  2) where=pread options="-O qcow2 -c -m 4" ;;
  3) where=pread options="-O raw -m 16 -W" ;;
  4) where=extents options="-O raw" ;;
  5) where=pwrite options="-O raw" ;;
  6) where=pwrite options="-O raw -m 16" ;;
  7) where=zero options="-O raw" ;;
  esac
  # shellcheck disable=SC2086
  copy $where $rate $options
  case $STATUS in
  0)
    is_same $options || die "$where $rate $options: success with another disk"
    good=$((good + 1)) ;;
  1)
    [ -s err ] || die "$where $rate $options: failed without a word"
    case $where in
    pread | extents)
      [ ! -e target ] || die "$where $rate $options: a target is left" ;;
    esac
    bad=$((bad + 1)) ;;
  *)
    cat err >&2
    die "$where $rate $options: status $STATUS" ;;
  esac
done
[ "$bad" -gt 0 ] || die "no run has failed: nothing was tested"
echo "ok $runs copies from and to failing servers: $good good, $bad refused"
