/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Names of images: which tree they are parsed into, and what is refused. */

#include <config.h>

#include <errno.h>
#include <unistd.h>

#include <jansson.h>

#include "common/cleanup.h"
#include "image/image.h"
#include "image/name.h"
#include "image/policy.h"
#include "image/tree.h"
#include "image/url.h"
#include "unit.h"

/* NAME under FORMAT must be the tree that WANT says. */
static void
check_tree (const char *name, json_t *tree, const char *want,
            struct error *e)
{
  json_t *wanted = json_loads (want, 0, NULL);
  CLEANUP_FREE char *text = tree ? json_dumps (tree, JSON_COMPACT) : NULL;

  if (!tree)
    unit_fail (__FILE__, __LINE__, "%s: %s", name, e->text);
  else if (!wanted || !json_equal (tree, wanted))
    unit_fail (__FILE__, __LINE__, "%s: %s instead of %s", name,
               text ? text : "(no text)", want);
  json_decref (tree);
  json_decref (wanted);
  error_clear (e);
}

/* It must fail, and the error must contain WANT. */
static void
check_refused (const char *name, json_t *tree, const char *want,
               struct error *e)
{
  if (tree)
    unit_fail (__FILE__, __LINE__, "%s: accepted", name);
  else if (!e->err || !strstr (e->text, want))
    unit_fail (__FILE__, __LINE__, "%s: '%s' does not say '%s'", name, e->text,
               want);
  json_decref (tree);
  error_clear (e);
}

struct row { const char *name, *format, *want; };

static void
names_to_trees (const struct row *rows)
{
  struct error e = ERROR_INIT;

  for (; rows->name; ++rows)
    check_tree (rows->name, image_name_parse (rows->name, rows->format, &e),
                rows->want, &e);
}

static void
names_refused (const struct row *rows)
{
  struct error e = ERROR_INIT;

  for (; rows->name; ++rows)
    check_refused (rows->name, image_name_parse (rows->name, rows->format, &e),
                   rows->want, &e);
}

#define FILE_A "{\"driver\": \"file\", \"filename\": \"a\"}"
#define NBD(uri) "{\"driver\": \"nbd\", \"uri\": \"" uri "\"}"

static const struct row plain_names[] = {
  { "a", NULL, FILE_A },
  { "file:a", NULL, FILE_A },
  { "a", "qcow2", "{\"driver\": \"qcow2\", \"file\": " FILE_A "}" },
  { "a", "raw", "{\"driver\": \"raw\", \"file\": " FILE_A "}" },
  { "./x:y", NULL, "{\"driver\": \"file\", \"filename\": \"./x:y\"}" },
  { "d/x:y", NULL, "{\"driver\": \"file\", \"filename\": \"d/x:y\"}" },
  { "file:x:y", NULL, "{\"driver\": \"file\", \"filename\": \"x:y\"}" },
  { "host_device:/dev/x", NULL,
    "{\"driver\": \"host_device\", \"filename\": \"/dev/x\"}" },
  { "[x", NULL, "{\"driver\": \"file\", \"filename\": \"[x\"}" },
  { "null-co://", NULL, "{\"driver\": \"null-co\"}" },
  { NULL, NULL, NULL },
};

static const struct row nbd_names[] = {
  { "nbd://h:1/x", NULL, NBD ("nbd://h:1/x") },
  { "nbds://h/x", "qcow2", "{\"driver\": \"qcow2\", \"file\": "
    NBD ("nbds://h/x") "}" },
  { "nbd+unix:///?socket=/s", NULL, NBD ("nbd+unix:///?socket=/s") },
  { "nbd:h:1", NULL, NBD ("nbd://h:1") },
  { "nbd:h:1:exportname=a:b c", NULL, NBD ("nbd://h:1/a%3Ab%20c") },
  { "nbd:[::1]:1", NULL, NBD ("nbd://[::1]:1") },
  { "nbd:h:1/x?y", NULL, NBD ("nbd://h:1%2Fx%3Fy") },
  { "nbd:a:b]/c:1", NULL, NBD ("nbd://[a:b%5D%2Fc]:1") },
  { "nbd:unix:/a b/s", NULL, NBD ("nbd+unix:///?socket=/a%20b/s") },
  { "nbd:unix:/s:exportname=x?y", NULL, NBD ("nbd+unix:///x%3Fy?socket=/s") },
  { NULL, NULL, NULL },
};

static const struct row wrong_names[] = {
  { "", NULL, "requires a file name" },
  { "file:", NULL, "requires a file name" },
  { "xx:a", NULL, "Unknown protocol 'xx'" },
  { "NBD://h", NULL, "Unknown protocol 'NBD'" },
  { "nbd+ssh://h/", NULL, "Unknown protocol 'nbd+ssh'" },
  { "a", "foo", "Unknown driver 'foo'" },
  { "a", "vmdk", "qemu-nbd -r -f vmdk" },
  { "nbd:", NULL, "NBD server address missing" },
  { "nbd:h", NULL, "error parsing address 'h'" },
  { "nbd:unix:", NULL, "path of the Unix socket is missing" },
  { "json:{", NULL, "Could not parse the JSON options" },
  { "json:[]", NULL, "Invalid JSON object given" },
  { "json:{\"driver\": \"file\", \"driver\": \"raw\"}", NULL,
    "Could not parse" },
  { "json:{}", NULL, "Must specify either driver or file" },
  { "json:{\"filename\": \"a\"}", NULL, "Must specify either driver or file" },
  { "json:{\"driver\": \"qcow2\"}", NULL, "A block device must be specified" },
  { "json:{\"driver\": \"qcow2\", \"filename\": \"a\"}", NULL,
    "A block device must be specified" },
  { "json:{\"driver\": \"quorum\"}", NULL, "Unknown driver 'quorum'" },
  { "json:{\"driver\": \"file\"}", NULL, "requires a file name" },
  { "json:{\"driver\": \"file\", \"filename\": \"a\\u0000b\"}", NULL,
    "Could not parse" },
  { NULL, NULL, NULL },
};

#define JSON(inside) "json:{" inside "}"
#define RAW(file) "{\"driver\": \"raw\", \"file\": " file "}"

static const struct row json_names[] = {
  { JSON ("\"driver\": \"file\", \"filename\": \"a\""), NULL, RAW (FILE_A) },
  { JSON ("\"driver\": \"file\", \"filename\": \"a\""), "qcow2",
    "{\"driver\": \"qcow2\", \"file\": " FILE_A "}" },
  { JSON ("\"file\": " FILE_A), NULL, "{\"file\": " FILE_A "}" },
  { JSON ("\"file.filename\": \"a\""), NULL, "{\"file\": " FILE_A "}" },
  { JSON ("\"driver\": \"raw\", \"file.driver\": \"file\", "
          "\"file\": {\"filename\": \"a\"}"), NULL, RAW (FILE_A) },
  { JSON ("\"file\": {\"filename\": \"nbd://h/x\"}"), NULL,
    "{\"file\": {\"driver\": \"file\", \"filename\": \"nbd://h/x\"}}" },
  { "json:{'file.filename': 'a'}", NULL, "{\"file\": " FILE_A "}" },
  { "json:{'file.filename': 'a\\'\"\\\\b'}", NULL,
    "{\"file\": {\"driver\": \"file\", \"filename\": \"a'\\\"\\\\b\"}}" },
  { JSON ("\"driver\": \"raw\", \"file\": " FILE_A ", \"backing\": null"),
    NULL, "{\"driver\": \"raw\", \"file\": " FILE_A ", \"backing\": null}" },
  { JSON ("\"driver\": \"raw\", \"offset\": 512, \"size\": \"1k\", "
          "\"file\": " FILE_A), NULL,
    "{\"driver\": \"raw\", \"offset\": 512, \"size\": \"1k\", \"file\": "
    FILE_A "}" },
  { JSON ("\"driver\": \"qcow2\", \"file\": " FILE_A ", \"backing\": null"),
    NULL, "{\"driver\": \"qcow2\", \"file\": " FILE_A ", \"backing\": null}" },
  { JSON ("\"driver\": \"qcow2\", \"file\": " FILE_A
          ", \"backing.driver\": \"raw\", \"backing.file.filename\": \"a\""),
    NULL, "{\"driver\": \"qcow2\", \"file\": " FILE_A ", \"backing\": "
    RAW (FILE_A) "}" },
  { JSON ("\"driver\": \"nbd\", \"server\": {\"type\": \"inet\", "
          "\"host\": \"h\", \"port\": \"1\"}, \"export\": \"e\""), NULL,
    RAW ("{\"driver\": \"nbd\", \"server\": {\"type\": \"inet\", "
         "\"host\": \"h\", \"port\": \"1\"}, \"export\": \"e\"}") },
  { "[\"nbdkit\", \"null\"]", NULL,
    "{\"driver\": \"nbd\", \"command\": [\"nbdkit\", \"null\"]}" },
  { NULL, NULL, NULL },
};

#define QCOW2(rest) JSON ("\"driver\": \"qcow2\", \"file\": " FILE_A ", " rest)

static const struct row wrong_options[] = {
  { QCOW2 ("\"bla\": 1"), NULL,
    "Block format 'qcow2' does not support the option 'bla'" },
  { JSON ("\"driver\": \"file\", \"filename\": \"a\", \"bla\": 1"), NULL,
    "Block protocol 'file' doesn't support the option 'bla'" },
  { QCOW2 ("\"offset\": 1"), NULL, "does not support the option 'offset'" },
  { QCOW2 ("\"discard\": \"foo\""), NULL, "discard=foo" },
  { QCOW2 ("\"discard\": true"), NULL, "discard" },
  { QCOW2 ("\"detect-zeroes\": \"foo\""), NULL, "detect-zeroes=foo" },
  { QCOW2 ("\"read-only\": \"maybe\""), NULL, "read-only" },
  { QCOW2 ("\"read-only\": 1"), NULL, "read-only" },
  { QCOW2 ("\"node-name\": \"#x\""), NULL, "Invalid node-name" },
  { QCOW2 ("\"cache\": {\"foo\": true}"), NULL, "cache.direct" },
  { QCOW2 ("\"overlap-check\": \"all\""), NULL, "overlap-check" },
  { QCOW2 ("\"lazy-refcounts\": \"x\""), NULL, "lazy-refcounts" },
  { QCOW2 ("\"encrypt.format\": \"rot13\""), NULL, "encrypt.format=rot13" },
  { QCOW2 ("\"encrypt.key\": \"s\""), NULL, "'encrypt.key' is unexpected" },
  { QCOW2 ("\"key-secret\": \"s\""), NULL, "'key-secret'" },
  { QCOW2 ("\"l2-cache-size\": \"big\""), NULL, "l2-cache-size" },
  { QCOW2 ("\"cache-size\": -1"), NULL, "cache-size" },
  { QCOW2 ("\"file.filename\": \"b\""), NULL, "'filename' is given twice" },
  { QCOW2 ("\"file..x\": \"b\""), NULL, "not the name of an option" },
  { QCOW2 ("\"backing\": \"node0\""), NULL, "Cannot find device='node0'" },
  { JSON ("\"driver\": \"qcow2\", \"file\": \"node0\""), NULL,
    "Cannot find device='node0'" },
  { JSON ("\"driver\": \"raw\", \"file\": " FILE_A ", \"backing\": {}"),
    NULL, "Driver doesn't support backing files" },
  { JSON ("\"driver\": \"qcow2\", \"file\": {\"driver\": \"qcow2\", "
          "\"file\": " FILE_A "}"), NULL, "a format over another format" },
  { QCOW2 ("\"read-only\": true"), "raw", "contradicts the driver" },
  { JSON ("\"driver\": \"nbd\""), NULL, "NBD server address missing" },
  { JSON ("\"driver\": \"nbd\", \"uri\": \"nbd://h\", \"host\": \"h\""), NULL,
    "given twice" },
  { JSON ("\"driver\": \"nbd\", \"host\": \"h\", \"tls-creds\": 1"), NULL,
    "'tls-creds' must be a text" },
  { JSON ("\"driver\": \"nbd\", \"host\": \"h\", \"tls-hostname\": \"t\""),
    NULL, "tls-hostname needs tls-creds" },
  { JSON ("\"driver\": \"nbd\", \"command\": [\"x\"], \"tls-creds\": \"t\""),
    NULL, "together with command" },
  { JSON ("\"driver\": \"nbd\", \"server.type\": \"vsock\""), NULL,
    "inet or unix" },
  { JSON ("\"driver\": \"nbd\", \"server.type\": \"unix\""), NULL,
    "server.path" },
  { JSON ("\"driver\": \"nbd\", \"command\": []"), NULL, "list of texts" },
  { JSON ("\"driver\": \"nbd\", \"command\": [1]"), NULL, "not a text" },
  { NULL, NULL, NULL },
};

static void
test_image_opts (void)
{
  static const struct row good[] = {
    { "driver=qcow2,file.filename=a", NULL,
      "{\"driver\": \"qcow2\", \"file\": " FILE_A "}" },
    { "file.filename=a,,b", NULL,
      "{\"file\": {\"driver\": \"file\", \"filename\": \"a,b\"}}" },
    { "driver=raw,file.filename=a,,,size=1k", NULL,
      "{\"driver\": \"raw\", \"size\": \"1k\", "
      "\"file\": {\"driver\": \"file\", \"filename\": \"a,\"}}" },
    { "driver=file,filename=a", NULL, RAW (FILE_A) },
    { "driver=nbd,server.type=unix,server.path=/s", NULL,
      RAW ("{\"driver\": \"nbd\", \"server\": {\"type\": \"unix\", "
           "\"path\": \"/s\"}}") },
    { "file.driver=nbd,file.command.0=nbdkit,file.command.1=null", NULL,
      "{\"file\": {\"driver\": \"nbd\", \"command\": [\"nbdkit\", "
      "\"null\"]}}" },
    { "driver=qcow2,file.filename=a,backing=", NULL,
      "{\"driver\": \"qcow2\", \"file\": " FILE_A ", \"backing\": null}" },
    { NULL, NULL, NULL },
  };
  static const struct row bad[] = {
    { "", NULL, "Must specify either driver or file" },
    { "a", NULL, "'a' is not key=value" },
    { "driver=raw,driver=raw,file.filename=a", NULL, "given twice" },
    { "driver=qcow2,file.filename=a,=1", NULL, "not the name of an option" },
    { "driver=qcow2,file.filename=a,cache.writeback=foo", NULL, "cache" },
    { "driver=raw,file=foo", NULL, "Cannot find device='foo'" },
    { NULL, NULL, NULL },
  };
  struct error e = ERROR_INIT;

  for (const struct row *r = good; r->name; ++r)
    check_tree (r->name, image_opts_parse (r->name, &e), r->want, &e);
  for (const struct row *r = bad; r->name; ++r)
    check_refused (r->name, image_opts_parse (r->name, &e), r->want, &e);
}

static void
test_file_of_any_name (void)
{
  static const char odd[] = "x\xff:y";
  char folder[] = "/tmp/test-name.XXXXXX";
  struct error e = ERROR_INIT;
  json_t *tree;
  FILE *fp;

  CHECK (mkdtemp (folder) && chdir (folder) == 0);
  check_refused (odd, image_name_parse (odd, NULL, &e), "Unknown protocol",
                 &e);
  fp = fopen (odd, "w");
  CHECK (fp != NULL);
  if (!fp)
    return;
  fclose (fp);
  tree = image_name_parse (odd, NULL, &e);
  CHECK_STR (tree_filename (tree), odd);
  json_decref (tree);
  /* A name in an image does not get this grace. */
  CHECK (name_to_storage (odd, true, &e) == NULL);
  CHECK (unlink (odd) == 0 && chdir ("/") == 0 && rmdir (folder) == 0);
}

static void
test_urls (void)
{
  struct error e = ERROR_INIT;
  json_t *tree = image_name_parse ("https://u@h/a?b,c", NULL, &e);
  const json_t *argv = json_object_get (tree, "command");

  if (!tree) {
    CHECK (e.err == ENOTSUP && strstr (e.text, "is not installed"));
    return;
  }
  CHECK (json_array_size (argv) == 4);
  CHECK_STR (json_string_value (json_array_get (argv, 1)), "-r");
  CHECK_STR (json_string_value (json_array_get (argv, 2)), "curl");
  CHECK_STR (json_string_value (json_array_get (argv, 3)),
             "url=https://u@h/a?b,c");
  json_decref (tree);
}

static void
test_ssh (void)
{
  static const struct { const char *url, *argv[7]; } rows[] = {
    { "ssh://u%40v@h:22/d/a%20b?host_key_check=no",
      { "ssh", "user=u@v", "port=22", "host=h", "path=/d/a b",
        "verify-remote-host=false" } },
    { "ssh://[::1]:22/p", { "ssh", "port=22", "host=::1", "path=/p" } },
    { "ssh://u@[fe80::1]/p", { "ssh", "user=u", "host=fe80::1", "path=/p" } },
  };
  struct error e = ERROR_INIT;

  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; ++i) {
    json_t *tree = image_name_parse (rows[i].url, NULL, &e);
    CLEANUP_FREE char **argv = NULL;

    if (!tree) {
      CHECK (e.err == ENOTSUP && strstr (e.text, "is not installed"));
      return;
    }
    argv = url_command (tree, false);
    CHECK_STR (argv[1], "-r");
    for (size_t j = 0; rows[i].argv[j]; ++j)
      CHECK_STR (argv[j + 2], rows[i].argv[j]);
    json_decref (tree);
  }
  check_refused ("ssh", image_name_parse ("ssh://[::1/p", NULL, &e), "host",
                 &e);
  check_refused ("ssh", image_name_parse ("ssh://[::1]x/p", NULL, &e), "host",
                 &e);
  check_refused ("ssh", image_name_parse ("ssh://h", NULL, &e), "ssh://", &e);
  check_refused ("ssh", image_name_parse ("ssh://-oX/p", NULL, &e), "host",
                 &e);
  check_refused ("ssh", image_name_parse ("ssh://h/a%00b", NULL, &e), "%",
                 &e);
  check_refused ("ssh", image_name_parse ("ssh://h/a?x=y", NULL, &e),
                 "not built", &e);
}

static void
test_resolve (void)
{
  static const struct { const char *parent, *name, *want; } rows[] = {
    { "d/a", "b", "d/b" },
    { "a", "b", "b" },
    { "./a", "b", "./b" },
    { "/d/a", "../b", "/d/../b" },
    { "d/a", "/b", "/b" },
    { "d/a", "nbd://h/x", "nbd://h/x" },
    { "d/a", "file:b", "file:b" },
    { "d/a", "json:{}", "json:{}" },
    { "d/a", "./x:y", "d/./x:y" },
    { "file:d/a", "b", "d/b" },
    { "nbd://h/x/y", "b", "b" },
    { "json:{\"driver\": \"raw\", \"offset\": 512, \"file\": {\"driver\": "
      "\"file\", \"filename\": \"d/a\"}}", "b", "d/b" },
  };

  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; ++i) {
    CLEANUP_FREE char *got = image_name_resolve (rows[i].parent, rows[i].name);

    CHECK_STR (got, rows[i].want);
  }
  CHECK (image_name_is_resolvable ("a", "b"));
  CHECK (image_name_is_resolvable ("nbd://h/x", "/b"));
  CHECK (!image_name_is_resolvable ("nbd://h/x", "b"));
  CHECK (!image_name_is_resolvable ("[ nbdkit null ]", "b"));
}

static void
test_display (void)
{
  static const struct { const char *name, *want; } rows[] = {
    { "d/a", "d/a" },
    { "file:a", "a" },
    { JSON ("\"driver\": \"file\", \"filename\": \"a\""), "a" },
    { QCOW2 ("\"discard\": \"unmap\", \"file.locking\": \"off\""), "a" },
    { QCOW2 ("\"backing\": null"), "a" },
    { "nbd:unix:/s:exportname=x", "nbd+unix:///x?socket=/s" },
    { "[\"nbdkit\", \"null\"]", "[ nbdkit null ]" },
    { "null-co://", "null-co://" },
    { JSON ("\"driver\": \"raw\", \"offset\": 512, \"file\": " FILE_A),
      "json:{\"offset\": 512, \"driver\": \"raw\", \"file\": {\"driver\": "
      "\"file\", \"filename\": \"a\"}}" },
    { JSON ("\"driver\": \"null-co\", \"size\": 4096"),
      "json:{\"driver\": \"raw\", \"file\": {\"driver\": \"null-co\", "
      "\"size\": 4096}}" },
  };
  struct error e = ERROR_INIT;

  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; ++i) {
    json_t *tree = image_name_parse (rows[i].name, NULL, &e);
    CLEANUP_FREE char *got = tree ? tree_display_name (tree, "raw") : NULL;

    CHECK_STR (got, rows[i].want);
    json_decref (tree);
  }
}

/* ---- names in images ---- */

static void
test_policy_follows (void)
{
  struct policy_image in = { "d/top", "d/top", false };
  struct policy_image nbd = { "nbd://h/x", NULL, false };
  struct error e = ERROR_INIT;

  check_tree ("base", policy_backing (&in, "base", "qcow2", &e),
              "{\"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", "
              "\"filename\": \"d/base\"}}", &e);
  check_tree ("base", policy_backing (&in, "base", NULL, &e),
              "{\"driver\": \"file\", \"filename\": \"d/base\"}", &e);
  check_tree ("/base", policy_backing (&nbd, "/base", NULL, &e),
              "{\"driver\": \"file\", \"filename\": \"/base\"}", &e);
  check_tree ("nbd", policy_backing (&nbd, "nbd+unix:///?socket=/s", "raw",
                                     &e),
              RAW (NBD ("nbd+unix:///?socket=/s")), &e);
  check_tree ("json", policy_backing (&in, JSON ("\"driver\": \"raw\", "
                                                 "\"file\": " FILE_A),
                                      "raw", &e),
              RAW (FILE_A), &e);
  /* Not a URL that would start a command: a path. */
  check_tree ("json", policy_backing (&in, JSON ("\"file.filename\": "
                                                 "\"https://h/x\""),
                                      NULL, &e),
              "{\"file\": {\"driver\": \"file\", "
              "\"filename\": \"https://h/x\"}}", &e);
  check_tree ("data", policy_data_file (&in, "a", &e), FILE_A, &e);
}

static void
test_policy_refuses (void)
{
  static const struct { const char *name, *want; } rows[] = {
    { "", "empty" },
    { "https://h/x", "would start a command" },
    { "ssh://h/x", "would start a command" },
    { "xx:a", "Unknown protocol" },
    { "nbd+ssh://h/", "Unknown protocol" },
    { "nbds://h/?tls-psk-file=/etc/shadow", "tls-psk-file" },
    { "nbds://h/?socket=/s&tls-certificates=/d", "tls-certificates" },
    { "nbds://h/?tls%2Dpsk-file=/k", "not followed" },
    { JSON ("\"driver\": \"nbd\", \"command\": [\"touch\", \"x\"]"),
      "'command' is not taken from an image" },
    { JSON ("\"driver\": \"raw\", \"file\": {\"driver\": \"nbd\", "
            "\"command\": [\"touch\", \"x\"]}"),
      "'command' is not taken from an image" },
    { QCOW2 ("\"backing\": {\"file\": {\"driver\": \"nbd\", "
             "\"uri\": \"nbds://h/?tls-psk-file=/k\"}}"), "tls-psk-file" },
    { JSON ("\"driver\": \"nbd\", \"host\": \"h\", \"tls-creds\": \"t\""),
      "'tls-creds' is not taken from an image" },
    { QCOW2 ("\"file.locking\": \"off\""), "'locking' is not taken" },
    { QCOW2 ("\"encrypt.key-secret\": \"s\", "
             "\"encrypt.max-iterations\": 4294967295"),
      "'encrypt.max-iterations' is not taken" },
    { JSON ("\"driver\": \"luks\", \"key-secret\": \"s\", "
            "\"max-iterations\": 4294967295, \"file.filename\": \"x\""),
      "'max-iterations' is not taken" },
    { JSON ("\"driver\": \"quorum\""), "Unknown driver" },
    { "json:{", "Could not parse" },
  };
  struct policy_image in = { "d/top", "d/top", false };
  struct policy_image closed = { "d/top", "d/top", true };
  struct policy_image nbd = { "nbd://h/x", NULL, false };
  struct error e = ERROR_INIT;

  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; ++i)
    check_refused (rows[i].name,
                   policy_backing (&in, rows[i].name, NULL, &e),
                   rows[i].want, &e);
  check_refused ("closed", policy_backing (&closed, "base", "raw", &e),
                 "untrusted", &e);
  check_refused ("closed", policy_data_file (&closed, "data", &e),
                 "untrusted", &e);
  check_refused ("relative", policy_backing (&nbd, "base", "raw", &e),
                 "local folder", &e);
  check_refused ("data", policy_data_file (&in, JSON ("\"driver\": "
                                                      "\"null-co\""), &e),
                 "must be a path or an NBD URI", &e);
  check_refused ("foreign", policy_backing (&in, "base", "vmdk", &e),
                 "d/top: its backing file 'base' is not followed", &e);
}

int
main (void)
{
  unit_begin ("a path is a file, with and without a format");
  names_to_trees (plain_names);
  unit_begin ("NBD URIs and the older nbd: names mean the same servers");
  names_to_trees (nbd_names);
  unit_begin ("json: names are unfolded into one tree");
  names_to_trees (json_names);
  unit_begin ("a name that means nothing is refused, with the reason");
  names_refused (wrong_names);
  unit_begin ("an option that is unknown or not built is refused by name");
  names_refused (wrong_options);
  unit_begin ("--image-opts reads as qemu-img does");
  test_image_opts ();
  unit_begin ("a file that exists is opened whatever its name looks like");
  test_file_of_any_name ();
  unit_begin ("a URL becomes nbdkit with its curl plugin");
  test_urls ();
  unit_begin ("ssh:// becomes nbdkit with its ssh plugin");
  test_ssh ();
  unit_begin ("relative names belong to the folder of their image");
  test_resolve ();
  unit_begin ("a name is shown as short as it can be");
  test_display ();
  unit_begin ("the policy follows files, NBD exports and plain json:");
  test_policy_follows ();
  unit_begin ("the policy refuses commands, keys and what is closed");
  test_policy_refuses ();
  return unit_end ();
}
