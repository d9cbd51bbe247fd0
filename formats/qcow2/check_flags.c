/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The COPIED flags of entries: checked, and put right.
 * Layer: formats.  Locking: the image is frozen, one thread.
 * Specification: bit 63 of "Standard Cluster Descriptor" and of L1 entries: it
 * is accurate in the active L1 table and in the L2 tables that it refers to.
 *
 * A flag that is missing costs a copy.  One that is there and should not be
 * lets the guest write into a cluster that somebody else refers to.  So a
 * repair may set one only where the cluster is in use once and its refcount
 * says so; clearing one is safe at any time, and so is any part of the work.
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "formats/qcow2/check.h"
#include "formats/qcow2/repair.h"

/* ---- what a flag should be ---- */

/* Read the refcount of one cluster behind the end of the file. */
static bool
read_refcount (struct checker *c, uint64_t cluster, uint64_t *refcount)
{
  const struct qcow2 *q = c->q;
  uint64_t i = cluster >> q->refblock_bits, host;
  uint64_t index = cluster & ((UINT64_C (1) << q->refblock_bits) - 1);
  struct error ignored = ERROR_INIT;
  uint8_t buf[8];

  *refcount = 0;
  if (i >= (uint64_t) q->refcount_table_clusters << (q->cluster_bits - 3))
    return true;
  if (storage_pread (c->st, buf, sizeof buf, q->refcount_table_offset + i * 8,
                     &ignored) == -1)
    return false;
  host = check_refblock (c, get_be64 (buf));
  if (host == 0)
    return true;
  /* Eight bytes that hold the entry, whatever its width. */
  host += round_down ((index << q->refcount_order) / 8, 8);
  if (storage_pread (c->st, buf, sizeof buf, host, &ignored) == -1)
    return false;
  *refcount = refcount_get (buf, index % (64U >> q->refcount_order),
                            q->refcount_order);
  return true;
}

/* The refcount that stands on disk for CLUSTER, now in the map; false = the
 * cluster is not of this window.
 */
static bool
refcount_of (struct checker *c, uint64_t cluster, uint64_t *refcount,
             const char **more)
{
  struct refpage *p;
  bool exact;

  *more = "";
  *refcount = 0;
  /* An error already; what else is wrong with it is not worth two reads when
   * there are millions of its kind.
   */
  if (cluster >= c->nr_clusters)
    return c->first && !check_is_flooded (c)
      && read_refcount (c, cluster, refcount);
  if (cluster < c->refs.lo || cluster >= c->refs.hi)
    return false;
  p = refmap_page (&c->refs, cluster);
  if (p) {
    *refcount = refpage_refcount (p, (unsigned) (cluster & (REF_PAGE - 1)),
                                  &exact);
    if (!exact)
      *more = " or more";
  }
  return true;
}

static bool
is_wrong (uint64_t entry, uint64_t refcount)
{
  return !!(entry & ENTRY_COPIED) != (refcount == 1);
}

/* ---- check ---- */

static int
check_l1_flag (struct checker *c, const struct segment *s, uint64_t host,
               uint64_t entry, struct error *e)
{
  uint64_t offset = entry & ENTRY_OFFSET_MASK, refcount;
  const char *more;

  (void) e;
  if (!s->active || offset == 0 || !is_aligned (offset, c->q->cluster_size)
      || !refcount_of (c, offset >> c->q->cluster_bits, &refcount, &more)
      || !is_wrong (entry, refcount))
    return 0;
  check_finding (c, FINDING_FLAG, "ERROR OFLAG_COPIED L2 cluster:"
                 " l1_index=%" PRIu64 " l1_entry=%" PRIx64 " refcount=%" PRIu64
                 "%s", (host - c->q->l1_table_offset) / 8, entry, refcount,
                 more);
  return 0;
}

static int
check_l2_flags (struct checker *c, void *opaque, const struct l2_item *item,
                const uint8_t *table, struct error *e)
{
  uint64_t nr = UINT64_C (1) << c->q->l2_bits, refcount;
  const char *more;

  (void) opaque;
  (void) e;
  for (uint64_t i = 0; item->active_refs && i < nr;
       ++i, table += c->q->l2_entry_size) {
    uint64_t entry = get_be64 (table), host = entry & ENTRY_OFFSET_MASK;

    if ((entry & L2_COMPRESSED) || host == 0
        || !refcount_of (c, host >> c->q->cluster_bits, &refcount, &more)
        || !is_wrong (entry, refcount))
      continue;
    check_finding (c, FINDING_FLAG, "ERROR OFLAG_COPIED data cluster:"
                   " l2_entry=%" PRIx64 " refcount=%" PRIu64 "%s", entry,
                   refcount, more);
  }
  return 0;
}

static int
check_part (struct checker *c, void *opaque, struct error *e)
{
  return check_each_l2_table (c, opaque, check_l2_flags, e);
}

int
check_flags (struct checker *c, struct error *e)
{
  if (check_each_entry (c, &c->l1, check_l1_flag, e) == -1)
    return -1;
  if (c->q->incompatible_features & INCOMPAT_DATA_FILE)
    return 0;
  return check_each_l2_part (c, NULL, check_part, e);
}

/* ---- repair ---- */

/* Entries that are wrong otherwise are not touched here. */
static bool
is_wrong_flag (struct checker *c, uint64_t entry, uint64_t *refcount)
{
  uint64_t host = entry & ENTRY_OFFSET_MASK;
  const char *more;

  return host != 0 && is_aligned (host, c->q->cluster_size)
    && host >> c->q->cluster_bits < c->nr_clusters
    && refcount_of (c, host >> c->q->cluster_bits, refcount, &more)
    && is_wrong (entry, *refcount);
}

static bool
mend_l1_flag (struct checker *c, struct repair *r, const struct segment *s,
              uint64_t host, uint64_t *entry)
{
  uint64_t refcount;

  if (!s->active || !is_wrong_flag (c, *entry, &refcount))
    return false;
  r->result->corruptions_fixed++;
  repair_say (r, "Repairing OFLAG_COPIED L2 cluster: l1_index=%" PRIu64
              " l1_entry=%" PRIx64 " refcount=%" PRIu64,
              (host - c->q->l1_table_offset) / 8, *entry, refcount);
  *entry ^= ENTRY_COPIED;
  return true;
}

static int
mend_l2_flags (struct checker *c, struct repair *r, void *opaque,
               const struct l2_item *item, struct table_edit *t,
               struct error *e)
{
  uint64_t nr = UINT64_C (1) << c->q->l2_bits, refcount;

  (void) opaque;
  (void) e;
  for (uint64_t i = 0; item->active_refs && i < nr; ++i) {
    struct l2_entry v = table_edit_get (c->q, t, i);

    if ((v.entry & L2_COMPRESSED) || !is_wrong_flag (c, v.entry, &refcount))
      continue;
    r->result->corruptions_fixed++;
    repair_say (r, "Repairing OFLAG_COPIED data cluster: l2_entry=%" PRIx64
                " refcount=%" PRIu64, v.entry, refcount);
    v.entry ^= ENTRY_COPIED;
    table_edit_put (c->q, t, i, v);
  }
  return 0;
}

/* Nothing in an external data file has a refcount, so COPIED must be set; where
 * the place is the guest's the guest can read it.
 */
static int
mend_data_file_flags (struct checker *c, struct repair *r, void *opaque,
                      const struct l2_item *item, struct table_edit *t,
                      struct error *e)
{
  uint64_t first = (uint64_t) item->l1_index << c->q->l2_bits;

  (void) opaque;
  (void) e;
  for (uint64_t i = 0; i < UINT64_C (1) << c->q->l2_bits; ++i) {
    struct l2_entry v = table_edit_get (c->q, t, i);
    uint64_t host = v.entry & ENTRY_OFFSET_MASK;

    if ((v.entry & (L2_COMPRESSED | ENTRY_COPIED)) || host == 0
        || host != (first + i) << c->q->cluster_bits)
      continue;
    r->result->corruptions_fixed++;
    repair_say (r, "Repairing OFLAG_COPIED data cluster: l2_entry=%" PRIx64
                " refcount=1", v.entry);
    v.entry |= ENTRY_COPIED;
    table_edit_put (c->q, t, i, v);
  }
  return 0;
}

static int
mend_window (struct checker *c, void *opaque, struct error *e)
{
  struct repair *r = opaque;

  if (check_compare (c, e) == -1 || repair_l1 (c, r, mend_l1_flag, e) == -1)
    return -1;
  return repair_l2 (c, r, NULL,
                    c->q->incompatible_features & INCOMPAT_DATA_FILE
                    ? mend_data_file_flags : mend_l2_flags, e);
}

int
repair_flags (struct checker *c, struct repair *r, struct error *e)
{
  return check_each_window (c, r, mend_window, e);
}
