#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Packs the first file system of the virtual machine of vm.bats: busybox, the
# programs that make and check ext4, the NBD client, the kernel's modules for a
# virtio disk, a network card and NBD, and guest.sh as init.
#
#   initramfs.sh FOLDER [ROOT]
#
# Leaves FOLDER/vmlinuz and FOLDER/initramfs.  Kernel and NBD client are looked
# for below ROOT, where "./bootstrap check" unpacks them, then on this machine.
# Status 77, and a line that says why, where a piece is missing.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1
root=${2:-}

missing () { echo "$*"; exit 77; }

PATH=$PATH:/usr/sbin:/sbin
busybox=$(command -v busybox) || missing "busybox is not installed"
command -v cpio >/dev/null || missing "cpio is not installed"
for program in mke2fs e2fsck; do
  command -v $program >/dev/null || missing "$program is not installed"
done

# A kernel with its modules: sets $kernel and $modules.
find_kernel () {
  for top in "$root" ''; do
    for kernel in "$top"/boot/vmlinuz-*; do
      modules=$top/lib/modules/${kernel##*/vmlinuz-}/kernel
      [ ! -e "$kernel" ] || [ ! -e "$modules/drivers/block/nbd.ko" ] || return 0
    done
  done
  missing "there is no kernel with the module nbd"
}

find_client () {
  for client in "$root"/sbin/nbd-client "$root"/usr/sbin/nbd-client \
      /sbin/nbd-client /usr/sbin/nbd-client; do
    [ ! -x "$client" ] || return 0
  done
  missing "nbd-client is not installed"
}

# put FILE NAME
put () {
  mkdir -p "$tree/$(dirname "$2")"
  cp -L "$1" "$tree/$2"
}

# A program with the libraries that it is linked with.
put_program () {
  put "$1" "/host/${1##*/}"
  library_path=$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu
  LD_LIBRARY_PATH=$library_path ldd "$1" >"$tree/ldd"
  if grep 'not found' "$tree/ldd"; then
    missing "a library of $1 is not installed"
  fi
  # "name => /path (0x...)", and "/lib64/ld-... (0x...)" for the linker.
  for library in $(grep -o '/[^ ]*' "$tree/ldd"); do
    case $library in
    /lib64/*) put "$library" "$library" ;;
    *) put "$library" "/lib/${library##*/}" ;;
    esac
  done
  rm "$tree/ldd"
}

put_module () {
  file=$(find "$modules" -name "$1.ko")
  [ -n "$file" ] || missing "the kernel has no module $1"
  put "$file" "/lib/modules/${kernel##*/vmlinuz-}/${file##*/}"
}

find_kernel
find_client
tree=$(mktemp -d "${TMPDIR:-/tmp}/nbdimg-vm.XXXXXX")
trap 'rm -rf "$tree"' EXIT

put "$busybox" /bin/busybox
put "$here/guest.sh" /init
put /etc/mke2fs.conf /etc/mke2fs.conf
chmod 755 "$tree/init"
for program in mke2fs e2fsck; do
  put_program "$(command -v $program)"
done
put_program "$client"
for module in failover net_failover virtio_net virtio virtio_ring virtio_pci \
    virtio_pci_modern_dev virtio_pci_legacy_dev virtio_blk nbd; do
  put_module $module
done
"$busybox" depmod -b "$tree" "${kernel##*/vmlinuz-}"
mkdir -p "$tree/proc" "$tree/sys" "$tree/dev" "$tree/mnt" "$tree/tmp"

(cd "$tree" && find . | cpio --quiet -o -H newc) >"$out/initramfs"
cp "$kernel" "$out/vmlinuz"
