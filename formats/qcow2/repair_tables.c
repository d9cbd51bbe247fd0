/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* L1 and L2 tables that a repair changes in place: see repair.h.
 * Layer: formats.  Locking: the image is frozen, one thread.
 *
 * What is written are whole 512-byte sectors around the entries that changed,
 * and an entry never crosses one.  So a crash leaves each entry old or new.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "formats/qcow2/repair.h"

/* ---- L2 ---- */

/* Could this be an entry that somebody wrote on purpose? */
static bool
is_sound (const struct checker *c, struct l2_entry v)
{
  const struct qcow2 *q = c->q;
  bool data_file = q->incompatible_features & INCOMPAT_DATA_FILE;
  uint64_t host = v.entry & ENTRY_OFFSET_MASK, length;

  if (v.entry & L2_COMPRESSED) {
    qcow2_packed_range (q, v.entry, &host, &length);
    return !data_file && host >= q->cluster_size
      && (host + length - 1) >> q->cluster_bits < c->nr_clusters;
  }
  if (!is_aligned (host, q->cluster_size))
    return check_needs_no_host (q, v);
  if (data_file)
    return true;
  if (host == 0)
    return (uint32_t) v.bitmap == 0;
  return host >> q->cluster_bits < c->nr_clusters
    || check_can_drop_host (c, v);
}

static bool
table_is_sound (const struct checker *c, const uint8_t *table)
{
  uint64_t nr = UINT64_C (1) << c->q->l2_bits;

  for (uint64_t i = 0; i < nr; ++i, table += c->q->l2_entry_size)
    if (!is_sound (c, l2_entry_get (c->q, table)))
      return false;
  return true;
}

struct l2_entry
table_edit_get (const struct qcow2 *q, const struct table_edit *t,
                uint64_t index)
{
  const uint8_t *table = t->hi ? t->buf : t->old;

  return l2_entry_get (q, table + index * q->l2_entry_size);
}

void
table_edit_put (const struct qcow2 *q, struct table_edit *t, uint64_t index,
                struct l2_entry v)
{
  if (t->hi == 0) {
    memcpy (t->buf, t->old, (size_t) q->cluster_size);
    t->lo = index;
  }
  t->lo = min_u64 (t->lo, index);
  t->hi = max_u64 (t->hi, index + 1);
  l2_entry_put (q, t->buf + index * q->l2_entry_size, v);
}

struct l2_call {
  struct repair *r;
  void *opaque;
  int (*fn) (struct checker *c, struct repair *r, void *opaque,
             const struct l2_item *item, struct table_edit *t,
             struct error *e);
};

static int
call_for_table (struct checker *c, void *opaque, const struct l2_item *item,
                const uint8_t *table, struct error *e)
{
  const struct l2_call *call = opaque;
  struct table_edit t = { .old = table, .buf = call->r->table };
  uint64_t start, end;

  if (!table_is_sound (c, table))
    return 0;
  if (call->fn (c, call->r, call->opaque, item, &t, e) == -1)
    return -1;
  if (t.hi == 0)
    return 0;
  start = round_down (t.lo * c->q->l2_entry_size, SECTOR_SIZE);
  end = round_up (t.hi * c->q->l2_entry_size, SECTOR_SIZE);
  return repair_write (call->r, t.buf + start, (size_t) (end - start),
                       item->host + start, e);
}

static int
run_part (struct checker *c, void *opaque, struct error *e)
{
  return check_each_l2_table (c, opaque, call_for_table, e);
}

int
repair_l2 (struct checker *c, struct repair *r, void *opaque,
           int (*fn) (struct checker *c, struct repair *r, void *opaque,
                      const struct l2_item *item, struct table_edit *t,
                      struct error *e),
           struct error *e)
{
  struct l2_call call = { .r = r, .opaque = opaque, .fn = fn };

  return check_each_l2_part (c, &call, run_part, e);
}

/* ---- L1 ---- */

enum { L1_PIECE = 64 * KiB };

static int
edit_piece (struct checker *c, struct repair *r, const struct segment *s,
            uint64_t host, uint8_t *buf, size_t len,
            bool (*fn) (struct checker *c, struct repair *r,
                        const struct segment *s, uint64_t host,
                        uint64_t *entry),
            struct error *e)
{
  size_t lo = len, hi = 0;

  if (storage_pread (c->st, buf, len, host, e) == -1)
    return -1;
  for (size_t i = 0; i + 8 <= len; i += 8) {
    uint64_t entry = get_be64 (buf + i);

    if (entry == 0 || !fn (c, r, s, host + i, &entry))
      continue;
    put_be64 (buf + i, entry);
    lo = min_u64 (lo, i);
    hi = i + 8;
  }
  if (hi == 0)
    return 0;
  return repair_write (r, buf + lo, hi - lo, host + lo, e);
}

int
repair_l1 (struct checker *c, struct repair *r,
           bool (*fn) (struct checker *c, struct repair *r,
                       const struct segment *s, uint64_t host,
                       uint64_t *entry),
           struct error *e)
{
  uint8_t *buf;
  int result = 0;

  if (r->damage.lost_l2)
    return 0;
  buf = malloc (L1_PIECE);
  if (!buf)
    return error_nomem (e, "an L1 table", L1_PIECE);
  for (size_t i = 0; i < c->l1.nr && result == 0; ++i) {
    const struct segment *s = &c->l1.items[i];
    uint64_t at = s->start;

    while (result == 0
           && (at = round_down (check_skip_hole (c, at, s->end), 8))
           < s->end) {
      size_t len = (size_t) min_u64 (L1_PIECE, s->end - at);

      result = edit_piece (c, r, s, at, buf, len, fn, e);
      at += len;
    }
  }
  free (buf);
  return result;
}
