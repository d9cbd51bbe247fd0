# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# A short sample of each fuzzer: its seeds, and inputs that are made of them.
# "make fuzz" runs them for long, with libFuzzer and other inputs each time; here
# they are the same ones, so that what fails is what was changed.

load lib

# As limits for a whole process: a parser that is made to ask for more fails.
sample () {
  local name=${1##*/} seeds
  seeds=$SRCDIR/tests/fuzz/seeds-$name
  [ -d "$seeds" ] || seeds=
  # A sanitizer reserves more address space than any limit would leave.
  [ -n "$config_sanitizers" ] || ulimit -v 1000000
  # libFuzzer writes what it finds into the first folder.
  mkdir -p "corpus-$name"
  timeout 60 "$1" -runs="$2" -seed="$3" "corpus-$name" $seeds
}

@test "no fuzzer finds a crash, a hang or a want of memory in a short sample" {
  local f found=0
  for f in "$NBDIMG_BUILD"/tests/fuzz/fuzz-*; do
    case $f in *.o | *.d) continue ;; esac
    found=1
    echo "${f##*/}"
    sample "$f" 5000 1
    sample "$f" 5000 2
  done
  [ $found = 1 ]
}
