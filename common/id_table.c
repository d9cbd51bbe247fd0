/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A table of values by their ID: see id_table.h.  Layer: common.  Locking: one
 * mutex for each table.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/id_table.h"

static const struct id_entry *
find_locked (const struct id_table *t, const char *id) REQUIRES (t->mutex)
{
  for (size_t i = 0; i < t->nr; ++i)
    if (strcmp (t->entries[i].id, id) == 0)
      return &t->entries[i];
  return NULL;
}

static int
fill (const struct id_table *t, struct id_entry *x, const char *id,
      const void *value, struct error *e)
{
  x->id = strdup (id);
  x->value = calloc (1, t->value_size);
  if (!x->id || !x->value)
    error_nomem (e, t->what, strlen (id) + t->value_size);
  else if (t->copy (x->value, value, e) == 0)
    return 0;
  free (x->id);
  free (x->value);
  return -1;
}

static int
add_locked (struct id_table *t, const char *id, const void *value,
            struct error *e) REQUIRES (t->mutex)
{
  struct id_entry *bigger;

  if (find_locked (t, id))
    return error_set (e, EEXIST, "the id '%s' of an object is given twice",
                      id);
  bigger = realloc (t->entries, (t->nr + 1) * sizeof *bigger);
  if (!bigger)
    return error_nomem (e, t->what, (t->nr + 1) * sizeof *bigger);
  t->entries = bigger;
  if (fill (t, &bigger[t->nr], id, value, e) == -1)
    return -1;
  t->nr++;
  return 0;
}

int
id_table_add (struct id_table *t, const char *id, const void *value,
              struct error *e)
{
  int r;

  mutex_lock (&t->mutex);
  r = add_locked (t, id, value, e);
  mutex_unlock (&t->mutex);
  return r;
}

int
id_table_get (struct id_table *t, const char *id, void *value,
              struct error *e)
{
  const struct id_entry *x;
  int r = 0;

  mutex_lock (&t->mutex);
  x = find_locked (t, id);
  if (x)
    r = t->copy (value, x->value, e) == 0 ? 1 : -1;
  mutex_unlock (&t->mutex);
  return r;
}

bool
id_table_has (struct id_table *t, const char *id)
{
  bool r;

  mutex_lock (&t->mutex);
  r = find_locked (t, id) != NULL;
  mutex_unlock (&t->mutex);
  return r;
}

const char *
id_table_id (struct id_table *t, size_t i)
{
  const char *id;

  mutex_lock (&t->mutex);
  id = i < t->nr ? t->entries[i].id : NULL;
  mutex_unlock (&t->mutex);
  return id;
}

void
id_table_clear (struct id_table *t)
{
  mutex_lock (&t->mutex);
  for (size_t i = 0; i < t->nr; ++i) {
    t->clear (t->entries[i].value);
    free (t->entries[i].value);
    free (t->entries[i].id);
  }
  free (t->entries);
  t->entries = NULL;
  t->nr = 0;
  mutex_unlock (&t->mutex);
}
