# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# Images in odd places: a qcow2 image behind a web server, read through
# [ nbdkit curl URL ] and by its URL; a qcow2 file that is the content of an NBD
# export, written and checked there.

load lib

# start_nginx FOLDER [STATEMENT...]: nginx gives out the files in FOLDER; sets
# WEB.  Its port is a socket that it inherits, so it has to guess none; all its
# files are in the test's folder.
start_nginx () {
  local folder=$1
  shift
  PATH=$PATH:/usr/sbin:/sbin
  need nginx
  mkdir nginx
  cat >nginx/start <<'END_OF_SCRIPT'
#!/bin/sh
port=$(cat port)
sed -i "s/@PORT@/$port/" nginx/conf
NGINX='3;' exec nginx -p "$PWD/nginx/" -c "$PWD/nginx/conf" -e "$PWD/nginx/error.log"
END_OF_SCRIPT
  chmod +x nginx/start
  cat >nginx/conf <<END_OF_CONFIGURATION
daemon off;
user $(id -un) $(id -gn);
worker_processes 1;
pid $PWD/nginx/pid;
error_log $PWD/nginx/error.log;
events { worker_connections 256; }
http {
  access_log $PWD/nginx/access.log;
  client_body_temp_path $PWD/nginx/body;
  proxy_temp_path $PWD/nginx/proxy;
  fastcgi_temp_path $PWD/nginx/fastcgi;
  uwsgi_temp_path $PWD/nginx/uwsgi;
  scgi_temp_path $PWD/nginx/scgi;
  server {
    listen 127.0.0.1:@PORT@;
    root $folder;
    $*
  }
}
END_OF_CONFIGURATION
  start_listening ./nginx/start
  WEB=http://127.0.0.1:$PORT
  poll 30 nginx_answers || { cat nginx/error.log; fail 'nginx did not start'; }
}

# Without a goodbye, master and worker.
kill_nginx () {
  local master
  master=$(cat nginx/pid)
  # shellcheck disable=SC2046
  kill -9 "$master" $(pgrep -P "$master")
}

nginx_answers () {
  curl -s -o /dev/null "$WEB/"
}

# An image that differs from one kind of cluster to the next.
make_source () {
  random_image disk.raw 20M "$1"
  mkdir -p www
  "$NBDIMG" convert -c -f raw -O qcow2 disk.raw www/disk.qcow2
}

need_curl () {
  need curl qemu-img
  "$config_NBDKIT" curl --version >/dev/null 2>&1 ||
    skip "nbdkit's curl plugin is not installed"
}

# What was asked of the web server: ranges, not the whole file.
asked_for_ranges () {
  grep -q ' 206 ' nginx/access.log
  run ! grep -E '"GET [^"]*" 200 ' nginx/access.log
}

@test "an image behind a web server is converted, by command and by URL" {
  need_curl
  make_source 1
  start_nginx "$PWD/www"
  "$NBDIMG" convert -O raw [ nbdkit curl "$WEB/disk.qcow2" ] a.raw
  cmp disk.raw a.raw
  "$NBDIMG" convert -O qcow2 "$WEB/disk.qcow2" b.qcow2
  qemu-img compare -f raw disk.raw b.qcow2
  qemu-img check b.qcow2
  "$NBDIMG" compare disk.raw "$WEB/disk.qcow2"
  "$NBDIMG" compare "$WEB/disk.qcow2" [ nbdkit curl "$WEB/disk.qcow2" ]
  asked_for_ranges
}

@test "info, map and check of an image behind a web server" {
  need_curl
  make_source 2
  start_nginx "$PWD/www"
  "$NBDIMG" info "$WEB/disk.qcow2" | grep -x 'file format: qcow2'
  "$NBDIMG" map --output=json "$WEB/disk.qcow2" >theirs
  "$NBDIMG" map --output=json www/disk.qcow2 | diff - theirs
  "$NBDIMG" check "$WEB/disk.qcow2"
  asked_for_ranges
  # Of 20 MiB only tables and a cluster or two.
  : >nginx/access.log
  "$NBDIMG" io -r -c 'read 5M 512' "$WEB/disk.qcow2"
  poll 10 grep -q ' 206 ' nginx/access.log
  [ "$(awk '{ n += $10 } END { print n + 0 }' nginx/access.log)" -lt 1048576 ]
}

@test "an image behind a web server is served, and a copy on write over it" {
  need_curl
  make_source 3
  start_nginx "$PWD/www"
  start "$NBDIMG" serve -r -k serve.sock [ nbdkit curl "$WEB/disk.qcow2" ]
  poll 30 test -S serve.sock
  nbdcopy "nbd+unix:///?socket=serve.sock" a.raw
  cmp disk.raw a.raw
  # The plugin takes a command as one word; who types brackets is told so.
  expect_error 1 'JSON array' \
    nbdkit_env -r -U - "$PLUGIN" [ nbdkit curl "$WEB/disk.qcow2" ]
  start_nbdkit -r "file=[\"nbdkit\", \"curl\", \"$WEB/disk.qcow2\"]"
  nbdcopy "$URI" b.raw
  cmp disk.raw b.raw
  stop_server
  start_nbdkit -r "$WEB/disk.qcow2"
  "$NBDIMG" compare disk.raw "$URI"
  # As the base of an overlay, over the URI of a server for it.
  "$NBDIMG" create -q -f qcow2 -b "$URI" -F raw over.qcow2
  "$NBDIMG" io -c 'write -P 9 1000 70000' over.qcow2
  qemu-io -f raw -c 'write -P 9 1000 70000' disk.raw
  "$NBDIMG" compare disk.raw over.qcow2
  qemu-img check over.qcow2
}

@test "a chain whose base is behind a web server, named on the command line" {
  need_curl
  make_source 4
  start_nginx "$PWD/www"
  qemu-img create -q -f qcow2 -u -b disk.qcow2 -F qcow2 over.qcow2 20M
  cp disk.raw want.raw
  qemu-io -f raw -c 'write -P 5 3M 1M' want.raw
  start_server curl "$WEB/disk.qcow2"
  local options=driver=qcow2,file.filename=over.qcow2
  options+=,backing.driver=qcow2,backing.file.driver=nbd
  options+=,backing.file.server.type=unix,backing.file.server.path=$SOCKET
  "$NBDIMG" io --image-opts -c 'write -P 5 3M 1M' "$options"
  "$NBDIMG" convert --image-opts -O raw "$options" a.raw
  cmp want.raw a.raw
}

@test "a web server that says no is an error that says what it said" {
  need_curl
  make_source 5
  start_nginx "$PWD/www" 'location /secret { return 403; }'
  expect_error 1 '404' "$NBDIMG" convert "$WEB/nothere" a.raw
  [[ $stderr == *"$WEB/nothere"* ]]
  expect_error 1 '403' "$NBDIMG" info "$WEB/secret"
  expect_error 1 '404' "$NBDIMG" convert [ nbdkit curl "$WEB/nothere" ] a.raw
  [ ! -e a.raw ]
  # It is read-only: nothing can be written there.
  expect_error 1 'read-only' "$NBDIMG" io -c 'write 0 512' "$WEB/disk.qcow2"
  expect_error 1 '' "$NBDIMG" convert -n -O qcow2 disk.raw "$WEB/disk.qcow2"
}

@test "a web server that ends in mid-copy ends the copy with an error" {
  need_curl
  make_source 6
  start_nginx "$PWD/www" 'limit_rate 400k;'
  start "$NBDIMG" convert -O raw "$WEB/disk.qcow2" a.raw 2>error
  local copy=$STARTED_PID
  poll 60 served_much
  kill_nginx
  local status=0
  wait "$copy" || status=$?
  cat error
  [ "$status" = 1 ]
  grep -q "$WEB/disk.qcow2" error
  [ ! -e a.raw ]
}
served_much () { [ -e a.raw ] && [ "$(wc -l <nginx/access.log)" -gt 4 ]; }

# ---- a qcow2 file that is an export ----

# start_export SERVER FILE: its bytes as they are
start_export () {
  case $1 in
  nbdkit) start_server file "$2" ;;
  qemu-nbd) start_qemu_nbd -f raw --discard=unmap "$2" ;;
  esac
}

@test "a qcow2 file on an export is made, written and checked there" {
  need qemu-img qemu-nbd
  local server
  for server in nbdkit qemu-nbd; do
    truncate -s 40M remote
    random_image disk.raw 20M 7
    start_export $server remote
    "$NBDIMG" create -q -f qcow2 "$URI" 20M
    "$NBDIMG" convert -n -f raw -O qcow2 disk.raw "$URI"
    "$NBDIMG" check "$URI"
    "$NBDIMG" io -c 'write -P 7 100k 300k' -c 'write -z -u 2M 1M' \
      -c 'discard 4M 1M' -c flush "$URI"
    qemu-io -f raw -c 'write -P 7 100k 300k' -c 'write -z 2M 1M' \
      -c 'write -z 4M 1M' disk.raw
    "$NBDIMG" check "$URI"
    "$NBDIMG" compare -f raw disk.raw "$URI"
    stop_server
    # It is an ordinary image file, with room behind its end.
    qemu-img check remote
    qemu-img compare -f raw -F qcow2 disk.raw remote
    rm remote disk.raw
    rm -f "$SOCKET" "$PIDFILE"
  done
}

@test "the plugin serves a qcow2 file on an export, for writing" {
  need qemu-img qemu-nbd qemu-io
  local server inner options
  for server in nbdkit qemu-nbd; do
    for options in cluster_size=64k cluster_size=4k,lazy_refcounts=on \
        extended_l2=on compat=0.10; do
      qemu-img create -q -f qcow2 -o "$options" remote 20M
      truncate -s 40M remote
      start_export $server remote
      inner=$SERVER_PID
      start_nbdkit "file=$URI"
      random_image disk.raw 20M 8
      nbdcopy disk.raw "$URI"
      qemu-io -f raw -c 'write -P 3 1k 200k' -c 'write -z 3M 512k' \
        -c 'discard 5M 1M' -c flush "$URI"
      qemu-io -f raw -c 'write -P 3 1k 200k' -c 'write -z 3M 512k' disk.raw
      qemu-io -f raw -r -c 'read -P 3 1k 200k' "$URI"
      nbdcopy "$URI" copy.raw
      qemu-io -f raw -c 'write -z 5M 1M' disk.raw
      cmp disk.raw copy.raw
      stop_server
      SERVER_PID=$inner stop_server
      qemu-img check remote
      qemu-img compare -f raw -F qcow2 disk.raw remote
      rm -f remote disk.raw ./*.sock ./*.pid
    done
  done
}

@test "an image on an export that is full says so, and stays whole" {
  need qemu-img
  qemu-img create -q -f qcow2 remote 20M
  truncate -s 2M remote
  start_server file remote
  expect_error 1 'no free cluster left, and the storage' \
    "$NBDIMG" io -c 'write -P 1 0 4M' "$URI"
  "$NBDIMG" check "$URI"
  "$NBDIMG" io -c 'write -P 2 0 512k' -c 'read -P 2 0 512k' "$URI"
  "$NBDIMG" check "$URI"
  stop_server
  qemu-img check remote
}
