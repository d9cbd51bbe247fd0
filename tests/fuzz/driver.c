/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A main for the fuzzers in a build without libFuzzer, so that make check can
 * run a sample of each:
 *
 *   fuzz-x [-runs=N] [-seed=N] [FILE or FOLDER]...
 *
 * runs every seed as it is and then N inputs that are made of them: bytes
 * changed, cut, doubled, spliced.  The same seeds and numbers make the same
 * inputs.  An input that crashes is left in the file crash-input.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t len);

enum { INPUT_SIZE = 1 << 20, MAX_SEEDS = 4096 };

struct input {
  uint8_t *data;
  size_t len;
};

static struct input seeds[MAX_SEEDS];
static size_t nr_seeds;

static const uint8_t *volatile current;
static volatile size_t current_len;

static uint64_t state;

static uint64_t
next_random (void)
{
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * UINT64_C (0x2545f4914f6cdd1d) >> 16;
}

static size_t
below (size_t n)
{
  return n ? (size_t) (next_random () % n) : 0;
}

/* Only calls that a signal handler may make. */
static void
on_crash (int sig)
{
  int fd = open ("crash-input", O_WRONLY | O_CREAT | O_TRUNC, 0666);

  if (fd >= 0 && write (fd, (const void *) current, current_len) >= 0)
    close (fd);
  signal (sig, SIG_DFL);
  raise (sig);
}

static void
run_input (const uint8_t *data, size_t len)
{
  current = data;
  current_len = len;
  LLVMFuzzerTestOneInput (data, len);
}

static void
die (const char *what)
{
  fprintf (stderr, "%s: %s\n", what, strerror (errno));
  exit (EXIT_FAILURE);
}

static void
add_seed (const char *path)
{
  FILE *f = fopen (path, "rb");
  struct input *in = &seeds[nr_seeds];

  if (!f)
    die (path);
  in->data = malloc (INPUT_SIZE);
  if (!in->data)
    die (path);
  in->len = fread (in->data, 1, INPUT_SIZE, f);
  fclose (f);
  if (nr_seeds < MAX_SEEDS - 1)
    nr_seeds++;
}

static void
add_seeds (const char *path)
{
  DIR *d = opendir (path);
  struct dirent *entry;

  if (!d) {
    add_seed (path);
    return;
  }
  while ((entry = readdir (d)) != NULL) {
    char name[4096];

    if (entry->d_name[0] == '.')
      continue;
    snprintf (name, sizeof name, "%s/%s", path, entry->d_name);
    add_seed (name);
  }
  closedir (d);
}

/* One change of the LEN bytes at P, which has room for INPUT_SIZE. */
static size_t
mutate (uint8_t *p, size_t len)
{
  static const uint64_t edges[] = {
    0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000,
    0xffffffff, INT64_MAX, (uint64_t) INT64_MAX + 1, UINT64_MAX,
  };
  size_t at = below (len), n;

  switch (below (6)) {
  case 0:                       /* a bit */
    if (len)
      p[at] ^= (uint8_t) (1 << below (8));
    break;
  case 1:                       /* a byte */
    if (len)
      p[at] = (uint8_t) next_random ();
    break;
  case 2:                       /* a number at an edge, big endian */
    n = (size_t) 1 << below (4);
    for (uint64_t v = edges[below (sizeof edges / sizeof edges[0])];
         n > 0 && at + n <= len; v >>= 8)
      p[at + --n] = (uint8_t) v;
    break;
  case 3:                       /* cut */
    len = at;
    break;
  case 4:                       /* a piece of another seed */
    if (nr_seeds) {
      const struct input *other = &seeds[below (nr_seeds)];
      size_t from = below (other->len);

      n = below (other->len - from + 1);
      if (n > INPUT_SIZE - at)
        n = INPUT_SIZE - at;
      if (n)
        memcpy (p + at, other->data + from, n);
      len = at + n > len ? at + n : len;
    }
    break;
  default:                      /* more bytes */
    n = below (64);
    for (; n > 0 && len < INPUT_SIZE; --n)
      p[len++] = (uint8_t) next_random ();
  }
  return len;
}

static void
run_mutations (size_t runs)
{
  uint8_t *p = malloc (INPUT_SIZE);

  if (!p)
    die ("malloc");
  for (size_t i = 0; i < runs; ++i) {
    const struct input *in = nr_seeds ? &seeds[below (nr_seeds)] : NULL;
    size_t len = in ? in->len : 0;

    if (len)
      memcpy (p, in->data, len);
    for (size_t n = 1 + below (8); n > 0; --n)
      len = mutate (p, len);
    run_input (p, len);
  }
  free (p);
}

int
main (int argc, char **argv)
{
  static const int crashes[] = { SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGILL };
  unsigned long long runs = 1000, seed = 1;

  for (size_t i = 0; i < sizeof crashes / sizeof crashes[0]; ++i)
    signal (crashes[i], on_crash);
  for (int i = 1; i < argc; ++i) {
    if (strncmp (argv[i], "-runs=", 6) == 0)
      runs = strtoull (argv[i] + 6, NULL, 10);
    else if (strncmp (argv[i], "-seed=", 6) == 0)
      seed = strtoull (argv[i] + 6, NULL, 10);
    else
      add_seeds (argv[i]);
  }
  state = seed * UINT64_C (0x9e3779b97f4a7c15) + 1;
  for (size_t i = 0; i < nr_seeds; ++i)
    run_input (seeds[i].data, seeds[i].len);
  run_mutations ((size_t) runs);
  printf ("%zu seeds and %llu inputs made of them\n", nr_seeds, runs);
  for (size_t i = 0; i < nr_seeds; ++i)
    free (seeds[i].data);
  return EXIT_SUCCESS;
}
