# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Bash completion: what it offers is what the tool takes.

load lib

# complete_line WORD...: what is offered for the last word
complete_line () {
  COMP_WORDS=("$NBDIMG" "$@") COMP_CWORD=$# COMPREPLY=()
  # shellcheck source=/dev/null
  . "$SRCDIR/completions/nbdimg"
  _nbdimg
  printf '%s\n' "${COMPREPLY[@]}"
}

# Those that are built.
setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  commands=$("$NBDIMG" --help |
    sed -n '/^Commands:/,/^$/{/not built yet/d; s/^  \([a-z]*\) .*/\1/p}' | xargs)
  [[ $commands == *'check commit compare convert'* ]]
}

@test "commands, files and the words of options are offered" {
  touch disk.qcow2 disk.raw
  [ "$(complete_line '' | xargs)" = "$commands" ]
  [ "$(complete_line co | xargs)" = 'commit compare convert' ]
  [ "$(complete_line info disk.q)" = disk.qcow2 ]
  [ "$(complete_line -T x inf)" = info ]
  [ "$(complete_line info --output js)" = json ]
  [ "$(complete_line info --output = js)" = json ]
  [ "$(complete_line info --output = | xargs)" = 'human json' ]
  [[ " $(complete_line convert -O q | xargs) " == *' qcow2 '* ]]
  [ "$(complete_line info -f '' | xargs)" = \
    "$("$NBDIMG" --help | sed -n 's/^Supported formats: //p')" ]
  [ "$(complete_line check -r l)" = leaks ]
  [ "$(complete_line convert -t wr | xargs)" = 'writeback writethrough' ]
  [ "$(complete_line create --format qcow2)" = qcow2 ]
  [ "$(complete_line convert -c disk.r)" = disk.raw ]
  [ "$(complete_line compare -s disk.r)" = disk.raw ]
  [ "$(complete_line map --max)" = --max-length ]
  [ "$(complete_line serve --backing o | xargs)" = 'on off' ]
  [ "$(complete_line resize --preallocation fa)" = falloc ]
  for option in 'rebase -b' 'rebase --backing' 'bitmap -b' 'commit --base' \
      'create -b' 'convert -B'; do
    # shellcheck disable=SC2086
    [ "$(complete_line $option disk.q)" = disk.qcow2 ] || fail "$option"
  done
  for option in 'rebase -F' 'bitmap -F' 'measure -O' 'dd -O' 'compare -F' \
      'dd --output-format'; do
    # shellcheck disable=SC2086
    [ "$(complete_line $option ve)" = '' ] &&
      [ "$(complete_line $option vd)" = vdi ] || fail "$option"
  done
  [ "$(complete_line create -o x)" = '' ]
}

@test "every option that is offered is known to the tool" {
  local command option bad=0
  for command in $commands; do
    for option in $(complete_line "$command" -); do
      run "$NBDIMG" "$command" "$option" -h </dev/null
      if [[ $output == *'unrecognized option'* ||
            $output == *'invalid option'* ]]; then
        echo "$command $option: $output"
        bad=1
      fi
    done
  done
  [ $bad = 0 ]
}

@test "an option that nobody knows is the one that the error names" {
  expect_error 1 "unrecognized option '-Xq'" "$NBDIMG" check -q -Xq a
  expect_error 1 "unrecognized option '-qX'" "$NBDIMG" check -q -qX a
  expect_error 1 "unrecognized option '-qXq'" \
    "$NBDIMG" check --quiet -qXq a
  expect_error 1 "unrecognized option '--no'" "$NBDIMG" check -q --no a
  expect_error 1 "unrecognized option '--quiet=1'" \
    "$NBDIMG" check -U --quiet=1 a
}

@test "what a command's help does not promise is not offered" {
  local offered
  [ "$(complete_line comp)" = compare ]
  offered=" $(complete_line io - | xargs) "
  [[ $offered == *' --cache '* && $offered != *' --object '* ]]
  [ "$(complete_line check -r l)" = leaks ]
  [[ " $(complete_line create --bac | xargs) " == *' --backing-format '* ]]
  [[ " $(complete_line info - | xargs) " == *' -U --force-share '* ]]
}
