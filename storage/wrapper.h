/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What record.c and fault.c share: a storage that stands around another one
 * of the same size and abilities.
 */

#ifndef NBDIMG_STORAGE_WRAPPER_H
#define NBDIMG_STORAGE_WRAPPER_H

#include "storage/driver.h"

struct wrapper {
  struct storage base;
  struct storage *inner;      /* owned */
};

static inline struct storage *
wrapper_inner (struct storage *st)
{
  return ((struct wrapper *) st)->inner;
}

/* A wrapper of SIZE bytes, zeroed but for its first member; INNER is taken
 * on success.
 */
extern void *wrapper_new (const struct storage_ops *ops, size_t size,
                          struct storage *inner, struct error *e);

/* Close what is inside and free everything. */
extern void wrapper_free (struct storage *st);

/* What is inside may have another size, or only a larger one: writes run side
 * by side, and the one that looked first must not have the last word.
 */
extern void wrapper_copy_size (struct storage *st);
extern void wrapper_note_growth (struct storage *st);

/* Operations that go straight through. */
extern int wrapper_extents (struct storage *, uint64_t offset, uint64_t len,
                            struct storage_extent *out, size_t max,
                            size_t *nr, struct error *);
extern int wrapper_lock (struct storage *, unsigned held, unsigned unshared,
                         struct error *);
extern int wrapper_refresh_size (struct storage *, struct error *);
extern int wrapper_disk_size (struct storage *, uint64_t *size,
                              struct error *);
extern int wrapper_set_writable (struct storage *, struct error *);

#define WRAPPER_OPS                          \
  .extents = wrapper_extents,                \
  .lock = wrapper_lock,                      \
  .refresh_size = wrapper_refresh_size,      \
  .disk_size = wrapper_disk_size,            \
  .set_writable = wrapper_set_writable

#endif /* NBDIMG_STORAGE_WRAPPER_H */
