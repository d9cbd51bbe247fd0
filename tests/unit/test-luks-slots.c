/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Key slots that change while the power fails: the passphrase that stays opens
 * the disk in every state, a slot that says that it is in use has its key, and
 * one that says that it is not has lost it for good.  The only one that is
 * overwritten opens the disk until the new one does.
 */

#include <config.h>

#include "common/secret.h"
#include "formats/luks/luks.h"
#include "tests/unit/crash-log.h"
#include "tests/unit/harness.h"

#define KIND "key-secret=s,iter-time=1,cipher-alg=aes-128,cipher-mode=cbc," \
  "ivgen-alg=plain64"

enum { STAYS = 1, CHANGES = 0 };        /* slots */

static struct secret
secret_of (const char *text)
{
  return (struct secret) { .data = (uint8_t *) (uintptr_t) text,
                           .len = strlen (text) };
}

static struct luks_header
header_of (struct storage *st)
{
  struct luks_header h;
  struct error e = ERROR_INIT;

  memset (&h, 0, sizeof h);
  CHECK_OK (luks_read (st, 0, storage_size (st), false, &h, &e), &e);
  return h;
}

static bool
opens (const struct luks_header *h, unsigned slot, struct storage *st,
       const char *passphrase)
{
  const struct secret secret = secret_of (passphrase);
  const struct format_key key = {
    .secret = &secret, .max_iterations = 1 << 20,
  };
  struct error e = ERROR_INIT;

  return luks_slot_opens (h, slot, st, 0, &key, &e) == 1;
}

/* By any slot. */
static bool
unlocks (const struct luks_header *h, struct storage *st,
         const char *passphrase)
{
  bool r = false;

  for (unsigned i = 0; i < LUKS_SLOTS; ++i)
    r = r || (h->slots[i].active && opens (h, i, st, passphrase));
  return r;
}

/* With the passphrase NEW, or away with it (NULL). */
static void
change (struct storage *st, unsigned slot, const char *unlock, const char *new)
{
  struct luks_header h = header_of (st);
  const struct secret by = secret_of (unlock), to = secret_of (new ? new : "");
  const struct format_key key = { .secret = &by, .max_iterations = 1 << 20 };
  const struct format_key_change c = {
    .activate = new != NULL, .new_secret = new ? &to : NULL,
    .slot = (int) slot, .iter_time = 1, .force = true,
  };
  struct error e = ERROR_INIT;

  CHECK_OK (luks_amend (&h, st, 0, storage_size (st), &key, &c, &e), &e);
}

struct scene {
  const char *promise;
  bool full;                    /* there was a key in the slot */
  const char *new;              /* the one that it gets, or NULL */
  bool alone;                   /* and in no other one */
};

/* Slot CHANGES has "old" if it is FULL, slot STAYS has "stays" if not ALONE. */
static struct bytes
make_image (const struct scene *s)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_memory_new ("image", 0, &e);
  struct bytes b;

  CHECK_OK (harness_create_format (st, &format_luks, 4096, KIND, NULL, NULL,
                                   &e), &e);
  if (!s->alone)
    change (st, STAYS, "old", "stays");
  if (!s->full)
    change (st, CHANGES, "stays", NULL);
  b = bytes_of (st);
  storage_close (st);
  return b;
}

static void
judge_alone (const struct scene *s, struct storage *st, bool done)
{
  struct luks_header now = header_of (st);
  bool has_new = unlocks (&now, st, s->new), has_old = unlocks (&now, st,
                                                                "old");

  CHECK (has_new || (has_old && !done));
  CHECK (!done || (!has_old && !now.slots[STAYS].active));
}

/* What a crash left.  BEFORE: the header as it was at first; DONE: all has been
 * answered.
 */
static void
judge (const struct scene *s, struct storage *st,
       const struct luks_header *before, bool done)
{
  struct luks_header now = header_of (st), as_before = now;
  bool has_new = now.slots[CHANGES].active && s->new
    && opens (&now, CHANGES, st, s->new);

  CHECK (opens (&now, STAYS, st, "stays"));
  as_before.slots[CHANGES] = before->slots[CHANGES];
  if (s->full && (!now.slots[CHANGES].active || has_new))
    CHECK (!opens (&as_before, CHANGES, st, "old"));
  if (!s->full && now.slots[CHANGES].active)
    CHECK (has_new);
  if (done && s->new)
    CHECK (has_new);
  else if (done)
    CHECK (!now.slots[CHANGES].active);
}

static void
crash_everywhere (const struct scene *s)
{
  struct bytes template = make_image (s);
  struct storage *st = log_new (template), *state;
  struct luks_header before = header_of (st);
  uint64_t random[2];

  unit_begin (s->promise);
  change (st, CHANGES, s->alone ? "old" : "stays", s->new);
  CHECK (the_log.nr > 3);
  for (size_t end = 0; end <= the_log.nr && !unit_bad; ++end) {
    unit_random (random, sizeof random, end + 1);
    const uint64_t picks[] = { UINT64_MAX, 0, UINT64_MAX, random[0],
                               random[1] };

    for (size_t i = 0; i < sizeof picks / sizeof picks[0]; ++i) {
      state = crash_state (template, end, picks[i], i == 2);
      if (s->alone)
        judge_alone (s, state, end == the_log.nr);
      else
        judge (s, state, &before, end == the_log.nr);
      storage_close (state);
    }
  }
  storage_close (st);
  log_clear ();
  free (template.p);
}

int
main (void)
{
  static const struct scene scenes[] = {
    { "a slot in use has its key, whenever the power fails", false, "new",
      false },
    { "a slot that is erased has lost its key before it says so", true, NULL,
      false },
    { "a key that is replaced is lost before the new one is there", true,
      "new", false },
    { "the only key that is replaced opens the disk until another does", true,
      "new", true },
  };
  struct error e = ERROR_INIT;

  unit_begin ("an image with the first key");
  CHECK_OK (secret_add ("s", "old", 3, &e), &e);
  for (size_t i = 0; i < sizeof scenes / sizeof scenes[0]; ++i)
    crash_everywhere (&scenes[i]);
  secret_forget_all ();
  return unit_end ();
}
