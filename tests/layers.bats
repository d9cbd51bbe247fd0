# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# The layers of HACKING.md, as tests/layers.sh sees them.

load lib

# A tree with one line of C in FILE.
plant () {
  mkdir -p "$BATS_TEST_TMPDIR/tree/${1%/*}" "$BATS_TEST_TMPDIR/tree/common" \
    "$BATS_TEST_TMPDIR/tree/ops"
  touch tree/common/error.h tree/ops/ops.h
  printf '%s\n' "$2" >"$BATS_TEST_TMPDIR/tree/$1"
}

# caught FILE LINE TEXT: LINE in FILE is complained about with TEXT
caught () {
  rm -rf tree
  plant "$1" "$2"
  run "$SRCDIR/tests/layers.sh" tree
  [ "$status" = 1 ] || fail "not caught: $1: $2"$'\n'"$output"
  [[ $output == *"$1"*"$3"* ]] || fail "$output"
}

allowed () {
  rm -rf tree
  plant "$1" "$2"
  run "$SRCDIR/tests/layers.sh" tree
  [ "$status" = 0 ] || fail "$1: $2"$'\n'"$output"
}

@test "each folder includes only what lies below it, and only programs print" {
  run "$SRCDIR/tests/layers.sh" "$SRCDIR"
  [ "$status" = 0 ] || fail "$output"
}

@test "an include upwards, or without its folder, is caught" {
  caught common/a.c '#include "ops/ops.h"' 'common/ may not include'
  caught storage/a.h '#  include "ops/ops.h"' 'storage/ may not include'
  caught formats/qcow2/a.c '#include "ops/ops.h" /* why */' \
    'formats/ may not include'
  caught ops/a.c '#include "error.h"' 'give the path'
  caught ops/a.c '#include "common/none.h"' 'there is no common/none.h'
  caught server/a.c '#include <nbdkit-plugin.h>' 'belongs to plugins/'
  caught ops/a.c '#include <libnbd.h>' 'belongs to storage/'
  allowed tool/a.c '#include "ops/ops.h"'
  allowed ops/a.c '#include "common/error.h"'
  allowed plugins/a.c '#include <nbdkit-plugin.h>'
}

@test "printing and exiting below the programs is caught" {
  caught ops/a.c 'f () { printf ("x"); }' 'f () { printf'
  caught ops/a.c 'f () { fprintf (stderr, "x"); }' 'stderr'
  caught image/a.c 'if (x) exit (1);' 'exit (1)'
  allowed ops/a.c '/* printf ("x"), exit */ f ("exit (1)"); // puts (x)'
  allowed ops/a.c 'snprintf (buf, sizeof buf, "x"); my_exit (1);'
  allowed tool/a.c 'f () { printf ("x"); exit (0); }'
}

@test "a tree without sources does not pass" {
  mkdir -p tree
  run "$SRCDIR/tests/layers.sh" tree
  [ "$status" = 1 ]
}
