//! Statements of an authority on a certificate, made and read by OpenSSL: what holds reaches clients, what doesn't
//! is told.

mod fetched;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, SerialNumber,
};

use crate::support::server::program;
use crate::support::{Setup, Tree, on_both};
use crate::tls::{s_client, site, tcp};

const DAYS: [&str; 2] = ["-ndays", "5"];

/// An authority in files, with OpenSSL as its responder.
struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(tree: &Tree) -> Self {
        let directory = tree.outside().to_path_buf();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        fs::write(directory.join("ca.pem"), &pem).unwrap();
        fs::write(directory.join("ca.key"), key.serialize_pem()).unwrap();
        let issuer = Issuer::new(params, key);
        Self {
            directory,
            issuer,
            pem,
        }
    }

    /// With two certificates.
    fn with_two(tree: &Tree) -> Self {
        let authority = Self::new(tree);
        for of in [("a", 0x1234), ("other", 0x5678)] {
            authority.issue(of, Vec::new());
        }
        authority
    }

    /// A certificate for NAME.example with this number and these extensions, in files of that name.
    fn issue(&self, (name, serial): (&str, u64), extensions: Vec<CustomExtension>) {
        let mut params = CertificateParams::new(vec![format!("{name}.example")]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        params.custom_extensions = extensions;
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        fs::write(self.path(&format!("{name}.pem")), pem + &self.pem).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
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
        let authority = Authority::with_two(&tree);
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
fn a_certificate_that_must_come_with_a_statement_and_gets_none_is_warned_of() {
    if !has_openssl() {
        return;
    }
    let tree = Tree::new();
    let authority = Authority::with_two(&tree);
    // TLS Feature, status_request (RFC 7633).
    let feature = [0x30, 3, 2, 1, 5];
    let feature = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], feature.into());
    authority.issue(("a", 0x1234), vec![feature]);
    let statement = authority.says("a", true, DAYS);
    let (stapled, silent) = (authority.line(&statement), authority.line(Path::new("")));
    let silent = silent.replace(", ocsp = \"\"", "");
    let warns = |line: &str| {
        let (code, text) = check(&tree, line);
        assert_eq!(code, Some(0), "{text}");
        text.contains("must-staple")
    };
    assert!(warns(&silent) && !warns(&stapled));
    let denied = silent.replace(" }", ", ocsp = false }");
    assert!(warns(&denied));
    authority.issue(("a", 0x1234), Vec::new());
    assert!(!warns(&silent));
}

fn check(tree: &Tree, line: &str) -> (Option<i32>, String) {
    let file = tree.outside().join("beltway.toml");
    let text = site("a.example", tree, line);
    fs::write(&file, text.replace(":0\"", ":8443\"")).unwrap();
    let output = program().args(["check", "-c"]).arg(&file).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn what_may_not_reach_clients_is_told() {
    if !has_openssl() {
        return;
    }
    let tree = Tree::new();
    let authority = Authority::with_two(&tree);
    let stranger = Tree::new();
    let of_stranger = Authority::with_two(&stranger).says("a", true, DAYS);
    let check = |ocsp: &Path| check(&tree, &authority.line(ocsp));
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
