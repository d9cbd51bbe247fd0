#!/bin/busybox sh
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# What the virtual machine of vm.bats does, as its init.  The kernel's command
# line comes as environment:
#
#   job=write    make a file system, fill it, read it back, trim, check
#   job=verify   check a file system that was written so
#   port=N       the disk is an NBD server on the host's loopback, reached by the
#                kernel's own client; else it is the first virtio disk
#
# Each line for the host begins with "vm: ", the last one of a good run is
# "vm: done".  The programs in /host are called by path: the shell has smaller
# ones of the same names built in.  Init must not end, so whatever goes wrong powers off as well.

set -eu
/bin/busybox mkdir -p /bin /sbin
/bin/busybox --install -s /bin
export PATH=/bin
say () { echo "vm: $*"; }
trap 'say "status $?"; sync; reboot -f' EXIT

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

network () {
  modprobe virtio_net
  ip link set eth0 up
  ip addr add 10.0.2.15/24 dev eth0
}

# Sets $disk.
attach () {
  modprobe virtio_pci
  if [ -n "${port:-}" ]; then
    network
    modprobe nbd
    disk=/dev/nbd0
    /host/nbd-client 10.0.2.2 "$port" $disk -b 4096 -C 2
  else
    modprobe virtio_blk
    disk=/dev/vda
  fi
  [ -b $disk ]
}

detach () {
  [ -z "${port:-}" ] || /host/nbd-client -d $disk
}

# Text that differs from file to file, noise, a file with holes.
fill () {
  mkdir /mnt/text
  for i in 0 1 2 3 4 5 6 7 8 9; do
    for j in 0 1 2 3 4 5 6 7 8 9; do
      { echo "file $i$j"; cat /init; } >/mnt/text/$i$j
    done
  done
  cp -r /lib /mnt/
  dd if=/dev/urandom of=/mnt/noise bs=1M count=24 2>/dev/null
  dd if=/dev/urandom of=/mnt/sparse bs=4k seek=5000 count=10 2>/dev/null
  dd if=/dev/urandom of=/mnt/goes bs=1M count=24 2>/dev/null
}

# In place, with barriers: a journal commit and a flush for each.
overwrite () {
  for at in 1 100 1000 2000 3000 4000; do
    dd if=/dev/urandom of=/mnt/noise bs=4k count=3 seek=$at conv=notrunc,fsync \
      2>/dev/null
  done
}

reread () {
  sync
  echo 3 >/proc/sys/vm/drop_caches
  (cd /mnt && sha256sum -c SUMS >/tmp/sums) || { grep -v OK /tmp/sums; exit 1; }
}

job_write () {
  # Discards all of the disk first.
  /host/mke2fs -q -F -t ext4 $disk
  mount -t ext4 $disk /mnt
  fill
  overwrite
  (cd /mnt && find . -type f ! -name goes ! -name SUMS -exec sha256sum {} + \
    >SUMS)
  reread
  say "written"
  rm /mnt/goes
  sync
  say "$(fstrim -v /mnt)"
  reread
  say "noise $(sha256sum </mnt/noise)"
  say "sums $(sha256sum </mnt/SUMS)"
  umount /mnt
  /host/e2fsck -fn $disk
}

job_verify () {
  /host/e2fsck -fn $disk
  mount -t ext4 $disk /mnt
  reread
  say "sums $(sha256sum </mnt/SUMS)"
  umount /mnt
}

attach
say "disk $disk, $(cat /sys/block/${disk#/dev/}/size) sectors"
job_$job
detach
say "done"
