# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# docs/compatibility.md: its table of options is whole, and what it says about
# tests is so.

load lib

page=$SRCDIR/docs/compatibility.md

commands () {
  "$NBDIMG" --help |
    sed -nE '/^Commands:/,/^$/{s/^  ([a-z]+) .*/\1/p}'
}

# Those that the head of the table deals with for all commands.
for_all='-h --help -V --version --trace --object'

# The options that the help of a command begins its lines with.
our_options () {
  "$NBDIMG" "$1" --help | sed -nE 's/^ +(-.*)/\1/p' | sed -E 's/ {2,}.*//' |
    grep -vE '^-T in front' | grep -oE -- '(^|[ ,])--?[A-Za-z][A-Za-z-]*' |
    tr -d ' ,'
}

# Those that QEMU's help has for it.
their_options () {
  if [ "$1" = io ]; then
    qemu-io --help | sed -nE 's/^  (-.*)/\1/p' | sed -E 's/ {2,}.*//'
  else
    qemu-img --help | grep -E "^  $1 "
  fi | grep -oE -- '(^|[ [(|,])--?[A-Za-z][A-Za-z-]*' | tr -d ' [(|,'
}

# Without a row in the table $1.
missing_rows () {
  local command option
  for command in $(commands); do
    for option in $(our_options "$command") $(their_options "$command"); do
      [[ " $for_all " != *" $option "* ]] || continue
      grep -E "^\| $command \|" "$1" | cut -d'|' -f3 | grep -qF "\`$option\`" ||
        echo "$command $option"
    done
  done | sort -u
}

# The rows as "options|file|test".
rows () {
  sed -nE 's/^\| [a-z]+ \| (`[^|]*`) \|.* \| ([a-z-]+): ([^|]*[^ |]) *\|$/\1|\2|\3/p' "$1"
}

# Is one of the OPTIONS in the text of a test of FILE whose name has NAME in it?
test_shows () {
  local option
  awk -v name="$3" '/^@test/ { is = index ($0, name) > 0 } is' \
    "$SRCDIR/tests/$2.bats" >body 2>/dev/null || return 1
  for option in ${1//\`/}; do
    ! grep -qE -- "(^|[^A-Za-z-])$option([^A-Za-z-]|\$)" body || return 0
  done
  return 1
}

# Rows whose test is not there, or does not have the option in it.
missing_tests () {
  local options file name
  rows "$1" | while IFS='|' read -r options file name; do
    test_shows "$options" "$file" "$name" || echo "$options $file: $name"
  done
}

@test "each option of a command, ours or QEMU's, has its row and its test" {
  need qemu-img qemu-io
  [ "$(commands | wc -l)" -gt 8 ]
  [ "$(our_options map | grep -c .)" -gt 8 ]
  [ "$(their_options convert | grep -c .)" -gt 15 ]
  [ "$(their_options io | grep -c .)" -gt 15 ]
  missing=$(missing_rows "$page")
  [ -z "$missing" ] || fail "without a row in $page:"$'\n'"$missing"
  missing=$(missing_tests "$page")
  [ -z "$missing" ] || fail "$page names tests that are not there:"$'\n'"$missing"
}

@test "no row of the table is left out of what is looked at" {
  [ "$(grep -cE '^\| [a-z]+ \| `' "$page")" -gt 80 ]
  [ "$(rows "$page" | wc -l)" = "$(grep -cE '^\| [a-z]+ \| `' "$page")" ]
}

@test "a row or a test that is missing is found" {
  need qemu-img qemu-io
  # shellcheck disable=SC2016
  grep -vF '| map | `-s`' "$page" | sed 's/cmd-map: a part/cmd-map: no part/
    s/cmd-map: every kind of image/cmd-map: bad invo/' >less
  [ "$(missing_rows less | grep ^map | xargs)" = "map --start-offset map -s" ]
  # shellcheck disable=SC2016
  [ "$(missing_tests less)" = '`-l` `--max-length` cmd-map: no part of the disk' ]
  sed -i 's/| map | `-f` `--format` |/| map | `-y` |/' less
  [ "$(missing_tests less | wc -l)" = 2 ]
}
