# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# -t and -T: what each mode asks of the system.

load lib

setup () {
  need qemu-img qemu-io strace
  cd "$BATS_TEST_TMPDIR" || return 1
  random_image odd.raw 1000003 3
}

teardown () {
  local device
  for device in "${loops[@]}"; do losetup -d "$device"; done
  stop_all
}

modes='writeback none writethrough directsync unsafe'

# traced ARG...: run it, and count: $direct for O_DIRECT, $syncs for what makes
# data durable, $plain for writes that do not
traced () {
  strace -f -o log -e trace=openat,fcntl,fsync,fdatasync,pwrite64,pwritev,pwritev2 \
    "$NBDIMG" "$@" >out || fail "$*"
  direct=$(grep -cE 'O_DIRECT' log) || :
  syncs=$(grep -cE 'f(data)?sync\(|RWF_DSYNC' log) || :
  plain=$(($(grep -cE ' pwrite(64|v|v2)\(' log) - $(grep -c RWF_DSYNC log))) || :
}

# as_mode MODE: with O_DIRECT or without, and the mode's flushes
as_mode () {
  case $1 in
    none | directsync) [ "$direct" -gt 0 ] ;;
    *) [ "$direct" = 0 ] ;;
  esac || fail "$1: O_DIRECT $direct times"
  case $1 in
    writethrough | directsync) [ "$plain" = 0 ] && [ "$syncs" -gt 0 ] ;;
    unsafe) [ "$syncs" = 0 ] && [ "$plain" -gt 0 ] ;;
    *) [ "$syncs" -gt 0 ] && [ "$plain" -gt 0 ] ;;
  esac || fail "$1: $syncs flushes, and $plain writes without"
}

# A chain of odd sizes, what its top reads as, and another base.
make_chain () {
  rm -f ./*.qcow2
  qemu-img create -q -f qcow2 base.qcow2 1000448
  qemu-io -c 'write -q -P 1 0 200001' base.qcow2
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
  qemu-io -c 'write -q -P 2 60001 300000' -c 'write -q -z 100k 64k' top.qcow2
  qemu-img create -q -f qcow2 new.qcow2 1000448
  qemu-io -c 'write -q -P 3 600k 100001' new.qcow2
  qemu-img convert -O raw top.qcow2 want.raw
}

@test "each mode of convert and io is what it says" {
  for mode in $modes; do
    qemu-img create -q -f qcow2 o.qcow2 1000448
    traced convert -n -t $mode -f raw -O qcow2 odd.raw o.qcow2
    as_mode $mode
    qemu-img compare -f raw -F qcow2 odd.raw o.qcow2
    qemu-img check -q o.qcow2

    traced io -t $mode -c 'write -q -P 7 1001 70003' -c 'write -q -P 8 4099 1' \
      o.qcow2
    as_mode $mode
    qemu-io -c 'read -P 7 1001 3098' -c 'read -P 8 4099 1' \
      -c 'read -P 7 4100 66904' o.qcow2 >out
    [ "$(grep -c '^read' out)" = 3 ]
    [ "$(grep -ci fail out)" = 0 ]
  done
}

@test "-T reads sizes that are no multiple of a block with O_DIRECT, and only then" {
  "$NBDIMG" convert -f raw -O qcow2 odd.raw o.qcow2
  for mode in $modes; do
    traced compare -T $mode -f raw -F qcow2 odd.raw o.qcow2
    case $mode in
      none | directsync) [ "$direct" -gt 0 ] ;;
      *) [ "$direct" = 0 ] ;;
    esac || fail "$mode: O_DIRECT $direct times"
    [ "$syncs" = 0 ]
    traced check -q -T $mode o.qcow2
    [ "$syncs" = 0 ]
  done
}

@test "each mode of commit, rebase, amend and bench is what it says" {
  for mode in $modes; do
    make_chain
    traced commit -t $mode top.qcow2
    as_mode $mode
    qemu-img compare -F raw base.qcow2 want.raw
    qemu-img check -q base.qcow2
    qemu-img check -q top.qcow2

    make_chain
    traced rebase -t $mode -b new.qcow2 -F qcow2 top.qcow2
    as_mode $mode
    qemu-img compare -F raw top.qcow2 want.raw
    traced rebase -u -t $mode -b base.qcow2 -F qcow2 top.qcow2
    as_mode $mode
    traced amend -t $mode -o refcount_bits=32 top.qcow2
    as_mode $mode
    traced bench -t $mode -w -c 9 -d 1 -s 4k --pattern=7 top.qcow2
    as_mode $mode
    qemu-img check -q top.qcow2
    qemu-io -c 'read -P 7 0 36k' top.qcow2 >out
    [ "$(grep -c "^read" out)" = 1 ]
  done
}

@test "-t of rebase is about the image, -T about its backing files" {
  make_chain
  traced rebase -t none -T writeback -b new.qcow2 -F qcow2 top.qcow2
  grep -q 'O_RDWR.*O_DIRECT' log
  run ! grep -q 'O_RDONLY.*O_DIRECT' log
  traced rebase -t writeback -T none -b base.qcow2 -F qcow2 top.qcow2
  run ! grep -q 'O_RDWR.*O_DIRECT' log
  grep -q 'O_RDONLY.*O_DIRECT' log
  qemu-img compare -F raw top.qcow2 want.raw
}

@test "each mode of convert holds for a new file from its first byte" {
  for format in raw qcow2 qed vdi; do
    for mode in writeback directsync unsafe; do
      rm -f o
      traced convert -t $mode -f raw -O $format odd.raw o
      as_mode $mode
      qemu-img compare -f raw -F $format odd.raw o >out
      grep -q identical out
    done
  done
  # unsafe is what convert does when nothing is said; create flushes
  rm -f o
  traced convert -f raw -O qcow2 odd.raw o
  as_mode unsafe
  traced create -f qcow2 o 1M
  [ "$syncs" -gt 0 ]
}

@test "check -r repairs in the mode of -T, cache.* is for commands without -t" {
  make_chain
  for mode in $modes; do
    cp base.qcow2 leak.qcow2
    truncate -s +65536 leak.qcow2
    # the first cluster behind the end has a reference
    at=$(($(stat -c %s base.qcow2) / 65536))
    table=0x$(peek leak.qcow2 48 8)
    poke leak.qcow2 $((0x$(peek leak.qcow2 "$table" 8) + 2 * at)) 0001
    qemu-img check -q leak.qcow2 || [ $? = 3 ]
    traced check -r leaks -T $mode leak.qcow2
    as_mode $mode
    qemu-img check -q leak.qcow2
  done
  image=driver=qcow2,file.filename=top.qcow2
  traced resize --image-opts $image 2M
  [ "$direct" = 0 ] && [ "$syncs" -gt 0 ]
  traced resize --image-opts $image,cache.direct=on 3M
  [ "$direct" -gt 0 ] && [ "$syncs" -gt 0 ]
  traced bitmap --add --image-opts $image a
  as_mode writeback
  traced bitmap --add --image-opts $image,cache.writeback=off b
  as_mode writethrough
  traced snapshot -c s --image-opts $image,cache.no-flush=on
  as_mode unsafe
  qemu-img check -q top.qcow2
}

# new_loop SIZE: a device in $loop whose sectors have 4096 bytes
new_loop () {
  truncate -s "$1" "disk${#loops[@]}"
  loop=$(losetup -f --show --sector-size 4096 "disk${#loops[@]}") ||
    skip "no loop device with sectors of 4096 bytes"
  loops+=("$loop")
}

@test "O_DIRECT copes with sectors of 4096 bytes, whatever is smaller" {
  need losetup
  need_root
  new_loop 8M
  base=$loop
  new_loop 8M
  top=$loop

  # clusters, and a disk, that do not fill a sector
  "$NBDIMG" convert -t none -f raw -O qcow2 -o cluster_size=512 odd.raw "$base"
  "$NBDIMG" check -q -T none "$base"
  qemu-img check -q "$base"
  "$NBDIMG" convert -T none -f qcow2 -O raw "$base" o.raw
  cmp -n 1000003 odd.raw o.raw
  "$NBDIMG" compare -T none -f raw -F qcow2 odd.raw "$base"
  for format in vdi raw; do
    "$NBDIMG" convert -t directsync -f raw -O $format odd.raw "$top"
    "$NBDIMG" convert -T none -f $format -O raw "$top" o.raw
    cmp -n 1000003 odd.raw o.raw
  done

  # what stands around a write stays
  "$NBDIMG" io -t none -c 'write -q -P 7 1001 70003' -f raw "$top"
  "$NBDIMG" io -c 'write -q -P 8 3500 513' --image-opts \
    "driver=raw,offset=512,cache.direct=on,file.driver=host_device,file.filename=$top"
  { head -c 1001 odd.raw; yes $'\7' | tr -d '\n' | head -c 70003; } >want
  tail -c +71005 odd.raw >>want
  yes $'\10' | tr -d '\n' | head -c 513 | dd of=want bs=1 seek=4012 conv=notrunc status=none
  cmp -n 1000003 want "$top"

  # a chain
  "$NBDIMG" create -q -f qcow2 -o cluster_size=1k "$base" 1000003
  "$NBDIMG" create -q -f qcow2 -o cluster_size=512 -b "$base" -F qcow2 "$top" 1000448
  "$NBDIMG" io -t none -c 'write -q -P 3 100000 300001' "$base"
  "$NBDIMG" io -t none -c 'write -q -P 4 200001 500000' "$top"
  qemu-img convert -O raw "$top" want.raw
  "$NBDIMG" rebase -t none -T none -b '' "$top"
  qemu-img compare -F raw "$top" want.raw
  "$NBDIMG" rebase -u -t none -b "$base" -F qcow2 "$top"
  "$NBDIMG" commit -q -t none "$top"
  qemu-img compare -F raw "$base" want.raw
  "$NBDIMG" check -q -r all -T none "$top"
  qemu-img check -q "$base"
  qemu-img check -q "$top"
}
