/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A table of values by their ID, for what the user names with --object.  All
 * functions may be called from any thread.
 */

#ifndef NBDIMG_ID_TABLE_H
#define NBDIMG_ID_TABLE_H

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"
#include "common/lock.h"

struct id_entry {
  char *id;                     /* owned */
  void *value;                  /* owned */
};

/* Statically allocated: { .mutex = MUTEX_INIT, .what = ..., ... }. */
struct id_table {
  /* fixed */
  const char *what;             /* "a secret": for errors */
  size_t value_size;            /* bytes */
  int (*copy) (void *to, const void *from, struct error *e);
  void (*clear) (void *value);  /* of what copy made */

  struct mutex mutex;
  struct id_entry *entries;     /* guarded by mutex; owned */
  size_t nr;                    /* guarded by mutex */
};

/* A copy of VALUE.  An ID that is there already is an error (EEXIST). */
extern int id_table_add (struct id_table *t, const char *id,
                         const void *value, struct error *e);

/* A copy of it in VALUE, which clear () ends: 1; there is none: 0; -1. */
extern int id_table_get (struct id_table *t, const char *id, void *value,
                         struct error *e);

extern bool id_table_has (struct id_table *t, const char *id);

/* The IDs in the order in which they came: NULL behind the last.  Borrowed,
 * good until id_table_clear.
 */
extern const char *id_table_id (struct id_table *t, size_t i);

extern void id_table_clear (struct id_table *t);

#endif /* NBDIMG_ID_TABLE_H */
