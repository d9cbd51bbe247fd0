/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Where L2 tables and refcount blocks lie: a hash set of their places, so that
 * no guest data are written over one, whatever an L2 entry or a refcount says.
 * Layer: formats.  Locking: qcow2.mutex.
 *
 * It has the tables that the active L1 table and the refcount table name, as
 * QEMU's check does, not those of snapshots.  Who changes an entry of the two
 * tells it; where a table of the two was replaced and nobody did, it says
 * nothing until it is read anew.  A set that is too large is not complete: then
 * there are only the tables in the cache, which are looked at as well.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "formats/qcow2/qcow2.h"

enum {
  MIN_SLOTS = 64,
  MAX_SLOTS = 1 << 20,          /* 8 MiB; half of them are in use */
  READ_SIZE = 64 * 1024,
};

/* ---- the set: open addressing, no tombstones ---- */

static size_t
slot_of (const struct known_tables *k, uint64_t host)
{
  return (size_t) (((host >> MIN_CLUSTER_BITS)
                    * UINT64_C (0x9e3779b97f4a7c15)) >> 32)
    & (k->nr_slots - 1);
}

/* Where HOST is, or the free slot where it would be. */
static size_t
find (const struct known_tables *k, uint64_t host)
{
  size_t i = slot_of (k, host);

  while (k->slots[i] != 0 && k->slots[i] != host)
    i = (i + 1) & (k->nr_slots - 1);
  return i;
}

static bool
grow (struct known_tables *k)
{
  struct known_tables bigger = *k;

  bigger.nr_slots = k->nr_slots ? k->nr_slots * 2 : MIN_SLOTS;
  if (bigger.nr_slots > MAX_SLOTS)
    return false;
  bigger.slots = calloc (bigger.nr_slots, sizeof *bigger.slots);
  if (!bigger.slots)
    return false;
  for (size_t i = 0; i < k->nr_slots; ++i)
    if (k->slots[i] != 0)
      bigger.slots[find (&bigger, k->slots[i])] = k->slots[i];
  free (k->slots);
  *k = bigger;
  return true;
}

static void
add (struct known_tables *k, uint64_t host)
{
  size_t i;

  if (k->nr_used + 1 > k->nr_slots / 2 && !grow (k))
    return;
  i = find (k, host);
  if (k->slots[i] == 0)
    k->nr_used++;
  k->slots[i] = host;
}

static void
clear_set (struct known_tables *k)
{
  free (k->slots);
  *k = (struct known_tables) { .slots = NULL };
}

/* Later slots of the same run move up to the one that becomes free, unless
 * their own place lies behind it.
 */
static void
drop (struct known_tables *k, uint64_t host)
{
  size_t mask = k->nr_slots - 1, i, j;

  if (k->nr_slots == 0)
    return;
  i = find (k, host);
  if (k->slots[i] == 0)
    return;
  for (j = (i + 1) & mask; k->slots[j] != 0; j = (j + 1) & mask) {
    if (((j - slot_of (k, k->slots[j])) & mask) >= ((j - i) & mask)) {
      k->slots[i] = k->slots[j];
      i = j;
    }
  }
  k->slots[i] = 0;
  k->nr_used--;
}

/* ---- from the tables ---- */

static void
add_entries (struct qcow2 *q, struct known_tables *k, const uint8_t *buf,
             size_t bytes, uint64_t mask)
{
  uint64_t host;

  for (size_t i = 0; i < bytes; i += 8) {
    host = get_be64 (buf + i) & mask;
    if (host != 0 && is_aligned (host, q->cluster_size))
      add (k, host);
  }
}

static int
read_table (struct qcow2 *q, struct known_tables *k, uint64_t host,
            uint64_t bytes, uint64_t mask, struct error *e)
{
  CLEANUP_FREE uint8_t *buf = malloc (READ_SIZE);
  size_t n;

  if (!buf)
    return error_nomem (e, "a table", READ_SIZE);
  for (uint64_t at = 0; at < bytes; at += n) {
    n = (size_t) min_u64 (READ_SIZE, bytes - at);
    if (storage_pread (q->format.storage, buf, n, host + at, e) == -1)
      return -1;
    add_entries (q, k, buf, n, mask);
  }
  return 0;
}

static void
replace (struct qcow2 *q, struct known_tables *k)
{
  mutex_lock (&q->mutex);
  clear_set (&q->known);
  q->known = *k;
  mutex_unlock (&q->mutex);
}

int
qcow2_learn_tables (struct qcow2 *q, struct error *e)
{
  struct known_tables k = {
    .l1_table_offset = q->l1_table_offset,
    .refcount_table_offset = q->refcount_table_offset,
  };

  if (read_table (q, &k, q->l1_table_offset, (uint64_t) q->l1_size * 8,
                  ENTRY_OFFSET_MASK, e) == -1
      || read_table (q, &k, q->refcount_table_offset,
                     (uint64_t) q->refcount_table_clusters
                     << q->cluster_bits, ~UINT64_C (0), e) == -1) {
    clear_set (&k);
    replace (q, &k);
    return -1;
  }
  replace (q, &k);
  return 0;
}

/* ---- for the driver ---- */

void
known_add_locked (struct qcow2 *q, uint64_t host)
{
  add (&q->known, host);
}

void
known_drop_locked (struct qcow2 *q, uint64_t host)
{
  drop (&q->known, host);
}

void
known_moved_locked (struct qcow2 *q)
{
  q->known.l1_table_offset = q->l1_table_offset;
  q->known.refcount_table_offset = q->refcount_table_offset;
}

bool
known_table_locked (const struct qcow2 *q, uint64_t host, uint64_t length)
{
  const struct known_tables *k = &q->known;

  if (k->nr_used == 0 || k->l1_table_offset != q->l1_table_offset
      || k->refcount_table_offset != q->refcount_table_offset)
    return false;
  for (uint64_t at = round_down (host, q->cluster_size); at < host + length;
       at += q->cluster_size)
    if (k->slots[find (k, at)] != 0)
      return true;
  return false;
}

void
known_clear (struct qcow2 *q)
{
  clear_set (&q->known);
}
