# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# SECURITY.md: the tests that it names are there, and what it advises works.

load lib

page=$SRCDIR/SECURITY.md

# The last column of each row of the tables: "file: words of a test's name".
named () {
  sed -nE '/^\| (known from|---)/d; s/^\|.*\| ([^|]*[^ |]) *\|$/\1/p' "$1"
}

# Those that are not there: no such file, or no test whose name has the words.
missing_tests () {
  local file words
  named "$1" | while IFS= read -r line; do
    file=${line%%: *} words=${line#*: }
    grep '^@test' "$SRCDIR/tests/$file.bats" 2>/dev/null |
      grep -qF -- "$words" || echo "$line"
  done
}

@test "each test that SECURITY.md names is there, and each row names one" {
  local missing rows
  rows=$(grep -cE '^\| ' "$page")
  [ "$(named "$page" | wc -l)" = $((rows - 4)) ]
  [ "$(named "$page" | wc -l)" -gt 40 ]
  missing=$(missing_tests "$page")
  [ -z "$missing" ] || fail "tests that are not there:"$'\n'"$missing"
}

@test "a test that is gone is found" {
  sed 's/fuzz: no fuzzer finds/fuzz: the fuzzer finds/
    s/| locks: of those/| lock: of those/' "$page" >changed
  [ "$(missing_tests changed)" = "fuzz: the fuzzer finds a crash
lock: of those who race for an image" ]
}

@test "the README leads to SECURITY.md" {
  grep -qF '](SECURITY.md)' "$SRCDIR/README.md"
}

@test "a stranger's image is copied without what it names, by another user" {
  need nbdkit setpriv
  echo 'mine alone' >key
  truncate -s 1M key
  "$NBDIMG" create -q -f qcow2 -b "$PWD/key" -F raw upload.qcow2
  "$NBDIMG" io -c 'write -q -P 7 64k 64k' upload.qcow2
  "$NBDIMG" convert -O raw \
    [ nbdkit -r "$PLUGIN" untrusted=on backing=off upload.qcow2 ] safe.raw
  run ! grep -q 'mine alone' safe.raw
  "$NBDIMG" io -r -f raw -c 'read -q -P 7 64k 64k' safe.raw
  expect_error 1 'is not followed' "$NBDIMG" convert -O raw \
    [ nbdkit -r "$PLUGIN" untrusted=on upload.qcow2 ] other.raw
  chmod 600 upload.qcow2
  setpriv --reuid=65534 --clear-groups --no-new-privs \
    "$NBDIMG" info /dev/fd/7 7<upload.qcow2 >out
  grep -q '^virtual size: 1 MiB' out
}
