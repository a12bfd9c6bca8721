//! Statements of an authority on a certificate, made and read by OpenSSL: what holds reaches clients, what doesn't
//! is told.

mod fetched;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SerialNumber};

use crate::support::server::program;
use crate::support::{Setup, Tree, on_both};
use crate::tls::{s_client, site, tcp};

const DAYS: [&str; 2] = ["-ndays", "5"];

/// An authority with a certificate for `a.example`, in files, and OpenSSL as its responder.
struct Authority {
    directory: PathBuf,
}

impl Authority {
    fn new(tree: &Tree) -> Self {
        let directory = tree.outside().to_path_buf();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap().pem();
        fs::write(directory.join("ca.pem"), &own).unwrap();
        fs::write(directory.join("ca.key"), key.serialize_pem()).unwrap();
        let issuer = Issuer::new(params, key);
        for (name, serial) in [("a", 0x1234_u64), ("other", 0x5678)] {
            let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            params.serial_number = Some(SerialNumber::from(serial));
            let key = KeyPair::generate().unwrap();
            let pem = params.signed_by(&key, &issuer).unwrap().pem();
            fs::write(directory.join(format!("{name}.pem")), pem + &own).unwrap();
            fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What the authority says of a certificate; `is_good` or revoked.
    fn says(&self, of: &str, is_good: bool, life: [&str; 2]) -> PathBuf {
        let serial = if of == "a" { "1234" } else { "5678" };
        let line = match is_good {
            true => format!("V\t350101000000Z\t\t{serial}\tunknown\t/CN=a\n"),
            false => format!("R\t350101000000Z\t240101000000Z\t{serial}\tunknown\t/CN=a\n"),
        };
        fs::write(self.path("index.txt"), line).unwrap();
        let out = self.path(&format!("{of}-{is_good}.ocsp"));
        let run = |arguments: &[&str]| {
            let output = Command::new("openssl")
                .arg("ocsp")
                .args(arguments)
                .current_dir(&self.directory)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        let certificate = format!("{of}.pem");
        run(&[
            "-issuer",
            "ca.pem",
            "-cert",
            &certificate,
            "-no_nonce",
            "-reqout",
            "request",
        ]);
        let signer = [
            "-index",
            "index.txt",
            "-CA",
            "ca.pem",
            "-rsigner",
            "ca.pem",
            "-rkey",
            "ca.key",
        ];
        let name = out.to_str().unwrap();
        let what = ["-reqin", "request", "-respout", name, life[0], life[1]];
        run(&[&signer[..], &what].concat());
        out
    }

    fn line(&self, ocsp: &Path) -> String {
        let (cert, key) = (self.path("a.pem"), self.path("a.key"));
        format!("tls = {{ cert = {cert:?}, key = {key:?}, ocsp = {ocsp:?} }}\n")
    }
}

fn has_openssl() -> bool {
    let found = Command::new("openssl")
        .arg("version")
        .stdout(Stdio::null())
        .status();
    if found.is_err() {
        crate::support::skipped("openssl is not installed");
    }
    found.is_ok()
}

#[test]
fn a_client_that_asks_gets_what_the_authority_says() {
    if !has_openssl() {
        return;
    }
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let authority = Authority::new(&tree);
        let file = authority.says("a", true, DAYS);
        let config = site("a.example", &tree, &authority.line(&file));
        let server = Setup::run(engine, &config).start();
        let ask = |more: &[&str]| s_client(tcp(server.address()), &authority.path("ca.pem"), more);
        for _ in 0..2 {
            let output = ask(&["-status"]);
            assert!(
                output.contains("OCSP Response Status: successful"),
                "{output}"
            );
            assert!(output.contains("Cert Status: good"), "{output}");
            assert!(output.contains("HTTP/1.1 200 OK"), "{output}");
            // A worker makes the same again of what a reload brings.
            server.ask_must("reload");
        }
        assert!(!ask(&[]).contains("OCSP Response Status"));
        // One that can't be given to clients changes nothing.
        fs::write(&file, "nonsense").unwrap();
        let refused = server.control(&["reload"]);
        assert_eq!(refused.code, Some(78));
        assert!(
            refused.stderr.contains("holds no OCSP response"),
            "{refused:?}"
        );
        assert!(ask(&["-status"]).contains("Cert Status: good"));
        authority.says("a", true, ["-ndays", "6"]);
        assert!(server.must(&["plan"]).stdout.contains("ocsp"));
    });
}

#[test]
fn what_may_not_reach_clients_is_told() {
    if !has_openssl() {
        return;
    }
    let tree = Tree::new();
    let authority = Authority::new(&tree);
    let stranger = Tree::new();
    let of_stranger = Authority::new(&stranger).says("a", true, DAYS);
    let check = |ocsp: &Path| {
        let file = tree.outside().join("beltway.toml");
        let text = site("a.example", &tree, &authority.line(ocsp));
        fs::write(&file, text.replace(":0\"", ":8443\"")).unwrap();
        let output = program().args(["check", "-c"]).arg(&file).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let large = authority.path("large");
    fs::write(&large, vec![b'0'; 20_000]).unwrap();
    for (file, expected) in [
        (authority.path("missing"), "doesn't exist"),
        (authority.path("a.pem"), "holds no OCSP response in DER"),
        (large, "is larger than 16 KiB"),
        (
            authority.says("other", true, DAYS),
            "is about another certificate",
        ),
        (authority.says("a", false, DAYS), "is revoked"),
        (of_stranger, "isn't signed by the certificate's authority"),
    ] {
        let (code, text) = check(&file);
        assert_eq!(code, Some(78), "{expected}: {text}");
        assert!(
            text.contains(expected) && text.contains("help: "),
            "{expected}: {text}"
        );
    }
    let (code, text) = check(&authority.says("a", true, DAYS));
    assert!(code == Some(0) && !text.contains("OCSP"), "{text}");
    let soon = authority.says("a", true, ["-nmin", "30"]);
    let (code, text) = check(&soon);
    assert!(
        code == Some(0) && text.contains("OCSP response ends in 0 hours"),
        "{text}"
    );
}
