//! The keys of `client_certificates`.

use super::{BOOLEAN, Key, key};

/// What a key takes that names a field.
const FIELD: &str = "the name of a field";

pub(super) const CLIENTS: &[Key] = &[
    key(
        "ca",
        "a file name or a list of file names",
        "\"/etc/beltway/clients-ca.pem\"",
        "",
        "The authorities in PEM that issue certificates to clients. No others are believed, not those\n\
         of the public web either.",
    ),
    key(
        "crl",
        "a file name or a list of file names",
        "\"/etc/beltway/clients.crl\"",
        "",
        "Their revocation lists in PEM. With any, every authority needs one that has not ended: who is\n\
         not known to be good is refused. One that is replaced is used without a reload.",
    ),
    key(
        "required",
        BOOLEAN,
        "false",
        "true",
        "Whether a client without a certificate is refused. One with a wrong certificate always is.",
    ),
    key(
        "verified",
        FIELD,
        "\"X-Client-Verify\"",
        "",
        "The field of requests to backends that says SUCCESS, or NONE of a client without a\n\
         certificate. Whatever a client itself sends in this field and the next ones is removed.",
    ),
    key(
        "subject",
        FIELD,
        "\"X-Client-Subject\"",
        "",
        "The field with the client's name, such as CN=Anna,O=Example (RFC 4514); what isn't printable\n\
         ASCII is written as \\C3\\A4.",
    ),
    key(
        "issuer",
        FIELD,
        "\"X-Client-Issuer\"",
        "",
        "The field with the name of who has issued the certificate, written in the same way.",
    ),
    key(
        "serial",
        FIELD,
        "\"X-Client-Serial\"",
        "",
        "The field with the number of the certificate, in hexadecimal.",
    ),
    key(
        "fingerprint",
        FIELD,
        "\"X-Client-Fingerprint\"",
        "",
        "The field with the SHA-256 of the certificate, in hexadecimal.",
    ),
];
