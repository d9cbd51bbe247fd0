/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* amend: the key slots of LUKS, alone or in qcow2.
 *
 * Layer: ops.  No locking: image/ lets no guest I/O in meanwhile.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/text.h"
#include "ops/amend.h"

/* The options as they were given; strings are borrowed from the object.  An
 * empty ID is one that there is not: with a script's empty variable a slot
 * would be erased whatever opens it.
 */
struct request {
  const char *prefix;           /* "" or "encrypt." */
  const json_t *options;
};

static const char *
option (const struct request *rq, const char *name)
{
  char key[64];

  snprintf (key, sizeof key, "%s%s", rq->prefix, name);
  return json_string_value (json_object_get (rq->options, key));
}

static int
get_secret (const struct request *rq, const char *name, struct secret *s,
            const struct secret **given, struct error *e)
{
  const char *id = option (rq, name);

  *given = NULL;
  if (!id)
    return 0;
  if (secret_get (id, s, e) == -1)
    return -1;
  *given = s;
  return 0;
}

static int
parse_numbers (const struct request *rq, struct format_key_change *c,
               struct error *e)
{
  const char *slot = option (rq, "keyslot"), *time = option (rq, "iter-time");
  uint64_t n = 0;

  c->slot = -1;
  c->iter_time = 2000;
  if (slot && parse_number ("keyslot", slot, 0, INT32_MAX, &n, e) == -1)
    return -1;
  if (slot)
    c->slot = (int) n;
  return time ? parse_number ("iter-time", time, 0, UINT32_MAX, &c->iter_time,
                              e) : 0;
}

static int
parse_state (const struct request *rq, struct format_key_change *c,
             struct error *e)
{
  const char *state = option (rq, "state");

  if (!state)
    return error_set (e, EINVAL, "Parameter '%sstate' is missing",
                      rq->prefix);
  c->activate = strcmp (state, "active") == 0;
  if (c->activate || strcmp (state, "inactive") == 0)
    return 0;
  return error_set (e, EINVAL, "Parameter '%sstate' does not accept value '%s'",
                    rq->prefix, state);
}

static const char *
prefix_of (const struct image *im)
{
  const char *key = im->format->ops->key_option;

  return key && strncmp (key, "encrypt.", 8) == 0 ? "encrypt." : "";
}

/* Some option that begins with PREFIX? */
bool
amend_has_keys (const struct image *im, const json_t *options)
{
  const char *prefix = prefix_of (im), *key;
  json_t *value;

  if (!im->format->ops->change_key)
    return false;
  json_object_foreach ((json_t *) options, key, value)
    if (strncmp (key, prefix, strlen (prefix)) == 0)
      return true;
  return false;
}

int
amend_keys_parse (const struct image *im, const json_t *options, bool force,
                  struct amend_keys *k, struct error *e)
{
  const struct request rq = { .prefix = prefix_of (im), .options = options };
  struct format_key_change *c = &k->change;

  *k = (struct amend_keys) { .change = { .force = force } };
  if (parse_state (&rq, c, e) == 0 && parse_numbers (&rq, c, e) == 0
      && get_secret (&rq, "new-secret", &k->new, &c->new_secret, e) == 0
      && get_secret (&rq, "old-secret", &k->old, &c->old_secret, e) == 0)
    return 0;
  amend_keys_free (k);
  return -1;
}

void
amend_keys_free (struct amend_keys *k)
{
  secret_free (&k->new);
  secret_free (&k->old);
}
