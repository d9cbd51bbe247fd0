# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# The examples of the manual pages run, and print what the pages show.
#
# A verbatim line " $ COMMAND" (of any section; a "\" at its end continues it)
# is run by one bash for each page, in a folder of its own.  The verbatim lines
# behind it, up to a prompt or the end of the paragraph, are all that it prints;
# "..." in them stands for anything.  Without such lines it may print what it
# likes.  " # COMMAND" is an example for root, or for a machine that is not there,
# and not run.  A paragraph "=for test COMMAND" is run and not shown.

load lib

teardown () {
  local f
  for f in "$BATS_TEST_TMPDIR"/*/*.pid; do
    [ ! -s "$f" ] || kill "$(cat "$f")" 2>/dev/null || :
  done
  stop_all
}

# Programs as they are called once they are installed.
install_programs () {
  mkdir bin
  ln -s "$NBDIMG" bin/nbdimg
  cat >bin/nbdkit <<END
#!/bin/bash
for a; do
  if [ "\$a" = nbdimg ] && [ -z "\$done" ]; then a=\$PLUGIN done=1; fi
  args+=("\$a")
done
exec env ${config_PRELOAD:+LD_PRELOAD="$config_PRELOAD"} "$config_NBDKIT" \
  "\${args[@]}"
END
  chmod +x bin/nbdkit
  PATH=$PWD/bin:$PATH
}

# script_of POD: its examples as a script that stops at the first which is wrong
script_of () {
  perl - "$1" <<'END'
my (@commands, $in_block);
open my $pod, '<', $ARGV[0] or die;
while (<$pod>) {
  chomp;
  if (/^=for test (.*)/) { push @commands, [$., $1, undef]; $in_block = 0 }
  elsif (/^ \$ (.*)/) { push @commands, [$., $1, undef]; $in_block = 1 }
  elsif (/^ # /) { $in_block = 0 }
  elsif (/^ (.*)/ && $in_block) {
    my ($text, $c) = ($1, $commands[-1]);
    if (!defined $c->[2] && $c->[1] =~ /\\$/) { $c->[1] .= "\n$text" }
    else { $c->[2] .= "$text\n" }
  }
  else { $in_block = 0 }
}
sub quote { my $s = shift; $s =~ s/'/'\\''/g; return "'$s'" }
for (@commands) {
  my ($line, $command, $shown) = @$_;
  print "example $line ", quote ($command), " ",
    defined $shown ? quote ($shown) : "", "\n";
}
END
}

# example LINE COMMAND [SHOWN]
example () {
  local status=0 pattern
  eval "$2" >.printed 2>&1 </dev/null || status=$?
  if [ $status != 0 ]; then
    printf '%s:%s: status %s: %s\n' "$page" "$1" $status "$2"
    cat .printed
    exit 1
  fi
  [ -n "$3" ] || return 0
  printf '%s' "$3" >.shown
  pattern=$(sed 's/[][*?\\]/\\&/g; s/\.\.\./*/g' .shown)
  # shellcheck disable=SC2053
  if [[ $(cat .printed) != $pattern ]]; then
    printf '%s:%s: printed is not what is shown: %s\n' "$page" "$1" "$2"
    diff .shown .printed
    exit 1
  fi
}

# run_page POD: in a folder of its own
run_page () {
  local page=${1##*/}
  script_of "$1" >"$page.sh"
  mkdir "$page.d"
  # shellcheck source=/dev/null
  (cd "$page.d" && . "../$page.sh") 3>&- 4>&-
}

@test "every example of a manual page works, and prints what the page shows" {
  local pod bad=0
  install_programs
  for pod in "$SRCDIR"/docs/*.pod; do
    run_page "$pod" || bad=1
  done
  [ $bad = 0 ]
}

@test "the page of each command has examples, each with a prompt" {
  local command pod bad=0
  for command in '' $("$NBDIMG" --help |
    sed -nE '/^Commands:/,/^$/{/not built yet/d; s/^  ([a-z]+) .*/-\1/p}'); do
    pod=$SRCDIR/docs/nbdimg$command.pod
    [ -e "$pod" ] || fail "$pod is missing"
    grep -q '^ \$ nbdimg' "$pod" || fail "$pod has no example"
  done
  # the first line of each block
  for pod in "$SRCDIR"/docs/*.pod; do
    awk -v name="${pod##*/}" '
      /^=head1/ { examples = $2 == "EXAMPLES" }
      examples && /^ / && !inside && !/^ [$#] / {
        print name ":" FNR ": an example without a prompt"; bad = 1 }
      { inside = /^ / }
      END { exit bad }' "$pod" || bad=1
  done
  [ $bad = 0 ]
}

@test "an example that fails, or prints something else, is found" {
  install_programs
  printf '%s\n' '=for test printf "a [1]\\nb\\nc\\n" >f' '' \
    ' $ cat \' '     f' ' a [1]' ' ...' ' c' >good.pod
  run_page good.pod
  printf ' $ cat f\n a\n b\n\n' | cat <(sed 2q good.pod) - >other.pod
  run run_page other.pod
  [ "$status" = 1 ]
  [[ $output == *"other.pod:3: printed is not what is shown: cat f"* ]]
  printf 'Text.\n\n $ nbdimg info nothing\n' >fails.pod
  run run_page fails.pod
  [ "$status" = 1 ]
  [[ $output == *"fails.pod:3: status 1: nbdimg info nothing"* ]]
  printf ' # rm -r /\n' >root.pod
  run_page root.pod
  [ ! -s root.pod.sh ]
}
