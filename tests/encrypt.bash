# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2034

# Helpers for tests of encrypted images, beside lib.bash.  The passphrase is
# "open sesame", in the file "key" (without a newline), id s.

SECRET=(--object secret,id=s,file=key)

make_secret () {
  printf 'open sesame' >key
}

# qemu_create ARGUMENT...: qemu-img create with the secret.  It times PBKDF2 by
# the processor's clock, gives up where that is coarse ("Unable to get accurate
# CPU usage"), and is asked again.
qemu_create () {
  local i out
  for i in {1..60}; do
    out=$(qemu-img create -q "${SECRET[@]}" "$@" 2>&1) && return 0
    [[ $out == *"accurate CPU usage"* ]] || break
  done
  fail "qemu-img create $*: $out"
}

our_create () {
  "$NBDIMG" create -q "${SECRET[@]}" "$@"
}

# opts FILE: the value of --image-opts for it, KEY and DRIVER as set
opts () {
  echo "driver=$DRIVER,file.filename=$1,$KEY=s"
}

qcow2_key () { DRIVER=qcow2 KEY=encrypt.key-secret; }
luks_key () { DRIVER=luks KEY=key-secret; }

# ours_io FILE COMMAND..., theirs_io: each command must succeed, and a read find
# its pattern
ours_io () {
  run_io "$NBDIMG" io "$@"
}
theirs_io () {
  run_io qemu-io "" "$@"
}
run_io () {
  local program=("$1") file=$3 c commands=()
  [ -z "$2" ] || program+=("$2")
  shift 3
  for c; do commands+=(-c "$c"); done
  run "${program[@]}" "${SECRET[@]}" "${commands[@]}" --image-opts \
    "$(opts "$file")"
  [ "$status" = 0 ] || fail "${program[*]} $file: $output"
  [[ $output != *[Ff]ailed* && $output != *rror* ]] ||
    fail "${program[*]} $file: $output"
}

# both_ways FILE: what we write QEMU reads, and the reverse: whole clusters, parts
# of sectors, over clusters' ends, zeroes in between.
both_ways () {
  ours_io "$1" 'write -P 7 0 70000' 'write -P 8 100001 333' \
    'write -P 9 300k 200k' 'write -z 310k 5000' 'write -z 400k 64k' flush
  theirs_io "$1" 'read -P 7 0 70000' 'read -P 8 100001 333' \
    'read -P 9 300k 10k' 'read -P 0 310k 5000' 'read -P 9 322440 70000' \
    'read -P 0 400k 64k' 'read -P 9 464k 36k'
  theirs_io "$1" 'write -P 1 500k 128k' 'write -P 2 600k 3000' \
    'write -P 3 0 512' 'write -z 320k 64k'
  ours_io "$1" 'read -P 1 500k 100k' 'read -P 2 600k 3000' 'read -P 3 0 512' \
    'read -P 7 512 69488' 'read -P 8 100001 333' 'read -P 0 320k 64k' \
    'read -P 9 384k 16k' 'read -P 1 617400 20000'
  [ "$DRIVER" != qcow2 ] || ours_io "$1" 'read -P 0 70000 30001'
}

# same_as_raw FILE RAW: the image has the bytes of RAW, for us and for QEMU
same_as_raw () {
  "$NBDIMG" compare "${SECRET[@]}" --image-opts "$(opts "$1")" \
    "driver=raw,file.filename=$2" || fail "$1 differs from $2 for us"
  qemu-img compare "${SECRET[@]}" --image-opts "$(opts "$1")" \
    "driver=raw,file.filename=$2" || fail "$1 differs from $2 for QEMU"
}
