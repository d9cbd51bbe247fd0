# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# make and make install.

load lib

# One build for all tests here: in the source tree itself (a copy of it), as a
# release is built, warnings being errors.
setup_file () {
  export TREE=$BATS_FILE_TMPDIR/nbdimg
  mkdir "$TREE"
  # What was built in the source tree, if it was, is not copied.
  tar -C "$SRCDIR" -cf - --exclude-vcs --exclude='*.o' --exclude='*.d' \
    --exclude='*.a' --exclude='*.so' --exclude=./build --exclude=./.make \
    --exclude=./config.h --exclude=./Makefile --exclude=./nbdimg . |
    tar -C "$TREE" -xf -
  cd "$TREE"
  ./configure --prefix=/usr --enable-werror CFLAGS=-O0 >log 2>&1 &&
    make tests >>log 2>&1 || { tail -n 40 log >&2; return 1; }
}

@test "a build in another folder leaves nothing in the source tree" {
  [ "$NBDIMG_BUILD" != "$SRCDIR" ] || skip "this build is in the source tree"
  need git
  [ -e "$SRCDIR/.git" ] || skip "not a git tree"
  local f
  for f in Makefile config.h config.status libnbdimg.a nbdimg .make; do
    if [ -e "$SRCDIR/$f" ]; then
      fail "$f is in the source tree"
    fi
  done
}

@test "no symbol is bound late, when registers would go to the stack" {
  local f
  for f in nbdimg nbdkit-nbdimg-plugin.so; do
    readelf -d "$TREE/$f" | grep -q BIND_NOW
  done
}

@test "nothing is built twice" {
  cd "$TREE"
  run make
  [ "$status" = 0 ]
  [[ $output != *-c\ -o* && $output != *libnbdimg.a* ]] || fail "$output"
}

@test "a changed header, other flags and a removed source build anew" {
  # The lowest layer is enough: the makefile takes what is there.
  mkdir tree
  cp -a "$SRCDIR"/configure "$SRCDIR"/Makefile.in "$SRCDIR"/common tree
  cd tree
  ./configure CFLAGS=-O0 >/dev/null
  make >/dev/null
  touch common/codec.h
  run make -n
  [[ $output == *common/codec.o* && $output == *'ar rcs'* ]] || fail "$output"
  make >/dev/null
  run make CFLAGS='-O0 -DOTHER'
  [[ $output == *DOTHER*common/text.o* ]] || fail "$output"
  rm common/text.c
  run make libnbdimg.a
  [ "$status" = 0 ]
  run ar t libnbdimg.a
  [[ $output == *codec.o* && $output != *text.o* ]] || fail "$output"
}

@test "make install puts everything in its place, make uninstall takes it away" {
  local to=$BATS_TEST_TMPDIR/to plugins=$config_plugindir
  make -C "$TREE" install DESTDIR="$to"
  [ -x "$to/usr/bin/nbdimg" ]
  [ -f "$to$plugins/nbdkit-nbdimg-plugin.so" ]
  [ -f "$to/usr/share/man/man1/nbdkit-nbdimg-plugin.1" ]
  find "$to" -name nbdimg -path '*completions/nbdimg' | grep -q .
  "$to/usr/bin/nbdimg" --version
  nbdkit "$to$plugins/nbdkit-nbdimg-plugin.so" --dump-plugin |
    grep -qx 'name=nbdimg'
  make -C "$TREE" uninstall DESTDIR="$to"
  run find "$to" ! -type d
  [ "$output" = "" ] || fail "$output"
}

@test "the plugin exports what nbdkit looks for and nothing else" {
  run nm -D --defined-only "$TREE/nbdkit-nbdimg-plugin.so"
  [[ $output == *plugin_init* ]]
  run ! grep -vE ' (plugin_init|nbdimg_debug_[a-z_]*)$' <<<"$output"
}

@test "a release build has no test storage" {
  grep -q 'undef ENABLE_TEST_STORAGE' "$TREE/config.h"
  cd "$BATS_TEST_TMPDIR"
  NBDIMG_TEST_STORAGE=rec:$PWD/log "$TREE/nbdimg" create -f qcow2 a.qcow2 1M
  NBDIMG_TEST_STORAGE=fault:op=write,index=0,errno=EIO \
    "$TREE/nbdimg" create -f qcow2 b.qcow2 1M
  [ ! -e log ]
  "$TREE/nbdimg" info b.qcow2
}
