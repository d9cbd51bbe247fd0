#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Hostile VDI, qcow and QED images (hostile/formats.bash), as hostile.bats has it for
# qcow2.

load lib
load hostile/images
load hostile/formats
load hostile/try

setup_file () {
  hostile_formats "$BATS_FILE_TMPDIR/images"
}

setup () {
  cd "$BATS_TEST_TMPDIR" || return 1
  need qemu-img qemu-io
  IMAGES=$BATS_FILE_TMPDIR/images
  HOSTILE_WORK=$PWD
  if [ -n "$config_sanitizers" ]; then
    HOSTILE_SECONDS=20 HOSTILE_KIB=unlimited
  fi
}

# for_each FUNCTION [MIN]: with the name and the format of each image; it succeeds
# on more than MIN
for_each () {
  local f bad=0 nr=0 good=0
  for f in "$IMAGES"/*.{vdi,qcow,qed}; do
    nr=$((nr + 1))
    HOSTILE_STATUS=0
    "$1" "${f##*/}" "${f##*.}" || bad=$((bad + 1))
    [ $HOSTILE_STATUS != 0 ] || good=$((good + 1))
  done
  echo "$1: $nr images, $bad wrong, $good good"
  [ $nr -gt 150 ] && [ $bad = 0 ] && [ $good -gt "${2:-5}" ] &&
    [ $good -lt $nr ]
}

try_info () {
  hostile_run "$IMAGES" "$NBDIMG" info -f "$2" "$1"
}

try_check () {
  hostile_run "$IMAGES" "$NBDIMG" check -f "$2" "$1"
}

try_read () {
  hostile_run "$IMAGES" "$NBDIMG" io -r -f "$2" -c 'read 0 64k' \
    -c 'read 1M 64k' -c 'read 5M 1M' "$1"
}

try_convert () {
  case $1 in huge-*) return ;; esac
  hostile_run "$IMAGES" "$NBDIMG" map -f "$2" "$1" || return
  hostile_run "$IMAGES" "$NBDIMG" convert -f "$2" -O raw "$1" \
    "$HOSTILE_WORK/.converted"
  local status=$?
  rm -f "$HOSTILE_WORK/.converted"
  return $status
}

try_write () {
  cp --sparse=always "$IMAGES/$1" ".writable.$2"
  hostile_run . "$NBDIMG" io -f "$2" -c 'write -P 1 0 64k' \
    -c 'write -P 2 66k 3k' -c 'write 1M 64k' -c 'write -z 64k 64k' \
    -c 'discard 0 128k' -c 'write 2100k 500k' -c flush -c 'read 0 1M' \
    ".writable.$2"
}

try_repair () {
  local f=.repaired sum
  [ "$2" != qcow ] || return 0
  cp --sparse=always "$IMAGES/$1" $f
  hostile_run . "$NBDIMG" check -r all -f "$2" $f || return
  [ $HOSTILE_STATUS = 0 ] || return 0
  sum=$(head -c 20M $f | sha256sum)
  hostile_run . "$NBDIMG" check -r all -f "$2" $f
  [ "$sum" = "$(head -c 20M $f | sha256sum)" ]
}

@test "no VDI, qcow or QED image crashes, delays or bloats info" {
  for_each try_info
}

@test "no VDI, qcow or QED image crashes, delays or bloats check and repair" {
  for_each try_check 1
  for_each try_repair 10
}

@test "no VDI, qcow or QED image crashes, delays or bloats a reader" {
  for_each try_read
  for_each try_convert
}

@test "no VDI, qcow or QED image crashes, delays or bloats a writer" {
  for_each try_write
}
