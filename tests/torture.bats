#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# A sample of "make soak": see soak/torture.py.

load lib

torture () {
  need_test_storage
  need qemu-img qemu-io qemu-nbd nbdinfo
  # Names of rows are separated by semicolons.
  local rows=() row
  IFS=';' read -ra rows <<<"$1"
  shift
  for row in "${rows[@]}"; do set -- "$@" --only "$row"; done
  TORTURE_KILLS=2 TORTURE_JOBS=2 "$SRCDIR/tests/soak/torture.sh" --indexes 2 \
    --modes "EIO,ENOSPC for good,kill half,flush" "$@"
}

@test "each command is in the table of those that are cut off" {
  need_test_storage
  "$SRCDIR/tests/soak/torture.sh" --list >list
  "$NBDIMG" --help | sed -n 's/^  \([a-z][a-z]*\)  .*/\1/p' >commands
  [ "$(wc -l <commands)" -gt 15 ]
  while read -r command; do
    # A server is killed in plugin-kill.bats; "lock" reads and writes nothing.
    [[ $command == @(serve|lock) ]] || grep -q ": nbdimg $command " list ||
      fail "$command is not in tests/soak/torture_table.py"
  done <commands
}

@test "killed or failed anywhere, writers leave the old or the new (sample)" {
  torture "commit;rebase;snapshot -a;resize to less;amend compat=0.10;bench -w;io"
}

@test "killed or failed anywhere, copies leave their source alone (sample)" {
  torture "create over a file;convert --bitmaps;convert -n to qcow2;dd to raw;bitmap --merge -b;check -r all;compare;map"
}

# harmful SHELL-TEXT: a build whose nbdimg does that when it was made to fail
harmful () {
  mkdir -p harmful
  cp "$NBDIMG_BUILD/config.tests" harmful
  cat >harmful/nbdimg <<END
#!/bin/bash
"$NBDIMG" "\$@" 2>message
status=\$?
cat message >&2
rm message
if [ \$status != 0 ] && [ -n "\$NBDIMG_TEST_STORAGE" ]; then
  $1
fi
exit \$status
END
  chmod +x harmful/nbdimg
}

# sees TEXT ROW [MODE]: the run fails, and says so
sees () {
  NBDIMG_BUILD=$PWD/harmful run torture "$2" --modes "${3:-EIO}"
  [ "$status" = 1 ] || fail "not seen: $1"$'\n'"$output"
  [[ $output == *"not ok $2:"*"$1"* ]] || fail "not '$1': $output"
}

@test "damage, leftovers, silence and false success are seen" {
  need_test_storage
  harmful 'status=0'
  sees "is not that of the new content" "resize to less, raw"
  harmful 'exec 2>&-; false >o'
  sees "o is left behind" "create qed"
  harmful 'printf x | dd of=a bs=1 seek=70000 conv=notrunc status=none'
  sees "is neither old nor new" "bench -w, raw"
  sees "a has changed" "info"
  harmful 'dd if=/dev/zero of=a bs=512 count=16 seek=16 conv=notrunc status=none'
  sees "errors were found" "snapshot -d"
  harmful 'env -u NBDIMG_TEST_STORAGE "'"$NBDIMG"'" "$@"; status=$?'
  sees "it did not fail, though a flush did" "amend lazy_refcounts" flush
  harmful 'status=2'
  sees "status 2" "rebase -u"
}
