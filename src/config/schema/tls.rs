//! The keys of `tls`.

use super::{BOOLEAN, DURATION_OR_FALSE, Key, key};

pub(super) const TLS: &[Key] = &[
    key(
        "cert",
        "a file name or a list of file names",
        "\"/etc/beltway/example.com.pem\"",
        "",
        "The certificate in PEM: the server's own first, then those between it and the root. A list\n\
         has one for each kind of key, such as ECDSA and RSA: a client gets the first that it takes.",
    ),
    key(
        "key",
        "a file name or a list of file names",
        "\"/etc/beltway/example.com.key\"",
        "",
        "The private key of the certificate in PEM, without a password; as many as `cert` has, in the\n\
         same order. Nobody but the user that starts beltway has to be able to read it.",
    ),
    key(
        "self_signed",
        BOOLEAN,
        "true",
        "false",
        "Instead of `cert` and `key`: the authority of this machine signs for the names of the site, as\n\
         with tls = \"self-signed\". It is made once, in /var/lib/beltway or $XDG_STATE_HOME/beltway, and\n\
         `beltway cert trust` says how to have clients trust it. Certificates are renewed in time.",
    ),
    key(
        "ocsp",
        "true, false, a file name or a list of file names",
        "true",
        "false",
        "Whether the authority is asked, by HTTP and in time, what it says of the certificate (OCSP):\n\
         clients get it along with the certificate, as long as it holds. Or files that have it in DER,\n\
         as many as `cert` has, in the same order; one that is replaced is used without a reload.",
    ),
    key(
        "policy",
        "\"modern\" or \"intermediate\"",
        "\"intermediate\"",
        "\"modern\"",
        "Which versions are spoken: \"modern\" is TLS 1.3 alone, which every browser since 2020 knows;\n\
         \"intermediate\" is TLS 1.2, too, with suites that have forward secrecy.",
    ),
    key(
        "default",
        BOOLEAN,
        "true",
        "false",
        "Whether a client gets this certificate that asks for an unknown name, or for none. Otherwise\n\
         it is refused, unless a site answers for any host.",
    ),
    key(
        "hsts",
        DURATION_OR_FALSE,
        "\"365d\"",
        "false",
        "Tells browsers to come back by HTTPS alone for so long (Strict-Transport-Security). With a\n\
         self-signed certificate only those heed it that trust the authority.",
    ),
];
