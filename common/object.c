/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Parsing --object: see object.h.  Layer: common.  No locking: no state.
 *
 * Copies of the argument are wiped, and no error repeats a value that may be
 * secret.
 */

#include <config.h>

#include <errno.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/object.h"
#include "common/secret.h"
#include "common/secure.h"
#include "common/tls_creds.h"

static const struct object_type *const types[] = {
  &object_secret, &object_tls_x509, &object_tls_psk,
};

struct object {
  const struct object_type *type;
  const char *value[OBJECT_MAX_PROPERTIES];     /* borrowed */
};

static int
set_type (struct object *o, const char *name, struct error *e)
{
  for (size_t i = 0; i < sizeof types / sizeof types[0]; ++i)
    if (strcmp (types[i]->name, name) == 0) {
      o->type = types[i];
      return 0;
    }
  if (strchr (name, '='))       /* a secret, it may be */
    return error_set (e, EINVAL, "--object: the type (secret, tls-creds-x509, "
                      "tls-creds-psk) comes first");
  if (strcmp (name, "tls-creds-anon") == 0)
    return error_set (e, ENOTSUP, "--object tls-creds-anon is not built yet "
                      "(libnbd has no TLS with servers that do not say who "
                      "they are): use tls-creds-x509 or tls-creds-psk");
  return error_set (e, EINVAL, "--object: there is no object '%s'; there are "
                    "secret, tls-creds-x509 and tls-creds-psk", name);
}

/* Index of the property; -1 = the type has none of that NAME. */
static int
find_property (const struct object_type *type, const char *name)
{
  for (int i = 0; type->properties[i]; ++i)
    if (strcmp (type->properties[i], name) == 0)
      return i;
  return -1;
}

/* VALUE is borrowed; NULL = it has none. */
static int
set (struct object *o, const char *name, const char *value, struct error *e)
{
  int i = find_property (o->type, name);

  if (i == -1)
    return error_set (e, EINVAL, "Parameter '%s' is unexpected", name);
  if (!value)
    return error_set (e, EINVAL, "Parameter '%s' expects a text", name);
  o->value[i] = value;
  return 0;
}

/* ---- the two ways to write it ---- */

/* Cut the item at *P off, "," undoubled in place, and step behind it. */
static char *
next_item (char **p)
{
  char *start = *p, *from = *p, *to = *p;

  for (; *from; ++from) {
    if (*from == ',' && *++from != ',') {
      *to = '\0';
      *p = from;
      return start;
    }
    *to++ = *from;
  }
  *to = '\0';
  *p = from;
  return start;
}

/* TEXT is changed. */
static int
parse_list (struct object *o, char *text, struct error *e)
{
  char *type = next_item (&text);

  if (strncmp (type, "qom-type=", 9) == 0)
    type += 9;
  if (set_type (o, type, e) == -1)
    return -1;
  while (*text) {
    char *name = next_item (&text), *value = strchr (name, '=');

    if (value)
      *value++ = '\0';
    else if (find_property (o->type, name) == -1)
      return error_set (e, EINVAL, "--object: after a comma, no parameter: "
                        "within a value it is written twice");
    if (set (o, name, value, e) == -1)
      return -1;
  }
  return 0;
}

static bool
is_boolean (const struct object_type *type, const char *name)
{
  int i = find_property (type, name);

  return i != -1 && (type->booleans >> i & 1);
}

static int
set_json (struct object *o, const char *name, const json_t *value,
          struct error *e)
{
  if (!is_boolean (o->type, name))
    return set (o, name, json_string_value (value), e);
  if (!json_is_boolean (value))
    return error_set (e, EINVAL, "Invalid parameter type for '%s', expected: "
                      "boolean", name);
  return set (o, name, json_is_true (value) ? "on" : "off", e);
}

static int
parse_json (struct object *o, const json_t *json, struct error *e)
{
  const char *type = json_string_value (json_object_get (json, "qom-type"));
  const char *name;
  json_t *value;

  if (!type)
    return error_set (e, EINVAL, "--object: the JSON text is not an object "
                      "with a qom-type");
  if (set_type (o, type, e) == -1)
    return -1;
  json_object_foreach ((json_t *) json, name, value)
    if (strcmp (name, "qom-type") != 0 && set_json (o, name, value, e) == -1)
      return -1;
  return 0;
}

/* ---- */

int
object_check_id (const char *id, struct error *e)
{
  static const char letters[] = "abcdefghijklmnopqrstuvwxyz"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  static const char others[] = "abcdefghijklmnopqrstuvwxyz"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._";

  if (*id && strchr (letters, *id) && id[strspn (id, others)] == '\0')
    return 0;
  return error_set (e, EINVAL, "the id of an object consists of letters, "
                    "digits, '-', '.', '_', and begins with a letter");
}

static int
add (const struct object *o, struct error *e)
{
  const char *id = o->value[OBJECT_ID];

  if (!id)
    return error_set (e, EINVAL, "Parameter 'id' is missing");
  if (object_check_id (id, e) == -1)
    return -1;
  if (secret_exists (id) || tls_creds_exist (id))
    return error_set (e, EEXIST, "the id '%s' of an object is given twice",
                      id);
  return o->type->add (o->value, e);
}

/* jansson frees what it read, and copies of it, in many places. */
static void
wiping_free (void *p)
{
  if (p)
    secure_wipe (p, malloc_usable_size (p));
  free (p);
}

static int
add_json (const char *text, struct error *e)
{
  struct object o = { .type = NULL };
  json_malloc_t old_malloc;
  json_free_t old_free;
  json_t *json;
  int r;

  json_get_alloc_funcs (&old_malloc, &old_free);
  json_set_alloc_funcs (old_malloc, wiping_free);
  json = json_loads (text, JSON_REJECT_DUPLICATES, NULL);
  r = parse_json (&o, json, e) == -1 ? -1 : add (&o, e);
  json_decref (json);
  json_set_alloc_funcs (old_malloc, old_free);
  return r;
}

int
object_add (const char *text, struct error *e)
{
  struct object o = { .type = NULL };
  size_t len = strlen (text);
  char *copy;
  int r;

  if (*text == '{')
    return add_json (text, e);
  copy = strdup (text);
  if (!copy)
    return error_nomem (e, "an object", len);
  r = parse_list (&o, copy, e) == -1 ? -1 : add (&o, e);
  secure_free (copy, len);
  return r;
}
