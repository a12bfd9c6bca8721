//! Cold files under TLS, past the page cache (`direct`).

use std::io::Write as _;

use super::{BOTH, Client, Pem, site, trusting};
use crate::static_files::direct::{cold, counted, evict, tree_on_disk};
use crate::support::{PATIENCE, Setup, noise, on_both, read_response, resident, wait_until};

const NAME: &str = "a.example";
const MIB: usize = 1 << 20;

#[test]
fn a_cold_file_is_encrypted_from_where_the_disk_has_put_it() {
    on_both(|engine| {
        let Some(tree) = tree_on_disk() else { return };
        let pem = Pem::new(&tree, "a", &[NAME]);
        let content = noise(3 * MIB + 4097);
        let sizes = [MIB, 2 * MIB - 513, content.len()];
        for size in sizes {
            cold(&tree, &format!("{size}.bin"), &content[..size]);
        }
        let config = site(NAME, &tree, &pem.line("")) + "direct = true\n";
        let server = Setup::run(engine, &config).start();
        let mut client = Client::connect(&server, &trusting(&[&pem], BOTH), NAME);
        for size in sizes {
            let (head, body) = client.get(NAME, &format!("/{size}.bin"));
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert!(body == content[..size], "{size} bytes differ");
            let resident = resident(&tree.path(&format!("{size}.bin")));
            assert!(resident < size / 2, "{resident} of {size} are in memory");
        }
        assert_eq!(counted(&server, "transfers"), sizes.len() as u64);
        assert!(counted(&server, "read_bytes") >= sizes.iter().sum::<usize>() as u64);
        // A part, of which neither end is one of a block.
        let name = format!("{}.bin", content.len());
        evict(&tree, &name);
        let range = MIB - 7..2 * MIB + 99;
        let request = format!(
            "GET /{name} HTTP/1.1\r\nHost: {NAME}\r\nRange: bytes={}-{}\r\n\r\n",
            range.start,
            range.end - 1
        );
        client.send(request.as_bytes());
        let (head, body) = client.response();
        assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
        assert!(body == content[range]);
    });
}

#[test]
fn a_client_that_takes_nothing_holds_no_buffer_and_gets_all_of_it_later() {
    on_both(|engine| {
        let Some(tree) = tree_on_disk() else { return };
        let pem = Pem::new(&tree, "a", &[NAME]);
        // More than both sockets have room for.
        let content = noise(24 * MIB);
        cold(&tree, "file", &content);
        let config = site(NAME, &tree, &pem.line("")) + "direct = true\n";
        let server = Setup::run(engine, &config).start();
        let mut client = Client::connect(&server, &trusting(&[&pem], BOTH), NAME);
        write!(client.0, "GET /file HTTP/1.1\r\nHost: {NAME}\r\n\r\n").unwrap();
        wait_until("the buffer was given back", PATIENCE, || {
            counted(&server, "given_back") > 0
        });
        assert!(read_response(&mut client.0).1 == content);
    });
}
