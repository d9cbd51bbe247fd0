#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# A sample of "make soak": see soak/matrix.py.

load lib

matrix () {
  /usr/bin/python3 -c 'import nbd' || skip "no libnbd module for Python"
  need qemu-img qemu-io
  "$SRCDIR/tests/soak/matrix.sh" --seed 1 "$@"
}

# faulty COMMAND SHELL-TEXT: a build whose nbdimg does harm after COMMAND; its
# last argument is $last
faulty () {
  mkdir -p faulty
  cp "$NBDIMG_BUILD"/{config.tests,nbdkit-nbdimg-plugin.so} faulty
  cat >faulty/nbdimg <<END
#!/bin/bash
set -e
"$NBDIMG" "\$@"
last=\${!#}
case "\$1 \$2" in "$1"*) $2 ;; esac
END
  chmod +x faulty/nbdimg
}

@test "all kinds of qcow2 images are written and read as by QEMU (sample)" {
  matrix --sample --requests 20
}

@test "what qemu-img refuses to create is refused for the same reason" {
  matrix --refused
}

@test "the matrix sees a wrong byte, a lost write, a leak and a wrong refusal" {
  local cell=1.1/64k/16/plain
  faulty convert 'printf x | dd of=$last bs=1 seek=3 conv=notrunc status=none'
  NBDIMG_BUILD=$PWD/faulty run matrix $cell
  [ "$status" = 1 ]
  [[ $output == *"not ok $cell"*"convert: sector 0 "* ]]

  faulty 'io -f' '"'"$NBDIMG"'" io -f qcow2 -c "write -q -P 170 0 64k" $last'
  NBDIMG_BUILD=$PWD/faulty run matrix $cell
  [ "$status" = 1 ]
  [[ $output == *"not ok $cell"*"qemu-img: sector "* ]]

  faulty 'io -f' 'n=$((($(stat -c %s $last) + 65535) / 65536))
    truncate -s $(((n + 1) * 65536)) $last
    printf "\0\1" | dd of=$last bs=1 seek=$((0x20000 + 2 * n)) \
      conv=notrunc status=none'
  NBDIMG_BUILD=$PWD/faulty run matrix $cell
  [ "$status" = 1 ]
  [[ $output == *"not ok $cell"*"leaked cluster"* ]]

  faulty none :
  sed -i '2i case $* in *=0.10*) echo "extended L2" >&2; exit 1 ;; esac' \
    faulty/nbdimg
  NBDIMG_BUILD=$PWD/faulty run matrix 0.10/64k/16/lazy
  [ "$status" = 1 ]
  [[ $output == *"not ok 0.10/64k/16/lazy"*"extended L2"* ]]
}
