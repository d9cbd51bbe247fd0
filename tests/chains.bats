# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Chains of images under random commands; tests/soak/chains.sh is the long run.

load lib

@test "whatever is done to a chain, each layer shows what a plain copy does" {
  need qemu-img python3
  CHAINS_SEED=7 CHAINS=4 "$SRCDIR/tests/soak/chains.sh" --steps 10
}

@test "a byte that is not as expected is found" {
  need qemu-img python3
  run env CHAINS_SEED=8 CHAINS=1 "$SRCDIR/tests/soak/chains.sh" --plant
  [ "$status" = 1 ]
  [[ $output == *'they differ at'* ]]
}
