# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Every format converted into every other, with QEMU as the judge of each side.

load lib

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io
}

secret="--object secret,id=s,data=pass"

kinds="raw qcow qcow2 qed vdi luks qcow-aes qcow2-luks"

# kind NAME: FORMAT, and what makes and opens an image of it
kind () {
  FORMAT=${1%%-*}
  CREATE=()
  OPEN="driver=$FORMAT,file.filename="
  case $1 in
  luks) CREATE=(-o key-secret=s,iter-time=10) KEY=,key-secret=s ;;
  qcow-aes)
    CREATE=(-o encrypt.format=aes,encrypt.key-secret=s)
    KEY=,encrypt.format=aes,encrypt.key-secret=s ;;
  qcow2-luks)
    CREATE=(-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10)
    KEY=,encrypt.format=luks,encrypt.key-secret=s ;;
  *) KEY= ;;
  esac
}

# convert_by PROGRAM FROM TO FILE1 FILE2.  QEMU makes LUKS headers only when the
# kernel's clock of a thread went on while it tried how fast it is, so it is
# asked more than once.
convert_by () {
  local source
  kind "$2"
  source=$OPEN$4$KEY
  kind "$3"
  # shellcheck disable=SC2086
  "$1" convert $secret --image-opts -O "$FORMAT" "${CREATE[@]}" "$source" "$5"
}

# is_disk KIND FILE: QEMU reads the disk in it
is_disk () {
  local size
  kind "$1"
  # shellcheck disable=SC2086
  qemu-img convert $secret --image-opts -O raw "$OPEN$2$KEY" got
  size=$(stat -c %s disk)
  # Formats that know whole sectors or blocks only read zeroes behind it.
  cmp -n "$size" disk got || fail "$2 ($1) is another disk"
  [ "$1" != qcow2 ] && [ "$1" != qed ] || qemu-img check -q -f "$FORMAT" "$2"
}

make_disk () {
  qemu-img create -q -f raw disk "$1"
  head -c 1500000 /dev/urandom >noise
  qemu-io -f raw -c 'write -s noise 64k 1400k' -c 'write -P 7 2M 300k' \
    -c 'write -P 9 3000k 1k' disk >/dev/null
}

@test "each of 8 kinds into each of 8, from QEMU's images: QEMU reads the disk" {
  local from to
  make_disk 3333k
  for from in $kinds; do
    poll 60 convert_by qemu-img raw "$from" disk "from.$from" 2>/dev/null ||
      convert_by qemu-img raw "$from" disk "from.$from"
  done
  for from in $kinds; do
    for to in $kinds; do
      rm -f out
      convert_by "$NBDIMG" "$from" "$to" "from.$from" out ||
        fail "from $from to $to"
      is_disk "$to" out
    done
  done
}

@test "compare finds two kinds alike, and the first byte that is not" {
  local a image
  make_disk 4M
  for a in $kinds; do
    convert_by "$NBDIMG" raw "$a" disk "a.$a"
    kind "$a"
    image=$OPEN"a.$a"$KEY
    # shellcheck disable=SC2086
    "$NBDIMG" compare $secret --image-opts "$image" driver=raw,file.filename=disk
    # shellcheck disable=SC2086
    "$NBDIMG" io $secret -c 'write -P 1 1234k 512' --image-opts "$image" \
      >/dev/null
    # shellcheck disable=SC2086
    run "$NBDIMG" compare $secret --image-opts "$image" \
      driver=raw,file.filename=disk
    [ "$status" = 1 ]
    [[ $output == *"Content mismatch at offset $((1234 * 1024))!"* ]]
  done
}
