/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Storages as bytes: what one holds, and one that holds them. */

#ifndef NBDIMG_STORAGE_BYTES_H
#define NBDIMG_STORAGE_BYTES_H

#include "storage/storage.h"
#include "tests/unit/unit.h"

struct bytes {
  uint8_t *p;                   /* owned */
  size_t len;
};

static inline struct bytes
bytes_of (struct storage *st)
{
  struct bytes b = { .len = storage_size (st) };
  struct error e = ERROR_INIT;

  b.p = unit_alloc (b.len);
  unit_must (storage_pread (st, b.p, b.len, 0, &e), &e);
  return b;
}

/* In memory; the caller closes it. */
static inline struct storage *
storage_of (struct bytes b)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("image", 0, &e);

  unit_must (st ? storage_pwrite (st, b.p, b.len, 0, 0, &e) : -1, &e);
  return st;
}

#endif /* NBDIMG_STORAGE_BYTES_H */
