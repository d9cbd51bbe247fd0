# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.
# shellcheck shell=bash

# Keys and certificates for servers and clients: "load lib" and then "load tls".

# make_key USER FILE: add a pre-shared key
make_key () {
  printf '%s:%s\n' "$1" "$(head -c 32 /dev/urandom | xxd -p -c 64)" >>"$2"
}

# make_certificate DIR FILE NAME USE: signed by DIR's authority
make_certificate () {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
    -subj "/CN=$2" -keyout "$1/$2-key.pem" -out "$1/$2.csr" 2>>openssl.log
  openssl x509 -req -in "$1/$2.csr" -CA "$1/ca-cert.pem" \
    -CAkey "$1/ca-key.pem" -CAcreateserial -days 2 -extfile <(printf \
    'subjectAltName=%s\nextendedKeyUsage=%s\nkeyUsage=digitalSignature\n' \
    "$3" "$4") -out "$1/$2-cert.pem" 2>>openssl.log
}

# make_authority DIR [NAME]: an authority, and certificates by it for a client
# and for the address of start_tcp (or the subjectAltName NAME).  No name is
# looked up: a bare system has no localhost in /etc/hosts.
make_authority () {
  need openssl
  mkdir "$1"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
    -days 2 -subj "/CN=test authority" -addext keyUsage=keyCertSign,cRLSign \
    -keyout "$1/ca-key.pem" -out "$1/ca-cert.pem" 2>openssl.log
  make_certificate "$1" server "${2:-IP:127.0.0.1}" serverAuth
  make_certificate "$1" client DNS:client.example clientAuth
}
