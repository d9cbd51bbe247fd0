# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash disable=SC2154

# Our commands beside those of QEMU: "load lib" and then "load peer".

# The name of the program that a message begins with does not count.
peer_names () {
  sed -i -E 's/\b(qemu-img|qemu-io|nbdimg)\b/PROGRAM/g' "$@"
}

# What a request took is never the same.
peer_times () {
  sed -i -E -e 's/[0-9:.]+( sec)? \([^)]*\)$/TIME/' \
    -e 's/^([0-9]+,[0-9]+),[0-9:.]+,[0-9.]+,[0-9.]+$/\1,TIME/' "$@"
}

# peer_run FOLDER1 FOLDER2: run "${theirs[@]}" and "${ours[@]}" there; results
# are in .their.* and .our.* of the test's folder
peer_run () {
  local t=$BATS_TEST_TMPDIR
  their_status=0 our_status=0
  (cd "$1" && exec "${theirs[@]}") \
    >"$t/.their.out" 2>"$t/.their.err" </dev/null || their_status=$?
  (cd "$2" && exec "${ours[@]}") \
    >"$t/.our.out" 2>"$t/.our.err" </dev/null || our_status=$?
  peer_names "$t"/.{our,their}.{out,err}
}

peer_fail () {
  fail "$1: ${ours[*]}"$'\n'"status: theirs $their_status, ours $our_status"\
$'\n'"$(cd "$BATS_TEST_TMPDIR" && diff .their.out .our.out;
      cat .their.err .our.err)"
}

# Exit status and standard output are the same ...
peer_same_output () {
  [ $their_status = $our_status ] || peer_fail "another exit status"
  cmp -s "$BATS_TEST_TMPDIR/.their.out" "$BATS_TEST_TMPDIR/.our.out" ||
    peer_fail "another output"
}

# ... and standard error too.
peer_same () {
  peer_same_output
  cmp -s "$BATS_TEST_TMPDIR/.their.err" "$BATS_TEST_TMPDIR/.our.err" ||
    peer_fail "another message"
}

# same_img ARG...: qemu-img and nbdimg say and do the same
same_img () {
  local theirs=(qemu-img "$@") ours=("$NBDIMG" "$@")
  peer_run . .
  peer_same
}

# The same, but in its own words on standard error, where it has some.
same_img_output () {
  local theirs=(qemu-img "$@") ours=("$NBDIMG" "$@")
  peer_run . .
  peer_same_output
  [ ! -s "$BATS_TEST_TMPDIR/.their.err" ] ||
    [ -s "$BATS_TEST_TMPDIR/.our.err" ] || peer_fail "no message"
}

# The same JSON, whatever the order of its members.
same_img_json () {
  local theirs=(qemu-img "$@") ours=("$NBDIMG" "$@") f
  peer_run . .
  for f in .their.out .our.out; do
    jq -S . "$BATS_TEST_TMPDIR/$f" >"$BATS_TEST_TMPDIR/$f.json" ||
      peer_fail "no JSON"
    mv "$BATS_TEST_TMPDIR/$f.json" "$BATS_TEST_TMPDIR/$f"
  done
  peer_same_output
}

# Two folders with the same files, "theirs" and "ours", made by a function.
make_twins () {
  rm -rf theirs ours
  mkdir theirs
  (cd theirs && "$@") || return
  cp -r theirs ours
}

# twin_img ARG...: the same in the two folders
twin_img () {
  local theirs=(qemu-img "$@") ours=("$NBDIMG" "$@")
  peer_run theirs ours
  peer_same
}

twin_img_output () {
  local theirs=(qemu-img "$@") ours=("$NBDIMG" "$@")
  peer_run theirs ours
  peer_same_output
}

# twin_io ARG...: qemu-io and nbdimg io, in the two folders
twin_io_run () {
  theirs=(qemu-io "$@") ours=("$NBDIMG" io "$@")
  peer_run theirs ours
  peer_times "$BATS_TEST_TMPDIR"/.{our,their}.out
}

twin_io () {
  local theirs ours
  twin_io_run "$@"
  peer_same
}

twin_io_output () {
  local theirs ours
  twin_io_run "$@"
  peer_same_output
}

# The images in both folders have the same content, and ours is clean.
same_images () {
  local f
  for f; do
    qemu-img compare "theirs/$f" "ours/$f" || fail "$f: another content"
    qemu-img check -q "ours/$f" || [ $? = 63 ] || fail "ours/$f is damaged"
  done
}

# ---- many invocations ----

# Each line of standard input is a list of arguments, quoted as for the shell.
# peer_lines FUNCTION: run it with each, in two fresh copies of the folder
# "files", theirs and ours.
peer_lines () {
  local line
  while IFS= read -r line; do
    rm -rf theirs ours
    cp -a files theirs
    cp -a files ours
    eval "$1 $line"
  done
}

# check_status FOLDER FILE: 63 for raw, 1 where the backing file is missing
check_status () {
  (cd "$1" && qemu-img check -q "$2" 2>/dev/null; echo $?)
}

# The files o and o2, if a command made them, are what QEMU makes too.
same_made () {
  local f
  for f in o o2; do
    [ -e "theirs/$f" ] || [ -e "ours/$f" ] || continue
    (cd theirs && qemu-img info -U $f) | sed '/^disk size/d' >.their.info
    (cd ours && qemu-img info -U $f) | sed '/^disk size/d' >.our.info
    cmp -s .their.info .our.info ||
      peer_fail "another $f"$'\n'"$(diff .their.info .our.info)"
    [ ! -e "ours/$f" ] || [ "$(check_status theirs $f)" = \
      "$(check_status ours $f)" ] || peer_fail "a damaged $f"
  done
}

# Output, messages, status and the files that were made are the same ...
same_words () {
  twin_img "$@"
  same_made
}

# ... or all but the message, which has TEXT in it and says it better, ...
own_words () {
  local text=$1
  shift
  twin_img_output "$@"
  same_made
  grep -qF -- "$text" "$BATS_TEST_TMPDIR/.our.err" ||
    peer_fail "the message is without '$text'"
}

# ... or we fail, where QEMU does not, or the other way: "own_status THEIRS OURS
# TEXT ARG...", and TEXT is in what we print.
own_status () {
  local theirs=(qemu-img "${@:4}") ours=("$NBDIMG" "${@:4}")
  peer_run theirs ours
  [ $their_status = "$1" ] && [ $our_status = "$2" ] ||
    peer_fail "statuses are not $1 and $2"
  cat "$BATS_TEST_TMPDIR"/.our.{out,err} | grep -qF -- "$3" ||
    peer_fail "what we print is without '$3'"
}

# io_words, io_own: same_words and own_words for qemu-io; the images are the
# same afterwards.
io_words () {
  twin_io "$@"
}

io_own () {
  local text=$1
  shift
  twin_io_output "$@"
  grep -qF -- "$text" "$BATS_TEST_TMPDIR/.our.err" ||
    peer_fail "the message is without '$text'"
}

io_own_status () {
  local theirs ours
  twin_io_run "${@:4}"
  [ $their_status = "$1" ] && [ $our_status = "$2" ] ||
    peer_fail "statuses are not $1 and $2"
  cat "$BATS_TEST_TMPDIR"/.our.{out,err} | grep -qF -- "$3" ||
    peer_fail "what we print is without '$3'"
}

# Run without root's right to pass over the permissions of files.
as_owner () {
  if [ "$(id -u)" = 0 ]; then
    setpriv --bounding-set=-dac_override,-dac_read_search "$@"
  else
    "$@"
  fi
}
