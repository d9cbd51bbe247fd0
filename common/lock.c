/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Mutexes: see lock.h.  Layer: common.  A pthread mutex call fails only when
 * the program is wrong (destroyed or foreign mutex): then it stops.
 */

#include <config.h>

#include <stdlib.h>

#include "common/lock.h"

static void
must (int r)
{
  if (r != 0)
    abort ();
}

void
mutex_init (struct mutex *m)
{
  must (pthread_mutex_init (&m->m, NULL));
}

void
mutex_destroy (struct mutex *m)
{
  must (pthread_mutex_destroy (&m->m));
}

void NO_LOCK_CHECK
mutex_lock (struct mutex *m)
{
  must (pthread_mutex_lock (&m->m));
}

void NO_LOCK_CHECK
mutex_unlock (struct mutex *m)
{
  must (pthread_mutex_unlock (&m->m));
}

void
mutex_wait (struct mutex *m, pthread_cond_t *c)
{
  must (pthread_cond_wait (c, &m->m));
}
