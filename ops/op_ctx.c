/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What every operation does with its op_ctx.  Layer: ops.  No locking: the
 * flag is atomic.
 */

#include <config.h>

#include "ops/ops.h"

bool
op_cancelled (const struct op_ctx *ctx)
{
  return ctx->cancel && __atomic_load_n (ctx->cancel, __ATOMIC_RELAXED);
}
