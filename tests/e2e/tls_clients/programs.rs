//! Client certificates as programs show them that others have written: curl and `openssl s_client`, in every
//! form that is right or wrong.

use super::*;
use crate::support::{Server, has};

/// What is shown, and why it is refused, as the status tells it; `None` where it isn't.
struct Form {
    name: &'static str,
    shown: Option<Shown>,
    refused: Option<&'static str>,
}

impl Authority {
    /// Signs what `change` makes of a certificate that is right.
    fn issue_as(&self, change: impl FnOnce(&mut CertificateParams)) -> (CertificateParams, Shown) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "Anna");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(100));
        params.not_before = in_days!(-10);
        params.not_after = in_days!(10);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let shown = Shown {
            pem: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        };
        (params, shown)
    }

    fn forms(&self, tree: &Tree) -> Vec<Form> {
        let stranger = Self::new(tree, "Strangers CA");
        // Of the same name as ours, with another key.
        let forger = Self::new(&Tree::new(), "Clients CA");
        let (params, below) = self.issue_as(|params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.extended_key_usages = Vec::new();
        });
        let key = KeyPair::from_pem(&below.key).unwrap();
        let below_issuer = Self {
            issuer: Issuer::new(params, key),
            pem: PathBuf::new(),
        };
        let signed_below = below_issuer.issue("Below", 5, 10);
        let whole_chain = Shown {
            pem: format!("{}{}", signed_below.pem, below.pem),
            key: signed_below.key.clone(),
        };
        let (_, early) = self.issue_as(|params| params.not_before = in_days!(2));
        let (_, for_servers) = self.issue_as(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        // No authority at all, though a client of ours has signed it.
        let (params, anna) = self.issue_as(|_| {});
        let key = KeyPair::from_pem(&anna.key).unwrap();
        let by_client = Self {
            issuer: Issuer::new(params, key),
            pem: PathBuf::new(),
        };
        let by_client = by_client.issue("Friend", 6, 10);
        let by_client = Shown {
            pem: format!("{}{}", by_client.pem, anna.pem),
            key: by_client.key,
        };
        let unknown = Some("TLS: client certificate of an unknown authority");
        let of = |name, shown, refused| Form {
            name,
            shown: Some(shown),
            refused,
        };
        vec![
            of("right", self.issue("Anna", 1, 10), None),
            of("by one below ours", whole_chain, None),
            Form {
                name: "none",
                shown: None,
                refused: Some("TLS: no certificate from the client"),
            },
            of(
                "expired",
                self.issue("Old", 2, -1),
                Some("TLS: expired client certificate"),
            ),
            of(
                "not valid yet",
                early,
                Some("TLS: client certificate not valid yet"),
            ),
            of(
                "of another authority",
                stranger.issue("Eve", 1, 10),
                unknown,
            ),
            of(
                "of one with our name",
                forger.issue("Anna", 1, 10),
                Some("TLS: "),
            ),
            of("one below is missing", signed_below, unknown),
            of("signed by a client", by_client, Some("TLS: ")),
            of(
                "for servers alone",
                for_servers,
                Some("TLS: client certificate for something else"),
            ),
            of(
                "revoked",
                self.issue("Gone", 7, 10),
                Some("TLS: revoked client certificate"),
            ),
        ]
    }
}

/// How a program is told to ask the server, with what it shows in these files; its output.
type Asks = fn(&Server, &Pem, &str, Option<(&str, &str)>) -> String;

fn curl(server: &Server, pem: &Pem, version: &str, shown: Option<(&str, &str)>) -> String {
    let address = tcp(server.address());
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--noproxy", "*", "--resolve"])
        .arg(format!("a.example:{}:{}", address.port(), address.ip()))
        .arg("--cacert")
        .arg(&pem.cert)
        .args([&format!("--tlsv{version}"), "--tls-max", version]);
    if let Some((cert, key)) = shown {
        curl.args(["--cert", cert, "--key", key]);
    }
    let output = curl
        .arg("-i")
        .arg(format!("https://a.example:{}/a.txt", address.port()))
        .output()
        .unwrap();
    let answered = output.stdout.starts_with(b"HTTP/1.1 200 OK\r\n");
    assert_eq!(output.status.success(), answered, "{output:?}");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn openssl(server: &Server, pem: &Pem, version: &str, shown: Option<(&str, &str)>) -> String {
    let version = format!("-tls{}", version.replace('.', "_"));
    let mut more = vec![&*version];
    if let Some((cert, key)) = shown {
        // The rest of the chain stands in the same file.
        more.extend(["-cert", cert, "-cert_chain", cert, "-key", key]);
    }
    s_client(tcp(server.address()), &pem.cert, &more)
}

fn every_form(program: &str, asks: Asks) {
    if !has(program) {
        return;
    }
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let authority = Authority::new(&tree, "Clients CA");
        let list = tree.outside().join("clients.crl");
        fs::write(&list, authority.list(&[7])).unwrap();
        let forms = authority.forms(&tree);
        for (required, has_list) in [(true, true), (false, false)] {
            let crl = match has_list {
                true => format!(", crl = {list:?}"),
                false => String::new(),
            };
            let lines = format!(
                "{}client_certificates = {{ ca = {:?}{crl}, required = {required} }}\n",
                pem.line(", policy = \"intermediate\""),
                authority.pem
            );
            let setup = Setup::run(engine, &site("a.example", &tree, &lines));
            let server = setup.workers(1).start();
            for (number, form) in forms.iter().enumerate() {
                let [cert, key] = ["pem", "key"].map(|suffix| {
                    let path = tree.outside().join(format!("{number}.{suffix}"));
                    path.to_str().unwrap().to_owned()
                });
                if let Some(shown) = &form.shown {
                    fs::write(&cert, &shown.pem).unwrap();
                    fs::write(&key, &shown.key).unwrap();
                }
                let files = form.shown.as_ref().map(|_| (&*cert, &*key));
                let refused = match form.name {
                    // Who is only asked may come without, and not with a wrong one.
                    "none" if !required => None,
                    "revoked" if !has_list => None,
                    // A list is of one authority alone.
                    "by one below ours" if has_list => {
                        Some("TLS: no revocation list for a client certificate")
                    }
                    _ => form.refused,
                };
                for version in ["1.2", "1.3"] {
                    let said = asks(&server, &pem, version, files);
                    let is_answered = said.contains("HTTP/1.1 200 OK");
                    let what = format!("{}, TLS {version}, {required}", form.name);
                    assert_eq!(is_answered, refused.is_none(), "{what}: {said}");
                    assert_eq!(said.contains("\r\n\r\ncontent"), is_answered, "{what}");
                }
                if let Some(reason) = refused {
                    wait_until(reason, PATIENCE, || {
                        server.status().to_string().contains(reason)
                    });
                }
            }
        }
    });
}

#[test]
fn curl_comes_in_by_what_is_right_alone() {
    every_form("curl", curl);
}

#[test]
fn openssl_comes_in_by_what_is_right_alone() {
    every_form("openssl", openssl);
}
