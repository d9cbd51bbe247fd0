/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What structural operations have in common: an image at rest, the dirty bit
 * around changes that no order can make safe, tables side by side.
 * Layer: formats.  Locking: structural, no other call is inside; the mutex is
 * taken where shared code wants it.
 * Specification: "Dirty bit".
 */

#include <config.h>

#include <string.h>

#include "common/log.h"
#include "formats/qcow2/qcow2.h"

int
qcow2_settle (struct qcow2 *q, struct error *e)
{
  do
    if (qcow2_flush (&q->format, e) == -1)
      return -1;
  while (qcow2_metadata_dirty (&q->format));
  mutex_lock (&q->mutex);
  table_drop_all_locked (q);
  q->pack_offset = 0;
  mutex_unlock (&q->mutex);
  return 0;
}

int
qcow2_is_sound (struct qcow2 *q, bool *sound, struct error *e)
{
  const struct format_check_options o = { .repair = REPAIR_NONE };
  struct format_check_result r;

  memset (&r, 0, sizeof r);
  if (qcow2_check (&q->format, &o, &r, e) == -1)
    return -1;
  *sound = r.corruptions == 0 && r.check_errors == 0;
  return 0;
}

void
qcow2_note_free (struct qcow2 *q, uint64_t cluster)
{
  mutex_lock (&q->mutex);
  q->free_cursor = min_u64 (q->free_cursor, cluster);
  mutex_unlock (&q->mutex);
}

/* ---- the header ---- */

int
qcow2_switch_header (struct qcow2 *q, uint64_t offset, const void *buf,
                     size_t len, struct error *e)
{
  return qcow2_put_header (q, offset, buf, len, STORAGE_FUA, e);
}

int
qcow2_switch_disk (struct qcow2 *q, uint64_t size, uint64_t l1,
                   uint32_t l1_size, struct error *e)
{
  uint8_t field[24];

  put_be64 (field, size);
  put_be32 (field + 8, q->crypt_method);
  put_be32 (field + 12, l1_size);
  put_be64 (field + 16, l1);
  if (qcow2_switch_header (q, H_SIZE, field, sizeof field, e) == -1)
    return error_prefix (e, "it is not known whether the disk was changed;"
                         " check the image");
  mutex_lock (&q->mutex);
  q->l1_table_offset = l1;
  q->l1_size = l1_size;
  q->format.info.size = size;
  mutex_unlock (&q->mutex);
  return 0;
}

static int
write_incompatible (struct qcow2 *q, uint64_t features, struct error *e)
{
  uint8_t field[8];

  put_be64 (field, features);
  if (qcow2_switch_header (q, H_INCOMPATIBLE_FEATURES, field, sizeof field,
                           e) == -1)
    return -1;
  mutex_lock (&q->mutex);
  q->incompatible_features = features;
  mutex_unlock (&q->mutex);
  return 0;
}

int
qcow2_set_dirty (struct qcow2 *q, struct error *e)
{
  if (q->version < 3)
    return 0;
  return write_incompatible (q, q->incompatible_features | INCOMPAT_DIRTY, e);
}

int
qcow2_clear_features (struct qcow2 *q, uint64_t bits, struct error *e)
{
  if (!(q->incompatible_features & bits))
    return 0;
  return write_incompatible (q, q->incompatible_features & ~bits, e);
}

int
qcow2_clear_dirty (struct qcow2 *q, struct error *e)
{
  return qcow2_clear_features (q, INCOMPAT_DIRTY, e);
}

void
qcow2_undo (struct qcow2 *q)
{
  struct error e = ERROR_INIT;

  mutex_lock (&q->mutex);
  table_drop_all_locked (q);
  /* What waits to lose a reference has none in the tables. */
  freed_list_clear (&q->quarantine);
  freed_list_clear (&q->released);
  mutex_unlock (&q->mutex);
  if (qcow2_mend (q, &e) == -1 || qcow2_clear_dirty (q, &e) == -1
      || qcow2_learn_tables (q, &e) == -1)
    log_warning ("%s: what was begun could not be undone (%s): check and repair"
                 " the image", q->format.storage->name, e.text);
}

/* ---- tables side by side ---- */

/* The search goes up, so that one piece mostly continues the one before; where
 * it does not in so many pieces, the run goes behind the end of everything.
 */
enum { MAX_PIECES = 32 };

/* The next piece of at most NR clusters.  *FRESH_ is of no use here. */
static int
alloc_piece (struct qcow2 *q, uint64_t nr, uint64_t *host, uint64_t *got,
             struct error *e)
{
  struct slice_op op = SLICE_OP_INIT;
  bool fresh;
  int r;

  mutex_lock (&q->mutex);
  do
    r = qcow2_alloc_locked (q, &op, nr, host, got, &fresh, e);
  while (r == 0);
  table_op_end_locked (q, &op);
  mutex_unlock (&q->mutex);
  return r == 1 ? 0 : -1;
}

void
qcow2_give_back (struct qcow2 *q, uint64_t host, uint64_t nr)
{
  mutex_lock (&q->mutex);
  if (nr)
    freed_list_add (&q->released, host, nr, q->cluster_size);
  mutex_unlock (&q->mutex);
}

int
qcow2_alloc_table (struct qcow2 *q, uint64_t nr, uint64_t *host,
                   struct error *e)
{
  uint64_t have = 0, at, got;

  for (unsigned i = 0; i < MAX_PIECES; ++i) {
    if (alloc_piece (q, nr - have, &at, &got, e) == -1) {
      qcow2_give_back (q, *host, have);
      return -1;
    }
    if (have && at != *host + (have << q->cluster_bits)) {
      qcow2_give_back (q, *host, have);
      have = 0;
    }
    if (have == 0)
      *host = at;
    have += got;
    if (have == nr)
      return 0;
  }
  qcow2_give_back (q, *host, have);
  return qcow2_alloc_run (q, nr, host, e);
}
