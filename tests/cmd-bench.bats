# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154,SC2034

# nbdimg bench beside qemu-img bench.

load lib
load peer

setup () {
  need qemu-img qemu-io strace
  cd "$BATS_TEST_TMPDIR" || return 1
  qemu-img create -q -f raw a.raw 4M
  qemu-img create -q -f qcow2 a.qcow2 4M
}

# What it took is never the same.
same_bench () {
  local theirs=(timeout 60 qemu-img bench "$@")
  local ours=("$NBDIMG" bench "$@")
  peer_run . .
  sed -i -E 's/in [0-9.]+ seconds/in TIME seconds/' \
    "$BATS_TEST_TMPDIR"/.{our,their}.out
  "peer_same$words"
}

@test "good invocations print what qemu-img prints" {
  words=
  same_bench -f raw -c 100 a.raw
  same_bench -c 100 a.qcow2
  same_bench -c 10 -d 3 -s 1k -S 2k -o 512 a.qcow2
  same_bench -c 5 -s 3 a.qcow2
  same_bench -c 3 -s 4M a.qcow2
  same_bench -c 0 a.qcow2
  same_bench -c 7 -S 0 a.qcow2
  same_bench -c 100 -t none -s 100 -o 3 a.qcow2
  same_bench -c 100 -i threads -t unsafe a.qcow2
  same_bench -w -c 100 a.qcow2
  same_bench -w -c 100 -d 5 --flush-interval 5 --pattern 7 a.qcow2
  same_bench -w -c 100 -d 5 --flush-interval 7 --no-drain a.qcow2
  same_bench -c 10 -U a.qcow2
  same_bench -c 10 --image-opts driver=qcow2,file.filename=a.qcow2
}

@test "bad invocations end as those of qemu-img" {
  words=
  same_bench
  same_bench a.raw a.qcow2
  same_bench -c -1 a.qcow2
  same_bench -c 10k a.qcow2
  same_bench -d x a.qcow2
  same_bench -o -1 a.qcow2
  same_bench -s 3000000000 a.qcow2
  same_bench -S 3000000000 a.qcow2
  same_bench -s 99999999999999999999 a.qcow2
  same_bench -t some a.qcow2
  same_bench -i some a.qcow2
  same_bench --pattern 256 -w a.qcow2
  same_bench --pattern x -w a.qcow2
  same_bench --flush-interval x -w a.qcow2
  same_bench --flush-interval 5 a.qcow2
  same_bench --flush-interval 5 -w a.qcow2
  same_bench -w -U a.qcow2
  words=_output
  same_bench none.qcow2
  same_bench -f none a.qcow2
  same_bench -c 1 -o 8M a.qcow2
  same_bench -c 1 -s 5M a.qcow2
}

@test "-n and other engines are taken, and say who makes the requests; -q is quiet" {
  for o in "-n -t none" "-i io_uring" "--native --cache=directsync"; do
    "$NBDIMG" bench -q -c 5 $o a.qcow2 2>err
    grep 'warning: aio=.*: requests are made by threads' err
    [[ $o == --* ]] || qemu-img bench -c 5 $o a.qcow2 >out
  done
  expect_error 1 "requires cache.direct=on" "$NBDIMG" bench -n -c 5 a.qcow2
  expect_error 1 "Invalid aio option: x" "$NBDIMG" bench -i x a.qcow2
  expect_error 1 "Invalid queue depth" "$NBDIMG" bench -d 0 a.qcow2
  [ -z "$("$NBDIMG" bench -q -c 5 a.qcow2)" ]
}

@test "-w writes the pattern where the requests go, round the end of the disk" {
  "$NBDIMG" bench -q -w -c 3 --pattern 0x5a -o 1M -s 4k -S 1536k a.qcow2
  for at in 1M 2560k 0; do
    qemu-io -c "read -P 0x5a $at 4k" a.qcow2 | grep "read 4096"
  done
  qemu-io -c 'read -P 0 4k 1020k' -c 'read -P 0 2564k 1532k' a.qcow2 >out
  [ "$(grep -ci fail out)" = 0 ]
  qemu-img check -q a.qcow2
}

@test "-d requests are under way at a time, and flushes come when they are due" {
  strace -f -o log -e trace=pread64,preadv,clone,clone3,fdatasync \
    "$NBDIMG" bench -q -f raw -c 64 -d 8 a.raw
  [ "$(grep -cE 'clone3?(\(| resumed).*= [0-9]+$' log)" -ge 8 ]
  [ "$(grep -cE 'pread.*4096' log)" -ge 64 ]
  strace -f -o log -e trace=fdatasync,pwrite64 \
    "$NBDIMG" bench -q -w -f raw -c 20 -d 2 --flush-interval 5 a.raw
  [ "$(grep -c fdatasync log)" -ge 4 ]
  # Between two flushes all five requests have ended.
  awk '/pwrite64\(/ { n++ } /fdatasync\(/ && n { if (n % 5) exit 1 }' log
}
