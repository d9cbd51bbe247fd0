/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Sets of places: see host_set.h.  Layer: formats.  Open addressing, no
 * tombstones.
 */

#include <config.h>

#include <stdlib.h>

#include "formats/host_set.h"

enum {
  SECTOR_BITS = 9,
  MIN_SLOTS = 64,
  MAX_SLOTS = 1 << 20,          /* 8 MiB; half of them are in use */
};

static size_t
slot_of (const struct host_set *set, uint64_t host)
{
  return (size_t) (((host >> SECTOR_BITS)
                    * UINT64_C (0x9e3779b97f4a7c15)) >> 32)
    & (set->nr_slots - 1);
}

/* Where HOST is, or the free slot where it would be. */
static size_t
find (const struct host_set *set, uint64_t host)
{
  size_t i = slot_of (set, host);

  while (set->slots[i] != 0 && set->slots[i] != host)
    i = (i + 1) & (set->nr_slots - 1);
  return i;
}

static bool
grow (struct host_set *set)
{
  struct host_set bigger = *set;

  bigger.nr_slots = set->nr_slots ? set->nr_slots * 2 : MIN_SLOTS;
  if (bigger.nr_slots > MAX_SLOTS)
    return false;
  bigger.slots = calloc (bigger.nr_slots, sizeof *bigger.slots);
  if (!bigger.slots)
    return false;
  for (size_t i = 0; i < set->nr_slots; ++i)
    if (set->slots[i] != 0)
      bigger.slots[find (&bigger, set->slots[i])] = set->slots[i];
  free (set->slots);
  *set = bigger;
  return true;
}

void
host_set_add (struct host_set *set, uint64_t host)
{
  size_t i;

  if (set->nr_used + 1 > set->nr_slots / 2 && !grow (set))
    return;
  i = find (set, host);
  if (set->slots[i] == 0)
    set->nr_used++;
  set->slots[i] = host;
}

void
host_set_clear (struct host_set *set)
{
  free (set->slots);
  *set = (struct host_set) { .slots = NULL };
}

/* Later slots of the same run move up to the one that becomes free, unless
 * their own place lies behind it.
 */
void
host_set_drop (struct host_set *set, uint64_t host)
{
  size_t mask = set->nr_slots - 1, i, j;

  if (set->nr_slots == 0)
    return;
  i = find (set, host);
  if (set->slots[i] == 0)
    return;
  for (j = (i + 1) & mask; set->slots[j] != 0; j = (j + 1) & mask) {
    if (((j - slot_of (set, set->slots[j])) & mask) >= ((j - i) & mask)) {
      set->slots[i] = set->slots[j];
      i = j;
    }
  }
  set->slots[i] = 0;
  set->nr_used--;
}

bool
host_set_has (const struct host_set *set, uint64_t host)
{
  return set->nr_used > 0 && set->slots[find (set, host)] != 0;
}
