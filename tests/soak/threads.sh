#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# The unit programs that put many threads on an image of each format, or every
# fault on a qcow2 image, for longer than check does.  Best in a build with
# --enable-sanitizers=thread.
# THREADS_ROUNDS=1000 for more, THREADS_SEED=N for a run that was seen.

set -eu
unit=$NBDIMG_BUILD/tests/unit
rounds=${THREADS_ROUNDS:-100} seed=${THREADS_SEED:-$$}
export TSAN_OPTIONS="exitcode=99:${TSAN_OPTIONS:-}"

echo "seed $seed"
# -w: seconds after which a program that hangs is ended.
"$unit/test-qcow2-threads" -t 16 -n "$rounds" -s "$seed" -w 3600
"$unit/test-qcow2-readers" -n $((rounds * 4)) -s "$seed" -w 3600
"$unit/test-qcow2-races"
"$unit/test-qcow2-model" -n $((rounds * 20)) -s "$seed"
"$unit/test-qcow2-faults" -n 1
