# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# A virtual machine uses an export as its disk: Linux under software emulation
# makes an ext4 file system on it, fills it, reads it back, trims it and checks
# it; then the image is looked at here.  What it runs is vm/guest.sh.

load lib

# pack: kernel and initramfs, or skip.  Made once for all tests of this file.
setup_file () {
  status=0
  "${BATS_TEST_DIRNAME}/vm/initramfs.sh" "$BATS_FILE_TMPDIR" \
    "${BATS_TEST_DIRNAME}/../build/vm" >"$BATS_FILE_TMPDIR/why" || status=$?
  [ $status = 0 ] || [ $status = 77 ]
  echo $status >"$BATS_FILE_TMPDIR/status"
}

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  PATH=$PATH:/usr/sbin:/sbin
  need qemu-system-x86_64 qemu-img e2fsck debugfs jq
  [ "$(cat "$BATS_FILE_TMPDIR/status")" = 0 ] ||
    skip "$(cat "$BATS_FILE_TMPDIR/why")"
}

# boot JOB [port=N] QEMU-OPTION...: to the machine's end; its lines for us are
# in the file said.
boot () {
  local command="console=ttyS0 quiet panic=-1 job=$1"
  shift
  case $1 in port=*) command+=" $1"; shift ;; esac
  timeout 280 qemu-system-x86_64 -accel tcg -cpu max -m 256 -nodefaults \
    -no-user-config -no-reboot -display none -serial stdio \
    -kernel "$BATS_FILE_TMPDIR/vmlinuz" -initrd "$BATS_FILE_TMPDIR/initramfs" \
    -append "$command" "$@" </dev/null 3>&- 4>&- | tee console |
    tr -d '\r' | sed -n 's/^vm: //p' >said
  cat console
  grep -qx done said || fail "the machine did not reach its end"
}

boot_on_qemus_client () {
  boot "$1" -drive "file=$URI,if=virtio,format=raw,discard=unmap"
}

boot_on_kernels_client () {
  boot "$1" "port=$PORT" \
    -netdev user,id=n -device virtio-net-pci,netdev=n,romfile=
}

# looks_as_the_guest_said IMAGE: no error, every file has the checksum that the
# guest took of it, and what the guest trimmed takes no space.
looks_as_the_guest_said () {
  qemu-img check "$1"
  "$NBDIMG" check "$1"
  "$NBDIMG" convert -O raw "$1" disk.raw
  qemu-img compare -f raw disk.raw "$1"
  e2fsck -fn disk.raw
  rm -rf files
  mkdir files
  debugfs -R 'rdump / files' disk.raw
  [ "$(sed -n 's/^sums \([0-9a-f]*\) .*/\1/p' said)" = \
    "$(sha256sum <files/SUMS | cut -d ' ' -f 1)" ]
  (cd files && sha256sum --quiet -c SUMS)
  [ "$(wc -l <files/SUMS)" -gt 100 ]
  # 24 MiB were written and removed again, 44 MiB with the journal are there.
  grep -q 'bytes trimmed$' said
  [ "$(qemu-img map --output=json "$1" |
    jq '[.[] | select (.data and .depth == 0) | .length] | add')" -lt $((60 << 20)) ]
}

@test "a machine makes, fills and verifies a disk through QEMU's client" {
  qemu-img create -q -f qcow2 disk 512M
  start_nbdkit disk
  boot_on_qemus_client write
  stop_server
  looks_as_the_guest_said disk
}

@test "a machine does so through the kernel's client, over two connections" {
  qemu-img create -q -f qcow2 -o cluster_size=128k,extended_l2=on disk 512M
  start_tcp "$PLUGIN" disk
  boot_on_kernels_client write
  stop_server
  looks_as_the_guest_said disk
}

@test "a disk of the kernel's client is right through QEMU's, on an overlay" {
  truncate -s 512M base
  start_tcp "$PLUGIN" format=raw base
  boot_on_kernels_client write
  stop_server
  mv said wrote
  sum=$(sha256sum <base)
  "$NBDIMG" create -q -f qcow2 -b base -F raw disk
  start_nbdkit disk
  boot_on_qemus_client verify
  stop_server
  [ "$(grep ^sums wrote)" = "$(grep ^sums said)" ]
  qemu-img check disk
  [ "$(sha256sum <base)" = "$sum" ]
}
