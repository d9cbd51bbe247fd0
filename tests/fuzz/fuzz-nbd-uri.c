/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* URIs of NBD servers, as an image may name them: whatever is accepted has
 * exactly one way to the server, no host that could be an option, and nothing
 * in it that could end a string early or drive a terminal.
 */

#include <config.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "storage/nbd.h"

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t len);

static void
must (bool so)
{
  if (!so)
    abort ();
}

static void
check_text (const char *s)
{
  for (; s && *s; s++)
    must ((unsigned char) *s >= ' ' && *s != '\177');
}

static void
check_target (const struct nbdx_target *t, const char *uri)
{
  const bool tls = strncmp (uri, "nbds", 4) == 0;

  must (strncmp (uri, "nbd", 3) == 0 && t->tls == tls);
  must (t->export && strlen (t->export) <= 4096);
  if (t->socket) {
    must (!t->host && !t->port && t->socket[0] == '/');
    must (strlen (t->socket) < sizeof ((struct sockaddr_un *) 0)->sun_path);
  }
  else {
    must (t->host && t->port && t->host[0] && t->host[0] != '-');
    must (atoi (t->port) > 0 && atoi (t->port) < 65536);
  }
  must (tls || (!t->tls_certificates && !t->tls_psk_file && !t->tls_username));
  check_text (t->socket);
  check_text (t->host);
  check_text (t->export);
  check_text (t->tls_username);
  check_text (t->tls_certificates);
  check_text (t->tls_psk_file);
  check_text (t->tls_hostname);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  struct nbdx_target t = { .name = NULL };
  struct error e = ERROR_INIT;
  char *uri = malloc (len + 1);

  if (!uri)
    return 0;
  memcpy (uri, data, len);
  uri[len] = '\0';
  if (nbdx_target_parse (uri, NULL, &t, &e) == 0)
    check_target (&t, uri);
  else
    must (e.err != 0 && e.text[0] != '\0');
  check_text (t.label);
  check_text (e.text);
  nbdx_target_free (&t);
  free (uri);
  return 0;
}
