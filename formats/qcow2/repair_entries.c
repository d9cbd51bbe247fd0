/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Entries of L1 and L2 tables that are wrong in themselves: see repair.h.
 * Layer: formats.  Locking: the image is frozen, one thread.
 * Specification: "Cluster mapping", "Extended L2 Entries".
 *
 * An entry is changed only where the guest reads the same before and after:
 * bits that mean nothing are cleared, and what points behind the end of the
 * file, where there are only zeroes, becomes a zero cluster.  An entry that
 * cannot be followed stays.  Its data are lost, and reading them must go on to
 * fail: zeroes in their place would look like data.
 */

#include <config.h>

#include <inttypes.h>

#include "formats/qcow2/repair.h"

/* ---- L2 ---- */

static struct l2_entry
mend_packed (const struct qcow2 *q, struct l2_entry v)
{
  if (q->incompatible_features & INCOMPAT_DATA_FILE)
    return v;
  v.entry &= ~ENTRY_COPIED;
  v.bitmap = 0;
  return v;
}

/* There is nothing where the entry points to, and it reads as zeroes. */
static struct l2_entry
drop_host (const struct qcow2 *q, struct l2_entry v)
{
  struct l2_entry none = { .entry = 0 };

  if (q->extended_l2)
    none.bitmap = (v.bitmap & UINT64_C (0xffffffff00000000)) | v.bitmap << 32;
  else if (q->version >= 3)
    none.entry = L2_ZERO;
  return none;
}

static struct l2_entry
mend_plain (const struct checker *c, struct l2_entry v)
{
  const struct qcow2 *q = c->q;
  uint64_t host = v.entry & ENTRY_OFFSET_MASK;

  v.entry &= ~check_l2_reserved (q);
  if (!is_aligned (host, q->cluster_size)
      || (host >> q->cluster_bits >= c->nr_clusters
          && check_can_drop_host (c, v)))
    return drop_host (q, v);
  return v;
}

static int
mend_table (struct checker *c, struct repair *r, void *opaque,
            const struct l2_item *item, struct table_edit *t,
            struct error *e)
{
  const struct qcow2 *q = c->q;
  uint64_t nr = UINT64_C (1) << q->l2_bits;

  (void) opaque;
  (void) e;
  for (uint64_t i = 0; i < nr; ++i) {
    struct l2_entry v = table_edit_get (q, t, i), to;

    if (v.entry & L2_COMPRESSED)
      to = mend_packed (q, v);
    else if (q->incompatible_features & INCOMPAT_DATA_FILE)
      to = (struct l2_entry) { v.entry & ~check_l2_reserved (q), v.bitmap };
    else
      to = mend_plain (c, v);
    if (to.entry == v.entry && to.bitmap == v.bitmap)
      continue;
    r->result->corruptions_fixed++;
    repair_say (r, "Repairing L2 entry %" PRIx64 " of the table at 0x%" PRIx64
                ": now %" PRIx64, v.entry, item->host, to.entry);
    table_edit_put (q, t, i, to);
  }
  return 0;
}

/* ---- L1 ---- */

static bool
mend_l1_entry (struct checker *c, struct repair *r, const struct segment *s,
               uint64_t host, uint64_t *entry)
{
  uint64_t to = *entry & ~(L1_RESERVED & ~ENTRY_OFFSET_MASK);

  (void) c;
  (void) s;
  if ((to & ENTRY_OFFSET_MASK) == 0)
    to = 0;
  if (to == *entry)
    return false;
  r->result->corruptions_fixed++;
  repair_say (r, "Repairing L1 entry %" PRIx64 " at 0x%" PRIx64 ": now %"
              PRIx64, *entry, host, to);
  *entry = to;
  return true;
}

int
repair_entries (struct checker *c, struct repair *r, struct error *e)
{
  if (repair_l1 (c, r, mend_l1_entry, e) == -1)
    return -1;
  return repair_l2 (c, r, NULL, mend_table, e);
}
