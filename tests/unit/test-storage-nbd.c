/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Names of NBD servers (storage/nbd_uri.c).  What the servers behind them do
 * is tested in tests/nbd-storage.bats.
 */

#include <config.h>

#include <errno.h>
#include <unistd.h>

#include "storage/nbd.h"
#include "tests/unit/unit.h"

static struct nbdx_target
parsed (const char *uri, const struct nbd_tls *tls)
{
  struct nbdx_target t = { .name = NULL };
  struct error e = ERROR_INIT;

  CHECK_OK (nbdx_target_parse (uri, tls, &t, &e), &e);
  return t;
}

/* The URI is refused; the message names it and has WHY in it. */
static void
refused (const char *uri, const struct nbd_tls *tls, const char *why)
{
  struct nbdx_target t = { .name = NULL };
  struct error e = ERROR_INIT;

  if (nbdx_target_parse (uri, tls, &t, &e) != -1)
    unit_fail (__FILE__, __LINE__, "%s was accepted", uri);
  else if (!strstr (e.text, why) || strncmp (e.text, uri, strlen (uri)) != 0)
    unit_fail (__FILE__, __LINE__, "%s: %s", uri, e.text);
  nbdx_target_free (&t);
}

static void
tcp (const char *uri, const char *host, const char *port, const char *export)
{
  struct nbdx_target t = parsed (uri, NULL);

  CHECK (t.socket == NULL);
  CHECK_STR (t.host, host);
  CHECK_STR (t.port, port);
  CHECK_STR (t.export, export);
  CHECK_STR (t.name, uri);
  nbdx_target_free (&t);
}

static void
test_tcp (void)
{
  unit_begin ("nbd://HOST:PORT/EXPORT is understood");
  tcp ("nbd://h", "h", "10809", "");
  tcp ("nbd://h/", "h", "10809", "");
  tcp ("nbd://h:1/e", "h", "1", "e");
  tcp ("nbd://h:65535//e/f", "h", "65535", "/e/f");
  tcp ("nbd://h:/e", "h", "10809", "e");
  tcp ("nbd://[::1]:5/e", "::1", "5", "e");
  tcp ("nbd://[fe80::1%25eth0]/", "fe80::1%eth0", "10809", "");
  tcp ("nbds://h/%23%3f%25a%C3%A4", "h", "10809", "#?%a\xc3\xa4");
  tcp ("nbd:///e", "localhost", "10809", "e");
}

static void
test_unix (void)
{
  struct nbdx_target t;
  char cwd[4096], want[4200];

  unit_begin ("nbd+unix:///EXPORT?socket=PATH is understood");
  t = parsed ("nbd+unix:///a%2Fb?socket=/x/y%20z", NULL);
  CHECK (t.host == NULL);
  CHECK (!t.tls);
  CHECK_STR (t.socket, "/x/y z");
  CHECK_STR (t.export, "a/b");
  nbdx_target_free (&t);

  unit_begin ("a relative socket is found after a change of directory");
  t = parsed ("nbd+unix://?socket=s", NULL);
  CHECK (getcwd (cwd, sizeof cwd) != NULL);
  snprintf (want, sizeof want, "%s/s", cwd);
  CHECK_STR (t.socket, want);
  nbdx_target_free (&t);
}

static void
test_tls (void)
{
  const struct nbd_tls psk = { .psk_file = "/k", .username = "bob",
                               .verify = true };
  struct nbdx_target t;

  unit_begin ("nbds:// requires TLS and takes its parameters");
  t = parsed ("nbds://alice@h/?tls-psk-file=/f", NULL);
  CHECK (t.tls && t.tls_verify);
  CHECK_STR (t.tls_username, "alice");
  CHECK_STR (t.tls_psk_file, "/f");
  nbdx_target_free (&t);
  t = parsed ("nbds+unix:///?tls-certificates=/d&socket=/s&tls-verify-peer=0"
              "&tls-hostname=n", NULL);
  CHECK (t.tls && !t.tls_verify);
  CHECK_STR (t.tls_certificates, "/d");
  CHECK_STR (t.tls_hostname, "n");
  CHECK_STR (t.socket, "/s");
  nbdx_target_free (&t);

  unit_begin ("credentials of the caller make TLS required");
  t = parsed ("nbd://h/", &psk);
  CHECK (t.tls && t.tls_verify);
  CHECK_STR (t.tls_psk_file, "/k");
  CHECK_STR (t.tls_username, "bob");
  nbdx_target_free (&t);
  refused ("nbds://h/?tls-psk-file=/f", &psk, "given twice");

  unit_begin ("TLS parameters without TLS are refused");
  refused ("nbd://h/?tls-psk-file=/f", NULL, "needs the scheme nbds");
  refused ("nbd://alice@h/", NULL, "needs TLS");
  refused ("nbds://h/?tls-psk-file=/f&tls-certificates=/d", NULL, "exclude");
}

static void
test_schemes (void)
{
  unit_begin ("every other scheme is refused by name");
  refused ("nbd+ssh://-oProxyCommand=x/", NULL, "'nbd+ssh' is not supported");
  refused ("nbds+ssh://h/", NULL, "'nbds+ssh' is not supported");
  refused ("nbd+vsock://1/", NULL, "'nbd+vsock' is not supported");
  refused ("nbds+vsock://1/", NULL, "'nbds+vsock' is not supported");
  refused ("http://h/", NULL, "'http' is not supported");
  refused ("NBD://h/", NULL, "'NBD' is not supported");
  refused ("://h/", NULL, "'' is not supported");
  refused ("nbd:unix:/s", NULL, "not an NBD URI");
  refused ("", NULL, "not an NBD URI");
}

static void
test_hosts (void)
{
  unit_begin ("a host that could be an option is refused");
  refused ("nbd://-x/", NULL, "cannot begin with '-'");
  refused ("nbd://%2dx/", NULL, "cannot begin with '-'");
  refused ("nbd://[-x]/", NULL, "cannot begin with '-'");
  refused ("nbds://u@-x/", NULL, "cannot begin with '-'");

  unit_begin ("hosts and ports that are wrong are refused");
  refused ("nbd://[::1/", NULL, "']' is missing");
  refused ("nbd://[::1]x/", NULL, "after ']'");
  refused ("nbd://h:0/", NULL, "port");
  refused ("nbd://h:65536/", NULL, "port");
  refused ("nbd://h:-1/", NULL, "port");
  refused ("nbd://h:1x/", NULL, "port");
  refused ("nbd://::1/", NULL, "port");
}

static void
test_parameters (void)
{
  char long_path[200];

  unit_begin ("parameters that are missing, unknown or twice are refused");
  refused ("nbd+unix:///", NULL, "needs ?socket=PATH");
  refused ("nbd+unix:///?socket=", NULL, "socket is empty");
  refused ("nbd+unix:///?socket", NULL, "has no value");
  refused ("nbd+unix:///?socket=/a&socket=/b", NULL, "given twice");
  refused ("nbd+unix://h/?socket=/a", NULL, "has no host");
  refused ("nbd://h/?socket=/a", NULL, "'socket' is not supported");
  refused ("nbd://h/?x=1", NULL, "'x' is not supported");
  refused ("nbds://h/?tls-verify-peer=maybe", NULL, "tls-verify-peer");
  snprintf (long_path, sizeof long_path, "nbd+unix:///?socket=/%0*d", 120, 0);
  refused (long_path, NULL, "at most 107 bytes");

  unit_begin ("characters that have no place in a URI are refused");
  refused ("nbd://h/%00", NULL, "control characters");
  refused ("nbd://h%0a/", NULL, "control characters");
  refused ("nbd+unix:///?socket=/a%7f", NULL, "control characters");
  refused ("nbd://h/%", NULL, "hexadecimal");
  refused ("nbd://h/%4", NULL, "hexadecimal");
  refused ("nbd://h/%g0", NULL, "hexadecimal");
  refused ("nbd://h/a#b", NULL, "%23");
}

static void
test_messages (void)
{
  struct nbdx_target t = { .name = NULL };
  struct error e = ERROR_INIT;
  char *uri = unit_alloc (6000);

  unit_begin ("an export name has at most 4096 bytes");
  strcpy (uri, "nbd://h/");
  memset (uri + 8, 'x', 4096);
  uri[8 + 4096] = '\0';
  CHECK_OK (nbdx_target_parse (uri, NULL, &t, &e), &e);
  nbdx_target_free (&t);
  memset (&t, 0, sizeof t);
  strcat (uri, "x");
  CHECK_FAILS (nbdx_target_parse (uri, NULL, &t, &e), &e, ENAMETOOLONG);

  unit_begin ("a long URI leaves room for what is wrong with it");
  CHECK (strlen (t.label) < 256 && strstr (t.label, "..."));
  CHECK_STR (t.name, uri);
  nbdx_target_free (&t);
  free (uri);

  unit_begin ("control characters of a URI do not get into a message");
  memset (&t, 0, sizeof t);
  CHECK (nbdx_target_parse ("nbd://h/\033[2J", NULL, &t, &e) == -1);
  CHECK (strchr (e.text, '\033') == NULL);
  CHECK (strstr (e.text, "%1B") != NULL);
  nbdx_target_free (&t);
}

int
main (void)
{
  test_tcp ();
  test_unix ();
  test_tls ();
  test_schemes ();
  test_hosts ();
  test_parameters ();
  test_messages ();
  return unit_end ();
}
