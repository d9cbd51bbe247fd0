# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# configure: what it refuses, and what it hands on.

load lib

fake_pc () {
  mkdir -p pc
  printf 'Name: %s\nDescription: none\nVersion: %s\n' "$1" "$2" >"pc/$1.pc"
}

configure () {
  mkdir -p build
  (cd build && PKG_CONFIG_PATH=$BATS_TEST_TMPDIR/pc "$SRCDIR/configure" "$@")
}

@test "configure refuses what it does not know, by name" {
  expect_error 1 'unknown option: --enable-sanitizer' \
    configure --enable-sanitizer
  expect_error 1 'unknown option: --prefixes=/usr' configure --prefixes=/usr
  expect_error 1 'unknown argument: all' configure all
  expect_error 1 'unknown variable: CXX' configure CXX=g++
  expect_error 1 'usr is not an absolute path' configure --prefix=usr
  expect_error 1 '--mandir needs a folder' configure --mandir
  expect_error 1 'address,undefined or thread: memory' \
    configure --enable-sanitizers=memory
  [ ! -e build/Makefile ]
}

@test "configure says which library is missing or too old, and why" {
  fake_pc libnbd 1.12.6
  expect_error 1 'libnbd 1.12.6 is too old: 1.14 is needed' configure
  [[ $stderr == *CVE* ]]
  rm pc/libnbd.pc
  fake_pc nbdkit 1.20
  expect_error 1 'nbdkit 1.20 is too old' configure
  rm pc/nbdkit.pc
  expect_error 1 'nbdkit was not found' env PKG_CONFIG_LIBDIR=/nonexistent \
    "$SRCDIR/configure"
  [[ $stderr == *'apt-get install nbdkit-plugin-dev'* ]]
  expect_error 1 'no C compiler' configure CC=no-such-compiler
}

@test "configure refuses a folder that make cannot work in" {
  mkdir 'a b'
  cd 'a b'
  expect_error 1 'make cannot work in a folder' "$SRCDIR/configure"
}

@test "config.status configures again with the same arguments" {
  configure --prefix=/opt/x --without-libzstd "CFLAGS=-O1 -DX='\"a b\"'"
  cp build/Makefile before
  cp build/config.h before.h
  rm build/Makefile build/config.h
  (cd / && "$BATS_TEST_TMPDIR/build/config.status")
  cmp before build/Makefile
  cmp before.h build/config.h
  grep -q '^prefix = /opt/x$' build/Makefile
  run ! grep -q 'define HAVE_ZSTD' build/config.h
}

@test "the folders of make install are those that configure was told" {
  configure --bindir=/b --mandir=/m --with-plugindir=/p \
    --with-bash-completions-dir=/c
  run make -C build -n install DESTDIR=/d
  [[ $output == *' /d/b/nbdimg'* && $output == *' /d/p/nbdkit-nbdimg'* ]]
  [[ $output == *' /d/c/nbdimg'* && $output == *'/d/m/man1'* ]]
}
