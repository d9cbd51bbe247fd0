# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Sizes as text, beside the installed qemu-img.

load lib

unit=$NBDIMG_BUILD/tests/unit/test-text

@test "sizes are printed as qemu-img info prints them" {
  need qemu-img
  local sizes=() s i
  # Around each change of unit, and any.
  for i in 0 512 1022976 1023488 1024000 1047527424 1048575488 1048576000 \
      1072668082176 1073741824000 1098412116147712 1099511627776000 \
      1124774006935781888 1125899906842624000 7000000000000000000; do
    sizes+=("$i")
  done
  RANDOM=7
  for i in $(seq 60); do
    s=$(((RANDOM * 32768 * 32768 * 32768 + RANDOM * 32768 * 32768 \
          + RANDOM * 32768 + RANDOM) >> (RANDOM % 50) & ~511))
    sizes+=("$s")
  done
  "$unit" --human-size "${sizes[@]}" >ours
  for s in "${sizes[@]}"; do
    qemu-img info "json:{\"driver\":\"null-co\",\"size\":$s}" |
      sed -n 's/^virtual size: \(.*\) (.*/\1/p'
  done >theirs
  diff theirs ours
}

@test "sizes are read as qemu-img reads them" {
  need qemu-img
  local s texts=(10 1.5 1.5k 1.1k 0.1k .5k 5.k 1. 0x200 0X1f 0x1b 0x1e 10b 10B
    1e 1E 1e3 1.5e3 -1 ' 1' '1 ' 1kB 1KiB 1K 1m 1g 1t 1p 6E 8E 07 1.5b 1.00b
    '' k 0.0005k 0.00048k 1.00049k inf 1,5k 0x 0xg 0x1.8k 1.1G 1.1T 1.1P 1.1E
    3.3333333333333333E 6.9999999999999999E 9223372036854775808)
  "$unit" --parse-size "${texts[@]}" >ours
  for s in "${texts[@]}"; do
    qemu-img map --output=json --start-offset="$s" --max-length=1 \
      'json:{"driver":"null-co","size":8080000000000000000}' 2>/dev/null |
      grep -o '"start": [0-9]*' | cut -d ' ' -f 2 | grep . || echo invalid
  done >theirs
  paste <(printf '%s\n' "${texts[@]}") theirs ours
  diff theirs ours
}
