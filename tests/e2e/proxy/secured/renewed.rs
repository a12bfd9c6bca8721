//! Files of TLS to servers that are replaced while the server runs: without a reload.

use std::fs;
use std::time::Duration;

use super::{Authority, Backend, config, front, refused};
use crate::proxy::backend::ok;
use crate::support::{on_both, wait_until};

/// Longer than files may be the middle of a change.
const PATIENCE: Duration = Duration::from_secs(40);

#[test]
fn files_that_are_replaced_are_used_without_a_reload() {
    on_both(|engine| {
        let (authority, clients, other) = (Authority::new(), Authority::new(), Authority::new());
        authority.sign("server", &["localhost"], |_| {});
        clients.sign("client", &["client.example"], |_| {});
        other.sign("wrong", &["client.example"], |_| {});
        let backend = Backend::secured(
            &authority.config_with("server", Some(&clients)),
            |connection| {
                while connection.request().is_some() {
                    let shown = connection.tls().peer_certificates().is_some();
                    connection.send(ok(&shown.to_string()));
                }
            },
        );
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str| files.path().join(name);
        let put = |name: &str, of: &Authority, from: &str| {
            fs::copy(of.file(from), file(name)).unwrap();
        };
        put("ca.pem", &other, "ca.pem");
        put("own.pem", &other, "wrong.pem");
        put("own.key", &other, "wrong.key");
        let table = format!(
            "tls = {{ ca = {:?}, cert = {:?}, key = {:?} }}",
            file("ca.pem"),
            file("own.pem"),
            file("own.key")
        );
        let https = backend.https("localhost");
        let server = front(engine, &https, &table, "");
        refused(
            &server,
            502,
            &["its certificate comes from an unknown authority"],
        );
        // What the file of the configuration says meanwhile is nobody's business but a reload's.
        server.write_config(&config(
            &https,
            &table,
            "request_headers = { \"X-New\" = \"1\" }",
        ));
        put("ca.pem", &authority, "ca.pem");
        wait_until("the authority is believed", PATIENCE, || {
            server.connect().get("/");
            server
                .stderr()
                .contains("it refuses our client certificate")
        });
        // A key comes after its certificate.
        put("own.pem", &clients, "client.pem");
        put("own.key", &clients, "client.key");
        let is_good = || server.connect().get("/").text() == "true";
        wait_until("the client certificate is shown", PATIENCE, is_good);
        assert!(!backend.last().has("X-New"));
        let status = server.status();
        assert_eq!(status["last_change"]["kind"], "refresh");
        let before = status["epoch"].as_u64().unwrap();
        // What is broken changes nothing, and is said.
        fs::write(file("ca.pem"), "nothing").unwrap();
        wait_until("a warning", PATIENCE, || {
            server
                .stderr()
                .contains("what connections were made by before goes on")
        });
        assert!(is_good());
        assert_eq!(server.status()["epoch"], before);
        put("ca.pem", &authority, "ca.pem");
        server.ask_must("upgrade");
        wait_until("after an upgrade", PATIENCE, is_good);
    });
}
