#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# A sample of "make soak": see soak/kill.py.

load lib

@test "kill -9 under load loses nothing that was flushed" {
  /usr/bin/python3 -c 'import nbd' || skip "no libnbd module for Python"
  mkdir images
  /usr/bin/python3 -B "$SRCDIR/tests/soak/kill.py" --rounds 5 \
    --preload "$config_PRELOAD" --plugin "$PLUGIN" --nbdimg "$NBDIMG" \
    --dir "$PWD/images" qcow2 4k backing qed-backing vdi
}
