# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# The runner of the tests: it must not say "passed" when something was not.

load lib

unit_program () {
  mkdir -p bin
  printf '#!/bin/sh\n%s\n' "$2" >"bin/$1"
  chmod +x "bin/$1"
}

run_units () {
  run env NBDIMG_BUILD="$BATS_TEST_TMPDIR/bin" "$SRCDIR/tests/run" \
    --unit "$@"
}

# In an environment of its own: this bats has variables for its own children.
# The clock that bats starts for a test may outlive one that is over at once, and
# holds its output open: with its usual time it would take all of ours.
run_bats () {
  run env -i PATH=/usr/local/bin:/usr/bin:/bin HOME="$HOME" NBDIMG_BUILD=. \
    BATS_TEST_TIMEOUT=20 "$SRCDIR/tests/run" --bats "$@"
}

@test "the runner of the tests counts what passed, failed and was skipped" {
  unit_program good 'echo ok one; echo ok two; echo "ok three # skip why"'
  run_units good
  [ "$status" = 0 ]
  [ "${lines[-1]}" = '2 passed, 0 failed, 1 skipped' ]
  unit_program bad 'echo ok one; echo "# why"; echo not ok two; exit 1'
  run_units good bad
  [ "$status" = 1 ]
  [ "${lines[-1]}" = '3 passed, 1 failed, 1 skipped' ]
  [[ $output == *'bad: # why'* ]]
}

@test "the runner fails when a program crashes, lies or tests nothing" {
  unit_program crash 'echo ok one; kill -SEGV $$'
  run_units crash
  [ "$status" = 1 ]
  [ "${lines[-1]}" = '1 passed, 1 failed, 0 skipped' ]
  unit_program lies 'echo ok one; echo not ok two; exit 0'
  run_units lies
  [ "$status" = 1 ]
  unit_program empty 'exit 0'
  run_units empty
  [ "$status" = 1 ]
  [ "${lines[-1]}" = '0 passed, 1 failed, 0 skipped' ]
  run_units missing
  [ "$status" = 1 ]
  run env NBDIMG_BUILD=. "$SRCDIR/tests/run"
  [ "$status" = 1 ]
  [ "${lines[-1]}" = '0 passed, 0 failed, 0 skipped' ]
}

@test "the runner gives up on a unit program that hangs" {
  unit_program hangs 'echo ok one; exec sleep 1000'
  UNIT_TIMEOUT=1 run_units hangs
  [ "$status" = 1 ]
  [ "${lines[-1]}" = '1 passed, 1 failed, 0 skipped' ]
}

@test "the runner fails for a bats file that fails or cannot be read" {
  # bats would take a line that begins with @test as one of this file.
  local t=@test
  printf '%s\n' "$t 'good' { true; }" "$t 'bad' { echo because; false; }" \
    "$t 'skipped' { skip 'why'; }" >one.bats
  run_bats one.bats
  [ "$status" = 1 ]
  [ "${lines[-1]}" = '1 passed, 1 failed, 1 skipped' ] || fail "$output"
  [[ $output == *because* ]]
  printf '%s\n' "$t 'x' {" "  if" "}" >broken.bats
  run_bats broken.bats
  [ "$status" = 1 ]
}
