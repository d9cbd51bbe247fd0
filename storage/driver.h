/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What the drivers of this folder share and nobody else includes. */

#ifndef NBDIMG_STORAGE_DRIVER_H
#define NBDIMG_STORAGE_DRIVER_H

#include "storage/storage.h"

/* Zero bytes to write from: aligned to ZERO_BYTES_ALIGN, never modified.  It
 * stands in .bss, so that it is one shared page until somebody writes it.
 */
enum { ZERO_BYTES_SIZE = 1 << 20, ZERO_BYTES_ALIGN = 4096 };
extern const unsigned char *storage_zero_bytes (void);

/* Write zero bytes by the driver's own pwrite, for drivers and requests that
 * know no better way.  With STORAGE_FUA one flush stands at the end.
 */
extern int storage_write_zeroes (struct storage *, uint64_t offset,
                                 uint64_t len, unsigned flags,
                                 struct error *);

/* The object is now at least END bytes long. */
static inline void
storage_note_end (struct storage *st, uint64_t end)
{
  uint64_t old = __atomic_load_n (&st->size, __ATOMIC_RELAXED);

  while (old < end
         && !__atomic_compare_exchange_n (&st->size, &old, end, true,
                                          __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
    ;
}

static inline void
storage_set_size (struct storage *st, uint64_t size)
{
  __atomic_store_n (&st->size, size, __ATOMIC_RELEASE);
}

/* Data that was written is lost: each flush from now on fails with ERR. */
extern void storage_note_flush_error (struct storage *, int err);

/* -1 and the sticky error, if there is one. */
extern int storage_check_flush_error (struct storage *, struct error *);

/* If ST is a slice: what it stands on, and *OFFSET moved accordingly; NULL if
 * it is not.
 */
extern struct storage *storage_slice_inner (struct storage *st,
                                            uint64_t *offset);

#endif /* NBDIMG_STORAGE_DRIVER_H */
