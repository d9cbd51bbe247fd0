/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The set of the places of L2 tables and refcount blocks (known.c), against a
 * plain array.
 */

#include <config.h>

#include "formats/qcow2/qcow2.h"
#include "tests/unit/unit.h"

enum { NR = 3000, CLUSTER_SIZE = 512 };

/* Places that lie side by side, and some far away. */
static uint64_t
place (unsigned i)
{
  uint64_t cluster = i % 3 ? 1 + i : ((uint64_t) i << 30) + 1;

  return cluster * CLUSTER_SIZE;
}

static void
set_up (struct qcow2 *q)
{
  memset (q, 0, sizeof *q);
  q->cluster_size = CLUSTER_SIZE;
  mutex_init (&q->mutex);
}

static void
tear_down (struct qcow2 *q)
{
  known_clear (q);
  mutex_destroy (&q->mutex);
}

static bool
is_known (struct qcow2 *q, uint64_t host, uint64_t length)
{
  bool r;

  mutex_lock (&q->mutex);
  r = known_table_locked (q, host, length);
  mutex_unlock (&q->mutex);
  return r;
}

static void
set_known (struct qcow2 *q, uint64_t host, bool known)
{
  mutex_lock (&q->mutex);
  if (known)
    known_add_locked (q, host);
  else
    known_drop_locked (q, host);
  mutex_unlock (&q->mutex);
}

static void
test_array (void)
{
  static bool known[NR];
  struct qcow2 q;
  uint32_t seed = 1;
  unsigned i;

  unit_begin ("what was added is known, what was dropped is not");
  set_up (&q);
  CHECK (!is_known (&q, 0, UINT64_C (1) << 20));
  set_known (&q, place (1), false);
  for (unsigned round = 0; round < 40000; ++round) {
    seed = seed * 1103515245 + 12345;
    i = (seed >> 16) % NR;
    /* It fills up, is emptied, and fills up again. */
    known[i] = round % 20000 < 10000 ? (seed >> 12) % 4 != 0
      : (seed >> 12) % 4 == 0;
    set_known (&q, place (i), known[i]);
    if (round % 2000 == 0)
      for (unsigned j = 0; j < NR; ++j)
        CHECK (is_known (&q, place (j), 1) == known[j]);
  }
  for (i = 0; i < NR; ++i)
    set_known (&q, place (i), false);
  CHECK (q.known.set.nr_used == 0);
  tear_down (&q);
}

static void
test_ranges (void)
{
  struct qcow2 q;

  unit_begin ("a range meets a table by any byte of a cluster");
  set_up (&q);
  set_known (&q, 10 * CLUSTER_SIZE, true);
  CHECK (is_known (&q, 10 * CLUSTER_SIZE, CLUSTER_SIZE));
  CHECK (is_known (&q, 11 * CLUSTER_SIZE - 1, 1));
  CHECK (is_known (&q, 8 * CLUSTER_SIZE, 2 * CLUSTER_SIZE + 1));
  CHECK (!is_known (&q, 8 * CLUSTER_SIZE, 2 * CLUSTER_SIZE));
  CHECK (!is_known (&q, 11 * CLUSTER_SIZE, 4 * CLUSTER_SIZE));
  tear_down (&q);
}

static void
test_replaced (void)
{
  struct qcow2 q;

  unit_begin ("of a table that was replaced nothing is known until told");
  set_up (&q);
  set_known (&q, 10 * CLUSTER_SIZE, true);
  q.l1_table_offset = 20 * CLUSTER_SIZE;
  CHECK (!is_known (&q, 10 * CLUSTER_SIZE, 1));
  mutex_lock (&q.mutex);
  known_moved_locked (&q);
  mutex_unlock (&q.mutex);
  CHECK (is_known (&q, 10 * CLUSTER_SIZE, 1));
  q.refcount_table_offset = 30 * CLUSTER_SIZE;
  CHECK (!is_known (&q, 10 * CLUSTER_SIZE, 1));
  tear_down (&q);
}

static void
test_full (void)
{
  struct qcow2 q;
  uint64_t nr = 600000, known = 0;

  unit_begin ("the set has a largest size, and stays right in it");
  set_up (&q);
  for (uint64_t i = 1; i <= nr; ++i)
    set_known (&q, i * CLUSTER_SIZE, true);
  for (uint64_t i = 1; i <= nr; ++i)
    known += is_known (&q, i * CLUSTER_SIZE, 1);
  CHECK (known == q.known.set.nr_used && known > nr / 2 && known < nr);
  CHECK (q.known.set.nr_slots * sizeof *q.known.set.slots <= 8 * MiB);
  set_known (&q, CLUSTER_SIZE, false);
  CHECK (!is_known (&q, CLUSTER_SIZE, 1));
  CHECK (is_known (&q, 2 * CLUSTER_SIZE, 1));
  tear_down (&q);
}

int
main (void)
{
  test_array ();
  test_ranges ();
  test_replaced ();
  test_full ();
  return unit_end ();
}
