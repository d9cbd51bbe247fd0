/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Storages around another storage: see wrapper.h.
 *
 * Layer: storage.  Locking: none.  A wrapper has no descriptor and copies
 * nothing in the kernel, so that every byte passes through its calls.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "storage/wrapper.h"

void *
wrapper_new (const struct storage_ops *ops, size_t size,
             struct storage *inner, struct error *e)
{
  struct wrapper *w = calloc (1, size);

  if (w)
    w->base.name = strdup (inner->name);
  if (!w || !w->base.name) {
    free (w);
    error_nomem (e, "a test storage", size);
    return NULL;
  }
  w->base.ops = ops;
  w->base.caps = inner->caps;
  w->base.identity = inner->identity;
  w->base.size = storage_size (inner);
  w->inner = inner;
  return w;
}

void
wrapper_free (struct storage *st)
{
  storage_close (wrapper_inner (st));
  free (st->name);
  free (st);
}

void
wrapper_copy_size (struct storage *st)
{
  storage_set_size (st, storage_size (wrapper_inner (st)));
}

void
wrapper_note_growth (struct storage *st)
{
  storage_note_end (st, storage_size (wrapper_inner (st)));
}

int
wrapper_extents (struct storage *st, uint64_t offset, uint64_t len,
                 struct storage_extent *out, size_t max, size_t *nr,
                 struct error *e)
{
  return storage_extents (wrapper_inner (st), offset, len, out, max, nr, e);
}

int
wrapper_lock (struct storage *st, unsigned held, unsigned unshared,
              struct error *e)
{
  return storage_lock (wrapper_inner (st), held, unshared, e);
}

int
wrapper_refresh_size (struct storage *st, struct error *e)
{
  if (storage_refresh_size (wrapper_inner (st), e) < 0)
    return -1;
  wrapper_copy_size (st);
  return 0;
}

int
wrapper_disk_size (struct storage *st, uint64_t *size, struct error *e)
{
  return storage_disk_size (wrapper_inner (st), size, e);
}

int
wrapper_set_writable (struct storage *st, struct error *e)
{
  if (storage_set_writable (wrapper_inner (st), e) < 0)
    return -1;
  st->caps = wrapper_inner (st)->caps;
  return 0;
}
